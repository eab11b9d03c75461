"""The measurement of inference runs, small, and its rows say what they are; how fast depends on the machine."""

import json
import subprocess
import sys

from personavlm_lib.study.profiles import ROOT


def test_a_tiny_model_is_measured_in_every_way(tmp_path):
    out = tmp_path / "gpu" / "inference.json"
    command = [
        sys.executable,
        str(ROOT / "speed" / "inference.py"),
        "--size",
        "tiny",
        "--contexts",
        "40",
    ]
    command += [
        "--batches",
        "2",
        "--users",
        "4",
        "--decode",
        "4",
        "--repeats",
        "1",
        "--json",
        str(out),
    ]
    subprocess.run(command, check=True, cwd=tmp_path)
    told = json.loads(out.read_text())
    rows = {(row["what"], row["batch"]): row for row in told["rows"]}
    assert list(rows) == [("users", 4), ("prefix", 2), ("speed", 1), ("speed", 2)]
    assert rows["speed", 2]["prefill_per_s"] > 0 and rows["speed", 2]["decode_per_s"] > 0
    for kind, (slow, fast) in {
        "users": ("apart_s", "together_s"),
        "prefix": ("scratch_s", "kept_s"),
    }.items():
        row = next(row for row in told["rows"] if row["what"] == kind)
        assert abs(row["gain"] - row[slow] / row[fast]) < 0.05 * row["gain"]
    assert (
        told["about"]["parameters"] > 0
        and out.with_suffix(".csv").read_text().count("\n") == len(rows) + 1
    )
