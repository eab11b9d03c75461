"""Test that records survive a round trip, and that no question is counted twice."""

from dataclasses import replace

import pytest

from personavlm_lib.evaluation.records import (
    AnswerRecord,
    load_records,
    read_records,
    write_records,
)

RECORD = AnswerRecord(
    run="r",
    benchmark="world",
    case="1",
    user="ann",
    task="t",
    aspect="Memory",
    kind="choice",
    condition="rl_own",
    model="nano",
    seed=0,
    prompt_set_hash="0",
    memory="own",
    options=["tea", "cola"],
    gold="tea",
    raw="<answer>?",
    parsed=None,
    correct=False,
    retrieved_turns=[3, 1],
)


def test_records_survive_a_round_trip(tmp_path):
    path = tmp_path / "new" / "records.parquet"
    written = [RECORD, replace(RECORD, case="2", parsed="tea", correct=True)]
    write_records(path, written)
    assert load_records(path) == written
    rows = read_records(path)
    assert list(rows["correct"]) == [False, True]
    assert list(rows["parsed"].isna()) == [True, False]
    assert list(rows["options"][0]) == ["tea", "cola"]
    assert list(rows["retrieved_turns"][1]) == [3, 1]
    assert list(rows["retrieved_ids"][0]) == []


def test_a_question_answered_twice_by_one_condition_is_rejected(tmp_path):
    path = tmp_path / "records.parquet"
    with pytest.raises(ValueError, match="answered twice .*'case': '1'"):
        write_records(path, [RECORD, replace(RECORD, correct=True)])
    write_records(path, [RECORD, replace(RECORD, condition="sft_own")])
