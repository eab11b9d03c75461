"""`personavlm synthesize`: a data set is complete or absent, and the same command resumes."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from personavlm_lib.study.profiles import ROOT

# The real command line, with a data set of two small lives for each size
COMMAND = """
import sys
from personavlm_lib.benchmark import sizes
group = sizes.Group("test", 50_000, USERS, 20, 4, 1, size=0.5)
sizes.DATASET_SIZES = dict.fromkeys(sizes.DATASET_SIZES, (group,))
from personavlm_lib.__main__ import main
if __name__ == "__main__":
    sys.exit(main())
"""
EXCHANGE = re.compile(
    r'^\d+\. (\d\d:\d\d) "(.*)"$\n(?:   Words.*\n)?(   With a picture of .*\. The)?', re.MULTILINE
)


def good(body):
    """A story that states each event of the prompt, with the date and time in every message."""
    prompt = body["messages"][0]["content"]
    date = re.search(r"on \w+ ([\d-]+)\.", prompt)[1]
    turns = []
    for clock, fact, picture in EXCHANGE.findall(prompt):
        user = f"On {date} at {clock} I tell you {fact} {'[picture]' if picture else ''}"
        turns.append({"user": user, "assistant": "Noted."})
    return json.dumps({"turns": turns})


@pytest.fixture
def synthesize(tmp_path):
    """Start the command in `tmp_path` with more options; returns the process."""
    script = tmp_path / "script" / "command.py"
    script.parent.mkdir()
    started = []

    def start(*options, users=2):
        script.write_text(COMMAND.replace("USERS", str(users)), encoding="utf-8")
        command = [sys.executable, str(script), "synthesize", "--out", "data/new"]
        process = subprocess.Popen(
            [*command, "--workers", "2", *options],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,  # so that a signal reaches its workers too, as Ctrl-C does
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    yield start
    for process in started:  # all have ended, unless a test failed
        process.kill()


def ended(process):
    """Exit code, output and errors, without progress bars."""
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors.strip()


def test_no_accepted_story_is_a_failure_that_leaves_nothing(synthesize, served, tmp_path):
    with served(lambda body: "no story") as (source, _):
        code, _, errors = ended(synthesize("--generator", source))
    assert code == 1
    (line,) = errors.splitlines()
    assert "no data set was written" in line and "2 of 2 lives left out" in line
    assert "no story was accepted" in line
    assert not (tmp_path / "data").exists()


def test_server_that_does_not_answer_is_reported_first(synthesize, tmp_path):
    code, output, errors = ended(synthesize("--generator", "http://127.0.0.1:1/v1#model"))
    assert (code, output) == (1, "")
    (line,) = errors.splitlines()
    assert "cannot be reached" in line
    assert not (tmp_path / "data").exists()


def test_same_command_resumes_after_a_failed_generation(synthesize, served, tmp_path):
    left = [2]  # the number of stories that the server writes before it fails

    def reply(body):
        left[0] -= 1
        return good(body) if left[0] >= 0 else 400

    stories = tmp_path / "data" / "new.stories" / "stories.jsonl"
    with served(reply) as (source, requests):
        code, _, errors = ended(synthesize("--generator", source))
        assert code == 1 and "rerun the same command to resume" in errors
        assert "\n" not in errors
        assert [path.name for path in (tmp_path / "data").iterdir()] == ["new.stories"]
        accepted = stories.read_text(encoding="utf-8").splitlines()
        assert len(accepted) == 2
        left[0] = 10_000
        requests.clear()
        code, output, errors = ended(synthesize("--generator", source))
    assert code == 0, errors
    assert "data/new: 2 lives" in output
    all_stories = stories.read_text(encoding="utf-8").splitlines()
    assert all_stories[:2] == accepted
    assert len(requests) == len(all_stories) - 2
    assert (tmp_path / "data" / "new" / "test.jsonl").is_file()


def test_ctrl_c_while_a_server_writes_keeps_stories_for_the_same_command(
    synthesize, served, tmp_path
):
    waiting = threading.Event()
    left = [2]

    def reply(body):
        left[0] -= 1
        if left[0] >= 0:
            return good(body)
        waiting.set()
        return 20.0  # seconds until the server closes the connection

    stories = tmp_path / "data" / "new.stories" / "stories.jsonl"
    with served(reply) as (source, requests):
        process = synthesize("--generator", source)
        assert waiting.wait(200)
        time.sleep(1)
        begin = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        code, _, errors = ended(process)
        assert time.monotonic() - begin < 15, "it waited for the server"
        assert (code, errors) == (130, "Interrupted. Rerun the same command to resume.")
        assert not (tmp_path / "data" / "new").exists()
        accepted = stories.read_text(encoding="utf-8").splitlines()
        left[0] = 10_000
        requests.clear()
        code, _, errors = ended(synthesize("--generator", source))
    assert code == 0, errors
    all_stories = stories.read_text(encoding="utf-8").splitlines()
    assert all_stories[: len(accepted)] == accepted
    assert len(requests) == len(all_stories) - len(accepted)


def test_ctrl_c_while_workers_run_is_one_line_and_leaves_nothing(synthesize, tmp_path):
    process = synthesize(users=2000)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("data/.new-*/new/*.part")):
        assert process.poll() is None, ended(process)
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    code, _, errors = ended(process)
    assert (code, errors) == (130, "Interrupted.")
    assert not (tmp_path / "data").exists()
