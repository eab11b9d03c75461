"""Core and procedural memory, edited entry by entry (CRUD of Section 3.1; Figures 19 and 21).

The model writes a complete new version, as the prompts of these figures ask; the store saves its
difference from the current version. Each entry records the turns that its present words come from,
so that forgetting can find it.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeVar

from personavlm_lib.memory.records import CoreMemory, Edit, Origins, ProceduralMemory

# Limits of our own; the paper sets none.
MAX_KEY = 80  # characters
MAX_VALUE = 1_000  # characters
MAX_CORE = 100  # entries of a core memory
BLOCKS = {CoreMemory: ("human", "persona"), ProceduralMemory: ("entries",)}

Version = TypeVar("Version", bound=CoreMemory | ProceduralMemory)
Entries = dict[tuple[str, str], str]  # (block, key) -> value


def entries(version: CoreMemory | ProceduralMemory | None) -> Entries:
    """All entries of a version by block and key; none for None."""
    values: Entries = {}
    if version is None:
        return values
    for block in BLOCKS[type(version)]:
        for key, value in getattr(version, block).items():
            values[block, key] = value
    return values


def with_entries(version: Version, new_entries: Entries) -> Version:
    """The version with its entries replaced by `new_entries`."""
    blocks: dict[str, Any] = {block: {} for block in BLOCKS[type(version)]}
    for (block, key), value in new_entries.items():
        blocks[block][key] = value
    return replace(version, **blocks)


def diff_versions(
    before: CoreMemory | ProceduralMemory | None, after: CoreMemory | ProceduralMemory
) -> tuple[Edit, ...]:
    """The edits that turn `before` into `after`: removals first, then additions and changes."""
    old = entries(before)
    new = entries(after)
    edits = []
    for block, key in old:
        if (block, key) not in new:
            edits.append(Edit("remove", block, key))
    for (block, key), value in new.items():
        if (block, key) not in old:
            edits.append(Edit("add", block, key, value))
        elif old[block, key] != value:
            edits.append(Edit("change", block, key, value))
    return tuple(edits)


def apply_edits(before: Version, edits: Iterable[Edit]) -> Version:
    """`before` after the edits.

    Raises ValueError for an edit that adds an existing entry, or changes or removes a missing one.
    """
    current = entries(before)
    for edit in edits:
        if edit.op not in ("add", "change", "remove") or edit.block not in BLOCKS[type(before)]:
            raise ValueError(
                f"unknown edit {edit.op!r} of block {edit.block!r}; choose add, change or remove"
            )
        entry = (edit.block, edit.key)
        exists = entry in current
        if edit.op == "add" and exists:
            raise ValueError(f"cannot add {edit.key!r}: it already exists")
        if edit.op != "add" and not exists:
            raise ValueError(f"cannot {edit.op} {edit.key!r}: it does not exist")
        if edit.op == "remove":
            del current[entry]
        else:
            current[entry] = edit.value
    return with_entries(before, current)


def validate_version(
    before: CoreMemory | ProceduralMemory | None, version: CoreMemory | ProceduralMemory
) -> None:
    """Raise ValueError if a new version breaks a rule of the paper or one of our limits.

    Keys and values must not be blank or longer than `MAX_KEY` and `MAX_VALUE`. A core memory must
    not have more than `MAX_CORE` entries or lose the user's name, which is mandatory (A.1) once
    the user has said it.
    """
    version_entries = entries(version)
    for (_, key), value in version_entries.items():
        if not key.strip():
            raise ValueError(f"{value!r} has no key")
        if not value.strip():
            raise ValueError(f"{key!r} has no value")
        if len(key) > MAX_KEY or len(value) > MAX_VALUE:
            raise ValueError(
                f"{key[:MAX_KEY]!r} is too long: a key has at most {MAX_KEY} characters, "
                f"a value {MAX_VALUE}"
            )
    if isinstance(version, CoreMemory):
        if len(version_entries) > MAX_CORE:
            raise ValueError(
                f"core memory has {len(version_entries)} entries; the limit is {MAX_CORE}"
            )
        if _has_name(before) and not _has_name(version):
            raise ValueError(
                "the user's name is lost: it is a mandatory entry of core memory (A.1)"
            )


def _has_name(version: CoreMemory | ProceduralMemory | None) -> bool:
    return any(key.casefold() == "name" for _, key in entries(version))


def link_origins(before: CoreMemory | ProceduralMemory | None, version: Version) -> Version:
    """Fill in the version's edits and the origins of its entries.

    An unedited entry keeps its origins. An edited one comes from all turns of `version.sources`:
    the model saw all of them, and which words it used cannot be known.
    """
    edits = diff_versions(before, version)
    edited = {(edit.block, edit.key) for edit in edits}
    origins: Origins = {block: {} for block in BLOCKS[type(version)]}
    for block, key in entries(version):
        origins[block][key] = version.sources
        if before is not None and (block, key) not in edited:
            origins[block][key] = before.origins[block][key]
    return replace(version, edits=edits, origins=origins)
