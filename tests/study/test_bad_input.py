"""Wrong input on the real command line: one line that names the cause and a suggested fix."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from personavlm_lib.benchmark.lives import simulate_life, write_lives
from personavlm_lib.study.profiles import BACKBONE, ROOT


@pytest.fixture
def failure(tmp_path):
    """Run a command that fails, with its own `runs` folder; return the one line that it prints.

    `code` is the exit code that the command must return.
    """
    environment = os.environ | {"PERSONAVLM_RUNS": str(tmp_path / "runs"), "PYTHONPATH": str(ROOT)}

    def run(*words, code=1):
        command = [sys.executable, "-m", "personavlm_lib", *map(str, words)]
        process = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", timeout=600
        )
        lines = [line for line in process.stderr.splitlines() if "Loading weights" not in line]
        assert process.returncode == code and len(lines) == 1, process.stderr
        return lines[0]

    return run


def finish(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 0\nstage: {}\nstages: {}", "unknown key 'stage' (nearest known: 'stages')"),
        (
            "seed: 0\nstages: {08_audit: {stesp: 1}}",
            "08_audit has no parameter 'stesp' (it has none)",
        ),
        ("seed: 0\nstages: {08_adit: {}}", "unknown stage '08_adit' (nearest known: '08_audit')"),
        ("seed: 0\nstages: [", "tiny.yaml is not YAML (line 2: expected the node content"),
        (
            "seed: 0\nstages: {00_backbone: {recipe: kept}}",
            "'recipe' is 'kept'; choose one of bundled, trial, train, external",
        ),
        ("- seed", "tiny.yaml must be a mapping of seed, world_seed, offline, common, stages"),
    ],
)
def test_wrong_profile(failure, tmp_path, text, message):
    (tmp_path / "tiny.yaml").write_text(text, encoding="utf-8")
    assert message in failure("reproduce", "--profile", tmp_path / "tiny.yaml")
    assert not (tmp_path / "runs").exists()


def test_missing_stage(failure, tmp_path):
    line = failure("run", "08_audit", "--profile", "smoke")
    missing = tmp_path / "runs" / "smoke" / "05_evaluate"
    message = (
        f"08_audit failed: FileNotFoundError: {missing} is missing: run 'make reproduce' first"
    )
    assert message in line


def test_unknown_recipe(failure, tmp_path):
    line = failure("run", "00_backbone", "--profile", "smoke", "--set", "recipe=given", code=2)
    assert "'recipe' is 'given'; choose one of bundled, trial, train, external" in line
    assert not (tmp_path / "runs" / "smoke" / "00_backbone").exists()


def test_run_of_an_older_version(failure, tmp_path):
    run = tmp_path / "runs" / "smoke"
    finish(run / "01_synthesize")
    (run / "01_synthesize" / "test_varied.jsonl").touch()
    message = (
        f"{run} was made by an older version: rerun all of it with --force, or choose another run"
    )
    assert message in failure("reproduce", "--profile", "smoke")
    assert message in failure("chat", "--run", "smoke")
    assert (run / "01_synthesize" / "test_varied.jsonl").exists()


def test_corrupt_database(failure, tmp_path):
    finish(tmp_path / "runs" / "smoke" / "05_evaluate")
    database = tmp_path / "runs" / "smoke" / "memory" / "rl" / "kai" / "memory.db"
    database.parent.mkdir(parents=True)
    database.write_bytes(b"SQLite format 3\x00" + b"?" * 5000)
    line = failure("run", "explore_memories", "--profile", "smoke")
    assert f"explore_memories failed: StoreError: {database} cannot be read" in line
    assert "restore it from a copy" in line and "reproduce 05_evaluate --force" in line
    assert database.stat().st_size == 5016
    assert (tmp_path / "runs" / "smoke" / "05_evaluate" / "run.json").exists()


def conversation(folder: Path, content) -> Path:
    (folder / "talk.json").write_text(json.dumps(content), encoding="utf-8")
    return folder / "talk.json"


def test_conversation_of_unknown_format(failure, tmp_path):
    path = conversation(tmp_path, {"kai": [1, 2]})
    line = failure("run", "04_agent_demo", "--profile", "smoke", "--set", f"conversation={path}")
    assert f"04_agent_demo failed: ValueError: cannot read {path} as a conversation file" in line
    assert "expected MemoryBank's {user:" in line


@pytest.mark.parametrize(
    ("content", "reason"), [(b"not an image", "it is not an image file"), (None, "it is missing")]
)
def test_unreadable_image_of_a_conversation(failure, tmp_path, content, reason):
    turn = {"time": "2024-03-04 09:00:00", "user": "look <img>", "assistant": "nice"}
    path = conversation(
        tmp_path, {"profile": {"name": "Kai"}, "imgs": ["cat.png"], "sessions": [[turn]]}
    )
    if content:
        (tmp_path / "cat.png").write_bytes(content)
    line = failure("run", "04_agent_demo", "--profile", "smoke", "--set", f"conversation={path}")
    assert f"cat.png cannot be read ({reason}): replace it with a complete image file" in line


def test_truncated_image(failure, tmp_path):
    run = tmp_path / "runs" / "smoke"
    for stage in ("00_backbone", "03_grpo"):
        shutil.copytree(
            BACKBONE, finish(run / stage) / "model", ignore=shutil.ignore_patterns("clip")
        )
    shutil.copytree(BACKBONE / "clip", run / "00_backbone" / "clip")
    dataset = finish(run / "01_synthesize")
    life = simulate_life(1, dataset / "images", 20, 0.4, 2, 0)
    write_lives(dataset / "test.jsonl", [life])
    scene = Path(next(image for turn in life.turns for image in turn.images))
    truncated = scene.read_bytes()[:200]
    scene.write_bytes(truncated)
    line = failure("run", "04_agent_demo", "--profile", "smoke")
    assert (
        "04_agent_demo failed: ValueError: image " in line
        and "cannot be read (it is truncated)" in line
    )
    assert scene.read_bytes() == truncated and (dataset / "run.json").exists()


def test_unknown_command(failure):
    assert "No such command 'reprodcue'" in failure("reprodcue", code=2)
