"""SFT on recordings: the loss covers assistant tokens only, and the saved model can be loaded."""

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
    """Recordings of two lives, alternating between rows with and without images."""
    rows = []
    for life in lives * 2:
        rows += recordings.answer_samples(life, memories[life.user], random.Random(len(rows)))
    plain = [row for row in rows if not row["images"]]
    pictured = [row for row in rows if row["images"]]
    assert len(plain) >= 4 and len(pictured) >= 4
    mixed = [row for pair in zip(plain, pictured, strict=False) for row in pair]
    path = tmp_path_factory.mktemp("samples") / "sft.parquet"
    pd.DataFrame(mixed + plain[len(pictured) :]).to_parquet(path)
    return path


def config(checkpoint, samples, **changes):
    settings = dict(
        model=str(checkpoint),
        samples=str(samples),
        steps=2,
        batch=4,
        accumulate=2,
        learning_rate=1e-3,
        lora_rank=4,
        seed=0,
        warmup=0,
        log_every=1,
        gradient_checkpointing=False,
    )
    return settings | changes


def assert_replies(local):
    """The model writes up to three tokens."""
    assert local.reply([(local.start(), ChatRequest("hello", max_tokens=3))])[0].tokens_out <= 3


def test_labels_cover_exactly_the_assistants_words(
    checkpoint, samples, processor, tmp_path, monkeypatch
):
    trainers = []
    monkeypatch.setattr(sft.SFTTrainer, "train", lambda self, **_: trainers.append(self))
    sft.train(config(checkpoint, samples), tmp_path)
    (trainer,) = trainers
    rows = sft.in_batches(pd.read_parquet(samples), batch=4, steps=2, seed=0)
    rows = rows.reset_index(drop=True)
    for index in range(8):
        batch = trainer.data_collator([trainer.train_dataset[index]])
        labels, ids = batch["labels"][0], batch["input_ids"][0]
        learned = labels != -100
        assert torch.equal(ids[learned], labels[learned])
        encoded = sft.loss_mask(rows.iloc[[index]], processor)
        assert encoded == (ids.tolist(), learned.tolist())
        turns = "".join(processor.tokenizer.decode(labels[learned])).split("<|im_end|>")
        answers = [m["content"] for m in rows.messages[index] if m["role"] == "assistant"]
        without_spaces = ["".join(text.split()) for text in answers]
        assert ["".join(turn.split()) for turn in turns] == [*without_spaces, ""]
        pixels = batch.get("pixel_values")
        has_pixels = pixels is not None and len(pixels) > 0
        assert has_pixels == (len(rows.images[index]) > 0)


def test_batches_are_random_mixtures_sorted_by_length():
    lengths = list(range(1, 13)) * 2
    frame = pd.DataFrame({"messages": [[{"content": "x" * n}] for n in lengths], "row": range(24)})
    drawn = sft.in_batches(frame, batch=6, steps=8, seed=0)
    assert sorted(drawn.row[:24]) == sorted(drawn.row[24:]) == list(range(24))
    sizes = [len(messages[0]["content"]) for messages in drawn.messages]
    batches = [sizes[i : i + 6] for i in range(0, 48, 6)]
    assert all(batch == sorted(batch) for batch in batches)
    assert len({tuple(batch) for batch in batches}) > 4


def test_dataset_rows_have_one_image_part_per_image(samples):
    rows = sft.to_dataset(pd.read_parquet(samples))
    for row in rows:
        types = [part["type"] for message in row["messages"] for part in message["content"]]
        assert types.count("image") == len(row["images"])
    assert any(row["images"] for row in rows) and not all(row["images"] for row in rows)


@pytest.mark.parametrize("batch", [2, 4])
def test_two_steps_write_metrics_an_adapter_and_a_model_that_names_it(
    checkpoint, samples, tmp_path, batch
):
    """With micro-batches of one and of two rows; some of them have no image at all."""
    sft.train(config(checkpoint, samples, batch=batch), tmp_path)
    metrics = [
        json.loads(line)
        for line in (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [entry["step"] for entry in metrics] == [1, 2]
    assert all(entry["loss"] > 0 for entry in metrics)
    before = LocalModel(checkpoint).model.state_dict()
    merged = LocalModel(tmp_path / "model")
    changed = []
    for name, weight in merged.model.state_dict().items():
        if not torch.allclose(weight, before[name]):
            changed.append(name)
    assert changed and all("language_model" in name and "_proj" in name for name in changed)
    adapted = LocalModel(checkpoint, tmp_path / "adapter")
    for name, weight in adapted.model.state_dict().items():
        torch.testing.assert_close(weight, merged.model.state_dict()[name])
    assert_replies(merged)


def test_rank_0_trains_the_language_model_and_saves_whole_weights(checkpoint, samples, tmp_path):
    sft.train(config(checkpoint, samples), tmp_path)  # an adapter, which must leave no trace
    sft.train(config(checkpoint, samples, lora_rank=0), tmp_path)
    before = LocalModel(checkpoint)
    after = LocalModel(tmp_path / "model")
    for name, weight in after.model.named_parameters():
        unchanged = torch.equal(weight, before.model.get_parameter(name))
        assert unchanged == ("visual" in name), name
    assert_replies(after)
