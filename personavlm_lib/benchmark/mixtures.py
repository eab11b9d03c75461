"""Shares of the SFT and RL samples by purpose and by kind of question (Appendix B.2)."""

import random
from collections.abc import Iterable
from dataclasses import replace
from itertools import cycle, islice, zip_longest

from personavlm_lib.benchmark.lives import Life
from personavlm_lib.benchmark.questions import Question

# Appendix B.2: shares of the SFT samples by purpose, and of the RL samples by kind of question.
SFT_MIXTURE = {"respond": 0.436, "personality": 0.103, "memory": 0.461}


RL_MIXTURE = {"open": 0.21, "choice": 0.556, "binary": 0.234}


MEMORY_PURPOSES = ("semantic", "core", "procedural", "episodic")


CONCEPTS = (
    6 / 78
)  # share of all SFT samples that are concept samples: semantic memory of an object that was shown


def sample_kind(sample: dict) -> str:
    """A sample's purpose; "concept" for semantic memory of an object."""
    concept = (
        sample["purpose"] == "semantic" and "(Image Object:" in sample["messages"][-1]["content"]
    )
    return "concept" if concept else sample["purpose"]


def split_by_share(total: int, shares: dict[str, float]) -> dict[str, int]:
    """`total` in whole numbers by shares; those that lose most by rounding down are rounded up."""
    counts = {name: int(share * total) for name, share in shares.items()}
    short = sorted(shares, key=lambda name: counts[name] - shares[name] * total)[
        : total - sum(counts.values())
    ]
    return {name: count + (name in short) for name, count in counts.items()}


def mix_samples(samples: list[dict], total: int, rng: random.Random) -> list[dict]:
    """`total` samples in the shares of SFT_MIXTURE; see `mixture`."""
    return [samples[place] for place in draw_mixture(map(sample_kind, samples), total, rng)]


def draw_mixture(kinds: Iterable[str], total: int, rng: random.Random) -> list[int]:
    """Places of `total` samples of these kinds, by SFT_MIXTURE: none twice before all of its group are drawn.

    Of memory samples the concepts come first, in their share of all, and then each purpose in turn.
    """
    queues: dict[str, list[int]] = {}
    for place, name in enumerate(kinds):
        queues.setdefault(name, []).append(place)
    for queue in queues.values():
        rng.shuffle(queue)
    concepts, wanted = queues.get("concept", []), round(CONCEPTS * total)
    turns = zip_longest(*(queues.get(purpose, []) for purpose in MEMORY_PURPOSES))
    others = [place for places in turns for place in places if place is not None]
    queues["memory"] = concepts[:wanted] + others + concepts[wanted:]
    drawn: list[int] = []
    for group, count in split_by_share(total, SFT_MIXTURE).items():
        drawn += islice(cycle(queues.get(group, [])), count)
    rng.shuffle(drawn)
    return drawn


def rl_questions(lives: list[Life], total: int, rng: random.Random) -> list[tuple[Life, Question]]:
    """`total` prompts in the shares of RL_MIXTURE, none twice before all are drawn; open ones are choice questions
    without their options."""
    pairs = [(life, question) for life in lives for question in life.questions]
    rng.shuffle(pairs)
    pools = {
        binary: cycle([p for p in pairs if (p[1].kind == "binary") == binary])
        for binary in (True, False)
    }
    drawn = []
    for name, count in split_by_share(total, RL_MIXTURE).items():
        picked = islice(pools[name == "binary"], count)
        drawn += [
            (life, replace(q, kind="open", options=()) if name == "open" else q)
            for life, q in picked
        ]
    rng.shuffle(drawn)
    return drawn
