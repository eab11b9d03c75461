"""Conditions on two short lives: one record per question, and what each condition shows the model and keeps from it."""

from dataclasses import replace

import pytest

from personavlm_lib.agent.prompt_sets import PromptSet
from personavlm_lib.benchmark.oracle import Oracle
from personavlm_lib.evaluation.conditions import (
    CONDITIONS,
    Condition,
    answer_questions,
    cached_answers,
    write_memories,
)
from personavlm_lib.evaluation.records import read_records, write_records
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.models.chat import ChatReply
from personavlm_lib.models.local import LocalModel

LABELS = dict(run="test", benchmark="world", seed=0, prompt_set_hash="0" * 12)


class Listening:
    """Searches once where it may, then answers the first option; keeps every text that it is shown."""

    def __init__(self):
        self.texts = []

    def start(self):
        return []

    def reply(self, asked):
        self.texts += [ask.text for _, ask in asked]
        return [ChatReply("<think>hm</think><answer>(a)</answer>" if "answer now" in ask.text else
                      '<think>hm</think><retrieve>"keywords": my drink</retrieve>') for _, ask in asked]  # fmt: skip


@pytest.fixture
def ask(lives, memories):
    def ask(condition, model=None, lives=lives):
        if isinstance(condition, str):
            condition = CONDITIONS[condition]
        return answer_questions(
            condition, lives, lambda _, life: memories[life.user], lambda name: model, LABELS, 4
        )

    return ask


def test_the_untrained_model_leaves_one_record_per_question(ask, lives, model, processor, tmp_path):
    local, rows = LocalModel(model=model, processor=processor), []
    small = [replace(life, questions=life.questions[:2]) for life in lives]
    for name, condition in CONDITIONS.items():
        if condition.model == "rl" and condition.memory != "own":
            monkey = ask(name, local, small)
            assert [row.case for row in monkey] == [
                q.case for life in small for q in life.questions
            ]
            assert {row.condition for row in monkey} == {name}
            rows += monkey
    assert all(row.steps >= 1 and row.tokens_in > 50 and row.tokens_out > 0 for row in rows)
    write_records(tmp_path / "records.parquet", rows)
    assert len(read_records(tmp_path / "records.parquet")) == len(rows) >= 16


def test_chance_is_drawn_from_the_options_and_the_same_each_time(ask, lives):
    rows = ask("chance")
    assert len(rows) == sum(len(life.questions) for life in lives)
    assert all(row.raw in row.options and row.parsed == row.raw for row in rows)
    assert [row.correct for row in rows] == [row.raw == row.gold for row in rows]
    assert [row.raw for row in ask("chance")] == [row.raw for row in rows] and len(
        {row.raw for row in rows}
    ) > 4


def test_the_oracle_is_the_ceiling(ask):
    rows = ask("oracle")
    assert sum(row.correct for row in rows) >= len(rows) - 1
    for row in rows:
        if row.kind == "alignment" or not row.retrievals:
            continue
        looked_at, wanted = set(row.retrieved_turns), set(row.evidence_turns)
        if row.task == "Relationship Recognition":  # three searches bring some of it
            assert looked_at & wanted
        elif row.task == "Long-term Goal Tracking":  # what became of it stands in the last turn
            assert {*row.evidence_turns[-1:]} <= looked_at
        else:
            assert wanted <= looked_at
    assert {row.kind for row in rows} == {"choice", "alignment"}


def test_records_say_what_was_answered(ask):
    for row in ask(Condition("listening", "rl", "gold"), Listening()):
        assert row.parsed == row.options[0] and row.correct == (row.options[0] == row.gold)
        assert (row.steps, row.retrievals, row.memory, row.model) == (4, 3, "gold", "rl")
        assert row.retrieved_ids and len(set(row.retrieved_ids)) == len(row.retrieved_ids)


def test_without_memory_nothing_is_known_but_the_personality(ask, lives):
    model = Listening()
    rows = ask("no_memory", model)
    assert all(row.retrievals == 0 and row.steps == 1 and not row.retrieved_ids for row in rows)
    assert all(
        "profile" in map(str.strip, text.split("\n")) and "answer now" in text
        for text in model.texts
    )
    names = {life.plan.persona.name for life in lives}
    assert not any(f"my name is {name}" in text for text in model.texts for name in names)


def test_context_conditions_show_raw_turns_and_no_memory_search(ask, lives):
    shown = {}
    for name in ("gold_evidence", "backbone_rag5", "backbone_full"):
        model = Listening()
        rows = ask(name, model)
        assert all(row.retrievals == 0 and row.memory == "context" for row in rows)
        shown[name] = [
            [line for line in text.split("\n") if " assistant " in line] for text in model.texts
        ]
    questions = [(life, question) for life in lives for question in life.questions]
    for (life, question), evidence, five, full in zip(questions, *shown.values(), strict=True):
        before = [turn for turn in life.turns if turn.time <= question.time]
        assert len(full) == len(before) and len(five) == min(5, len(before))
        assert len(evidence) == min(8, len(question.evidence)) and set(evidence) <= set(full)
        if question.evidence:
            assert life.turns[question.evidence[-1]].user.split(" <img>")[0] in evidence[-1]


def test_what_is_taken_away_is_gone(ask):
    whole, bare = Listening(), Listening()
    rows = ask("rl_gold", whole)
    assert any(i.startswith("episode:") for row in rows for i in row.retrieved_ids)
    rows = ask("rl_gold_wo_episodic", bare)
    assert not any(i.startswith("episode:") for row in rows for i in row.retrieved_ids)
    once = Listening()
    rows = ask("rl_gold_wo_reasoning", once)
    assert all(row.steps == 1 == row.retrievals and row.retrieved_ids for row in rows)
    neutral = Listening()
    ask("rl_gold_wo_pem", neutral)
    flat = "openness mid conscientiousness mid extraversion mid agreeableness mid neuroticism mid"
    assert all(flat in text for text in neutral.texts if text.startswith("respond"))
    assert not all(flat in text for text in whole.texts if text.startswith("respond"))


def test_the_prompt_set_reaches_answers_and_memories(lives, memories, tmp_path):
    full, answering, living = PromptSet("full"), Listening(), Listening()
    models, memory = (lambda _: answering), (lambda _, life: memories[life.user])
    answer_questions(CONDITIONS["rl_gold"], lives[:1], memory, models, LABELS, 4, 64, full)
    assert all(
        text.startswith(("You assist one person", "This is what your memory holds"))
        for text in answering.texts
    )
    write_memories(lives[:1], tmp_path, living, "rl", None, 4, "key", full)
    assert (
        living.texts[0].startswith("Judge how the user's personality shows")
        and "User: " in living.texts[-1]
    )


def test_answers_are_kept_by_what_made_them(lives, memories, tmp_path):
    model, made = Listening(), {"lives": "these", "weights": {"rl": "a", "sft": "a"}}

    def ask(made_from, max_tokens=9):
        given = (lives, lambda _, life: memories[life.user], lambda name: model)
        return cached_answers(
            "rl_gold", tmp_path, made_from, *given, labels=LABELS, width=4, max_tokens=max_tokens
        )

    rows, asked = ask(made), len(model.texts)
    assert (
        ask(made) == rows
        and ask(made | {"weights": {"rl": "a", "sft": "b"}}) == rows
        and len(model.texts) == asked
    )
    for n, changed in enumerate((made | {"weights": {"rl": "b"}}, made | {"lives": "others"}), 2):
        assert [row.case for row in ask(changed)] == [row.case for row in rows] and len(
            model.texts
        ) == n * asked
    ask(made | {"lives": "others"}, max_tokens=8)
    assert len(model.texts) == 4 * asked


def test_memories_are_written_side_by_side_and_kept(lives, tmp_path):
    class Oracles:
        """Each life's own oracle, by the turn that is asked about."""

        def start(self):
            return []

        def reply(self, asked):
            rounds.append(len(asked))
            return [
                next(o for o in oracles if self.knows(o, ask.subject)).reply([(t, ask)])[0]
                for t, ask in asked
            ]

        @staticmethod
        def knows(oracle: Oracle, about):
            turn = about[0] if isinstance(about, list) else about
            return (turn.time, turn.user) in oracle.indices

    rounds, oracles = [], [life.oracle for life in lives]
    write_memories(lives, tmp_path, Oracles(), "oracle", None, 8, "key")
    assert max(rounds) == 6
    for life in lives:
        with MemoryStore(tmp_path / life.user) as store:
            assert len(store.as_of().turns) == len(life.turns)
            assert store.as_of().semantic[0].written_by.startswith("oracle/nano-")
    asked = len(rounds)
    write_memories(lives, tmp_path, Oracles(), "oracle", None, 8, "key")
    assert len(rounds) == asked, "what is whole is kept"
    (tmp_path / lives[0].user / "finished").unlink()
    write_memories(lives, tmp_path, Oracles(), "oracle", None, 8, "key")
    assert len(rounds) == 2 * asked, "of a group that was cut short, all are written anew"
    write_memories(lives, tmp_path, Oracles(), "oracle", None, 8, "another model's")
    assert len(rounds) == 3 * asked
    with MemoryStore(tmp_path / lives[0].user) as store:
        assert len(store.as_of().turns) == len(lives[0].turns)


def test_memory_of_other_words_lies_elsewhere():
    assert (
        CONDITIONS["rl_own"].writer == "rl"
        and CONDITIONS["rl_own_paraphrased"].writer == "rl_paraphrased"
    )
    assert CONDITIONS["rl_gold"].writer == CONDITIONS["backbone_full"].writer == "gold"
    assert CONDITIONS["backbone_rag5_paraphrased"].writer == "gold_paraphrased"
