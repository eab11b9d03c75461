"""The small CLIP: it learns to recognize things, and handles batches and captions correctly."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from personavlm_lib.memory.vision import ClassicalDetector, ImageEncoder, tokenize
from personavlm_lib.simulation.scenes import COLORS, THINGS
from personavlm_lib.training.clip import build_clip, concept_top1, sighting, train_clip


def word_tokenizer(first=("[UNK]", "[PAD]", "a", "[END]")):
    """A tokenizer with one token per word; `first` holds the tokens with the lowest ids."""
    words = [*first, *COLORS, *THINGS]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", eos_token="[END]"
    )


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """A model this small is slower on two threads, and far slower if the second one is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder of a trained model, its metrics)."""
    folder = tmp_path_factory.mktemp("clip")
    return folder, train_clip(word_tokenizer(), folder, steps=40, seed=0, views=2)


def test_loss_falls_and_recognition_beats_chance(trained):
    folder, metrics = trained
    assert [row["step"] for row in metrics] == [20, 40]
    assert metrics[1]["loss"] < metrics[0]["loss"]
    scores = concept_top1(ImageEncoder(folder), n=16)
    assert set(scores) == {"top1", "recalled", "intruders", "named"}
    assert scores["top1"] > 0.4  # chance: 1 of 16
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) <= 1_000_000


def test_undetected_things_count_as_not_recognized(trained):
    class BlindDetector:
        def detect(self, image, names=()):
            return []

    folder, _ = trained
    scores = concept_top1(ImageEncoder(folder), n=2, detector=BlindDetector())
    assert scores["top1"] == scores["recalled"] == scores["named"] == 0


def test_encoder_returns_unit_rows_that_do_not_depend_on_the_batch(trained):
    folder, _ = trained
    encoder = ImageEncoder(folder)
    images = [
        Image.new("RGB", (30, 50), "red"),
        Image.new("L", (200, 10)),
        Image.new("RGBA", (56, 56)),
    ]
    rows = encoder.images(images)
    assert rows.dtype == np.float32 and rows.shape == (3, 48)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert np.allclose(rows[1], encoder.images(images[1:2])[0], atol=1e-5)
    texts = ["a red cup", "red", "a blue ball " * 9]
    rows = encoder.texts(texts)
    assert rows.shape == (3, 48)
    assert np.allclose(rows[1], encoder.texts(["red"])[0], atol=1e-5)
    assert not np.allclose(rows[0], rows[1], atol=1e-2)
    assert encoder.images([]).shape == encoder.texts([]).shape == (0, 48)


def test_same_seed_trains_the_same_weights(tmp_path):
    for name in ("a", "b"):
        train_clip(word_tokenizer(), tmp_path / name, steps=2, seed=3, views=2)
    first, second = (tmp_path / name / "model.safetensors" for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_each_row_ends_with_one_end_token_and_is_truncated():
    tokenizer = word_tokenizer()
    ids, mask = tokenize(tokenizer, ["a red cup [END]", "red", "red " * 20], 6)
    end = tokenizer.eos_token_id
    assert ids.shape == (3, 6) and (ids[:, -1] == end).all()
    assert mask.sum(1).tolist() == [4, 2, 6]
    assert [(row == end).nonzero()[0].item() for row in ids] == [3, 1, 5]


def test_end_token_that_clip_would_misread_is_rejected():
    with pytest.raises(ValueError, match="end token has id 2"):
        build_clip(word_tokenizer(("[UNK]", "[PAD]", "[END]", "a")))


def test_sighting_shows_the_requested_thing():
    for color in ("red", "green", "blue"):
        patch = sighting(random.Random(0), "ball", color, ClassicalDetector())
        middle = np.asarray(patch.crop((10, 10, 14, 14))).reshape(-1, 3)
        assert middle.mean(0).argmax() == ("red", "green", "blue").index(color)
