"""The seeds of simulated users: no two purposes share one, in any world."""

from itertools import combinations

import pytest

from personavlm_lib.__main__ import main
from personavlm_lib.benchmark.seeds import (
    BACKBONE_USERS,
    LONG_TEST_USERS,
    SEEDS_PER_WORLD,
    SHORT_TEST_USERS,
    SKILL_USERS,
    TEST_USERS,
    TRAINING_USERS,
    USERS_PER_SKILL_SUITE,
    WORLD_SEEDS,
    user_seeds,
)
from personavlm_lib.benchmark.sizes import DATASET_SIZES
from personavlm_lib.study.profiles import PROFILES, load_profile

WORLDS = (0, 1, 2, 50, WORLD_SEEDS[-1])
HOMES = {
    "training": TRAINING_USERS,
    "test": TEST_USERS,
    "test_long": LONG_TEST_USERS,
    "test_short": SHORT_TEST_USERS,
}


def meet(a: range, b: range) -> bool:
    return a.start < b.stop and b.start < a.stop


def test_ranges_never_meet_in_any_world():
    ranges = [BACKBONE_USERS, SKILL_USERS]
    for world_seed in WORLDS:
        ranges += [user_seeds(users, world_seed) for users in HOMES.values()]
    assert not [pair for pair in combinations(ranges, 2) if meet(*pair)]
    assert max(users.stop for users in HOMES.values()) <= SEEDS_PER_WORLD
    assert len(SKILL_USERS) % USERS_PER_SKILL_SUITE == 0


def groups_in_use() -> list[tuple[str, str, range]]:
    """Profile or size of data set, purpose, and seeds within a block, of every group of users."""
    groups = []
    for path in PROFILES.glob("*.yaml"):
        settings = load_profile(path.stem).stages["01_synthesize"]
        first, number = TRAINING_USERS.start, settings["train_users"]
        groups.append((path.stem, "training", range(first, first + number)))
        first, number = TEST_USERS.start, settings["test_users"]
        groups.append((path.stem, "test", range(first, first + number)))
    for size, members in DATASET_SIZES.items():
        for group in members:
            purpose = "training" if group.sft else group.name
            groups.append((size, purpose, range(group.first, group.first + group.users)))
    return groups


def test_users_of_different_purposes_in_use_are_different():
    groups = groups_in_use()
    assert {purpose for _, purpose, _ in groups} == set(HOMES)
    for name, purpose, seeds in groups:
        home = HOMES[purpose]
        assert seeds.start == home.start and seeds.stop <= home.stop, f"{purpose} of {name}"
    for (name, purpose, seeds), (other, other_purpose, other_seeds) in combinations(groups, 2):
        if purpose != other_purpose:
            assert not meet(seeds, other_seeds), f"{purpose} of {name}, {other_purpose} of {other}"


def test_first_world_has_the_users_of_the_reference_run():
    assert user_seeds(TRAINING_USERS, 0).start == 0
    assert user_seeds(TEST_USERS, 0).start == 50_000
    assert user_seeds(TEST_USERS, 3).start == 350_000


@pytest.mark.parametrize("world_seed", [-1, 100])
def test_world_seed_without_users_is_an_error(tmp_path, capsys, world_seed):
    with pytest.raises(ValueError, match="choose one from 0 to 99"):
        user_seeds(TEST_USERS, world_seed)
    out = tmp_path / "out"
    assert main(["synthesize", "--seed", str(world_seed), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    bound = "greater than or equal to 0" if world_seed < 0 else "less than or equal to 99"
    assert "'--seed'" in error and bound in error
    assert list(tmp_path.iterdir()) == []
