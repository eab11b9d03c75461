"""The true personality of simulated users, its drift, and what each turn shows of it."""

import random

from personavlm_lib.memory.records import TRAITS, BigFive

REVEAL = 0.7  # probability that a trait shows in the words of a turn
# In the wide world, three traits are far from neutral, and each shows in this share of the turns,
# so that a message shows one or two traits and not five.
WIDE_REVEAL = 0.38


def sample_personality(rng: random.Random) -> BigFive:
    """Each trait at one of five scores from 1.5 to 4.5."""
    return BigFive(*(rng.choice((1.5, 2.0, 3.0, 4.0, 4.5)) for _ in TRAITS))


def drifted(rng: random.Random, before: BigFive) -> BigFive:
    """`before` with two traits changed by at least one point each."""
    scores = list(before.as_tuple())
    for trait in rng.sample(range(5), 2):
        old = scores[trait]
        distant = [score for score in (1.5, 2.0, 4.0, 4.5) if abs(score - old) >= 1.0]
        scores[trait] = rng.choice(distant)
    return BigFive(*scores)


def distinct_personality(rng: random.Random) -> BigFive:
    """Three traits far from neutral, two neutral."""
    scores = [3.0] * 5
    for trait in rng.sample(range(5), 3):
        scores[trait] = rng.choice((1.5, 4.5))
    return BigFive(*scores)


def distinct_drift(rng: random.Random, before: BigFive) -> BigFive:
    """`before` with one far trait turned into its opposite and one made neutral."""
    scores = list(before.as_tuple())
    far = [trait for trait in range(5) if scores[trait] != 3.0]
    opposite, neutral = rng.sample(far, 2)
    scores[opposite] = 6.0 - scores[opposite]
    scores[neutral] = 3.0
    return BigFive(*scores)


def turn_scores(
    rng: random.Random, personality: BigFive, reveal: float = REVEAL
) -> tuple[int, ...]:
    """The scores of one turn: true values rounded at random; hidden traits are neutral.

    `reveal` is the probability that a trait shows.
    """
    scores = []
    for true_score in personality.as_tuple():
        score = int(true_score)
        if rng.random() < true_score - score:
            score += 1
        revealed = rng.random() < reveal
        scores.append(score if revealed else 3)
    return tuple(scores)
