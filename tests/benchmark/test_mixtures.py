"""Mixtures of SFT and RL samples in the shares of the paper."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from personavlm_lib.benchmark import mixtures, recordings
from personavlm_lib.benchmark.mixtures import RL_MIXTURE, SFT_MIXTURE
from personavlm_lib.benchmark.tasks import make_questions


@pytest.fixture(scope="module")
def samples(lives, memories, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    samples = []
    for life in lives:
        recordings.gold_memory(life, folder / life.user, None, samples).close()
        samples += recordings.answer_samples(life, memories[life.user], random.Random(0))
    return samples


def test_sft_mixture_has_the_shares_of_the_paper(samples):
    mixed = mixtures.mix_samples(samples, 400, random.Random(0))
    purposes = Counter(sample["purpose"] for sample in mixed)
    assert sum(SFT_MIXTURE.values()) == pytest.approx(1) and len(mixed) == pytest.approx(400, abs=2)
    assert purposes["respond"] / 400 == pytest.approx(SFT_MIXTURE["respond"], abs=0.01)
    assert purposes["personality"] / 400 == pytest.approx(SFT_MIXTURE["personality"], abs=0.01)
    memory = [purposes[purpose] for purpose in mixtures.MEMORY_PURPOSES]
    assert sum(memory) / 400 == pytest.approx(SFT_MIXTURE["memory"], abs=0.01) and min(memory) > 0


def test_small_mixture_has_no_duplicates(samples):
    mixed = mixtures.mix_samples(samples, 20, random.Random(1))
    assert len({id(sample) for sample in mixed}) == len(mixed) == 20
    kinds = Counter(map(mixtures.sample_kind, mixed))
    memory = [kinds[purpose] for purpose in mixtures.MEMORY_PURPOSES]
    assert min(memory) > 0 and max(memory) - min(memory) <= 1  # purposes alternate
    assert kinds["concept"] == round(20 * mixtures.CONCEPTS)


@pytest.mark.parametrize("total", [200, 201, 333, 5_600, 78_000])
def test_sft_shares_hold_at_any_total(total):
    kinds = ["respond"] * 900
    kinds += ["personality", "core", "procedural", "episodic"] * 900
    kinds += ["semantic"] * 999
    kinds += ["concept"] * 500
    drawn = Counter(kinds[place] for place in mixtures.draw_mixture(kinds, total, random.Random(0)))
    memory = total - drawn["respond"] - drawn["personality"]
    assert sum(drawn.values()) == total
    assert drawn["respond"] / total == pytest.approx(0.436, abs=0.005)
    assert drawn["personality"] / total == pytest.approx(0.103, abs=0.005)
    assert memory / total == pytest.approx(0.461, abs=0.005)
    if total < 6_000:  # a larger total draws all of them, and some twice
        assert drawn["concept"] / total == pytest.approx(min(500 / total, 6 / 78), abs=0.005)


def test_rl_mixture_has_the_shares_of_the_paper(lives):
    many = [
        replace(life, questions=tuple(make_questions(life.plan, 12, 4, seed=n)))
        for life in lives
        for n in range(8)
    ]
    drawn = mixtures.rl_questions(many, 100, random.Random(0))
    kinds = Counter(question.kind for _, question in drawn)
    shares = {kind: count / 100 for kind, count in kinds.items()}
    assert shares == pytest.approx(RL_MIXTURE, abs=0.01)
    assert all(not q.options for _, q in drawn if q.kind == "open")
    distinct = {(life.user, q.time, q.text) for life, q in drawn}
    assert len(distinct) > 80  # the seeds have some questions in common
    assert len(mixtures.rl_questions(many, 5_600, random.Random(0))) == 5_600  # repeats questions
    assert all(question.user == life.user for life, question in drawn)
