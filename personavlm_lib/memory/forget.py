"""Forget a memory, a turn, a session, a name, a period or everything, with all of its traces.

The selected memories determine source turns: these turns and everything derived from them are
deleted. Semantic memories and episodes that other turns contributed to are deleted too, since only
a model could rewrite them. Core and procedural memory lose the entries whose words come from a
forgotten turn, in every version, and keep the rest. The personality is recomputed from the
remaining observations (`evolve`, with the paper's skipping). No remaining record refers to a
deleted turn.

One kind of trace is not followed: words that a model took from another turn in its context without
naming that turn as a source. To delete every mention of a person or thing, forget its name.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import cast

from personavlm_lib.memory.names import name_finder
from personavlm_lib.memory.personality import evolve
from personavlm_lib.memory.records import (
    BigFive,
    CoreMemory,
    Episode,
    ForgetReceipt,
    PersonalityState,
    ProceduralMemory,
    Record,
    SemanticMemory,
    Turn,
    as_utc,
    split_sessions,
)
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.memory.versions import diff_versions, entries, with_entries
from personavlm_lib.memory.view import KINDS

VERSIONED = ("core", "procedural")
ROW_SELECTORS = {"turn": "turns", "semantic": "semantic", "episode": "episodic"}
DERIVED = ("semantic", "episodic", "rejected", "personality")
TEXT_FIELDS = ("user", "assistant", "content", "summary", "keywords", "raw", "reason")

Rows = dict[str, list[tuple[int, Record]]]  # kind -> (row id, record), by id
Version = CoreMemory | ProceduralMemory


@dataclass
class Selection:
    """What to forget: rows as (kind, id), and versioned entries as (kind, block, key)."""

    rows: set[tuple[str, int]] = field(default_factory=set)
    entries: set[tuple[str, str, str]] = field(default_factory=set)


def forget(
    store: MemoryStore, what: str = "", start: datetime | None = None, end: datetime | None = None
) -> ForgetReceipt:
    """Forget `what`, or everything that happened from `start` to `end` (either end may be open).

    `what` is "turn:4", "session:4" (the session of turn 4), "semantic:3", "episode:3", "core:city",
    "procedural:yoga" (a memory is forgotten together with the turns it comes from), "name:Miso" (a
    person or an object: every turn, memory and entry with that name, as `names.name_finder` finds
    it) or "everything". `preview_forget` tells what would go.

    Returns the receipt, which the store keeps (`MemoryView.receipts`). When this returns, no byte
    of the forgotten content is left in the store's folder; after a crash, the next opening of the
    store completes the work. Raises LookupError if `what` does not exist, and ValueError unless
    exactly one of `what` and a period is given, or if the period ends before it starts.
    """
    with store.transaction():
        receipt = _forget_rows(store, what, start, end)
    image_count = store.scrub()
    return replace(receipt, counts=receipt.counts | {"images": image_count})


def preview_forget(
    store: MemoryStore, what: str = "", start: datetime | None = None, end: datetime | None = None
) -> ForgetReceipt:
    """The receipt that `forget` would return, without the number of images; nothing is deleted.

    Its `ids` name the turns and memories that would go. Raises the same exceptions.
    """
    try:
        with store.transaction():
            receipt = _forget_rows(store, what, start, end)
            raise _PreviewEnds
    except _PreviewEnds:
        return receipt


class _PreviewEnds(Exception):
    """Rolls back the transaction of a preview."""


def _forget_rows(
    store: MemoryStore, what: str, start: datetime | None, end: datetime | None
) -> ForgetReceipt:
    has_period = bool(start or end)
    if bool(what) == has_period:
        raise ValueError(f"name what to forget, or a period; got {what!r} and {start} to {end}")
    start = as_utc(start) if start else None
    end = as_utc(end) if end else None
    rows = {kind: store.rows(kind) for kind in KINDS if kind != "receipts"}
    if has_period:
        selector = "period"
        selection = _select_period(rows, start or datetime.min, end or datetime.max)
    else:
        selector = what.partition(":")[0]
        selection = _select(rows, what)
    return _delete_traces(store, rows, selection, selector)


def _select(rows: Rows, what: str) -> Selection:
    selector, _, name = what.partition(":")
    if what == "everything":
        return Selection(rows=_all_rows(rows))
    selection = Selection()
    if selector == "name" and name.strip():
        selection = _select_name(rows, name.strip())
    elif selector in VERSIONED:
        selection.entries = _entries_with_key(rows, selector, name)
    elif selector == "session":
        selection.rows = _session_rows(rows, name)
    elif selector in ROW_SELECTORS:
        kind = ROW_SELECTORS[selector]
        selection.rows = {(kind, row) for row, _ in rows[kind] if str(row) == name}
    if not selection.rows and not selection.entries:
        raise LookupError(
            f"{what!r} does not exist: name a turn, session, semantic, episode, core, procedural "
            "or name"
        )
    return selection


def _all_rows(rows: Rows) -> set[tuple[str, int]]:
    selected: set[tuple[str, int]] = set()
    for kind, pairs in rows.items():
        selected.update((kind, row) for row, _ in pairs)
    return selected


def _entries_with_key(rows: Rows, kind: str, name: str) -> set[tuple[str, str, str]]:
    selected = set()
    for _, version in _versions(rows, kind):
        for block, key in entries(version):
            if key == name:
                selected.add((kind, block, key))
    return selected


def _session_rows(rows: Rows, turn_name: str) -> set[tuple[str, int]]:
    """The turns of the session that the named turn belongs to."""
    turns = [cast(Turn, record) for _, record in rows["turns"]]
    for session in split_sessions(turns):
        indices = [turn.index for turn in session]
        if turn_name in map(str, indices):
            return {("turns", index) for index in indices}
    return set()


def _select_name(rows: Rows, name: str) -> Selection:
    """All rows and entries that contain `name`."""
    has_name = name_finder(name)
    selection = Selection()
    for kind, pairs in rows.items():
        for row, record in pairs:
            if any(has_name(text) for text in _texts(record)):
                selection.rows.add((kind, row))
    for kind in VERSIONED:
        for _, version in _versions(rows, kind):
            for (block, key), value in entries(version).items():
                if has_name(key) or has_name(value):
                    selection.entries.add((kind, block, key))
    return selection


def _texts(record: Record) -> list[str]:
    """The texts of a record, except for entries of core and procedural memory."""
    texts = [getattr(record, name, "") for name in TEXT_FIELDS]
    if isinstance(record, SemanticMemory) and record.concept:
        texts.append(record.concept.description)
        texts.append(record.concept.class_name)
    return texts


def _select_period(rows: Rows, start: datetime, end: datetime) -> Selection:
    if end < start:
        raise ValueError(f"the period to forget ends at {end}, before it starts at {start}")
    # Periods are written to the minute, as in a search: include the whole last minute.
    end = end.replace(second=59, microsecond=999_999)
    selection = Selection()
    for kind in ("turns", "semantic", "episodic"):
        for row, record in rows[kind]:
            assert isinstance(record, Turn | SemanticMemory | Episode)
            if start <= record.happened_from and record.happened_to <= end:
                selection.rows.add((kind, row))
    return selection


def _delete_traces(
    store: MemoryStore, rows: Rows, selection: Selection, selector: str
) -> ForgetReceipt:
    """Delete and rewrite rows, drop pending updates, and store the receipt.

    Removing the deleted bytes from disk is the task of `MemoryStore.scrub`.
    """
    turns = _source_turns(rows, selection)
    deleted = selection.rows | _traces(rows, turns)

    counts: Counter[str] = Counter()
    for kind in VERSIONED:
        obsolete, entry_count = _rewrite_versions(
            store, kind, _versions(rows, kind), selection, turns
        )
        deleted.update((kind, row) for row in obsolete)
        counts[f"{kind} entries"] = entry_count

    ids: dict[str, tuple[int, ...]] = {}
    for kind, pairs in rows.items():
        ids[kind] = tuple(row for row, _ in pairs if (kind, row) in deleted)
        store.delete(kind, ids[kind])
        counts[kind] = len(ids[kind])
    counts["pending"] = store.database.drop_pending(turns)

    states = cast(list[tuple[int, PersonalityState]], rows["personality"])
    recomputed = _rewrite_personality(store, states, ids["personality"])
    receipt = ForgetReceipt(
        asked=selector,
        ids={kind: ids[kind] for kind in ("turns", "semantic", "episodic")},
        counts={name: count for name, count in counts.items() if count},
        renewed=("personality",) if recomputed else (),
        known_from=datetime.now(UTC).replace(tzinfo=None),
    )
    store.append("receipts", receipt)
    return receipt


def _source_turns(rows: Rows, selection: Selection) -> set[int]:
    """Indices of the turns that the selected rows and entries come from."""
    turns: set[int] = set()
    for kind, pairs in rows.items():
        for row, record in pairs:
            if (kind, row) in selection.rows:
                turns.update(_sources(record))
    for kind in VERSIONED:
        for _, version in _versions(rows, kind):
            for block, key in entries(version):
                if (kind, block, key) in selection.entries:
                    turns.update(version.origins[block][key])
    return turns


def _traces(rows: Rows, turns: set[int]) -> set[tuple[str, int]]:
    """The rows of `turns`, and the rows derived from any of them."""
    traces = {("turns", turn) for turn in turns}
    for kind in DERIVED:
        for row, record in rows[kind]:
            if turns.intersection(_sources(record)):
                traces.add((kind, row))
    return traces


def _rewrite_versions(
    store: MemoryStore,
    kind: str,
    versions: Iterable[tuple[int, Version]],
    selection: Selection,
    turns: set[int],
) -> tuple[list[int], int]:
    """Remove forgotten entries and turns from every version.

    Returns the ids of the versions to delete, because they were selected or no longer differ from
    the previous one, and the number of removed entries.
    """
    obsolete = []
    removed_count = 0
    previous: Version | None = None
    for row, version in sorted(versions, key=lambda pair: pair[1].known_from):
        remaining = _without_forgotten(kind, version, selection, turns)
        remaining = replace(remaining, edits=diff_versions(previous, remaining))
        entry_count = len(entries(version))
        lost_entries = entry_count - len(entries(remaining))
        removed_count += lost_entries

        lost_something = lost_entries > 0 or remaining.sources != version.sources
        if (kind, row) in selection.rows or (lost_something and not remaining.edits):
            obsolete.append(row)
            continue
        previous = remaining
        if remaining != version:
            store.rewrite(kind, row, remaining)
    return obsolete, removed_count


def _without_forgotten(
    kind: str, version: Version, selection: Selection, turns: set[int]
) -> Version:
    """The version without selected entries, and without entries, sources or origins in `turns`."""
    remaining = {}
    origins: dict[str, dict[str, tuple[int, ...]]] = {block: {} for block in version.origins}
    for (block, key), value in entries(version).items():
        origin = version.origins[block][key]
        if (kind, block, key) in selection.entries or turns.intersection(origin):
            continue
        remaining[block, key] = value
        origins[block][key] = origin
    sources = tuple(turn for turn in version.sources if turn not in turns)
    return replace(with_entries(version, remaining), sources=sources, origins=origins)


def _rewrite_personality(
    store: MemoryStore, states: list[tuple[int, PersonalityState]], deleted: tuple[int, ...]
) -> bool:
    """Recompute the moving average from the first deleted state on. Returns whether any changed."""
    if not deleted:
        return False
    profile = BigFive.neutral()
    changed = False
    for row, state in states:
        if row in deleted:
            continue
        if row < deleted[0]:
            profile = state.profile
            continue
        if state.observed:
            profile = evolve(profile, state.observed, state.m)
        store.rewrite("personality", row, replace(state, profile=profile))
        changed = True
    return changed


def _versions(rows: Rows, kind: str) -> list[tuple[int, Version]]:
    return cast(list[tuple[int, Version]], rows[kind])


def _sources(record: Record) -> tuple[int, ...]:
    assert not isinstance(record, ForgetReceipt)
    return record.sources
