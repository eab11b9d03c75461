"""A training that was killed goes on from its last whole checkpoint, and ends as if nothing had happened."""

import json
import random
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from personavlm_lib.benchmark import recordings
from personavlm_lib.benchmark.lives import write_lives
from personavlm_lib.training import grpo, sft

TIMES = {"step_time"}


@pytest.fixture(scope="module")
def configs(checkpoint, lives, memories, tmp_path_factory):
    """stage -> (train, a small configuration of it)."""
    folder = tmp_path_factory.mktemp("world")
    samples = [
        row
        for life in lives
        for row in recordings.answer_samples(life, memories[life.user], random.Random(0))
    ]
    pd.DataFrame(samples).to_parquet(folder / "sft.parquet")
    home = Path(next(image for turn in lives[0].turns for image in turn.images)).parents[1]
    write_lives(home / "resume.jsonl", lives)
    common = dict(model=str(checkpoint), steps=5, accumulate=2, seed=0, warmup=1, lora_rank=4)
    common |= dict(gradient_checkpointing=False)
    first = dict(samples=str(folder / "sft.parquet"), batch=4, learning_rate=1e-3, log_every=1)
    second = dict(
        lives=str(home / "resume.jsonl"),
        memory=str(memories[lives[0].user].folder.parent),
        prompts="nano",
    )
    # more steps than there are questions: the order must go on in a second round too
    second |= dict(
        questions=8, group=2, groups=2, learning_rate=1e-2, beta=0.01, epsilon=0.2, temperature=1.0
    )
    second |= dict(repetition_penalty=1.0, max_tokens=12, width=48)
    whole = common | first | {"lora_rank": 0}
    return {
        "sft": (sft.train, common | first),
        "whole": (sft.train, whole),
        "grpo": (grpo.train, common | second),
    }


@pytest.fixture(autouse=True)
def spread(monkeypatch):
    """What an untrained model writes is all wrong, and nothing is learned from that: rewards of another kind."""

    def format_reward(completion_ids, **_):
        return [len(set(ids)) / 10 for ids in completion_ids]

    monkeypatch.setattr(grpo, "format_reward", format_reward)


@pytest.fixture
def killed(monkeypatch):
    """Runs a training that ends after the checkpoint of step `at`, and leaves the next one half written."""

    def run(train, config, folder, at=2):
        save = sft.MetricsLog.on_save

        def on_save(self, args, state, control, **kwargs):
            if state.global_step > at:
                raise KeyboardInterrupt  # before the stamp: the checkpoint counts as cut short
            save(self, args, state, control, **kwargs)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(sft.MetricsLog, "on_save", on_save)
            train(config, folder)

    return run


def left(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
    (weights,) = folder.glob("*/*.safetensors")  # of the adapter, or of the model itself
    return rows, {name: w.numpy().tobytes() for name, w in load_file(weights).items()}


@pytest.mark.parametrize("stage", ["sft", "whole", "grpo"])
def test_a_resumed_training_ends_as_an_unbroken_one(configs, killed, tmp_path, stage):
    train, config = configs[stage]
    for folder in (tmp_path / "whole", tmp_path / "broken"):
        folder.mkdir()
    train(config, tmp_path / "whole")
    killed(train, config, tmp_path / "broken")
    assert sorted(path.name for path in tmp_path.glob("broken/checkpoints/*/checkpoint-*")) == [
        "checkpoint-2",
        "checkpoint-3",
    ]
    steps = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            sft.MetricsLog,
            "on_step_begin",
            lambda self, args, state, control, **_: steps.append(state.global_step),
        )
        train(config, tmp_path / "broken")
    assert steps == [2, 3, 4], "the first two steps are not made again"
    rows, weights = left(tmp_path / "whole")
    assert all(row["grad_norm"] > 0 for row in rows)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert left(tmp_path / "broken") == (rows, weights)
    texts = [
        (tmp_path / name / "metrics.jsonl").read_text().splitlines()[0]
        for name in ("whole", "broken")
    ]
    assert list(json.loads(texts[0])) == list(json.loads(texts[1])), (
        "the columns come in the same order"
    )
    train(config, tmp_path / "broken")  # nothing is left to do, and nothing is lost
    assert left(tmp_path / "broken") == (rows, weights)


def test_another_learning_rate_never_goes_on_from_these_checkpoints(configs, killed, tmp_path):
    train, config = configs["sft"]
    killed(train, config, tmp_path)
    other = config | {"learning_rate": 5e-4}
    train(other, tmp_path)
    (tmp_path / "clean").mkdir()
    train(other, tmp_path / "clean")
    assert left(tmp_path) == left(tmp_path / "clean")
