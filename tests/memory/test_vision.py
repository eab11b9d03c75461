"""Detection, cropping and recognition of visual concepts, on rendered scenes."""

import random
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from personavlm_lib.memory.records import SemanticMemory, Turn, VisualConcept
from personavlm_lib.memory.vision import (
    ClassicalDetector,
    ConceptRecognizer,
    Detection,
    GroundingDinoDetector,
    crop_concept,
    match_concepts,
)
from personavlm_lib.simulation.scenes import COLORS, LOOSE, render, sample_scene

TIME = datetime(2024, 5, 1, 10)


class ColorEncoder:
    """A stand-in for CLIP: images by their mean hue, texts by the color they name."""

    def __init__(self):
        self.calls = 0

    def images(self, images):
        self.calls += len(images)
        means = [np.asarray(i.convert("RGB"), np.float32).reshape(-1, 3).mean(0) for i in images]
        rows = np.array([m - m.mean() for m in means], np.float32).reshape(-1, 3)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def texts(self, texts):
        rows = np.array([COLORS[text.split()[1]] for text in texts], np.float32)
        rows -= rows.mean(1, keepdims=True)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def scene(*things, seed=0):
    return sample_scene(random.Random(seed), [thing.split()[::-1] for thing in things])


@pytest.mark.parametrize("size", [84, 300])
def test_classical_detector_finds_each_object_in_place(size):
    rng = random.Random(0)
    for _ in range(40):
        things = [(rng.choice(LOOSE), rng.choice(list(COLORS))) for _ in range(rng.randint(1, 2))]
        drawn = sample_scene(rng, things)
        found = ClassicalDetector().detect(render(drawn, size))
        assert len(found) == len(drawn.things), things
        for thing, detection in zip(
            drawn.things, sorted(found, key=lambda d: d.box[0]), strict=True
        ):
            x0, _, x1, _ = (v / size for v in detection.box)
            assert abs(x0 - thing.box[0]) < 0.06 and abs(x1 - thing.box[2]) < 0.09, (
                thing,
                detection,
            )
            assert 0 < detection.score <= 1
    areas = [(d.box[2] - d.box[0]) * (d.box[3] - d.box[1]) for d in found]
    assert areas == sorted(areas, reverse=True) or len(areas) == 1


def test_classical_detector_accepts_any_mode_and_size():
    detector = ClassicalDetector()
    assert detector.detect(Image.new("RGB", (84, 84), (170, 170, 170))) == []
    noise = np.random.default_rng(0).integers(0, 60, (400, 900, 3), dtype=np.uint8)
    noise[100:300, 200:500] += 150
    [found] = detector.detect(Image.fromarray(noise))
    assert np.abs(np.subtract(found.box, (200, 100, 500, 300))).max() < 30
    for mode, size in (("L", (3, 1)), ("RGBA", (1, 1)), ("P", (20, 2000)), ("1", (7, 7))):
        detector.detect(Image.new(mode, size))


def test_class_name_selects_the_crop():
    image, encoder = render(scene("red cup", "blue ball")), ColorEncoder()
    for name, channel in (("red cup", 0), ("blue ball", 2)):
        patch = crop_concept(image, name, ClassicalDetector(), encoder)
        assert np.asarray(patch).reshape(-1, 3).mean(0).argmax() == channel
    assert crop_concept(Image.new("RGB", (84, 84)), "red cup", ClassicalDetector(), encoder) is None


def concept(name):
    return VisualConcept(f"my {name}", name, f"{name}.png"), ColorEncoder().texts([f"a {name}"])[0]


def test_matches_are_above_the_threshold_best_first():
    image, encoder = render(scene("red cup", "blue ball")), ColorEncoder()
    stored = [
        concept("green hat"),
        concept("orange fish"),
        concept("blue book"),
        concept("red cup"),
    ]
    found = match_concepts(image, stored, ClassicalDetector(), encoder)
    assert {c.class_name for c, _ in found} == {"red cup", "blue book", "orange fish"}
    assert [s for _, s in found] == sorted((s for _, s in found), reverse=True)
    strict = match_concepts(image, stored, ClassicalDetector(), encoder, threshold=0.95)
    assert {c.class_name for c, _ in strict} == {"red cup", "blue book"}
    # The release's squared L2 < 1.0 is cosine > 0.5.
    assert match_concepts(image, stored, ClassicalDetector(), encoder, 1.0, "squared_l2") == found
    assert match_concepts(image, [], ClassicalDetector(), encoder) == []
    assert match_concepts(Image.new("RGB", (9, 9)), stored, ClassicalDetector(), encoder) == []
    with pytest.raises(ValueError, match="metric is 'l1'"):
        match_concepts(image, stored, ClassicalDetector(), encoder, metric="l1")


def test_recognizer_crops_into_the_folder_and_recognizes_the_crop(tmp_path):
    encoder = ColorEncoder()
    recognizer = ConceptRecognizer(ClassicalDetector(), encoder)
    render(scene("red cup", "blue ball")).save(tmp_path / "first.png")
    path = recognizer.crop(tmp_path / "first.png", "red cup", tmp_path / "images")
    again = recognizer.crop(tmp_path / "first.png", "red cup", tmp_path / "images")
    assert path == again  # same pixels, same file
    crop = VisualConcept("my cup", "red cup", path)
    memories = [
        SemanticMemory("my cup", "cup", TIME, TIME, TIME, "concept", crop, id=0),
        SemanticMemory("my drink is cola", "drink", TIME, TIME, TIME, id=1),
    ]
    render(scene("green hat", "red cup", seed=5)).save(tmp_path / "again.png")
    render(scene("green hat", seed=6)).save(tmp_path / "other.png")
    view = SimpleNamespace(semantic=memories)
    queries = {
        name: Turn(TIME, "<img>", images=(str(tmp_path / f"{name}.png"),))
        for name in ("again", "other")
    }
    assert recognizer.recognize(queries["again"], view) == memories[:1]
    assert recognizer.recognize(queries["other"], view) == []
    assert recognizer.recognize(Turn(TIME, "no image"), view) == []
    before = encoder.calls
    recognizer.recognize(queries["other"], view)
    assert encoder.calls == before + 1  # only the new object is encoded, not the stored crop
    Image.new("RGB", (84, 84)).save(tmp_path / "empty.png")
    assert recognizer.crop(tmp_path / "empty.png", "red cup", tmp_path / "images") is None


def test_crops_of_one_thing_count_as_one_concept(tmp_path):
    def memory(n, description, thing):
        render(scene(thing, seed=n), 84).save(tmp_path / f"{n}.png")
        crop = VisualConcept(description, "cup", str(tmp_path / f"{n}.png"))
        return SemanticMemory(description, "", TIME, TIME, TIME, "concept", crop, id=n)

    # Two crops of "my cup"; Ann's cup is another concept of the same class.
    memories = [
        memory(0, "my cup", "orange cup"),
        memory(1, "My cup", "red cup"),
        memory(2, "Ann's cup", "red cup"),
    ]
    view = SimpleNamespace(semantic=memories)
    render(scene("red cup", seed=9)).save(tmp_path / "now.png")
    now = Turn(TIME, "<img>", images=(str(tmp_path / "now.png"),))
    recognizer = ConceptRecognizer(ClassicalDetector(), ColorEncoder(), threshold=0.5)
    # The most similar crop represents the cup.
    assert {m.id for m in recognizer.recognize(now, view)} == {1, 2}
    assert [m.id for m in recognizer.recognize(now, SimpleNamespace(semantic=memories[:1]))] == [0]
    recognizer = ConceptRecognizer(ClassicalDetector(), ColorEncoder(), threshold=0.5, top_k=1)
    assert len(recognizer.recognize(now, view)) == 1


def test_grounding_dino_has_the_same_interface(grounding_dino):
    """A random model: its detections are noise, but it must load and return pixel boxes."""
    detector = GroundingDinoDetector(str(grounding_dino), threshold=0.0)
    for names in ([], ["Red cup", "object"]):
        found = detector.detect(Image.new("L", (84, 60)), names)
        assert found and all(isinstance(d, Detection) for d in found)
        assert all(
            0 <= x0 < x1 <= 84 and 0 <= y0 < y1 <= 60 for x0, y0, x1, y1 in (d.box for d in found)
        )
