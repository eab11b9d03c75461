"""Evidence recall counts the evidence turns among the first k, whatever ranks them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from personavlm_lib.evaluation.locomo import measure_recall, recall_table, recalls, report_locomo
from personavlm_lib.memory.search import Retriever

WORDS = "apple bridge candle desert engine feather garden hammer island jacket kettle ladder mirror needle orange".split()


@pytest.fixture
def path(tmp_path):
    """Fifteen turns of one word each; the first question's words are in its evidence, the second's are not."""
    said = [{"speaker": "Ann", "dia_id": f"D1:{n}", "text": word} for n, word in enumerate(WORDS)]
    asked = [
        {"question": "the kettle and the apple?", "evidence": ["D1:10", "D1:0"], "category": 1},
        {"question": "a garden?", "evidence": ["D1:14", "D1:6"], "category": 4},
        {"question": "unknown?", "evidence": [], "category": 4},
    ]
    talk = {"session_1": said, "session_1_date_time": "1:56 pm on 8 May, 2023"}
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([{"sample_id": "one", "conversation": talk, "qa": asked}]))
    return path


def test_recall_is_the_share_of_the_evidence(path):
    frame = recalls(path, Retriever(ranking="bm25"))
    assert frame[["user", "category", "recall@5"]].values.tolist() == [
        ["one", "multi-hop", 1.0],
        ["one", "single-hop", 0.5],
    ]
    table = recall_table(frame).set_index("category")
    assert (
        table.loc["all", ["n", "recall@10"]].tolist() == [2, 0.75]
        and "adversarial" not in table.index
    )
    assert table.loc["all", "low@10"] == 0.5 and table.loc["all", "high@10"] == 1.0


def test_the_command_writes_what_it_measured(path, tmp_path, capsys):
    out = tmp_path / "out.json"
    report_locomo(path, "bm25", out)
    result = json.loads(out.read_text())
    assert (result["file"], result["ranking"], result["encoder"]) == ("talk.json", "bm25", None)
    assert (
        result["conversations"] == 1
        and result["rows"][-1]["category"] == "all"
        and result["seconds"] >= 0
    )
    assert "multi-hop" in capsys.readouterr().out
    command = [
        sys.executable,
        "-m",
        "personavlm_lib",
        "locomo",
        str(path),
        "--ranking",
        "bm25",
        "--json",
        str(out),
    ]
    out.unlink()
    subprocess.run(command, check=True, capture_output=True)
    assert json.loads(out.read_text())["rows"] == result["rows"]


def test_a_file_without_evidence_is_refused(tmp_path):
    path = tmp_path / "bank.json"
    path.write_text(
        json.dumps({"Ann": {"history": {"2023-05-02": [{"query": "hi", "response": "ho"}]}}})
    )
    with pytest.raises(ValueError, match="bank.json holds no question that names its evidence"):
        measure_recall(path, "bm25")


def test_bm25_on_the_real_file():
    folder = os.environ.get("PERSONAVLM_DATA")
    path = Path(folder or ".") / "locomo_dev5.json"
    if not folder or not path.exists():
        pytest.skip("PERSONAVLM_DATA does not name a folder with locomo_dev5.json")
    table = pd.DataFrame(measure_recall(path, "bm25")["rows"]).set_index("category")
    assert table.loc["all", "n"] == 997 and table.loc["all", "recall@10"] == pytest.approx(
        0.645, abs=0.005
    )
