"""Launching a training: its configuration, progress, failures and checkpoint folders."""

from pathlib import Path

import pytest
import yaml

from personavlm_lib.caching import mark_finished
from personavlm_lib.training.launch import launch, prepare_checkpoint_folder, prune_checkpoints


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A function that writes an importable module `tiny_training` with the given text."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(text):
        (tmp_path / "tiny_training.py").write_text(text, encoding="utf-8")
        return "tiny_training"

    return write


def test_launch_passes_the_configuration_and_prints_progress(module, tmp_path, capsys):
    text = """import sys, time
print(open(sys.argv[2]).read())
for i in range(3):
    time.sleep(0.4)
    print('{"step": %d}' % i, file=open(sys.argv[2].replace("config.yaml", "metrics.jsonl"), "a"))
"""
    folder = tmp_path / "02_sft"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(
        '{"step": 3}\n', encoding="utf-8"
    )  # of an earlier training
    launch(module(text), {"data": Path("a/b"), "betas": (0.9, 0.95), "steps": 3}, folder, every=0.1)
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert config == {"data": "a/b", "betas": [0.9, 0.95], "steps": 3}
    assert "steps: 3" in (folder / "log.txt").read_text(encoding="utf-8")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "02_sft  step 0/3  starting"
    assert any(line.startswith("02_sft  step 1/3  ") and line.endswith(" s left") for line in lines)


def test_failure_raises_with_the_end_of_the_log(module, tmp_path):
    text = "for i in range(40): print('line', i)\nraise KeyError('reward')"
    with pytest.raises(RuntimeError) as error:
        launch(module(text), {"steps": 1}, tmp_path / "out")
    first, *rest = str(error.value).splitlines()
    assert "exit code 1: KeyError: 'reward'" in first and "log.txt" in first
    assert len(rest) == 20 and rest[-1] == "KeyError: 'reward'"


def test_incomplete_checkpoints_and_those_of_other_keys_are_deleted(tmp_path):
    for step in (9, 10, 11):
        checkpoint = tmp_path / "checkpoints" / "a" / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        if step < 11:  # the last one is incomplete
            mark_finished(checkpoint, "a")
    folder = prepare_checkpoint_folder(tmp_path, "a")
    assert prune_checkpoints(tmp_path, "a") == folder / "checkpoint-10"
    assert not (folder / "checkpoint-11").exists()
    other = prepare_checkpoint_folder(tmp_path, "b")
    assert prune_checkpoints(tmp_path, "b") is None
    assert not folder.exists() and not other.exists()


def test_checkpoints_outside_of_the_stage_are_never_deleted(tmp_path):
    elsewhere = tmp_path / "elsewhere" / "a" / "checkpoint-1"
    elsewhere.mkdir(parents=True)
    stage = tmp_path / "02_sft"
    stage.mkdir()
    (stage / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="is not deleted"):
        prepare_checkpoint_folder(stage, "b")
    with pytest.raises(ValueError, match="is not deleted"):
        prune_checkpoints(stage, "a")
    assert elsewhere.exists()
