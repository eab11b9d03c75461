"""The groups of users that make up each size of data set (Appendix C)."""

from dataclasses import dataclass
from pathlib import Path

import yaml

from personavlm_lib.benchmark import seeds


@dataclass(frozen=True)
class Group:
    """Lives of one kind, within `days`; `first` is their first seed in the block of a world seed.

    `size` or the range `turns` sets the length. Each life has `questions` choice questions and
    `pairs` pairs of alignment items; `sft` and `rl` count the samples drawn from the whole group.
    """

    name: str
    first: int
    users: int
    days: int
    questions: int
    pairs: int
    turns: tuple[int, int] | None = None
    size: float = 1.0
    sft: int = 0
    rl: int = 0


def _read_sizes(path: Path) -> dict[str, tuple[Group, ...]]:
    """The groups of each size, from a file such as `sizes.yaml`."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    groups = {}
    for key, entry in content["groups"].items():
        users = getattr(seeds, entry.pop("seeds"))
        if "turns" in entry:
            entry["turns"] = tuple(entry["turns"])
        groups[key] = Group(first=users.start, **entry)
    return {size: tuple(groups[key] for key in keys) for size, keys in content["sizes"].items()}


DATASET_SIZES = _read_sizes(Path(__file__).with_name("sizes.yaml"))
