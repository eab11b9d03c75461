"""The tables of a memory and a read-only view of them as of a moment (Appendix A.3)."""

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
    Record,
    RejectedUpdate,
    SemanticMemory,
    Turn,
)
from personavlm_lib.memory.timeline import Timeline

KINDS: dict[str, type[Record]] = {
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
TIMELINES = ("turns", "semantic", "episodic")  # searchable; the others are dated versions


@dataclass(frozen=True)
class Table:
    """All records of one kind in order of time, and the timeline that searches them.

    The timeline is shared with all tables that grow from this one.
    """

    records: tuple
    timeline: Timeline | None = None


@dataclass(frozen=True)
class MemoryView:
    """The memory as known at `time`: read-only and unaffected by later writes.

    Lists are in order of time, except for `turns`.
    """

    time: datetime
    tables: dict[str, Table]
    encoder: Encoder

    def table(self, kind: str) -> Table:
        """All rows of "turns", "semantic" or "episodic", also those not yet known at `time`."""
        return self.tables[kind]

    def turn(self, index: int) -> Turn:
        """The turn with that index. Raises LookupError if it does not exist or was forgotten."""
        turns = self.tables["turns"].records
        row = bisect_left(turns, index, key=attrgetter("index"))
        if row < len(turns) and turns[row].index == index:
            return turns[row]
        for turn in turns:  # the search is misled where turns are not in order of time
            if turn.index == index:
                return turn
        raise LookupError(f"turn {index} does not exist: it was never stored or was forgotten")

    def without(self, *kinds: str) -> "MemoryView":
        """The view of an ablation, with these memory types empty.

        Raises ValueError for anything but core, semantic, episodic, procedural and personality.
        """
        unknown = set(kinds) - set(HIDEABLE)
        if unknown:
            names = ", ".join(sorted(unknown))
            choices = ", ".join(HIDEABLE)
            raise ValueError(f"unknown memory type {names}; choose from {choices}")
        hidden = dict.fromkeys(kinds, Table(()))
        return replace(self, tables=self.tables | hidden)

    def _known(self, kind: str) -> list:
        return [record for record in self.tables[kind].records if record.known_from <= self.time]

    @cached_property
    def turns(self) -> list[Turn]:
        """In the order in which they were stored."""
        return sorted(self._known("turns"), key=attrgetter("index"))

    @cached_property
    def semantic(self) -> list[SemanticMemory]:
        return self._known("semantic")

    def of_kind(self, kind: str) -> list[SemanticMemory]:
        """The semantic memories of one kind, one of `SEMANTIC_KINDS`."""
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
        """The version that is in force at `time`."""
        versions = self._known("core")
        return versions[-1] if versions else None

    @property
    def procedural(self) -> ProceduralMemory | None:
        """The version that is in force at `time`."""
        versions = self._known("procedural")
        return versions[-1] if versions else None

    @property
    def personality(self) -> PersonalityState | None:
        """The latest state."""
        history = self.personality_history
        return history[-1] if history else None

    @cached_property
    def procedural_since(self) -> dict[str, datetime]:
        """Key of each habit or goal -> the time from which its present words are known."""
        since: dict[str, datetime] = {}
        before: dict[str, str] = {}  # the entries of the version before
        for version in self._known("procedural"):
            updated = {}
            for key, sentence in version.entries.items():
                unchanged = before.get(key) == sentence
                updated[key] = since[key] if unchanged else version.known_from
            since = updated
            before = version.entries
        return since
