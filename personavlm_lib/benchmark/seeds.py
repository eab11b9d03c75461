"""The seeds of all simulated users, in ranges that never meet.

A user's seed determines their whole life, so two ranges that met would test a model on users that
it was trained on. Each world seed has a block of its own:

| seeds within the block | users |
|---|---|
| from 0 | training users of 01_synthesize and of the data sets `nano` and `paper` |
| from 50,000 | test users of 01_synthesize and of the data set `nano` |
| from 60,000 | test users of the data set `long` and of the longer half of `paper` |
| from 70,000 | test users of the data set `short` and of the shorter half of `paper` |

Two kinds of users do not depend on the world seed and lie behind all blocks: a million for training
and probing the backbone (from 10,000,000), and 10,000 for each seed of a skill suite (from
20,000,000).
"""

WORLD_SEEDS = range(100)
SEEDS_PER_WORLD = 100_000

TRAINING_USERS = range(0, 50_000)
TEST_USERS = range(50_000, 60_000)
LONG_TEST_USERS = range(60_000, 70_000)
SHORT_TEST_USERS = range(70_000, 80_000)

BACKBONE_USERS = range(10_000_000, 11_000_000)
SKILL_USERS = range(20_000_000, 30_000_000)
USERS_PER_SKILL_SUITE = 10_000


def user_seeds(users: range, world_seed: int) -> range:
    """The seeds of `users`, a range within a block, in the world `world_seed`.

    Raises ValueError for a world seed outside of WORLD_SEEDS.
    """
    if world_seed not in WORLD_SEEDS:
        last = WORLD_SEEDS[-1]
        raise ValueError(f"the world seed is {world_seed!r}: choose one from 0 to {last}")
    block = SEEDS_PER_WORLD * world_seed
    return range(block + users.start, block + users.stop)
