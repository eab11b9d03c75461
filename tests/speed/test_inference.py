"""speed/inference.py runs on a tiny model and describes its rows; speed depends on the machine."""

import json
import subprocess
import sys

import pytest

from personavlm_lib.study.profiles import ROOT

ARGUMENTS = "--size tiny --contexts 40 --batches 2 --users 4 --decode 4 --repeats 1".split()


def assert_gain(row, slow, fast):
    gain = row[slow] / row[fast]
    assert abs(row["gain"] - gain) < 0.05 * row["gain"]


@pytest.mark.slow
def test_every_measurement_runs_on_a_tiny_model(tmp_path):
    file = tmp_path / "gpu" / "inference.json"
    script = str(ROOT / "speed" / "inference.py")
    command = [sys.executable, script, *ARGUMENTS, "--json", str(file)]
    subprocess.run(command, check=True, cwd=tmp_path)
    results = json.loads(file.read_text(encoding="utf-8"))
    rows = {}
    for row in results["rows"]:
        key = (row["what"], row["batch"])
        rows[key] = row
    assert list(rows) == [("users", 4), ("prefix", 2), ("speed", 1), ("speed", 2)]
    speed = rows["speed", 2]
    assert speed["prefill_per_s"] > 0
    assert speed["decode_per_s"] > 0
    assert_gain(rows["users", 4], slow="apart_s", fast="together_s")
    assert_gain(rows["prefix", 2], slow="scratch_s", fast="kept_s")
    assert results["about"]["parameters"] > 0
    csv_lines = file.with_suffix(".csv").read_text(encoding="utf-8").count("\n")
    assert csv_lines == len(rows) + 1
