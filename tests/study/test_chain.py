"""The chain on a miniature project: a copy of the package, and three trivial notebooks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from personavlm_lib.study import chain, profiles
from personavlm_lib.study.profiles import (
    ROOT,
    ProfileError,
    load_profile,
    memory_folder,
    stage_folder,
)

PARAMETERS = "run: str = ''\nseconds: float = 0.0"
SOURCE = """
import os, subprocess, sys, time
from pathlib import Path
folder = Path("runs") / run / "{stage}"
with open(folder / "ran", "a") as file:
    print(os.getpid(), file=file)
code = '''
import os, time
from personavlm_lib.processes import exit_with_parent
exit_with_parent()
open("child", "w").write(str(os.getpid()))
time.sleep(300)
'''
child = subprocess.Popen([sys.executable, "-c", code], cwd=folder)
print("{stage}  step 1/2", flush=True)
time.sleep(seconds)
child.kill()
"""
STAGES = ("00_backbone", "01_synthesize", "02_sft")
PROFILE = """
seed: 0
stages:
  00_backbone: {{seconds: 0}}
  01_synthesize: {{seconds: {0}}}
  02_sft: {{seconds: 0}}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder like this project's; returns `reproduce(seconds)`, which starts the chain there.

    `seconds` is the duration of 01_synthesize, `root` another folder with the project, `python`
    another interpreter.
    """
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
    started = []

    def reproduce(seconds, *options, root=root, python=sys.executable):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PERSONAVLM_")}
        environment["PYTHONPATH"] = str(root)
        (root / "tiny.yaml").write_text(PROFILE.format(seconds), encoding="utf-8")
        command = [str(python), "-m", "personavlm_lib", "reproduce"]
        command += ["--profile", "tiny.yaml", *options]
        process = subprocess.Popen(
            command,
            cwd=root,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            start_new_session=True,
            # children inherit ignored signals, and a shell ignores Ctrl-C for background jobs
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        started.append(process)
        return process

    reproduce.root = root
    reproduce.runs = root / "runs" / "tiny"
    yield reproduce
    for process in started:  # all have ended, unless a test failed
        process.kill()


def ran(project):
    """How often each stage was started."""
    counts = []
    for stage in STAGES:
        path = project.runs / stage / "ran"
        counts.append(len(path.read_text(encoding="utf-8").split()) if path.is_file() else 0)
    return counts


def wait_for(path, seconds=180):
    deadline = time.monotonic() + seconds
    while not (path.is_file() and path.read_text(encoding="utf-8")):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def alive(pid):
    try:
        return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def all_gone(project, seconds=30):
    """Wait for the kernel and the child of the second stage; return whether they have ended."""
    folder, deadline = project.runs / "01_synthesize", time.monotonic() + seconds
    pids = [
        (folder / "ran").read_text(encoding="utf-8").split()[-1],
        (folder / "child").read_text(encoding="utf-8"),
    ]
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not any(map(alive, pids))


@pytest.mark.slow
def test_killed_or_interrupted_chain_resumes(project):
    child = project.runs / "01_synthesize" / "child"

    killed = project(240)
    wait_for(child)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert all_gone(project), "a kernel or training outlived the killed chain"
    assert ran(project) == [1, 1, 0] and not (project.runs / "01_synthesize" / "run.json").exists()

    child.unlink()
    interrupted = project(240)  # resumes with the second stage
    wait_for(child)
    second = project(240)
    assert second.communicate()[1].strip() == (
        f"process {interrupted.pid} is working on {project.runs}: "
        "wait for it, stop it, or choose another run with --run"
    )
    assert second.returncode == 1
    interrupted.send_signal(signal.SIGINT)
    output, errors = interrupted.communicate(timeout=90)
    assert interrupted.returncode == 130
    assert errors.strip() == "Interrupted. Rerun the same command to resume."
    assert "[2/3] 01_synthesize ..." in output
    assert "01_synthesize  step 1/2" in output.splitlines()
    assert all_gone(project) and ran(project) == [1, 2, 0]

    resumed = project(0)
    output, errors = resumed.communicate()
    assert (resumed.returncode, errors) == (0, "")
    assert ran(project) == [1, 3, 1]

    begin = time.monotonic()
    output, errors = project(0).communicate()
    assert output == f"Nothing to do: everything is already in {project.runs}.\n"
    assert errors == ""
    assert ran(project) == [1, 3, 1]
    assert time.monotonic() - begin < 60


@pytest.mark.slow
def test_changed_parameter_reruns_dependent_stages_and_keeps_files(project):
    project(0).communicate()
    checkpoints = project.runs / "01_synthesize" / "checkpoints"
    before = ran(project)
    checkpoints.write_text("of other parameters", encoding="utf-8")
    project(0.1).communicate()
    assert ran(project) == [before[0], before[1] + 1, before[2] + 1]
    # files survive, so a stage must store with them what they were made from
    assert checkpoints.read_text(encoding="utf-8") == "of other parameters"
    assert project(0.1, "02_sft", "--force").communicate()[1] == ""
    assert ran(project) == [before[0], before[1] + 1, 1]


def copy_without_times(project, root):
    """Copy the project without `.snakemake` to `root`, with the times of its records reversed."""
    shutil.copytree(
        project.root,
        root,
        ignore=shutil.ignore_patterns(".snakemake", "__pycache__"),
        copy_function=shutil.copyfile,
    )
    for age, stage in enumerate(STAGES):
        moment = time.time() - 1000 * age
        os.utime(root / "runs" / "tiny" / stage / "run.json", (moment, moment))


def edit_cell(path, source):
    book = nbformat.read(path, as_version=4)
    book.cells[1].source += source
    nbformat.write(book, path)


@pytest.mark.slow
def test_only_changes_of_meaning_rerun_a_stage(project, tmp_path):
    project(0).communicate()
    before = ran(project)
    path = project.root / "notebooks" / "00_backbone.ipynb"
    book = nbformat.read(path, as_version=4)
    book.cells[1].execution_count = 7
    book.cells[1].outputs = [nbformat.v4.new_output("stream", text="printed")]
    book.cells += [nbformat.v4.new_markdown_cell("A remark.")]
    nbformat.write(book, path)
    (tmp_path / "environment").symlink_to(sys.prefix)
    python = tmp_path / "environment" / "bin" / Path(sys.executable).name
    assert project(0, python=python).communicate()[0].startswith("Nothing to do")

    copy = tmp_path / "copy"
    copy_without_times(project, copy)
    assert project(0, root=copy).communicate()[0].startswith("Nothing to do")
    edit_cell(copy / "notebooks" / "02_sft.ipynb", "\n# changed")
    project(0, root=copy).communicate()
    counts = [
        len((copy / "runs" / "tiny" / stage / "ran").read_text(encoding="utf-8").split())
        for stage in STAGES
    ]
    assert counts == [before[0], before[1], before[2] + 1]

    moved = project.root.rename(tmp_path / "moved")
    try:
        output = project(0, root=moved).communicate()[0]
    finally:
        moved.rename(project.root)
    assert output.startswith("Nothing to do") and ran(project) == before

    edit_cell(project.root / "notebooks" / "01_synthesize.ipynb", "\n# changed")
    project(0).communicate()
    assert ran(project) == [before[0], before[1] + 1, before[2] + 1]


@pytest.mark.slow
def test_failing_stage_prints_one_line(project):
    failing = project("-1.0")  # sleep() raises
    _, errors = failing.communicate()
    (line,) = errors.strip().splitlines()
    notebook = project.runs / "01_synthesize" / "notebook.ipynb"
    assert failing.returncode == 1
    assert line == (
        "01_synthesize failed: ValueError: sleep length must be non-negative. "
        f"Executed notebook: {notebook}"
    )
    assert (project.runs / "00_backbone" / "run.json").exists()


@pytest.mark.parametrize("run", ["..", ".", "a/b", "/tmp"])
def test_forced_run_with_an_unsafe_name_touches_nothing(tmp_path, monkeypatch, run):
    monkeypatch.setenv("PERSONAVLM_RUNS", str(tmp_path / "runs"))
    (tmp_path / "memory").mkdir()
    with pytest.raises(ProfileError, match="the name of a run is"):
        chain.reproduce("nano", run, ["05_evaluate"], True)
    assert [path.name for path in tmp_path.iterdir()] == ["memory"]


def test_forced_evaluation_deletes_the_memories_of_its_run_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONAVLM_RUNS", str(tmp_path))
    monkeypatch.setattr(chain, "_run_snakemake", lambda command, log: 0)
    for run in ("r", "other"):
        memory_folder(run, "rl", "user_1").mkdir(parents=True)
    (tmp_path / "memory").mkdir()
    assert chain.reproduce("nano", "r", ["05_evaluate"], True) == 0
    assert not (tmp_path / "r" / "memory").exists()
    assert memory_folder("other", "rl", "user_1").exists() and (tmp_path / "memory").exists()


def test_run_of_an_older_version_must_be_forced(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONAVLM_RUNS", str(tmp_path))
    monkeypatch.setattr(chain, "_run_snakemake", lambda command, log: 0)
    folder = stage_folder("r", "01_synthesize")
    folder.mkdir(parents=True)
    (folder / "test_varied.jsonl").touch()
    for stages, force in (([], False), (["05_evaluate"], True)):
        with pytest.raises(
            ProfileError, match="made by an older version: rerun all of it with --force"
        ):
            chain.reproduce("nano", "r", stages, force)
        assert (folder / "test_varied.jsonl").exists()
    assert chain.reproduce("nano", "r", [], True) == 0
    assert not folder.exists()


def test_seeds_reach_the_chain_only_if_they_replace_those_of_the_profile(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONAVLM_RUNS", str(tmp_path))
    commands = []

    def run_snakemake(command, log):
        commands.append(command)
        return 0

    monkeypatch.setattr(chain, "_run_snakemake", run_snakemake)
    chain.reproduce("nano", "r", [], False, seed=2, world_seed=3)
    chain.reproduce("nano", "r", [], False, world_seed=0)
    chain.reproduce("nano", "r", [], False)
    configs = [command[command.index("--config") + 1 :] for command in commands]
    assert configs == [
        ["profile=nano", "run=!!str r", "seed=2", "world_seed=3"],
        ["profile=nano", "run=!!str r", "world_seed=0"],
        ["profile=nano", "run=!!str r"],
    ]


def test_named_stage_reruns_only_outdated_stages_that_it_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONAVLM_RUNS", str(tmp_path))
    commands = []

    def run_snakemake(command, log):
        commands.append(command)
        return 0

    monkeypatch.setattr(chain, "_run_snakemake", run_snakemake)
    outdated = ["01_synthesize", "04_agent_demo", "09_report"]
    monkeypatch.setattr(chain, "_outdated_stages", lambda profile, run: outdated)
    chain.reproduce("nano", "r", ["02_sft"], False)
    chain.reproduce("nano", "r", [], False)
    named, whole = (command[command.index("--forcerun") + 1 :] for command in commands)
    assert named[: named.index("--config")] == ["01_synthesize"]
    assert whole[: whole.index("--config")] == outdated


def test_stage_with_unscored_questions_is_outdated(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONAVLM_RUNS", str(tmp_path))
    nano = load_profile("nano")
    stage = profiles.stage_folder("r", "05_evaluate")
    (stage / "answers").mkdir(parents=True)
    record = dict(
        parameters=profiles.stage_parameters(nano, "05_evaluate", "r"),
        changed=[],
        code=profiles.code_hash(profiles.notebook("05_evaluate")),
    )
    (stage / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert chain._outdated_stages(nano, "r") == []
    (stage / "answers" / "rl_own.unfinished.jsonl").write_text("key\n", encoding="utf-8")
    assert chain._outdated_stages(nano, "r") == ["05_evaluate"]


def test_needed_stages_are_those_of_the_profile():
    nano = load_profile("nano")
    assert chain.needed_stages(nano, "02_sft") == ["00_backbone", "01_synthesize"]
    released = load_profile("released")
    assert chain.needed_stages(released, "05_evaluate") == ["00_backbone", "01_synthesize"]
    assert "explore_memories" not in chain.needed_stages(nano, "09_report")
