"""A few of the kills that `kill_store.py` does by the hundred."""

import subprocess
import sys
from pathlib import Path


def test_a_killed_process_loses_nothing_and_doubles_nothing():
    script = Path(__file__).with_name("kill_store.py")
    command = [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {str(script.parent)!r}); sys.argv[0] = 'kill_store'",
    ]
    command[-1] += "; import kill_store; print(kill_store.main(6, 7))"
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=script.parents[2], timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "acknowledged" in done.stdout and "migrate" in done.stdout
