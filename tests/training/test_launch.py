"""A training in a process of its own: its configuration arrives, its failure is told, its folder is its parameters'."""

from pathlib import Path

import pytest
import yaml

from personavlm_lib.training.launch import checkpoint_folder, launch


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes an importable module `tiny_training` with the given text."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(text):
        (tmp_path / "tiny_training.py").write_text(text)
        return "tiny_training"

    return write


def test_the_configuration_arrives_and_the_tail_is_shown(module, tmp_path, capsys):
    text = "import sys, time\nprint(open(sys.argv[2]).read())\n"
    text += "for i in range(8):\n    print('step', i, end='\\r')\n    time.sleep(0.1)"
    launch(module(text), {"data": Path("a/b"), "betas": (0.9, 0.95), "steps": 3}, tmp_path / "out", every=0.2)
    config = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert config == {"data": "a/b", "betas": [0.9, 0.95], "steps": 3}
    assert "steps: 3" in (tmp_path / "out" / "log.txt").read_text()
    assert "step" in capsys.readouterr().out


def test_a_failure_carries_the_end_of_the_log(module, tmp_path):
    with pytest.raises(RuntimeError) as error:
        launch(module("for i in range(40): print('line', i)\nraise KeyError('reward')"), {}, tmp_path / "out")
    first, *rest = str(error.value).splitlines()
    assert "exit code 1: KeyError: 'reward'" in first and "log.txt" in first
    assert len(rest) == 20 and rest[-1] == "KeyError: 'reward'"


def test_checkpoints_of_other_parameters_lie_elsewhere():
    folder = checkpoint_folder(Path("runs/r/02_sft"), {"learning_rate": 1e-3, "steps": 5})
    assert folder.parent == Path("runs/r/02_sft/checkpoints")
    assert folder == checkpoint_folder(Path("runs/r/02_sft"), {"steps": 5, "learning_rate": 1e-3})
    assert folder != checkpoint_folder(Path("runs/r/02_sft"), {"learning_rate": 1e-4, "steps": 5})
