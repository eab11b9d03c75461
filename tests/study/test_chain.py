"""The chain on a miniature project: its own Snakefile and package, and three notebooks that do next to nothing."""

import os
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest

from personavlm_lib.study.profiles import ROOT

PARAMETERS = "run: str = ''\nseconds: float = 0.0"
SOURCE = """
import os, subprocess, sys, time
from pathlib import Path
folder = Path("runs") / run / "{stage}"
with open(folder / "ran", "a") as file:
    print(os.getpid(), file=file)
child = subprocess.Popen([sys.executable, "-c", "from personavlm_lib.processes import exit_with_parent; exit_with_parent(); import time; "
                          "open('child', 'w').write(str(__import__('os').getpid())); time.sleep(300)"], cwd=folder)
print("{stage}  step 1/2", flush=True)
time.sleep(seconds)
child.kill()
"""
STAGES = ("00_backbone", "01_synthesize", "02_sft")
PROFILE = "seed: 0\nstages: {{00_backbone: {{seconds: 0}}, 01_synthesize: {{seconds: {0}}}, 02_sft: {{seconds: 0}}}}"


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder like this project's, with `reproduce(seconds of stage 01)` that starts the chain there."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(
        ROOT / "personavlm_lib",
        root / "personavlm_lib",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    for name in ("Snakefile", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    (root / "notebooks").mkdir()
    for stage in STAGES:
        book = nbformat.v4.new_notebook(metadata={"language_info": {"name": "python"}})
        book.cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
        book.cells += [nbformat.v4.new_code_cell(SOURCE.replace("{stage}", stage))]
        nbformat.write(book, root / "notebooks" / f"{stage}.ipynb")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PERSONAVLM_")} | {
        "PYTHONPATH": str(root)
    }

    started = []

    def reproduce(seconds, *options):
        (root / "tiny.yaml").write_text(PROFILE.format(seconds))
        command = [
            sys.executable,
            "-m",
            "personavlm_lib",
            "reproduce",
            "--profile",
            "tiny.yaml",
            *options,
        ]
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(
                command,
                cwd=root,
                env=environment,
                stdout=pipe,
                stderr=pipe,
                text=True,
                start_new_session=True,
                # what runs these tests may ignore Ctrl-C (a shell's background job does), and hand that on
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )  # fmt: skip
        )
        return started[-1]

    reproduce.runs = root / "runs" / "tiny"
    yield reproduce
    for process in started:  # all have ended, unless a test failed
        process.kill()


def ran(project):
    """How often each stage was begun."""
    return [
        len(path.read_text().split()) if (path := project.runs / s / "ran").is_file() else 0
        for s in STAGES
    ]


def wait_for(path, seconds=180):
    deadline = time.monotonic() + seconds
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.05)


def alive(pid):
    try:
        return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def all_gone(project, seconds=30):
    """Whether the kernel and the child of the second stage have ended."""
    folder, deadline = project.runs / "01_synthesize", time.monotonic() + seconds
    pids = [(folder / "ran").read_text().split()[-1], (folder / "child").read_text()]
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(map(alive, pids))


def test_a_chain_that_is_killed_or_stopped_goes_on_and_is_done_once(project):
    child = project.runs / "01_synthesize" / "child"

    killed = project(240)
    wait_for(child)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert all_gone(project), "kernels and trainings do not outlive a killed chain"
    assert ran(project) == [1, 1, 0] and not (project.runs / "01_synthesize" / "run.json").exists()

    child.unlink()
    stopped = project(240)  # goes on with the second stage, whatever the first one's end has left
    wait_for(child)
    second = project(240)
    assert second.communicate()[1].strip() == (
        f"process {stopped.pid} works on {project.runs}: wait for it, stop it, or name another run with --run"
    )
    assert second.returncode == 1
    stopped.send_signal(signal.SIGINT)
    told, said = stopped.communicate(timeout=90)
    assert (
        stopped.returncode == 130 and said.strip() == "Stopped. The same command goes on from here."
    )
    assert "[2/3] 01_synthesize ..." in told and "01_synthesize  step 1/2" in told.splitlines()
    assert all_gone(project) and ran(project) == [1, 2, 0]

    done = project(0)
    told, said = done.communicate()
    assert (done.returncode, said) == (0, "") and ran(project) == [1, 3, 1]

    begin = time.monotonic()
    told, said = project(0).communicate()
    assert (
        told == f"Nothing to do: all of it is in {project.runs}.\n"
        and said == ""
        and ran(project) == [1, 3, 1]
    )
    assert time.monotonic() - begin < 60


def test_a_changed_parameter_runs_its_stage_and_what_needs_it_and_kept_files_survive(project):
    project(0).communicate()
    kept, before = project.runs / "01_synthesize" / "checkpoints", ran(project)
    kept.write_text("of other parameters")
    project(0.1).communicate()
    assert ran(project) == [before[0], before[1] + 1, before[2] + 1]
    assert kept.read_text() == "of other parameters", (
        "so what is kept must be keyed by what made it"
    )
    assert project(0.1, "02_sft", "--force").communicate()[1] == "" and ran(project) == [
        before[0],
        before[1] + 1,
        1,
    ]


def test_a_failing_stage_is_told_in_one_line(project):
    failing = project("-1.0")  # no time to sleep
    _, said = failing.communicate()
    (line,) = said.strip().splitlines()
    notebook = project.runs / "01_synthesize" / "notebook.ipynb"
    assert failing.returncode == 1
    assert line == (
        f"01_synthesize failed: ValueError: sleep length must be non-negative. Executed notebook: {notebook}"
    )
    assert (project.runs / "00_backbone" / "run.json").exists()
