"""Test that evidence recall counts evidence turns among the first k, for every ranking."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from personavlm_lib.evaluation.locomo import measure_recall, recall_table, recalls, report_locomo
from personavlm_lib.memory.search import Retriever

WORDS = (
    "apple bridge candle desert engine feather garden hammer island jacket kettle ladder mirror "
    "needle orange"
).split()


@pytest.fixture
def path(tmp_path):
    """A file with fifteen turns of one word each.

    The words of the first question are in its evidence, those of the second are not.
    """
    turns = []
    for n, word in enumerate(WORDS):
        turns.append({"speaker": "Ann", "dia_id": f"D1:{n}", "text": word})
    questions = [
        {"question": "the kettle and the apple?", "evidence": ["D1:10", "D1:0"], "category": 1},
        {"question": "a garden?", "evidence": ["D1:14", "D1:6"], "category": 4},
        {"question": "unknown?", "evidence": [], "category": 4},
    ]
    conversation = {"session_1": turns, "session_1_date_time": "1:56 pm on 8 May, 2023"}
    sample = {"sample_id": "one", "conversation": conversation, "qa": questions}
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([sample]), encoding="utf-8")
    return path


def test_recall_is_the_retrieved_share_of_the_evidence(path):
    frame = recalls(path, Retriever(ranking="bm25"))
    assert frame[["user", "category", "recall@5"]].values.tolist() == [
        ["one", "multi-hop", 1.0],
        ["one", "single-hop", 0.5],
    ]
    table = recall_table(frame).set_index("category")
    assert "adversarial" not in table.index
    assert table.loc["all", ["n", "recall@10"]].tolist() == [2, 0.75]
    assert table.loc["all", "low@10"] == 0.5
    assert table.loc["all", "high@10"] == 1.0


def test_report_prints_and_writes_the_numbers(path, tmp_path, capsys):
    out = tmp_path / "out.json"
    report_locomo(path, "bm25", out)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["file"] == "talk.json"
    assert result["ranking"] == "bm25"
    assert result["encoder"] is None
    assert result["conversations"] == 1
    assert result["rows"][-1]["category"] == "all"
    assert result["seconds"] >= 0
    assert "multi-hop" in capsys.readouterr().out


def test_command_writes_the_numbers_of_the_report(path, tmp_path):
    out = tmp_path / "out.json"
    report_locomo(path, "bm25", out)
    expected = json.loads(out.read_text(encoding="utf-8"))
    out.unlink()
    arguments = ["locomo", str(path), "--ranking", "bm25", "--json", str(out)]
    command = [sys.executable, "-m", "personavlm_lib", *arguments]
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads(out.read_text(encoding="utf-8"))["rows"] == expected["rows"]


def test_a_file_without_evidence_is_rejected(tmp_path):
    path = tmp_path / "bank.json"
    history = {"2023-05-02": [{"query": "hi", "response": "ho"}]}
    path.write_text(json.dumps({"Ann": {"history": history}}), encoding="utf-8")
    with pytest.raises(ValueError, match="bank.json contains no question that names its evidence"):
        measure_recall(path, "bm25")


def test_bm25_recall_on_the_real_file():
    folder = os.environ.get("PERSONAVLM_DATA")
    path = Path(folder or ".") / "locomo_dev5.json"
    if not folder or not path.exists():
        pytest.skip("PERSONAVLM_DATA does not name a folder with locomo_dev5.json")
    result = measure_recall(path, "bm25")
    table = pd.DataFrame(result["rows"]).set_index("category")
    assert table.loc["all", "n"] == 997
    assert table.loc["all", "recall@10"] == pytest.approx(0.645, abs=0.005)
