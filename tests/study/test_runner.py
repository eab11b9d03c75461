"""The runner on small notebooks: the files it writes after success and after failure."""

import json
import os
import sys
from unittest import mock

import nbformat
import psutil
import pytest
import yaml

from personavlm_lib.__main__ import main
from personavlm_lib.study import profiles

PARAMETERS = "run: str = ''\nseed: int = 0\nsteps: int = 1"
WORKS = """
import json, os, subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
child = subprocess.Popen(sleep, start_new_session=True)
time.sleep(1.2)
observed = {"steps": steps, "seed": seed, "offline": os.environ["HF_HUB_OFFLINE"]}
observed |= {"python": sys.executable, "pid": child.pid}
with open(os.path.join(os.environ["PERSONAVLM_RUNS"], run, "observed.json"), "w") as file:
    json.dump(observed, file)
print("printed by a cell")
print("08_audit  step 1/2")
"""


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Run `08_audit` with a notebook of one cell; return the exit code and the stage's folder."""
    monkeypatch.setattr(profiles, "NOTEBOOKS", tmp_path)
    (tmp_path / "tiny.yaml").write_text("seed: 5\nstages: {08_audit: {steps: 3}}", encoding="utf-8")
    book = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}})

    def run(source, *arguments):
        cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
        book.cells = [*cells, nbformat.v4.new_code_cell(source)]
        nbformat.write(book, tmp_path / "08_audit.ipynb")
        code = main(["run", "08_audit", "--profile", str(tmp_path / "tiny.yaml"), *arguments])
        return code, tmp_path / "runs" / "tiny" / "08_audit"

    with mock.patch.dict(os.environ, {"PERSONAVLM_RUNS": str(tmp_path / "runs")}):
        yield run


def test_finished_stage_has_notebook_parameters_and_record(stage, capfd):
    code, folder = stage(WORKS, "--set", "steps=4", "--world-seed", "6")
    assert code == 0
    observed = json.loads((folder.parent / "observed.json").read_text(encoding="utf-8"))
    pid = observed.pop("pid")
    assert observed == {"steps": 4, "seed": 5, "offline": "1", "python": sys.executable}
    ended = not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert ended, "a process that the notebook started is still running"
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert record["parameters"] == {"run": "tiny", "seed": 5, "steps": 4}
    assert record["changed"] == ["steps"]
    assert (record["seed"], record["world_seed"]) == (5, 6)
    assert record["wall_seconds"] > 1 and 0.01 < record["peak_memory_gib"] < 8
    assert record["packages"]["papermill"]
    assert record["hardware"]["cores"] >= 1
    assert "git_dirty" in record
    assert (
        yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8")) == record["parameters"]
    )
    assert (folder / "notebook.log").read_text(
        encoding="utf-8"
    ) == "printed by a cell\n08_audit  step 1/2\n"
    printed = capfd.readouterr().out.splitlines()
    assert printed[0] == "[1/1] 08_audit ..." and printed[-1].startswith("[1/1] 08_audit done in ")
    assert printed[1:-1] == ["08_audit  step 1/2"], (
        "of the cells' output, only progress lines are printed"
    )


def test_failed_notebook_is_saved_with_its_error(stage, capfd):
    _, folder = stage("pass")
    code, _ = stage("raise ValueError('the loss is nan')")
    assert code == 1
    cells = nbformat.read(folder / "notebook.ipynb", as_version=4).cells
    assert any(
        output.get("ename") == "ValueError" for cell in cells for output in cell.get("outputs", [])
    )
    assert not (folder / "run.json").exists(), "the record of an earlier success remains"
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line == (
        "08_audit failed: ValueError: the loss is nan. "
        f"Executed notebook: {folder / 'notebook.ipynb'}"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("stesp=4", "no parameter 'stesp' (nearest known: 'steps')"),
        ("steps=x", "takes int"),
        ("steps", "KEY=VALUE"),
    ],
)
def test_wrong_change_fails_before_anything_runs(stage, capfd, change, message):
    code, folder = stage("pass", "--set", change)
    assert code == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert "'--set'" in line and message in line
    assert not folder.exists()
