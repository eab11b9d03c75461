"""The measurement of speed runs, and what it measures is right; how fast it is depends on the machine."""

import json
import subprocess
import sys

from personavlm_lib.study.profiles import ROOT


def test_ours_and_the_limit_are_measured_and_agree_with_exact_search(tmp_path):
    out = tmp_path / "speed.json"
    command = [
        sys.executable,
        str(ROOT / "speed" / "memory.py"),
        "--sizes",
        "300",
        "--clusters",
        "9",
    ]
    subprocess.run(
        [
            *command,
            "--systems",
            "limit",
            "ours",
            "approximate",
            "--json",
            str(out),
            "--plot",
            str(tmp_path / "speed"),
        ],
        check=True,
        cwd=tmp_path,
    )
    rows = json.loads(out.read_text())["rows"]
    assert {(row["system"], row.get("variant")) for row in rows} == {
        ("ours", "dense"), ("ours", "bm25"), ("ours", "hybrid"), ("limit", "faiss"), ("limit", "fts5"),
        ("approximate", "dense"),
    }  # fmt: skip
    for row in rows:
        assert row["recall"] == (1.0 if row["variant"] in ("dense", "faiss") else None), row
        assert row["cpu_p50_ms"] > 0 and row["disk_mib"] > 0 and row["singly_per_s"] > 0
    assert (tmp_path / "speed.png").exists() and (tmp_path / "speed.csv").read_text().count(
        "\n"
    ) == len(rows) + 1
