"""A few of the kills of `kill_store.py`, which runs hundreds."""

import subprocess
import sys
from pathlib import Path


def test_a_killed_process_loses_and_duplicates_nothing():
    script = Path(__file__).with_name("kill_store.py")
    program = (
        f"import sys; sys.path.insert(0, {str(script.parent)!r}); sys.argv[0] = 'kill_store'; "
        "import kill_store; print(kill_store.main(6, 7))"
    )
    command = [sys.executable, "-c", program]
    root = script.parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "acknowledged" in done.stdout
    assert "migrate" in done.stdout
