"""Lives and samples on disk, and the shares in which they are drawn."""

import random
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from personavlm_lib.agent.protocol import parse_step
from personavlm_lib.benchmark import mixtures, recordings, tables
from personavlm_lib.benchmark.lives import read_lives, simulate_life, write_lives
from personavlm_lib.benchmark.mixtures import RL_MIXTURE, SFT_MIXTURE
from personavlm_lib.benchmark.tasks import make_questions
from personavlm_lib.memory.store import MemoryStore


@pytest.fixture(scope="module")
def samples(lives, memories, tmp_path_factory):
    folder, samples = tmp_path_factory.mktemp("recorded"), []
    for life in lives:
        recordings.gold_memory(life, folder / life.user, None, samples).close()
        samples += recordings.answer_samples(life, memories[life.user], random.Random(0))
    return samples


def test_lives_come_back_as_they_were_wherever_the_folder_lies(tmp_path):
    lives = [simulate_life(seed, tmp_path / "a" / "images", 20, 0.7, 8, 1) for seed in (1, 2)]
    write_lives(tmp_path / "a" / "lives.jsonl", lives)
    assert read_lives(tmp_path / "a" / "lives.jsonl") == lives
    (tmp_path / "a").rename(tmp_path / "b")
    moved = read_lives(tmp_path / "b" / "lives.jsonl")
    assert [life.questions for life in moved] == [life.questions for life in lives]
    images = [image for life in moved for turn in life.turns for image in turn.images]
    assert images and all(
        Path(image).is_file() and tmp_path / "b" in Path(image).parents for image in images
    )


def test_gold_memory_takes_a_new_folder_and_keeps_every_conversation(lives, memories, tmp_path):
    samples = []
    made = recordings.gold_memory(lives[0], tmp_path / "m", None, samples)
    known = [memory.content for memory in memories[lives[0].user].as_of().semantic]
    assert samples and [memory.content for memory in made.as_of().semantic] == known
    with pytest.raises(ValueError, match="order of time"):
        recordings.gold_memory(lives[0], tmp_path / "m", None, samples)


def test_samples_are_whole_conversations(samples, lives):
    purposes = Counter(sample["purpose"] for sample in samples)
    turns = sum(len(life.turns) for life in lives)
    assert purposes["personality"] == purposes["semantic"] == turns
    assert purposes["core"] == purposes["procedural"] == purposes["episodic"] > 5
    for sample in samples:
        roles = [message["role"] for message in sample["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        text = "".join(message["content"] for message in sample["messages"])
        assert text.count("<img>") == len(sample["images"]) and all(
            Path(path).is_file() for path in sample["images"]
        )
        if sample["purpose"] == "respond":
            steps = [parse_step(message["content"]) for message in sample["messages"][1::2]]
            assert not any(step.errors for step in steps) and steps[-1].answer and len(steps) <= 4


def test_only_right_answers_are_learned_and_a_guess_where_nothing_can_be_known(lives, memories):
    life, store = lives[0], memories[lives[0].user]
    told = recordings.answer_samples(life, store, random.Random(0), without=0.0)
    answers = {question.answer for question in life.questions}
    assert all(parse_step(sample["messages"][-1]["content"]).answer in answers for sample in told)
    guessed = recordings.answer_samples(
        life, MemoryStore.in_memory(), random.Random(0), without=0.0
    )
    assert 0 < len(guessed) < len(life.questions) // 2 + 2
    for sample in guessed:
        (question,) = (q for q in life.questions if f"ask {q.text}" in sample["messages"][0]["content"]
                       and f"today {q.time:%A %Y-%m-%d}".lower() in sample["messages"][0]["content"])  # fmt: skip
        assert parse_step(sample["messages"][-1]["content"]).answer == question.answer
    blind = recordings.answer_samples(life, store, random.Random(0), without=1.0)
    unknown = [re.fullmatch(r"(my goal \w+ is )?unknown", parse_step(sample["messages"][1]["content"]).think)
               for sample in blind
               if len(sample["messages"]) == 2 and "options" in sample["messages"][0]["content"]
               and "suit me" not in sample["messages"][0]["content"]]  # fmt: skip
    assert unknown and all(unknown)


def test_the_mixture_has_the_papers_shares(samples):
    mixed = mixtures.mix_samples(samples, 400, random.Random(0))
    purposes = Counter(sample["purpose"] for sample in mixed)
    assert sum(SFT_MIXTURE.values()) == pytest.approx(1) and len(mixed) == pytest.approx(400, abs=2)
    assert purposes["respond"] / 400 == pytest.approx(SFT_MIXTURE["respond"], abs=0.01)
    assert purposes["personality"] / 400 == pytest.approx(SFT_MIXTURE["personality"], abs=0.01)
    memory = [purposes[purpose] for purpose in mixtures.MEMORY_PURPOSES]
    assert sum(memory) / 400 == pytest.approx(SFT_MIXTURE["memory"], abs=0.01) and min(memory) > 0


def test_a_small_mixture_repeats_nothing(samples):
    mixed = mixtures.mix_samples(samples, 20, random.Random(1))
    assert len({id(sample) for sample in mixed}) == len(mixed) == 20
    kinds = Counter(map(mixtures.sample_kind, mixed))
    memory = [kinds[purpose] for purpose in mixtures.MEMORY_PURPOSES]
    assert min(memory) > 0 and max(memory) - min(memory) <= 1  # each purpose in its turn
    assert kinds["concept"] == round(20 * mixtures.CONCEPTS)


@pytest.mark.parametrize("total", [200, 201, 333, 5_600, 78_000])
def test_shares_are_the_papers_at_any_total(total):
    kinds = (
        ["respond"] * 900
        + ["personality", "core", "procedural", "episodic"] * 900
        + ["semantic"] * 999
    )
    kinds += ["concept"] * 500
    drawn = Counter(kinds[place] for place in mixtures.draw_mixture(kinds, total, random.Random(0)))
    memory = total - drawn["respond"] - drawn["personality"]
    assert sum(drawn.values()) == total and drawn["respond"] / total == pytest.approx(
        0.436, abs=0.005
    )
    assert drawn["personality"] / total == pytest.approx(0.103, abs=0.005)
    assert memory / total == pytest.approx(0.461, abs=0.005)
    if total < 6_000:  # else all are drawn, and some twice
        assert drawn["concept"] / total == pytest.approx(min(500 / total, 6 / 78), abs=0.005)


def test_rl_prompts_have_the_papers_shares(lives):
    many = [
        replace(life, questions=tuple(make_questions(life.plan, 12, 4, seed=n)))
        for life in lives
        for n in range(8)
    ]
    drawn = mixtures.rl_questions(many, 100, random.Random(0))
    kinds = Counter(question.kind for _, question in drawn)
    assert {kind: count / 100 for kind, count in kinds.items()} == pytest.approx(
        RL_MIXTURE, abs=0.01
    )
    assert all(not q.options for _, q in drawn if q.kind == "open")
    assert (
        len({(life.user, q.time, q.text) for life, q in drawn}) > 80
    )  # few of those that seeds share
    assert len(mixtures.rl_questions(many, 5_600, random.Random(0))) == 5_600  # more than there are
    assert all(question.user == life.user for life, question in drawn)


def test_dialogues_and_questions_are_counted(lives):
    table = tables.dialogue_table({"train": lives[:1], "test": lives})
    assert list(table.group) == ["train", "test", "test"] and table.turns[0] == len(lives[0].turns)
    assert table.pictured[0] == sum(bool(turn.images) for turn in lives[0].turns)
    asked = tables.question_table(lives)
    assert len(asked) == sum(len(life.questions) for life in lives)
    choice = asked[asked.kind == "choice"]
    assert 3 < choice.question_words.mean() < 12 and 1 <= choice.answer_words.mean() < 2
    assert (
        0 < choice.needs_picture.mean() < 0.5
        and not asked[asked.kind == "binary"].needs_picture.any()
    )
