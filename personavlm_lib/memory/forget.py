"""Forgetting: a memory, a turn, a session, a name, a period or everything, and every trace of it.

What is named leads to turns: those are forgotten, and whatever was derived from any of them. Semantic memories and
episodes that other turns had a part in are dropped too, for only a model could write them anew. Core and procedural
memory lose the entries whose words come from a forgotten turn, in every version, and keep the rest. The personality is
computed anew from the observations that are left (`evolve`, with the paper's skipping). Nothing that stays names a
turn that is gone. What a reply took over from a neighbouring turn of its context without naming it is not traced:
forget a name to reach every mention.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime

from personavlm_lib.memory.personality import evolve
from personavlm_lib.memory.records import BigFive, ForgetReceipt, Record, split_sessions
from personavlm_lib.memory.store import KINDS, MemoryStore
from personavlm_lib.memory.versions import diff_versions, entries, with_entries

VERSIONS = ("core", "procedural")
TEXTS = ("user", "assistant", "content", "summary", "keywords", "raw", "description", "class_name")
# scripts without spaces between words: there a name may have letters on both sides
LETTER = r"[^\W\u3040-\u9fff\uac00-\ud7af]"

Rows = dict[str, list[tuple[int, Record]]]
Doomed = set[tuple]  # (kind, row), and of an entry of core or procedural memory (kind, block, key)


def forget(
    store: MemoryStore, what: str = "", start: datetime | None = None, end: datetime | None = None
) -> ForgetReceipt:
    """Forgets what is named, or what happened from `start` to `end` (either may be open); returns the receipt, which
    the store keeps (`MemoryView.receipts`).

    `what` is "turn:4", "session:4" (that of turn 4), "semantic:3", "episode:3", "core:city", "procedural:yoga" (a
    memory goes with the turns that it comes from), "name:Miso" (a person or an object: every turn, memory and entry
    with that word, in any case) or "everything". When this returns, no byte of it stands in the store's folder; should
    the process die before, the next opening finishes it. LookupError for what is not there, ValueError for what cannot
    be read, for both or neither of a name and a period, and for an end before its start.
    """
    if bool(what) == bool(start or end):
        raise ValueError(f"name what to forget, or a period; got {what!r} and {start} to {end}")
    with store.transaction():
        rows = {kind: store.rows(kind) for kind in KINDS if kind != "receipts"}
        named = (
            _named(rows, what)
            if what
            else _period(rows, start or datetime.min, end or datetime.max)
        )
        receipt = _carry_out(store, rows, named, what.partition(":")[0] or "period")
    return replace(receipt, counts=receipt.counts | {"images": store.scrub()})


def _named(rows: Rows, what: str) -> Doomed:
    kind, _, name = what.partition(":")
    if what == "everything":
        return {(kind, row) for kind in rows for row, _ in rows[kind]}
    if kind == "name" and name.strip():
        return _said(rows, name.strip())
    found: Doomed = set()
    if kind in VERSIONS:
        found = {
            (kind, *at) for _, version in rows[kind] for at in entries(version) if at[1] == name
        }
    elif kind == "session":
        sessions = [
            {str(turn.index) for turn in s}
            for s in split_sessions(turn for _, turn in rows["turns"])
        ]
        found = {
            ("turns", int(index)) for session in sessions if name in session for index in session
        }
    elif kind := {"turn": "turns", "semantic": "semantic", "episode": "episodic"}.get(kind, ""):
        found = {(kind, row) for row, _ in rows[kind] if str(row) == name}
    if not found:
        raise LookupError(
            f"{what!r} is not there: name a turn, session, semantic, episode, core, procedural or name"
        )
    return found


def _said(rows: Rows, name: str) -> Doomed:
    said = re.compile(rf"(?<!{LETTER}){re.escape(name)}(?!{LETTER})", re.IGNORECASE).search
    found: Doomed = set()
    for kind, row, record in ((kind, *pair) for kind, pairs in rows.items() for pair in pairs):
        holders = (record, getattr(record, "concept", None))
        if any(said(getattr(holder, part, "")) for holder in holders for part in TEXTS):
            found.add((kind, row))
        if kind in VERSIONS:
            found |= {
                (kind, *at) for at, value in entries(record).items() if said(at[1]) or said(value)
            }
    return found


def _period(rows: Rows, start: datetime, end: datetime) -> Doomed:
    if end < start:
        raise ValueError(f"the period to forget ends at {end}, before it starts at {start}")
    end = end.replace(
        second=59, microsecond=999_999
    )  # periods are written to the minute, as in a search
    return {
        (kind, row)
        for kind in ("turns", "semantic", "episodic")
        for row, record in rows[kind]
        if start <= record.happened_from and record.happened_to <= end
    }


def _carry_out(store: MemoryStore, rows: Rows, named: Doomed, asked: str) -> ForgetReceipt:
    """Deletes and rewrites rows, renews pending work and leaves the receipt; the disk is `store.scrub`'s."""
    turns = {
        turn
        for kind in rows
        for row, record in rows[kind]
        if (kind, row) in named
        for turn in record.sources
    }
    for kind in VERSIONS:
        for _, version in rows[kind]:
            turns |= {
                t
                for at in entries(version)
                if (kind, *at) in named
                for t in version.origins[at[0]][at[1]]
            }
    gone = named | {("turns", turn) for turn in turns}
    for kind in ("semantic", "episodic", "rejected", "personality"):
        gone |= {(kind, row) for row, record in rows[kind] if turns.intersection(record.sources)}
    counts: Counter[str] = Counter()
    for kind in VERSIONS:
        gone |= {
            (kind, row) for row in _edit_versions(store, kind, rows[kind], named, turns, counts)
        }
    ids = {kind: tuple(row for row, _ in rows[kind] if (kind, row) in gone) for kind in rows}
    for kind, deleted in ids.items():
        store.delete(kind, deleted)
        counts[kind] += len(deleted)
    counts["pending"] = store.drop_pending(turns)
    renewed = (
        ("personality",)
        if _renew_personality(store, rows["personality"], ids["personality"])
        else ()
    )
    shown = {kind: ids[kind] for kind in ("turns", "semantic", "episodic")}
    return store.append(
        "receipts", ForgetReceipt(asked, shown, dict(+counts), renewed, datetime.now())
    )


def _edit_versions(
    store: MemoryStore,
    kind: str,
    versions: list,
    named: Doomed,
    turns: set[int],
    counts: Counter[str],
) -> Iterator[int]:
    """Rewrites what is left of each version, and names the rows of those that nothing is left of."""
    before = None
    for row, version in sorted(versions, key=lambda pair: pair[1].known_from):
        old, origins = entries(version), version.origins
        kept = {
            at: v
            for at, v in old.items()
            if (kind, *at) not in named and not turns & {*origins[at[0]][at[1]]}
        }
        counts[f"{kind} entries"] += len(old) - len(kept)
        origins = {
            block: {k: t for k, t in keys.items() if (block, k) in kept}
            for block, keys in origins.items()
        }
        sources = tuple(turn for turn in version.sources if turn not in turns)
        left = replace(with_entries(version, kept), sources=sources, origins=origins)
        left = replace(left, edits=diff_versions(before, left))
        if (kind, row) in named or not left.edits and (sources, kept) != (version.sources, old):
            yield row
            continue
        before = left
        if left != version:
            store.rewrite(kind, row, left)


def _renew_personality(store: MemoryStore, states: list, gone: tuple[int, ...]) -> bool:
    """The moving average over what is left, from the first forgotten observation on. Whether anything changed."""
    profile, changed = BigFive.neutral(), False
    for row, state in states:
        if row in gone:
            continue
        if gone and row > gone[0]:
            profile, changed = (
                evolve(profile, state.observed, state.m) if state.observed else profile,
                True,
            )
            store.rewrite("personality", row, replace(state, profile=profile))
        profile = profile if changed else state.profile
    return changed
