"""A training in a process of its own: its configuration arrives, its failure is told, its folder is its parameters'."""

from pathlib import Path

import pytest
import yaml

from personavlm_lib.caching import mark_finished
from personavlm_lib.training.launch import keep_last_checkpoint, launch, prepare_checkpoint_folder


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes an importable module `tiny_training` with the given text."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(text):
        (tmp_path / "tiny_training.py").write_text(text)
        return "tiny_training"

    return write


def test_the_configuration_arrives_and_how_far_it_is_is_told(module, tmp_path, capsys):
    text = """import sys, time
print(open(sys.argv[2]).read())
for i in range(3):
    time.sleep(0.4)
    print('{"step": %d}' % i, file=open(sys.argv[2].replace("config.yaml", "metrics.jsonl"), "a"))
"""
    (tmp_path / "02_sft").mkdir()
    (tmp_path / "02_sft" / "metrics.jsonl").write_text('{"step": 3}\n')  # of an earlier training
    launch(
        module(text),
        {"data": Path("a/b"), "betas": (0.9, 0.95), "steps": 3},
        tmp_path / "02_sft",
        every=0.1,
    )
    config = yaml.safe_load((tmp_path / "02_sft" / "config.yaml").read_text())
    assert config == {"data": "a/b", "betas": [0.9, 0.95], "steps": 3}
    assert "steps: 3" in (tmp_path / "02_sft" / "log.txt").read_text()
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "02_sft  step 0/3  starting"
    assert any(line.startswith("02_sft  step 1/3  ") and line.endswith(" s left") for line in told)


def test_a_failure_carries_the_end_of_the_log(module, tmp_path):
    with pytest.raises(RuntimeError) as error:
        launch(
            module("for i in range(40): print('line', i)\nraise KeyError('reward')"),
            {"steps": 1},
            tmp_path / "out",
        )
    first, *rest = str(error.value).splitlines()
    assert "exit code 1: KeyError: 'reward'" in first and "log.txt" in first
    assert len(rest) == 20 and rest[-1] == "KeyError: 'reward'"


def test_checkpoints_of_other_keys_and_half_made_ones_are_not_taken(tmp_path):
    for step in (9, 10, 11):
        (tmp_path / "checkpoints" / "a" / f"checkpoint-{step}").mkdir(parents=True)
        if step < 11:  # the last was cut short
            mark_finished(tmp_path / "checkpoints" / "a" / f"checkpoint-{step}", "a")
    folder = prepare_checkpoint_folder(tmp_path, "a")
    assert (
        keep_last_checkpoint(folder, "a") == folder / "checkpoint-10"
        and not (folder / "checkpoint-11").exists()
    )
    assert (
        keep_last_checkpoint(prepare_checkpoint_folder(tmp_path, "b"), "b") is None
        and not folder.exists()
    )
