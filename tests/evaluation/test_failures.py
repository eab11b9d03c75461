"""A failure of the server or the network is never a result: it is counted and tried again."""

import json
from dataclasses import replace
from math import isnan

import pandas as pd
import pytest

from personavlm_lib.evaluation import skills
from personavlm_lib.evaluation.claims import Evidence, evaluate_claims
from personavlm_lib.evaluation.conditions import CONDITIONS, EvaluationSettings, cached_answers
from personavlm_lib.evaluation.failures import FailurePolicy, StageStopped
from personavlm_lib.evaluation.memories import Memories, write_own_memories
from personavlm_lib.evaluation.records import read_records, write_records
from personavlm_lib.evaluation.statistics import accuracy_table
from personavlm_lib.memory.store import MemoryStore
from personavlm_lib.models.chat import ChatReply, RequestFailure
from personavlm_lib.models.endpoint import EndpointModel
from personavlm_lib.study.tables import condition_table

LABELS = dict(run="test", benchmark="world", seed=0, prompt_set_hash="0" * 12)
SETTINGS = EvaluationSettings(LABELS, width=4)
ANSWER = "<think>hm</think><answer>(a)</answer>"
INPUTS = {"weights": {"rl": "a server"}}


@pytest.fixture
def many_questions(lives):
    """A life with 400 questions."""
    questions = []
    for n in range(400):
        question = lives[0].questions[n % len(lives[0].questions)]
        questions.append(replace(question, case=f"case {n}"))
    return [replace(lives[0], questions=tuple(questions))]


def answer(folder, lives, memories, model, name="no_memory", settings=SETTINGS):
    def memory(condition, life):
        return memories[life.user]

    return cached_answers(name, folder, INPUTS, lives, memory, lambda _: model, settings)


def comparable(records):
    return [replace(record, seconds=0.0) for record in records]


def test_server_that_dies_at_question_200_of_400_and_returns_gives_the_same_table(
    served, many_questions, memories, tmp_path
):
    def option(body):
        """The answer depends on the question alone."""
        text = body["messages"][-1]["content"]
        letter = "abcd"[len(text) % 4]
        return f"<think>hm</think><answer>({letter})</answer>"

    with served(option) as (source, bodies):
        model = EndpointModel(source, retries=0)
        unbroken = answer(tmp_path / "unbroken", many_questions, memories, model)
        assert len(bodies) == 400

    answered = []
    alive = []

    def dying(body):
        if len(answered) >= 200 and not alive:
            return 503
        answered.append(body)
        return option(body)

    with served(dying) as (source, bodies):
        model = EndpointModel(source, retries=0)
        with pytest.raises(StageStopped, match="16 failures in a row.*status 503"):
            answer(tmp_path / "broken", many_questions, memories, model)
        asked_before = len(bodies)
        assert 216 <= asked_before <= 216 + model.connections
        alive.append(True)
        resumed = answer(tmp_path / "broken", many_questions, memories, model)
        # Replies that were under way when the stage stopped are asked for again.
        open_questions = len(bodies) - asked_before
        assert 200 <= open_questions <= 200 + model.connections
        again = answer(tmp_path / "broken", many_questions, memories, model)
        assert len(bodies) - asked_before == open_questions
    assert comparable(resumed) == comparable(unbroken) == comparable(again)
    assert len({record.parsed for record in resumed}) > 4
    assert not list((tmp_path / "broken").glob("*.jsonl"))


def test_rejected_key_scores_nothing_and_is_tried_again(served, lives, memories, tmp_path):
    key_is_right = []
    with served(lambda _: ANSWER if key_is_right else 401) as (source, bodies):
        model = EndpointModel(source, retries=0)
        few = [replace(life, questions=life.questions[:5]) for life in lives]
        records = answer(tmp_path, few, memories, model)
        assert [record.correct for record in records] == [None] * 10
        assert "rejected the API key" in records[0].error
        assert records[0].parsed is None and records[0].raw == ""
        write_records(tmp_path / "records.parquet", records)
        frame = read_records(tmp_path / "records.parquet")
        [row] = accuracy_table(frame).to_dict("records")
        assert (row["n"], row["unscored"]) == (0, 10) and isnan(row["accuracy"])
        claims = evaluate_claims(Evidence(frame, *[pd.DataFrame()] * 4))
        assert {claim.verdict for claim in claims} == {"not measured"}
        key_is_right.append(True)
        records = answer(tmp_path, few, memories, model)
        assert [record.error for record in records] == [""] * 10
        assert {record.stop for record in records} == {"stop"}
        assert len(bodies) == 20


def test_forcing_one_condition_leaves_the_others(served, lives, memories, tmp_path):
    with served(lambda _: ANSWER) as (source, bodies):
        model = EndpointModel(source)
        for name in ("no_memory", "rl_gold"):
            answer(tmp_path, lives, memories, model, name)
        before = len(bodies)
        (tmp_path / "rl_gold" / "finished").unlink()
        for name in ("no_memory", "rl_gold"):
            answer(tmp_path, lives, memories, model, name)
        assert len(bodies) - before == sum(len(life.questions) for life in lives)


def test_unparsed_reply_is_scored_and_cut_thinking_is_no_answer(served, lives, memories, tmp_path):
    question = replace(lives[0].questions[0])
    few = [replace(lives[0], questions=(question,))]
    quoted = f"<think>the user wrote <answer>{question.answer}</answer>, but"
    choice = {"finish_reason": "length", "message": {"content": quoted}}
    cut = json.dumps({"choices": [choice]}).encode()
    for n, response in enumerate((cut, "no tags at all")):
        with served(lambda _, response=response: response) as (source, _):
            [record] = answer(tmp_path / str(n), few, memories, EndpointModel(source))
        assert (record.correct, record.parsed, record.error) == (False, None, "")
        assert record.stop == ("length" if response == cut else "stop")


def test_tables_count_unscored_questions_apart():
    rows = []
    for n, correct in enumerate([True, False, None, None]):
        row = dict(condition="rl_own", kind="choice", user=f"u{n}", correct=correct)
        rows.append(row | dict(parsed="tea" if correct else None))
    frame = pd.DataFrame(rows)
    [row] = condition_table(frame).to_dict("records")
    assert (row["n"], row["accuracy"], row["unscored"]) == (2, 50, 2)
    assert row["unparsed"] == 50


def test_one_failure_leaves_one_memory_unfinished_and_its_questions_unscored(
    served, lives, tmp_path
):
    refused = [30]
    memories = Memories(lambda writer, user: tmp_path / writer / user, tmp_path, {})
    own = CONDITIONS["rl_own"]

    def script(body):
        if len(bodies) in refused:
            return 400
        text = str(body["messages"][0]["content"])
        return ANSWER if "respond" in text else '"decision": true\n"content": "x"'

    def write(model):
        write_own_memories(
            [own], {"canonical": lives}, memories, lambda _: model, {"rl": "w"}, SETTINGS
        )
        return sorted(path.parent.name for path in tmp_path.glob("rl/*/finished"))

    with served(script) as (source, bodies):
        model = EndpointModel(source, retries=0, connections=1)
        finished = write(model)
        assert len(finished) == 1
        records = cached_answers(
            "rl_own", tmp_path / "answers", INPUTS, lives, memories.store, lambda _: model, SETTINGS
        )
        for record in records:
            assert (record.correct is None) == (record.user not in finished)
        assert len(write(model)) == 2
        asked_before = len(bodies)
        assert len(write(model)) == 2
        assert len(bodies) == asked_before
    unfinished = next(life for life in lives if life.user not in finished)
    with MemoryStore(tmp_path / "rl" / unfinished.user) as store:
        assert len(store.as_of().turns) == len(unfinished.turns)


class Flaky:
    """Fails on each request whose number `fails` names, else replies with an answer."""

    def __init__(self, fails):
        self.fails = fails
        self.count = 0

    def start(self):
        return []

    def reply(self, asked):
        replies = []
        for _ in asked:
            failure = RequestFailure("timeout", "too slow")
            replies.append(failure if self.fails(self.count) else ChatReply(ANSWER))
            self.count += 1
        return replies


def test_skills_leave_out_items_without_a_reply():
    whole = skills.measure_skills(Flaky(lambda n: False), skills.SkillSettings(2, 0))
    broken = skills.measure_skills(Flaky(lambda n: n % 5 == 0), skills.SkillSettings(2, 0))
    assert set(whole["item"]) == set(broken["item"])
    failed = broken[broken["error"] != ""]
    assert len(failed) > 3 and failed["value"].isna().all()
    table = skills.skill_table(broken)
    full_table = skills.skill_table(whole).set_index("skill").loc[table["skill"]]
    assert (table["n"].to_numpy() + table["unscored"].to_numpy() == full_table["n"]).all()
    assert table["unscored"].sum() > 0
    with pytest.raises(StageStopped, match="too slow"):
        skills.measure_skills(Flaky(lambda n: n > 5), skills.SkillSettings(2, 0))


def test_policy_counts_failures_in_a_row_and_raises_errors_of_the_code():
    policy = FailurePolicy(str, limit=3)
    for _ in range(4):
        assert policy.on_error(ValueError("no"), []) == "no"
        policy.on_error(ValueError("no"), [])
        policy.on_result(0, "yes")
    policy.on_error(ValueError("no"), [])
    policy.on_error(ValueError("no"), [])
    with pytest.raises(StageStopped):
        policy.on_error(ValueError("no"), [])
    with pytest.raises(KeyError):
        policy.on_error(KeyError("a bug"), [])
