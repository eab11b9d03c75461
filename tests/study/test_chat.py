"""A conversation through the command line, piped: it answers, remembers, and says what it can be asked."""

import os
import subprocess
import sys

import pytest

from personavlm_lib.study.profiles import BACKBONE, ROOT


@pytest.fixture
def chat(tmp_path):
    """Says lines to the agent of a run whose model is the kept backbone; returns what it printed."""
    stage = tmp_path / "runs" / "r" / "03_grpo"
    stage.mkdir(parents=True)
    (stage / "run.json").write_text("{}")
    (stage / "model").symlink_to(BACKBONE)
    environment = os.environ | {"PERSONAVLM_RUNS": str(tmp_path / "runs"), "PYTHONPATH": str(ROOT)}

    def say(*lines, run="r"):
        command = [sys.executable, "-m", "personavlm_lib", "chat", "--run", run]
        return subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            input="\n".join(lines),
            capture_output=True,
            text=True,
            timeout=600,
        )

    return say


def test_it_answers_and_its_memory_outlives_it(chat, tmp_path):
    first = chat("my drink is sprite", "what is my zeppelin ?")
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert (
        "what is my drink ?" in lines[2] and sum(line.startswith("agent: ") for line in lines) == 2
    )
    assert "(words it does not know: zeppelin)" in lines
    assert lines[-1] == f"The memory is kept in {tmp_path / 'runs' / 'r' / 'chat'}."
    second = chat(":memory", ":quit", "not read").stdout
    assert "openness" in second.lower() and "agent: " not in second and "kept in" not in second
    refused = chat("hello", run="other")
    missing = tmp_path / "runs" / "other" / "03_grpo"
    assert (
        refused.returncode == 1
        and f"{missing} is missing: run 'make reproduce' first" in refused.stderr
    )
