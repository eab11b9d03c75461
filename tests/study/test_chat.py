"""`personavlm chat` with piped input: it answers, remembers, and reports unknown words."""

import os
import subprocess
import sys

import pytest

from personavlm_lib.study.profiles import BACKBONE, ROOT


@pytest.fixture
def chat(tmp_path):
    """Send lines to the agent of a run whose model is the bundled backbone; return the process."""
    stage = tmp_path / "runs" / "r" / "03_grpo"
    stage.mkdir(parents=True)
    (stage / "run.json").write_text("{}", encoding="utf-8")
    (stage / "model").symlink_to(BACKBONE)
    environment = os.environ | {"PERSONAVLM_RUNS": str(tmp_path / "runs"), "PYTHONPATH": str(ROOT)}

    def send(*lines, run="r"):
        command = [sys.executable, "-m", "personavlm_lib", "chat", "--run", run]
        return subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            input="\n".join(lines),
            capture_output=True,
            encoding="utf-8",
            timeout=600,
        )

    return send


def test_chat_answers_and_its_memory_persists(chat, tmp_path):
    first = chat("my drink is sprite", "what is my zeppelin ?")
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    assert "what is my drink ?" in lines[2]
    assert sum(line.startswith("agent: ") for line in lines) == 2
    assert "(words it does not know: zeppelin)" in lines
    assert lines[-1] == f"The memory is saved in {tmp_path / 'runs' / 'r' / 'chat'}."
    second = chat(":memory", ":memry", ":quit", "not read").stdout
    assert "no such command" in second
    assert "openness" in second.lower()
    assert "agent: " not in second
    assert "saved in" not in second
    failed = chat("hello", run="other")
    missing = tmp_path / "runs" / "other" / "03_grpo"
    assert failed.returncode == 1
    assert f"{missing} is missing: run 'make reproduce' first" in failed.stderr
