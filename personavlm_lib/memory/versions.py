"""Core and procedural memory, edited entry by entry: add, change, remove (section 3.1 "CRUD", Figures 19 and 21).

The model writes the whole new version (as the figures' prompts ask); what is applied and kept is its difference from
the current one. Each entry knows the turns that its present words come from, so that forgetting finds it.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

from personavlm_lib.memory.records import CoreMemory, Edit, ProceduralMemory

MAX_KEY, MAX_VALUE, MAX_CORE = (
    80,
    1_000,
    100,
)  # ours: characters of a key and a value, entries of a core memory
BLOCKS = {CoreMemory: ("human", "persona"), ProceduralMemory: ("entries",)}

Version = TypeVar("Version", CoreMemory, ProceduralMemory)
Entries = dict[tuple[str, str], str]  # (block, key) -> value


def entries(version: Version | None) -> Entries:
    """All entries of a version (None: of no version) by block and key."""
    blocks = BLOCKS[type(version)] if version else ()
    return {
        (block, key): value for block in blocks for key, value in getattr(version, block).items()
    }


def with_entries(version: Version, kept: Entries) -> Version:
    """The version with these entries in place of its own."""
    blocks = BLOCKS[type(version)]
    return replace(
        version,
        **{b: {key: value for (own, key), value in kept.items() if own == b} for b in blocks},
    )


def diff_versions(before: Version | None, after: Version) -> tuple[Edit, ...]:
    """The edits that make `after` of `before`."""
    old, new = entries(before), entries(after)
    removed = [Edit("remove", *at) for at in old if at not in new]
    written = [
        Edit("change" if at in old else "add", *at, value)
        for at, value in new.items()
        if old.get(at) != value
    ]
    return (*removed, *written)


def apply_edits(before: Version, edits: Iterable[Edit]) -> Version:
    """`before` after the edits. ValueError for one that does not fit: what is added must be new, all else be there."""
    now = entries(before)
    for edit in edits:
        at = (edit.block, edit.key)
        if edit.op not in ("add", "change", "remove") or edit.block not in BLOCKS[type(before)]:
            raise ValueError(
                f"no edit {edit.op!r} of block {edit.block!r}; choose add, change or remove"
            )
        if (edit.op == "add") == (at in now):
            raise ValueError(
                f"cannot {edit.op} {edit.key!r}: it is {'already' if at in now else 'not'} there"
            )
        if edit.op == "remove":
            del now[at]
        else:
            now[at] = edit.value
    return with_entries(before, now)


def validate_version(before: Version | None, version: Version) -> None:
    """ValueError for what the paper's rules or our limits do not allow: a key without a value, words without end, a
    core memory that loses the user's name (A.1: mandatory; before it was told, there is none to lose)."""
    for (_, key), value in entries(version).items():
        if not key.strip() or not value.strip():
            raise ValueError(f"{key!r} has no value" if key.strip() else f"{value!r} has no key")
        if len(key) > MAX_KEY or len(value) > MAX_VALUE:
            raise ValueError(
                f"{key[:MAX_KEY]!r} is too long: keys to {MAX_KEY} characters, values to {MAX_VALUE}"
            )
    if isinstance(version, CoreMemory):
        if len(entries(version)) > MAX_CORE:
            raise ValueError(
                f"{len(entries(version))} entries of core memory, at most {MAX_CORE} are kept"
            )
        if _named(before) and not _named(version):
            raise ValueError(
                "the user's name is lost: it is a mandatory entry of core memory (A.1)"
            )


def _named(version: CoreMemory | None) -> bool:
    return any(key.casefold() == "name" for _, key in entries(version))


def link_origins(before: Version | None, version: Version, text: Callable[[int], str]) -> Version:
    """`version` with the edits that made it and the origins of its entries; `text` gives a turn's words.

    What was not edited keeps its origins. What was comes from those of `version.sources` whose turns hold its very
    words, or, where none does, from them all.
    """
    edits = diff_versions(before, version)
    edited = {(edit.block, edit.key) for edit in edits}
    words = {turn: text(turn).casefold() for turn in version.sources} if edited else {}
    origins: dict[str, dict[str, tuple[int, ...]]] = {block: {} for block in BLOCKS[type(version)]}
    for at, value in entries(version).items():
        block, key = at
        if at in edited or not before:
            holding = tuple(turn for turn in version.sources if value.casefold() in words[turn])
            origins[block][key] = holding or version.sources
        else:
            origins[block][key] = before.origins[block][key]
    return replace(version, edits=edits, origins=origins)
