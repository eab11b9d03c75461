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
    words = [*first, *COLORS, *THINGS]
    tokenizer = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", eos_token="[END]"
    )


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """So small a model is slower on two threads than on one, and far slower where another process has the second."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    return folder, train_clip(word_tokenizer(), folder, steps=40, seed=0, views=2)


def test_the_loss_falls_and_things_are_recognised_above_chance(trained):
    folder, metrics = trained
    assert [m["step"] for m in metrics] == [20, 40] and metrics[1]["loss"] < metrics[0]["loss"]
    encoder = ImageEncoder(folder)
    scores = concept_top1(encoder, n=16)
    assert scores["top1"] > 0.4 and set(scores) == {
        "top1",
        "recalled",
        "intruders",
        "named",
    }  # chance: 1 of 16
    assert sum(file.stat().st_size for file in folder.glob("*.safetensors")) <= 1_000_000


def test_what_a_detector_never_finds_is_not_recognised(trained):
    class Blind:
        def detect(self, image, names=()):
            return []

    scores = concept_top1(ImageEncoder(trained[0]), n=2, detector=Blind())
    assert scores["top1"] == scores["recalled"] == scores["named"] == 0


def test_the_encoder_gives_unit_rows_and_does_not_mix_a_batch(trained):
    encoder = ImageEncoder(trained[0])
    images = [
        Image.new("RGB", (30, 50), "red"),
        Image.new("L", (200, 10)),
        Image.new("RGBA", (56, 56)),
    ]
    rows = encoder.images(images)
    assert (
        rows.dtype == np.float32
        and rows.shape == (3, 48)
        and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    )
    assert np.allclose(rows[1], encoder.images(images[1:2])[0], atol=1e-5)
    texts = ["a red cup", "red", "a blue ball " * 9]
    rows = encoder.texts(texts)
    assert rows.shape == (3, 48) and np.allclose(rows[1], encoder.texts(["red"])[0], atol=1e-5)
    assert not np.allclose(rows[0], rows[1], atol=1e-2)
    assert encoder.images([]).shape == encoder.texts([]).shape == (0, 48)


def test_the_same_seed_trains_the_same_weights(tmp_path):
    for name in ("a", "b"):
        train_clip(word_tokenizer(), tmp_path / name, steps=2, seed=3, views=2)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (
        tmp_path / "b/model.safetensors"
    ).read_bytes()


def test_every_row_ends_with_the_one_end_token_and_is_cut():
    tokenizer = word_tokenizer()
    ids, mask = tokenize(tokenizer, ["a red cup [END]", "red", "red " * 20], 6)
    end = tokenizer.eos_token_id
    assert ids.shape == (3, 6) and (ids[:, -1] == end).all()
    assert mask.sum(1).tolist() == [4, 2, 6] and [
        (row == end).nonzero()[0].item() for row in ids
    ] == [3, 1, 5]


def test_an_end_token_that_clip_would_misread_is_refused():
    with pytest.raises(ValueError, match="end token has id 2"):
        build_clip(word_tokenizer(("[UNK]", "[PAD]", "[END]", "a")))


def test_a_sighting_is_the_thing_asked_for():
    for color in ("red", "green", "blue"):
        patch = sighting(random.Random(0), "ball", color, ClassicalDetector())
        middle = np.asarray(patch.crop((10, 10, 14, 14))).reshape(-1, 3)
        assert middle.mean(0).argmax() == ("red", "green", "blue").index(color)
