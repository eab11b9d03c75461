"""Input that cannot be right, through the real command line: one line that names the thing and the mend."""

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
def refused(tmp_path):
    """Runs a command on the folder `runs` of its own; returns the one line that it says."""
    environment = os.environ | {"PERSONAVLM_RUNS": str(tmp_path / "runs"), "PYTHONPATH": str(ROOT)}

    def run(*words):
        command = [sys.executable, "-m", "personavlm_lib", *map(str, words)]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
        )
        lines = [line for line in done.stderr.splitlines() if "Loading weights" not in line]
        assert done.returncode == 1 and len(lines) == 1, done.stderr
        return lines[0]

    return run


def finish(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: 0\nstage: {}\nstages: {}", "unknown key 'stage' (nearest known: 'stages')"),
        (
            "seed: 0\nstages: {08_audit: {stesp: 1}}",
            "08_audit has no parameter 'stesp' (nothing is known here)",
        ),
        ("seed: 0\nstages: {08_adit: {}}", "unknown stage '08_adit' (nearest known: '08_audit')"),
        ("seed: 0\nstages: [", "tiny.yaml is not YAML (line 2: expected the node content"),
        ("- seed", "tiny.yaml must be a mapping of seed, offline, common, stages"),
    ],
)
def test_a_profile_that_cannot_be_right(refused, tmp_path, text, says):
    (tmp_path / "tiny.yaml").write_text(text)
    assert says in refused("reproduce", "--profile", tmp_path / "tiny.yaml")
    assert not (tmp_path / "runs").exists()


def test_a_missing_stage(refused, tmp_path):
    line = refused("run", "08_audit", "--profile", "smoke")
    missing = tmp_path / "runs" / "smoke" / "05_evaluate"
    assert (
        f"08_audit failed: FileNotFoundError: {missing} is missing: run 'make reproduce' first"
        in line
    )


def test_a_corrupt_database(refused, tmp_path):
    finish(tmp_path / "runs" / "smoke" / "05_evaluate")
    database = tmp_path / "runs" / "smoke" / "memory" / "rl" / "kai" / "memory.db"
    database.parent.mkdir(parents=True)
    database.write_bytes(b"SQLite format 3\x00" + b"?" * 5000)
    line = refused("run", "explore_memories", "--profile", "smoke")
    assert f"explore_memories failed: StoreError: {database} cannot be read" in line
    assert "restore it from a copy" in line and "reproduce 05_evaluate --force" in line
    assert (
        database.stat().st_size == 5016
        and (tmp_path / "runs" / "smoke" / "05_evaluate" / "run.json").exists()
    )


def conversation(folder: Path, content) -> Path:
    (folder / "talk.json").write_text(json.dumps(content))
    return folder / "talk.json"


def test_a_conversation_of_another_shape(refused, tmp_path):
    path = conversation(tmp_path, {"kai": [1, 2]})
    line = refused("run", "04_agent_demo", "--profile", "smoke", "--set", f"conversation={path}")
    assert f"04_agent_demo failed: ValueError: cannot read {path} as a conversation file" in line
    assert "expected MemoryBank's {user:" in line


@pytest.mark.parametrize(
    ("content", "reason"), [(b"not an image", "it is none"), (None, "it is not there")]
)
def test_an_image_of_a_conversation(refused, tmp_path, content, reason):
    turn = {"time": "2024-03-04 09:00:00", "user": "look <img>", "assistant": "nice"}
    path = conversation(
        tmp_path, {"profile": {"name": "Kai"}, "imgs": ["cat.png"], "sessions": [[turn]]}
    )
    if content:
        (tmp_path / "cat.png").write_bytes(content)
    line = refused("run", "04_agent_demo", "--profile", "smoke", "--set", f"conversation={path}")
    assert f"cat.png cannot be read ({reason}): put a whole one in its place" in line


def test_a_scene_that_is_cut_short(refused, tmp_path):
    run = tmp_path / "runs" / "smoke"
    for stage in ("00_backbone", "03_grpo"):
        shutil.copytree(
            BACKBONE, finish(run / stage) / "model", ignore=shutil.ignore_patterns("clip")
        )
    shutil.copytree(BACKBONE / "clip", run / "00_backbone" / "clip")
    world = finish(run / "01_synthesize")
    life = simulate_life(1, world / "images", 20, 0.4, 2, 0)
    write_lives(world / "test.jsonl", [life])
    scene = Path(next(image for turn in life.turns for image in turn.images))
    scene.write_bytes(whole := scene.read_bytes()[:200])
    line = refused("run", "04_agent_demo", "--profile", "smoke")
    assert (
        "04_agent_demo failed: ValueError: image " in line
        and "cannot be read (it is cut short)" in line
    )
    assert scene.read_bytes() == whole and (world / "run.json").exists()


def test_a_command_that_is_not_known(refused):
    assert "No such command 'reprodcue'" in refused("reprodcue")
