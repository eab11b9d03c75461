"""Test the conditions on two short lives: the records they leave and what they show the model."""

from dataclasses import replace

import pytest

from personavlm_lib.agent.prompt_sets import PromptSet
from personavlm_lib.evaluation.conditions import (
    CONDITIONS,
    Condition,
    EvaluationSettings,
    answer_questions,
    cached_answers,
)
from personavlm_lib.evaluation.memories import Memories, write_own_memories
from personavlm_lib.evaluation.records import read_records, write_records
from personavlm_lib.models.chat import ChatReply
from personavlm_lib.models.local import LocalModel

LABELS = dict(run="test", benchmark="world", seed=0, prompt_set_hash="0" * 12)
SETTINGS = EvaluationSettings(LABELS, width=4)
NEUTRAL_PROFILE = (
    "openness mid conscientiousness mid extraversion mid agreeableness mid neuroticism mid"
)


class RecordingModel:
    """Retrieves until it must answer, then picks the first option; records every text it sees."""

    def __init__(self):
        self.texts = []

    def start(self):
        return []

    def reply(self, requests):
        replies = []
        for _, request in requests:
            self.texts.append(request.text)
            if "answer now" in request.text:
                reply = "<think>hm</think><answer>(a)</answer>"
            else:
                reply = '<think>hm</think><retrieve>"keywords": my drink</retrieve>'
            replies.append(ChatReply(reply))
        return replies


@pytest.fixture
def memory(memories):
    return lambda condition, life: memories[life.user]


@pytest.fixture
def ask(lives, memory):
    """Answer the questions of the lives under a condition."""

    def ask(condition, model=None, lives=lives):
        if isinstance(condition, str):
            condition = CONDITIONS[condition]
        return answer_questions(condition, lives, memory, lambda name: model, SETTINGS)

    return ask


def test_untrained_model_leaves_one_record_per_question(ask, lives, model, processor, tmp_path):
    local = LocalModel(model=model, processor=processor)
    short_lives = [replace(life, questions=life.questions[:2]) for life in lives]
    cases = [question.case for life in short_lives for question in life.questions]
    rows = []
    for name, condition in CONDITIONS.items():
        if condition.model != "rl" or condition.memory == "own":
            continue
        records = ask(name, local, short_lives)
        assert [row.case for row in records] == cases
        assert {row.condition for row in records} == {name}
        rows += records
    for row in rows:
        assert row.steps >= 1
        assert row.tokens_in > 50
        assert row.tokens_out > 0
    path = tmp_path / "records.parquet"
    write_records(path, rows)
    assert len(read_records(path)) == len(rows) >= 16


def test_chance_picks_reproducible_random_options(ask, lives):
    rows = ask("chance")
    assert len(rows) == sum(len(life.questions) for life in lives)
    for row in rows:
        assert row.raw in row.options
        assert row.parsed == row.raw
        assert row.correct == (row.raw == row.gold)
    picks = [row.raw for row in rows]
    assert [row.raw for row in ask("chance")] == picks
    assert len(set(picks)) > 4


def test_oracle_is_the_ceiling_and_retrieves_the_evidence(ask):
    rows = ask("oracle")
    assert sum(row.correct for row in rows) >= len(rows) - 1
    assert {row.kind for row in rows} == {"choice", "alignment"}
    for row in rows:
        if row.kind == "alignment" or not row.retrievals:
            continue
        retrieved = set(row.retrieved_turns)
        evidence = set(row.evidence_turns)
        if row.task == "Relationship Recognition":  # three searches find only part of it
            assert retrieved & evidence
        elif row.task == "Long-term Goal Tracking":  # the last turn holds the outcome
            assert set(row.evidence_turns[-1:]) <= retrieved
        else:
            assert evidence <= retrieved


def test_records_hold_the_answer_and_the_retrieved_memories(ask):
    for row in ask(Condition("recording", "rl", "gold"), RecordingModel()):
        assert row.parsed == row.options[0]
        assert row.correct == (row.options[0] == row.gold)
        assert (row.steps, row.retrievals, row.memory, row.model) == (4, 3, "gold", "rl")
        assert row.retrieved_ids
        assert len(set(row.retrieved_ids)) == len(row.retrieved_ids)


def test_without_memory_only_the_personality_is_known(ask, lives):
    model = RecordingModel()
    for row in ask("no_memory", model):
        assert row.retrievals == 0
        assert row.steps == 1
        assert not row.retrieved_ids
    names = {life.plan.persona.name for life in lives}
    for text in model.texts:
        lines = [line.strip() for line in text.split("\n")]
        assert "profile" in lines
        assert "answer now" in text
        assert not any(f"my name is {name}" in text for name in names)


def test_context_conditions_show_raw_turns_and_do_not_retrieve(ask, lives):
    shown = {}
    for name in ("gold_evidence", "backbone_rag5", "backbone_full"):
        model = RecordingModel()
        for row in ask(name, model):
            assert row.retrievals == 0
            assert row.memory == "context"
        shown[name] = [turn_lines(text) for text in model.texts]
    questions = [(life, question) for life in lives for question in life.questions]
    for (life, question), evidence, five, full in zip(questions, *shown.values(), strict=True):
        before = [turn for turn in life.turns if turn.time <= question.time]
        assert len(full) == len(before)
        assert len(five) == min(5, len(before))
        assert len(evidence) == min(8, len(question.evidence))
        assert set(evidence) <= set(full)
        if question.evidence:
            last_turn = life.turns[question.evidence[-1]]
            assert last_turn.user.split(" <img>")[0] in evidence[-1]


def turn_lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if " assistant " in line]


def retrieves_episodes(rows) -> bool:
    return any(id.startswith("episode:") for row in rows for id in row.retrieved_ids)


def test_a_removed_memory_type_is_never_retrieved(ask):
    assert retrieves_episodes(ask("rl_gold", RecordingModel()))
    assert not retrieves_episodes(ask("rl_gold_wo_episodic", RecordingModel()))


def test_without_reasoning_the_model_retrieves_exactly_once(ask):
    for row in ask("rl_gold_wo_reasoning", RecordingModel()):
        assert row.steps == 1
        assert row.retrievals == 1
        assert row.retrieved_ids


def test_without_pem_the_profile_is_neutral(ask):
    full = RecordingModel()
    ask("rl_gold", full)
    without_pem = RecordingModel()
    ask("rl_gold_wo_pem", without_pem)
    assert all(NEUTRAL_PROFILE in text for text in first_prompts(without_pem))
    assert not all(NEUTRAL_PROFILE in text for text in first_prompts(full))


def first_prompts(model: RecordingModel) -> list[str]:
    return [text for text in model.texts if text.startswith("respond")]


def test_the_prompt_set_is_used_for_answers(lives, memory):
    model = RecordingModel()
    settings = replace(SETTINGS, max_tokens=64, prompts=PromptSet("full"))
    answer_questions(CONDITIONS["rl_gold"], lives[:1], memory, lambda name: model, settings)
    openings = ("You assist one person", "This is what your memory holds")
    assert all(text.startswith(openings) for text in model.texts)


def test_the_prompt_set_is_used_for_memories(lives, tmp_path):
    model = RecordingModel()
    settings = replace(SETTINGS, prompts=PromptSet("full"))
    memories = Memories(lambda writer, user: tmp_path / writer / user, tmp_path, {})
    write_own_memories(
        [CONDITIONS["rl_own"]],
        {"canonical": lives[:1]},
        memories,
        lambda name: model,
        {"rl": "key"},
        settings,
    )
    assert model.texts[0].startswith("Judge how the user's personality shows")
    assert "User: " in model.texts[-1]


def test_answers_are_cached_by_their_inputs(lives, memory, tmp_path):
    model = RecordingModel()
    inputs = {"lives": "these", "weights": {"rl": "a", "sft": "a"}}

    def ask(inputs, max_tokens=9):
        settings = replace(SETTINGS, max_tokens=max_tokens)
        return cached_answers(
            "rl_gold", tmp_path, inputs, lives, memory, lambda name: model, settings
        )

    rows = ask(inputs)
    requests = len(model.texts)
    assert ask(inputs) == rows
    other_model_changed = inputs | {"weights": {"rl": "a", "sft": "b"}}
    assert ask(other_model_changed) == rows
    assert len(model.texts) == requests

    cases = [row.case for row in rows]
    model_changed = inputs | {"weights": {"rl": "b"}}
    assert [row.case for row in ask(model_changed)] == cases
    assert len(model.texts) == 2 * requests
    lives_changed = inputs | {"lives": "others"}
    assert [row.case for row in ask(lives_changed)] == cases
    assert len(model.texts) == 3 * requests
    ask(lives_changed, max_tokens=8)
    assert len(model.texts) == 4 * requests


def test_memories_of_paraphrased_dialogues_have_their_own_folder():
    assert CONDITIONS["rl_own"].writer == "rl"
    assert CONDITIONS["rl_own_paraphrased"].writer == "rl_paraphrased"
    assert CONDITIONS["rl_gold"].writer == "gold"
    assert CONDITIONS["backbone_full"].writer == "gold"
    assert CONDITIONS["backbone_rag5_paraphrased"].writer == "gold_paraphrased"
