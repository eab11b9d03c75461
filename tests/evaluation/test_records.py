"""Records come back as they were written, and no question is counted twice."""

from dataclasses import replace

import pytest

from personavlm_lib.evaluation.records import (
    AnswerRecord,
    load_records,
    read_records,
    write_records,
)

ONE = AnswerRecord(
    run="r", benchmark="world", case="1", user="ann", task="t", aspect="Memory", kind="choice", condition="rl_own",
    model="nano", seed=0, prompt_set_hash="0", memory="own", options=["tea", "cola"], gold="tea", raw="<answer>?",
    parsed=None, correct=False, retrieved_turns=[3, 1],
)  # fmt: skip


def test_round_trip(tmp_path):
    written = [ONE, replace(ONE, case="2", parsed="tea", correct=True)]
    write_records(tmp_path / "new" / "records.parquet", written)
    assert load_records(tmp_path / "new" / "records.parquet") == written
    rows = read_records(tmp_path / "new" / "records.parquet")
    assert list(rows["correct"]) == [False, True] and rows["parsed"].isna().tolist() == [
        True,
        False,
    ]
    assert list(rows["options"][0]) == ["tea", "cola"] and list(rows["retrieved_turns"][1]) == [
        3,
        1,
    ]
    assert list(rows["retrieved_ids"][0]) == []


def test_a_question_answered_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="answered twice .*'case': '1'"):
        write_records(tmp_path / "records.parquet", [ONE, replace(ONE, correct=True)])
    write_records(tmp_path / "records.parquet", [ONE, replace(ONE, condition="sft_own")])
