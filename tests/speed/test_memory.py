"""speed/memory.py runs and its recall is right; speed depends on the machine."""

import json
import subprocess
import sys

import pytest

from personavlm_lib.study.profiles import ROOT

ARGUMENTS = "--sizes 300 --clusters 9 --systems limit ours approximate".split()


@pytest.mark.slow
def test_ours_and_the_limit_are_measured_and_agree_with_exact_search(tmp_path):
    file = tmp_path / "speed.json"
    script = str(ROOT / "speed" / "memory.py")
    figure = str(tmp_path / "speed")
    command = [sys.executable, script, *ARGUMENTS, "--json", str(file), "--plot", figure]
    subprocess.run(command, check=True, cwd=tmp_path)
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert {(row["system"], row.get("variant")) for row in rows} == {
        ("ours", "dense"),
        ("ours", "bm25"),
        ("ours", "hybrid"),
        ("limit", "faiss"),
        ("limit", "fts5"),
        ("approximate", "dense"),
    }
    for row in rows:
        expected = 1.0 if row["variant"] in ("dense", "faiss") else None
        assert row["recall"] == expected, row
        assert row["cpu_p50_ms"] > 0
        assert row["disk_mib"] > 0
        assert row["singly_per_s"] > 0
    assert (tmp_path / "speed.png").exists()
    csv_lines = (tmp_path / "speed.csv").read_text(encoding="utf-8").count("\n")
    assert csv_lines == len(rows) + 1
