"""What was known at a moment: the tables of a memory, and a read-only view of them (Appendix A.3)."""

from bisect import bisect_left
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from operator import attrgetter

from personavlm_lib.memory.encoder import Encoder
from personavlm_lib.memory.records import (
    CoreMemory,
    Episode,
    ForgetReceipt,
    PersonalityState,
    ProceduralMemory,
    RejectedUpdate,
    SemanticMemory,
    Turn,
)
from personavlm_lib.memory.timeline import Timeline

KINDS = {
    "turns": Turn,
    "semantic": SemanticMemory,
    "episodic": Episode,
    "core": CoreMemory,
    "procedural": ProceduralMemory,
    "personality": PersonalityState,
    "rejected": RejectedUpdate,
    "receipts": ForgetReceipt,
}
HIDEABLE = ("core", "semantic", "episodic", "procedural", "personality")
TIMELINES = (
    "turns",
    "semantic",
    "episodic",
)  # these are searched by likeness; the others are dated versions


@dataclass(frozen=True)
class Table:
    """All records of one type in order of time, and what searches them, shared with the tables that grow from it."""

    records: tuple
    timeline: Timeline | None = None


@dataclass(frozen=True)
class MemoryView:
    """What was known at `time`: read-only, and unmoved by what the store learns later. Lists are oldest first."""

    time: datetime
    tables: dict[str, Table]
    encoder: Encoder

    def table(self, kind: str) -> Table:
        """All rows of "turns", "semantic" or "episodic"; who searches must leave out those not known at `time`."""
        return self.tables[kind]

    def turn(self, index: int) -> Turn:
        """The turn with that index. LookupError for one that was never there, or was forgotten."""
        turns = self.tables["turns"].records
        row = bisect_left(turns, index, key=attrgetter("index"))
        if row == len(turns) or turns[row].index != index:
            raise LookupError(f"no turn {index}: it was never there, or was forgotten")
        return turns[row]

    def without(self, *kinds: str) -> "MemoryView":
        """The view of an ablation. ValueError for anything but core, semantic, episodic, procedural, personality."""
        if unknown := set(kinds) - set(HIDEABLE):
            raise ValueError(
                f"no memory type {', '.join(sorted(unknown))}; choose from {', '.join(HIDEABLE)}"
            )
        return replace(self, tables=self.tables | dict.fromkeys(kinds, Table(())))

    def _known(self, kind: str) -> list:
        return [record for record in self.tables[kind].records if record.known_from <= self.time]

    @cached_property
    def turns(self) -> list[Turn]:
        return self._known("turns")

    @cached_property
    def semantic(self) -> list[SemanticMemory]:
        return self._known("semantic")

    def of_kind(self, kind: str) -> list[SemanticMemory]:
        """The semantic memories of one of `SEMANTIC_KINDS`."""
        return [memory for memory in self.semantic if memory.kind == kind]

    @cached_property
    def episodes(self) -> list[Episode]:
        return self._known("episodic")

    @cached_property
    def personality_history(self) -> list[PersonalityState]:
        return self._known("personality")

    @property
    def rejected(self) -> list[RejectedUpdate]:
        return self._known("rejected")

    @property
    def receipts(self) -> list[ForgetReceipt]:
        return self._known("receipts")

    @property
    def core(self) -> CoreMemory | None:
        return next(reversed(self._known("core")), None)

    @property
    def procedural(self) -> ProceduralMemory | None:
        return next(reversed(self._known("procedural")), None)

    @property
    def personality(self) -> PersonalityState | None:
        return next(reversed(self.personality_history), None)

    @cached_property
    def procedural_since(self) -> dict[str, datetime]:
        """Key of each habit or goal -> since when it has been known in its present words."""
        since: dict[str, datetime] = {}
        before: dict[str, str] = {}  # the entries of the version before
        for version in self._known("procedural"):
            entries = version.entries.items()
            since = {
                k: since[k] if before.get(k) == text else version.known_from for k, text in entries
            }
            before = version.entries
        return since
