"""Gold memories and SFT samples recorded from the oracle."""

import random
import re
from collections import Counter
from pathlib import Path

import pytest

from personavlm_lib.agent.protocol import parse_step
from personavlm_lib.benchmark import recordings
from personavlm_lib.memory.store import MemoryStore


@pytest.fixture(scope="module")
def samples(lives, memories, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    samples = []
    for life in lives:
        recordings.gold_memory(life, folder / life.user, None, samples).close()
        samples += recordings.answer_samples(life, memories[life.user], random.Random(0))
    return samples


def test_gold_memory_needs_a_new_folder_and_records_conversations(lives, memories, tmp_path):
    samples = []
    store = recordings.gold_memory(lives[0], tmp_path / "m", None, samples)
    expected = [memory.content for memory in memories[lives[0].user].as_of().semantic]
    assert samples and [memory.content for memory in store.as_of().semantic] == expected
    with pytest.raises(ValueError, match="holds turns already"):
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
        assert text.count("<img>") == len(sample["images"])
        assert all(Path(path).is_file() for path in sample["images"])
        if sample["purpose"] == "respond":
            steps = [parse_step(message["content"]) for message in sample["messages"][1::2]]
            assert not any(step.errors for step in steps) and steps[-1].answer and len(steps) <= 4


def test_samples_have_right_answers_and_guesses_without_memory(lives, memories):
    life = lives[0]
    store = memories[life.user]
    answers = {question.answer for question in life.questions}
    for sample in recordings.answer_samples(life, store, random.Random(0), without=0.0):
        assert parse_step(sample["messages"][-1]["content"]).answer in answers
    guessed = recordings.answer_samples(
        life, MemoryStore.in_memory(), random.Random(0), without=0.0
    )
    assert 0 < len(guessed) < len(life.questions) // 2 + 2
    for sample in guessed:
        prompt = sample["messages"][0]["content"]
        (question,) = (
            q
            for q in life.questions
            if f"ask {q.text}" in prompt and f"today {q.time:%A %Y-%m-%d}".lower() in prompt
        )
        assert parse_step(sample["messages"][-1]["content"]).answer == question.answer
    blind = recordings.answer_samples(life, store, random.Random(0), without=1.0)
    thoughts = []
    for sample in blind:
        prompt, *replies = [message["content"] for message in sample["messages"]]
        if len(replies) == 1 and "options" in prompt and "suit me" not in prompt:
            thoughts.append(parse_step(replies[0]).think)
    assert thoughts
    for thought in thoughts:
        assert re.fullmatch(r"(my goal \w+ is )?unknown", thought)
