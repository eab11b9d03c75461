"""The groups of users that make up each size of data set (Appendix C)."""

from dataclasses import dataclass

from personavlm_lib.benchmark.seeds import (
    LONG_TEST_USERS,
    SHORT_TEST_USERS,
    TEST_USERS,
    TRAINING_USERS,
)


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


SHORT = Group(
    "test_short",
    SHORT_TEST_USERS.start,
    users=100,
    days=90,
    questions=10,
    pairs=2,
    turns=(20, 100),
)
LONG = Group(
    "test_long", LONG_TEST_USERS.start, users=100, days=90, questions=10, pairs=2, turns=(100, 500)
)
PAPER_TRAIN = Group(
    "train",
    TRAINING_USERS.start,
    users=500,
    days=28,
    questions=68,
    pairs=6,
    turns=(20, 100),
    sft=78_000,
    rl=5_600,
)
NANO_TRAIN = Group(
    "train", TRAINING_USERS.start, users=100, days=28, questions=24, pairs=4, sft=6_000, rl=480
)
NANO_TEST = Group("test", TEST_USERS.start, users=12, days=70, questions=26, pairs=4, size=1.2)
DATASET_SIZES = {
    "nano": (NANO_TRAIN, NANO_TEST),
    "short": (SHORT,),
    "long": (LONG,),
    "paper": (PAPER_TRAIN, SHORT, LONG),
}
