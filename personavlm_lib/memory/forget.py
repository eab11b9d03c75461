"""Forgetting: a memory, a turn, a session, a name, a period or everything, and every trace of it.

What is named leads to turns: those turns are forgotten, and whatever was derived from any of them. Semantic memories
and episodes that others had a part in are dropped too, for only a model could write them anew. Core and procedural
memory lose the entries whose words come from a forgotten turn, in every version, and keep the rest. The personality is
computed anew from the observations that are left (`evolve`, with the paper's skipping). Nothing that stays names a
turn that is gone. What a reply took over from a neighbouring turn of its context without naming it is not traced:
forget a name to reach every mention.
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

from personavlm_lib.memory.personality import evolve
from personavlm_lib.memory.records import (
    BigFive,
    CoreMemory,
    PersonalityState,
    ProceduralMemory,
    Receipt,
    Record,
    split_sessions,
)
from personavlm_lib.memory.store import KINDS, MemoryStore
from personavlm_lib.memory.versions import diff, entries, with_entries

IDS = {"semantic": "semantic", "episode": "episodic"}  # as `Retrieved.ids` names them
VERSIONS = ("core", "procedural")
# scripts without spaces between words: there a name may have letters on both sides
LETTER = r"[^\W\u3040-\u9fff\uac00-\ud7af]"


@dataclass
class _Doomed:
    """What was named, as far as it is found: turns, rows of other kinds, and entries of core and procedural memory."""

    turns: set[int] = field(default_factory=set)
    rows: set[tuple[str, int]] = field(default_factory=set)
    keys: set[tuple[str, str, str]] = field(default_factory=set)  # (kind, block, key)

    def row(self, kind: str, row: int, record: Record) -> None:
        self.rows.add((kind, row))
        self.turns |= set(record.sources)

    def entry(self, kind: str, version: CoreMemory | ProceduralMemory, at: tuple[str, str]) -> None:
        self.keys.add((kind, *at))
        self.turns |= set(version.origins[at[0]][at[1]])


def forget(
    store: MemoryStore,
    memory: str | None = None,
    turn: int | None = None,
    session: int | None = None,
    name: str | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    everything: bool = False,
) -> Receipt:
    """Forgets what exactly one of these names, and returns the receipt, which the store keeps (`MemoryView.receipts`).

    `memory`: "semantic:3", "episode:3", "core:city", "procedural:yoga"; with it go the turns that it comes from.
    `turn`: its index. `session`: the index of any of its turns. `name`: a person or an object; every turn, memory and
    entry that says it, as a word, in any case. `start` and `end`: what happened from the one to the other (either may
    be open); of episodes also those that reach into it. When this returns, no byte of it stands in the store's folder;
    should the process die before, the next opening finishes it. LookupError for what is not there, ValueError for
    none or several of these and for an end before its start.
    """
    period = start is not None or end is not None
    given = {"memory": memory is not None, "turn": turn is not None, "session": session is not None}
    given |= {"name": name is not None, "period": period, "everything": everything}
    asked = [what for what, wanted in given.items() if wanted]
    if len(asked) != 1:
        raise ValueError(f"forget one thing at a time, of {', '.join(given)}; got {', '.join(asked) or 'none'}")
    if name is not None and not name.strip():
        raise ValueError("the name to forget is empty")
    with store.transaction():
        rows = {kind: store.rows(kind) for kind in KINDS if kind != "receipts"}
        if memory is not None:
            doomed = _memory(rows, memory)
        elif turn is not None or session is not None:
            doomed = _turns(rows, turn, session)
        elif name is not None:
            doomed = _name(rows, name.strip())
        elif period:
            doomed = _period(rows, start or datetime.min, end or datetime.max)
        else:
            doomed = _Doomed({row for row, _ in rows["turns"]}, {(k, row) for k in rows for row, _ in rows[k]})
        receipt = _carry_out(store, rows, doomed, asked[0])
    images = store.scrub()
    return replace(receipt, counts=receipt.counts | {"images": images})


def _memory(rows: dict[str, list], name: str) -> _Doomed:
    kind, _, rest = name.partition(":")
    doomed = _Doomed()
    for row, record in rows.get(IDS.get(kind, kind), []):
        if kind in IDS and str(row) == rest:
            doomed.row(IDS[kind], row, record)
        elif kind in VERSIONS:
            for at in entries(record):
                if at[1] == rest:
                    doomed.entry(kind, record, at)
    if doomed == _Doomed():
        raise LookupError(f"no memory {name!r}: name it as semantic:3, episode:3, core:KEY or procedural:KEY")
    return doomed


def _turns(rows: dict[str, list], turn: int | None, session: int | None) -> _Doomed:
    turns = [record for _, record in rows["turns"]]
    found = [[t] for t in turns] if turn is not None else split_sessions(turns)
    index = turn if turn is not None else session
    for group in found:
        if index in (indices := {t.index for t in group}):
            return _Doomed(indices)
    raise LookupError(f"no turn {index}: it was never there, or is forgotten")


def _name(rows: dict[str, list], name: str) -> _Doomed:
    said = re.compile(rf"(?<!{LETTER}){re.escape(name)}(?!{LETTER})", re.IGNORECASE).search
    doomed = _Doomed()
    for kind, records in rows.items():
        for row, record in records:
            if kind in VERSIONS:
                for at, value in entries(record).items():
                    if said(at[1]) or said(value):
                        doomed.entry(kind, record, at)
            elif said(_words(record)):
                doomed.row(kind, row, record)
    return doomed


def _words(record: Record) -> str:
    concept = getattr(record, "concept", None)
    texts = [getattr(record, part, "") for part in ("user", "assistant", "content", "summary", "keywords", "raw")]
    return "\n".join([*texts, *((concept.description, concept.class_name) if concept else ())])


def _period(rows: dict[str, list], start: datetime, end: datetime) -> _Doomed:
    if end < start:
        raise ValueError(f"the period to forget ends at {end}, before it starts at {start}")
    end = end.replace(second=59, microsecond=999_999)  # periods are written to the minute, as in a search
    doomed = _Doomed()
    for kind in ("turns", "semantic", "episodic"):
        for row, record in rows[kind]:
            if start <= record.happened_from and record.happened_to <= end:
                doomed.row(kind, row, record)
            elif record.happened_from <= end and record.happened_to >= start:
                doomed.rows.add((kind, row))  # it reaches beyond the period: what it was told of there may stay
    return doomed


def _carry_out(store: MemoryStore, rows: dict[str, list], doomed: _Doomed, asked: str) -> Receipt:
    """Deletes and rewrites rows, renews pending work and leaves the receipt; the disk is `store.scrub`'s."""
    counts: Counter[str] = Counter()
    gone = {("turns", turn) for turn in doomed.turns} | doomed.rows
    for kind in ("semantic", "episodic", "refused", "personality"):
        gone |= {(kind, row) for row, record in rows[kind] if doomed.turns.intersection(record.sources)}
    for kind in VERSIONS:
        gone |= {(kind, row) for row in _edit_versions(store, kind, rows[kind], doomed, counts)}
    ids = {kind: tuple(row for row, _ in rows[kind] if (kind, row) in gone) for kind in rows}
    for kind, deleted in ids.items():
        store.delete(kind, deleted)
        counts[kind] += len(deleted)
    counts["pending"] = store.drop_pending(doomed.turns)
    renewed = ("personality",) if _renew_personality(store, rows["personality"], set(ids["personality"])) else ()
    named = {kind: ids[kind] for kind in ("turns", "semantic", "episodic")}
    return store.add_receipt(Receipt(asked, named, {k: n for k, n in counts.items() if n}, renewed, datetime.now()))


def _edit_versions(
    store: MemoryStore, kind: str, versions: list, doomed: _Doomed, counts: Counter[str]
) -> Iterable[int]:
    """Rewrites what is left of each version, and names the rows of those that nothing is left of."""
    before = None
    for row, version in sorted(versions, key=lambda pair: pair[1].known_from):
        if (kind, row) in doomed.rows:
            yield row
            continue
        kept = {
            at: value
            for at, value in entries(version).items()
            if (kind, *at) not in doomed.keys and not doomed.turns.intersection(version.origins[at[0]][at[1]])
        }
        counts[f"{kind} entries"] += len(entries(version)) - len(kept)
        origins = {b: {k: t for k, t in keys.items() if (b, k) in kept} for b, keys in version.origins.items()}
        sources = tuple(turn for turn in version.sources if turn not in doomed.turns)
        left = replace(with_entries(version, kept), sources=sources, origins=origins)
        left = replace(left, edits=diff(before, left))
        if not left.edits and (sources != version.sources or kept != entries(version)):
            yield row
        else:
            if left != version:
                store.rewrite(kind, row, left)
            before = left


def _renew_personality(store: MemoryStore, states: list[tuple[int, PersonalityState]], gone: set[int]) -> bool:
    """The moving average over what is left, from the first forgotten observation on."""
    if not gone or len(gone) == len(states):
        return False
    profile, changed = BigFive.neutral(), False
    for row, state in states:
        if row in gone:
            changed = True
            continue
        if changed:
            profile = evolve(profile, state.observed, state.m) if state.observed else profile
            store.rewrite("personality", row, replace(state, profile=profile))
        profile = profile if changed else state.profile
    return True
