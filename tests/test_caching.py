"""Long work: its key is that of its inputs, half-made work is not taken, and nobody outlives who started him."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from personavlm_lib import caching, progress


def test_the_key_is_that_of_contents_settings_and_code(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "weights").write_text("1")
    os.utime(tmp_path / "b" / "deep" / "weights", (0, 0))
    first = caching.cache_key(model=tmp_path / "a", rate=1e-3)
    assert (
        first
        == caching.cache_key(rate=1e-3, model=tmp_path / "b")
        != caching.cache_key(rate=1e-4, model=tmp_path / "a")
    )
    (tmp_path / "b" / "deep" / "weights").write_text("2")
    assert caching.cache_key(model=tmp_path / "b", rate=1e-3) != first
    monkeypatch.setattr(caching, "code_fingerprint", lambda: "changed")
    assert caching.cache_key(model=tmp_path / "a", rate=1e-3) != first


def test_only_whole_work_of_the_same_key_is_taken(tmp_path):
    folder = tmp_path / "user"
    assert not caching.reuse_or_clear(folder, "k")
    folder.mkdir()
    caching.mark_finished(folder, "k")
    assert caching.reuse_or_clear(folder, "k")
    assert not caching.reuse_or_clear(folder, "other") and not folder.exists()
    folder.mkdir()
    assert not caching.reuse_or_clear(folder, "k") and not folder.exists(), (
        "half-made work is removed"
    )


@pytest.mark.parametrize(
    ("done", "rate", "line"),
    [
        (120, 1.4, "02_sft  step 120/450  1.4 steps/s  4 min left"),
        (440, 0.25, "02_sft  step 440/450  4.0 s/step  40 s left"),
        (450, 2.0, "02_sft  step 450/450  2.0 steps/s"),
        (0, 0.0, "02_sft  step 0/450  starting"),
    ],
)
def test_progress_is_a_plain_line(done, rate, line):
    assert progress.progress_line("02_sft", "step", done, 450, rate) == line


def test_progress_passes_everything_on_and_tells_at_the_end(capsys):
    assert list(progress.with_progress("abc", "01_synthesize", "life")) == ["a", "b", "c"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("01_synthesize  life 3/3")


def test_a_follower_ends_when_its_starter_is_killed(tmp_path):
    inner = "import os, time; from personavlm_lib.processes import exit_with_parent; exit_with_parent(); "
    inner += f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    (tmp_path / "inner.py").write_text(inner)
    outer = "import subprocess, sys; from personavlm_lib.processes import exit_with_parent; exit_with_parent(); "
    outer += f"subprocess.run(['bash', '-c', sys.executable + ' {tmp_path / 'inner.py'}; true'])"
    starter = subprocess.Popen([sys.executable, "-c", outer], start_new_session=True)
    deadline = time.monotonic() + 20
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    follower = psutil.Process(int((tmp_path / "pid").read_text()))
    starter.send_signal(signal.SIGKILL)
    starter.wait()
    psutil.wait_procs([follower], timeout=5)
    assert not follower.is_running() or follower.status() == psutil.STATUS_ZOMBIE
