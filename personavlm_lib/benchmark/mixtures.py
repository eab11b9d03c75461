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
CONCEPTS = 6 / 78  # share of concept samples (semantic memory of a pictured object) in all of SFT


def sample_kind(sample: dict) -> str:
    """A sample's purpose, or "concept" for semantic memory of an object."""
    purpose = sample["purpose"]
    last_message = sample["messages"][-1]["content"]
    if purpose == "semantic" and "(Image Object:" in last_message:
        return "concept"
    return purpose


def split_by_share(total: int, shares: dict[str, float]) -> dict[str, int]:
    """Split `total` into whole numbers by shares.

    The parts that lose most by rounding down are rounded up.
    """
    counts = {}
    gains = {}  # negative: what rounding down took away
    for name, share in shares.items():
        counts[name] = int(share * total)
        gains[name] = counts[name] - share * total
    missing = total - sum(counts.values())
    largest_losses = sorted(shares, key=lambda name: gains[name])
    for name in largest_losses[:missing]:
        counts[name] += 1
    return counts


def mix_samples(samples: list[dict], total: int, rng: random.Random) -> list[dict]:
    """Draw `total` samples in the shares of SFT_MIXTURE; see `draw_mixture`."""
    kinds = map(sample_kind, samples)
    return [samples[index] for index in draw_mixture(kinds, total, rng)]


def draw_mixture(kinds: Iterable[str], total: int, rng: random.Random) -> list[int]:
    """Draw the indices of `total` samples of these kinds in the shares of SFT_MIXTURE.

    No sample is repeated before all of its group are drawn. Memory samples start with the concepts,
    in their share of all samples; the other purposes follow in turn.
    """
    queues: dict[str, list[int]] = {}
    for index, kind in enumerate(kinds):
        queues.setdefault(kind, []).append(index)
    for queue in queues.values():
        rng.shuffle(queue)
    queues["memory"] = _memory_queue(queues, round(CONCEPTS * total))
    drawn: list[int] = []
    for group, count in split_by_share(total, SFT_MIXTURE).items():
        endless = cycle(queues.get(group, []))
        drawn += islice(endless, count)
    rng.shuffle(drawn)
    return drawn


def _memory_queue(queues: dict[str, list[int]], concept_count: int) -> list[int]:
    """The memory samples in the order in which to draw them."""
    concepts = queues.get("concept", [])
    by_purpose = [queues.get(purpose, []) for purpose in MEMORY_PURPOSES]
    others = []
    for one_each in zip_longest(*by_purpose):
        others += [index for index in one_each if index is not None]
    return concepts[:concept_count] + others + concepts[concept_count:]


def rl_questions(lives: list[Life], total: int, rng: random.Random) -> list[tuple[Life, Question]]:
    """Draw `total` prompts in the shares of RL_MIXTURE, without repetition before all are drawn.

    Open prompts are choice questions without their options.
    """
    pairs = [(life, question) for life in lives for question in life.questions]
    rng.shuffle(pairs)
    binary_pairs = cycle([pair for pair in pairs if pair[1].kind == "binary"])
    choice_pairs = cycle([pair for pair in pairs if pair[1].kind != "binary"])
    drawn = []
    for kind, count in split_by_share(total, RL_MIXTURE).items():
        pool = binary_pairs if kind == "binary" else choice_pairs
        for life, question in islice(pool, count):
            if kind == "open":
                question = replace(question, kind="open", options=())
            drawn.append((life, question))
    rng.shuffle(drawn)
    return drawn
