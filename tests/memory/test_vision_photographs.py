"""Tiny random Grounding DINO and CLIP models, and the classical detector, on photographs.

Detections of random weights are noise; the tests check that images of any mode and size work and
that boxes are in pixels.
"""

from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import transformers
from PIL import Image
from tokenizers import pre_tokenizers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from personavlm_lib.memory.images import read_image
from personavlm_lib.memory.records import SemanticMemory, Turn, VisualConcept
from personavlm_lib.memory.vision import (
    ClassicalDetector,
    ConceptRecognizer,
    GroundingDinoDetector,
    ImageEncoder,
    crops,
)

NAMES = ("astronaut", "chelsea", "coffee")  # a woman before a flag, a cat, a cup on a table


@pytest.fixture(scope="module")
def photographs():
    """Paths of photographs from scikit-image."""
    if (package := find_spec("skimage")) is None:
        pytest.skip("these tests need the photographs of scikit-image: pip install -e '.[dev]'")
    return [str(Path(package.origin).parent / "data" / f"{name}.png") for name in NAMES]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny random CLIP, loaded from a folder like the real one."""
    folder = tmp_path_factory.mktemp("clip")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [
        "<|startoftext|>",
        "<|endoftext|>",
        *letters,
        *(letter + "</w>" for letter in letters),
    ]
    tiny = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    text = tiny | dict(
        vocab_size=len(pieces), max_position_embeddings=16, eos_token_id=1, bos_token_id=0
    )
    vision = tiny | dict(image_size=28, patch_size=14)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]
    ).save_pretrained(folder)
    size = {"height": 28, "width": 28}
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=size).save_pretrained(folder)
    return ImageEncoder(folder)


def on_a_wall(path):
    """A photograph on a plain background, which the classical detector can separate."""
    wall = Image.new("RGB", (900, 700), (235, 235, 230))
    wall.paste(read_image(path).resize((300, 200)), (150, 100))
    return wall


def boxes(detector, image):
    """The detected boxes, largest first; asserts that each lies within the image."""
    found = [detection.box for detection in detector.detect(image, ["cat", "cup"])]
    assert all(
        0 <= x0 < x1 <= image.width and 0 <= y0 < y1 <= image.height for x0, y0, x1, y1 in found
    )
    return found


def test_both_detectors_return_boxes_in_image_pixels(photographs, grounding_dino):
    dino, classical = GroundingDinoDetector(str(grounding_dino), threshold=0.0), ClassicalDetector()
    for path in photographs:
        image = read_image(path)
        assert boxes(dino, image)
        half = image.resize((image.width // 2, image.height // 2))
        for whole, small in zip(boxes(classical, image), boxes(classical, half), strict=False):
            assert np.abs(np.subtract(whole, np.multiply(small, 2))).max() < 0.5 * max(image.size)
    largest = boxes(classical, on_a_wall(photographs[1]))[0]
    assert np.abs(np.subtract(largest, (150, 100, 450, 300))).max() < 30


def test_clip_recognizes_a_photograph_in_another_size_and_mode(photographs, encoder):
    images = [read_image(path) for path in photographs]
    vectors = encoder.images(images)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    again = encoder.images(
        [image.resize((image.width // 2, image.height // 2)).convert("RGBA") for image in images]
    )
    assert (vectors @ again.T).argmax(1).tolist() == [0, 1, 2]
    assert encoder.texts(
        ["a cat", "a cup of coffee on a table, and much more than fits"]
    ).shape == (2, 16)


@pytest.mark.parametrize("detects", ["classical", "grounding_dino"])
def test_recognizer_works_with_either_detector(
    photographs, encoder, grounding_dino, tmp_path, detects
):
    dino = detects == "grounding_dino"
    detector = (
        GroundingDinoDetector(str(grounding_dino), threshold=0.0) if dino else ClassicalDetector()
    )
    recognizer = ConceptRecognizer(detector, encoder, threshold=0.99)
    time = datetime(2024, 5, 1, 10)
    on_a_wall(photographs[2]).save(tmp_path / "wall.png")
    crop = recognizer.crop(tmp_path / "wall.png", "cup", tmp_path)
    wall = read_image(tmp_path / "wall.png")
    patches = crops(wall, detector.detect(wall, ["cup"]))
    assert read_image(crop).size in [patch.size for patch in patches]
    memory = SemanticMemory(
        "my cup", "cup", time, time, time, "concept", VisualConcept("my cup", "cup", crop), id=0
    )
    query = Turn(time, "<img>", images=(str(tmp_path / "wall.png"),))
    assert recognizer.recognize(query, SimpleNamespace(semantic=[memory])) == [memory]


def test_one_pixel_and_100_megapixel_images_work(encoder, grounding_dino):
    huge = Image.new("L", (10_000, 10_000), 90)
    huge.paste(220, (2_000, 3_000, 5_000, 7_000))
    [found] = boxes(ClassicalDetector(), huge)
    assert np.abs(np.subtract(found, (2_000, 3_000, 5_000, 7_000))).max() < 400
    dot = Image.new("RGB", (1, 1), (9, 90, 9))
    dino = GroundingDinoDetector(str(grounding_dino), threshold=0.0)
    boxes(dino, dot), boxes(dino, huge), boxes(ClassicalDetector(), dot)
    assert np.isfinite(encoder.images([dot, huge])).all()
