"""A killed training resumes from its last complete checkpoint and ends as an unbroken one."""

import json
import random
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import load_file

from personavlm_lib.benchmark import recordings
from personavlm_lib.benchmark.lives import write_lives
from personavlm_lib.training import grpo, sft

TIMES = {"step_time"}  # metrics that no two runs share
slow = partial(pytest.param, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def configs(checkpoint, lives, memories, tmp_path_factory):
    """Stage -> (its `train`, a small configuration)."""
    folder = tmp_path_factory.mktemp("world")
    samples = []
    for life in lives:
        samples += recordings.answer_samples(life, memories[life.user], random.Random(0))
    pd.DataFrame(samples).to_parquet(folder / "sft.parquet")
    image = next(image for turn in lives[0].turns for image in turn.images)
    lives_file = Path(image).parents[1] / "resume.jsonl"
    write_lives(lives_file, lives)
    common = dict(
        model=str(checkpoint),
        steps=5,
        accumulate=2,
        seed=0,
        warmup=1,
        lora_rank=4,
        gradient_checkpointing=False,
    )
    sft_config = common | dict(
        samples=str(folder / "sft.parquet"), batch=4, learning_rate=1e-3, log_every=1
    )
    grpo_config = common | dict(
        lives=str(lives_file),
        memory=str(memories[lives[0].user].folder.parent),
        prompts="nano",
        questions=8,  # fewer than the steps need, so that a second round of prompts is resumed
        group=2,
        groups=2,
        learning_rate=1e-2,
        beta=0.01,
        epsilon=0.2,
        temperature=1.0,
        repetition_penalty=1.0,
        max_tokens=12,
        width=48,
    )
    return {
        "sft": (sft.train, sft_config),
        "whole": (sft.train, sft_config | {"lora_rank": 0}),
        "grpo": (grpo.train, grpo_config),
    }


@pytest.fixture(autouse=True)
def varied_rewards(monkeypatch):
    """Rewards that differ: an untrained model's answers are all wrong, which teaches nothing."""

    def format_reward(completion_ids, **_):
        return [len(set(ids)) / 10 for ids in completion_ids]

    monkeypatch.setattr(grpo, "format_reward", format_reward)


@pytest.fixture
def run_and_kill(monkeypatch):
    """A function that runs a training, completes the checkpoint of step `at`, and kills the next.

    The checkpoint of the step after `at` stays without its stamp, so it counts as incomplete.
    """

    def run(train, config, folder, at=2):
        complete_save = sft.MetricsLog.on_save

        def on_save(self, args, state, control, **kwargs):
            if state.global_step > at:
                raise KeyboardInterrupt
            complete_save(self, args, state, control, **kwargs)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(sft.MetricsLog, "on_save", on_save)
            train(config, folder)

    return run


def metrics_and_weights(folder):
    """The metrics without times, and the weights (of the adapter or the model) as bytes."""
    rows = []
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows.append({name: value for name, value in row.items() if name not in TIMES})
    (weights,) = folder.glob("*/*.safetensors")
    return rows, {name: weight.numpy().tobytes() for name, weight in load_file(weights).items()}


def first_row_columns(folder):
    return list(json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[0]))


@pytest.mark.parametrize("stage", ["sft", slow("whole"), slow("grpo")])
def test_resumed_training_ends_as_an_unbroken_one(configs, run_and_kill, tmp_path, stage):
    train, config = configs[stage]
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    unbroken.mkdir()
    resumed.mkdir()
    train(config, unbroken)
    run_and_kill(train, config, resumed)
    checkpoints = sorted(path.name for path in resumed.glob("checkpoints/*/checkpoint-*"))
    assert checkpoints == ["checkpoint-2", "checkpoint-3"]
    steps = []

    def record_step(self, args, state, control, **_):
        steps.append(state.global_step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft.MetricsLog, "on_step_begin", record_step)
        train(config, resumed)
    assert steps == [2, 3, 4], "the first two steps are not repeated"
    rows, weights = metrics_and_weights(unbroken)
    assert all(row["grad_norm"] > 0 for row in rows)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert metrics_and_weights(resumed) == (rows, weights)
    assert first_row_columns(unbroken) == first_row_columns(resumed), "columns keep their order"
    train(config, resumed)  # already finished: nothing changes
    assert metrics_and_weights(resumed) == (rows, weights)


@pytest.mark.slow
def test_another_learning_rate_never_resumes_from_these_checkpoints(
    configs, run_and_kill, tmp_path
):
    train, config = configs["sft"]
    run_and_kill(train, config, tmp_path)
    other = config | {"learning_rate": 5e-4}
    train(other, tmp_path)
    clean = tmp_path / "clean"
    clean.mkdir()
    train(other, clean)
    assert metrics_and_weights(tmp_path) == metrics_and_weights(clean)
