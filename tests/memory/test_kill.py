"""A few of the kills of `kill_store.py`, which runs hundreds."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("failing", [False, True])
def test_a_killed_process_loses_and_duplicates_nothing(failing):
    here = Path(__file__).parent
    program = (
        f"import sys; sys.path.insert(0, {str(here)!r}); sys.argv[0] = 'kill_store'; "
        f"import kill_store; kill_store.Model.failing = {failing}; print(kill_store.main(6, 7))"
    )
    command = [sys.executable, "-c", program]
    root = here.parents[1]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", cwd=root, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "acknowledged" in done.stdout
    assert "migrate" in done.stdout
