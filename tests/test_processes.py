"""Processes: a child ends when its parent is killed."""

import signal
import subprocess
import sys
import time

import psutil

CHILD = """
import os, time
from personavlm_lib.processes import exit_with_parent
exit_with_parent()
open({pid_file!r}, 'w').write(str(os.getpid()))
time.sleep(60)
"""
PARENT = """
import subprocess, sys
from personavlm_lib.processes import exit_with_parent
exit_with_parent()
subprocess.run(['bash', '-c', sys.executable + ' {script}; true'])
"""


def test_child_exits_when_its_parent_is_killed(tmp_path):
    pid_file = tmp_path / "pid"
    script = tmp_path / "child.py"
    script.write_text(CHILD.format(pid_file=str(pid_file)), encoding="utf-8")
    command = [sys.executable, "-c", PARENT.format(script=script)]
    parent = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 20
    while not (pid_file.exists() and pid_file.read_text(encoding="utf-8")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child = psutil.Process(int(pid_file.read_text(encoding="utf-8")))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    psutil.wait_procs([child], timeout=5)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
