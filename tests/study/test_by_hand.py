"""Notebooks executed by hand (Run All, plain papermill) never damage a finished or locked run."""

import os
import shutil
import signal
import subprocess
import sys

import nbformat
import pytest

from personavlm_lib.caching import fingerprint
from personavlm_lib.study.chain import hold, in_chain, is_in_chain, open_stage
from personavlm_lib.study.profiles import NOTEBOOKS, ROOT, STAGES, ProfileError, stage_folder

HOLDER = """
from personavlm_lib.study.chain import open_stage
open_stage("mine", "09_report")
print(open_stage("mine", "09_report"), flush=True)
input()
"""


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A `runs` folder with the finished run `mine`: the tables and records of the reference run."""
    folder = tmp_path / "runs"
    shutil.copytree(ROOT / "results" / "reference", folder / "mine")
    monkeypatch.setenv("PERSONAVLM_RUNS", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return folder


def papermill(stage, tmp_path, *parameters):
    """Execute a stage's notebook as a user does; return the exit code and the last error line."""
    command = [sys.executable, "-m", "papermill", str(NOTEBOOKS / f"{stage}.ipynb")]
    command += [str(tmp_path / "out.ipynb"), "-p", "run", "mine", *parameters]
    process = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=600
    )
    return process.returncode, process.stderr.strip().splitlines()[-1]


def test_plain_papermill_leaves_an_unfinished_stage_and_changes_no_other(runs, tmp_path):
    folder = runs / "mine" / "09_report"
    shutil.rmtree(folder, ignore_errors=True)
    before = {path: fingerprint(path) for path in (runs / "mine").iterdir()}
    code, error = papermill("09_report", tmp_path)
    assert code == 0, error
    assert (folder / "report.html").is_file()
    assert not (folder / "run.json").exists(), "only the runner finishes a stage"
    assert {path: fingerprint(path) for path in before} == before


def test_plain_papermill_changes_no_byte_of_a_finished_run(runs, tmp_path):
    (runs / "mine" / "05_evaluate").mkdir(exist_ok=True)
    (runs / "mine" / "05_evaluate" / "run.json").write_text("{}", encoding="utf-8")
    before = fingerprint(runs)
    code, error = papermill("05_evaluate", tmp_path, "-p", "width", "2")
    assert code != 0 and fingerprint(runs) == before
    assert error == (
        "ProfileError: 05_evaluate of the run 'mine' is finished and is not overwritten by hand: "
        "rerun it with 'personavlm run 05_evaluate --run mine', or set `run` to another name"
    )


def test_plain_papermill_waits_for_no_lock(runs, tmp_path):
    shutil.rmtree(runs / "mine" / "05_evaluate", ignore_errors=True)
    with hold("mine"):
        before = fingerprint(runs)
        os.environ.pop("PERSONAVLM_HELD")  # which only the chain's own processes inherit
        code, error = papermill("05_evaluate", tmp_path)
    assert code != 0 and fingerprint(runs) == before
    assert f"process {os.getpid()} is working on {runs / 'mine'}: wait for it" in error


def test_lock_of_a_kernel_ends_with_its_process(runs):
    shutil.rmtree(runs / "mine" / "09_report", ignore_errors=True)
    kernel = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    assert kernel.stdout.readline().strip() == str(runs / "mine" / "09_report")
    with pytest.raises(ProfileError, match=f"process {kernel.pid} is working on"), hold("mine"):
        pass
    kernel.send_signal(signal.SIGKILL)
    kernel.communicate()
    with hold("mine"):
        pass


def test_stage_in_the_chain_is_open_to_its_own_notebook_alone(runs):
    folder = stage_folder("mine", "05_evaluate")
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text("{}", encoding="utf-8")
    with in_chain(folder):
        assert is_in_chain("mine", "05_evaluate")
        assert open_stage("mine", "05_evaluate") == folder
    with in_chain(stage_folder("other", "05_evaluate")):
        assert not is_in_chain("mine", "05_evaluate")
        with pytest.raises(ProfileError, match="is not overwritten by hand"):
            open_stage("mine", "05_evaluate")
    with pytest.raises(ProfileError, match="is not overwritten by hand"):
        open_stage("mine", "05_evaluate")


@pytest.mark.parametrize("stage", STAGES)
def test_notebook_opens_its_stage_and_deletes_nothing_by_itself(stage):
    book = nbformat.read(NOTEBOOKS / f"{stage}.ipynb", as_version=4)
    code = "\n".join(cell.source for cell in book.cells if cell.cell_type == "code")
    assert "rmtree" not in code and ".unlink(" not in code
    if stage == "explore_memories":  # only reads, so that a finished run can be explored
        assert f'is_in_chain(run, "{stage}")' in code
    else:
        assert f'open_stage(run, "{stage}")' in code
