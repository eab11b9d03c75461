"""SFT on recordings: the loss sees the assistant's tokens alone, and what is left can be loaded."""

import json
import random

import pandas as pd
import pytest
import torch

from personavlm_lib.benchmark import recordings
from personavlm_lib.models.chat import ChatRequest
from personavlm_lib.models.local import LocalModel
from personavlm_lib.training import sft


@pytest.fixture(scope="module")
def samples(lives, memories, tmp_path_factory):
    """Recordings of two lives, those without and those with images in turn."""
    rows, folder = [], tmp_path_factory.mktemp("samples")
    for life in lives * 2:
        rows += recordings.answer_samples(life, memories[life.user], random.Random(len(rows)))
    plain, pictured = (
        [row for row in rows if bool(row["images"]) == pictures] for pictures in (False, True)
    )
    assert len(plain) >= 4 and len(pictured) >= 4
    mixed = [row for pair in zip(plain, pictured, strict=False) for row in pair]
    pd.DataFrame(mixed + plain[len(pictured) :]).to_parquet(folder / "sft.parquet")
    return folder / "sft.parquet"


def config(checkpoint, samples, **changes):
    return dict(
        model=str(checkpoint), samples=str(samples), steps=2, batch=4, accumulate=2, learning_rate=1e-3, lora_rank=4,
        seed=0, warmup=0, log_every=1, gradient_checkpointing=False,
    ) | changes  # fmt: skip


def test_labels_cover_exactly_what_the_assistant_said(
    checkpoint, samples, processor, tmp_path, monkeypatch
):
    trainers = []
    monkeypatch.setattr(sft.SFTTrainer, "train", lambda self, **_: trainers.append(self))
    sft.train(config(checkpoint, samples), tmp_path)
    (trainer,), tokenizer = trainers, processor.tokenizer
    frame = sft.in_batches(pd.read_parquet(samples), batch=4, steps=2, seed=0).reset_index(
        drop=True
    )
    for index in range(8):
        batch = trainer.data_collator([trainer.train_dataset[index]])
        labels, ids = batch["labels"][0], batch["input_ids"][0]
        learned = labels != -100
        assert torch.equal(ids[learned], labels[learned])
        turns = "".join(tokenizer.decode(labels[learned])).split("<|im_end|>")
        said = [m["content"] for m in frame.messages[index] if m["role"] == "assistant"]
        squeezed = ["".join(turn.split()) for turn in turns]
        assert squeezed == ["".join(text.split()) for text in said] + [""]
        text_only = not len(frame.images[index])
        assert (
            "pixel_values" in batch
            and batch["pixel_values"] is not None
            and len(batch["pixel_values"]) > 0
        ) != text_only


def test_batches_are_random_mixtures_in_order_of_length():
    lengths = list(range(1, 13)) * 2
    frame = pd.DataFrame({"messages": [[{"content": "x" * n}] for n in lengths], "row": range(24)})
    drawn = sft.in_batches(frame, batch=6, steps=8, seed=0)
    assert sorted(drawn.row[:24]) == sorted(drawn.row[24:]) == list(range(24))
    sizes = [len(messages[0]["content"]) for messages in drawn.messages]
    batches = [sizes[i : i + 6] for i in range(0, 48, 6)]
    assert (
        all(batch == sorted(batch) for batch in batches)
        and len({tuple(batch) for batch in batches}) > 4
    )


def test_rows_carry_their_images_in_place(samples):
    rows = sft.to_dataset(pd.read_parquet(samples))
    for row in rows:
        marks = [part["type"] for message in row["messages"] for part in message["content"]].count(
            "image"
        )
        assert marks == len(row["images"])
    assert any(row["images"] for row in rows) and not all(row["images"] for row in rows)


@pytest.mark.parametrize("batch", [2, 4])
def test_two_steps_leave_metrics_an_adapter_and_a_model_that_names_it(
    checkpoint, samples, tmp_path, batch
):
    """With micro-batches of one and of two: some of them have no image at all."""
    sft.train(config(checkpoint, samples, batch=batch), tmp_path)
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in metrics] == [1, 2] and all(
        entry["loss"] > 0 for entry in metrics
    )
    before, merged = LocalModel(checkpoint), LocalModel(tmp_path / "model")
    adapted = LocalModel(checkpoint, tmp_path / "adapter")
    changed = [
        name for name, weight in merged.model.state_dict().items()
        if not torch.allclose(weight, before.model.state_dict()[name])
    ]  # fmt: skip
    assert changed and all("language_model" in name and "_proj" in name for name in changed)
    for name, weight in adapted.model.state_dict().items():
        torch.testing.assert_close(weight, merged.model.state_dict()[name])
    assert merged.reply([(merged.start(), ChatRequest("hello", max_tokens=3))])[0].tokens_out <= 3


def test_at_rank_0_the_language_model_is_trained_and_the_model_holds_the_weights(
    checkpoint, samples, tmp_path
):
    sft.train(
        config(checkpoint, samples), tmp_path
    )  # an adapter first: nothing of it is left in `model/`
    sft.train(config(checkpoint, samples, lora_rank=0), tmp_path)
    before, after = LocalModel(checkpoint), LocalModel(tmp_path / "model")
    for name, weight in after.model.named_parameters():
        assert torch.equal(weight, before.model.get_parameter(name)) == ("visual" in name), name
    assert after.reply([(after.start(), ChatRequest("hello", max_tokens=3))])[0].tokens_out <= 3
