import hashlib
import itertools
import random

import numpy as np
import pytest

from personavlm_lib.simulation.scenes import (
    BACKGROUNDS,
    COLORS,
    LOOSE,
    PICTURE_STYLES,
    SIGN_WORDS,
    THINGS,
    Thing,
    caption,
    listed,
    render,
    sample_scene,
)


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others():
    images = [
        render(sample_scene(random.Random(seed), [("cup", "red"), ("ball", "blue")]))
        for seed in (3, 3, 4)
    ]
    digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    assert digests[0] == digests[1] != digests[2]
    assert images[0].size == (84, 84) and images[0].mode == "RGB"


def test_things_stand_side_by_side_inside_the_image_and_are_big_enough():
    rng = random.Random(0)
    for _ in range(300):
        left, right = sample_scene(rng, [("lamp", "white"), ("fish", "green")]).things
        assert left.box[2] <= right.box[0]
        for x0, y0, x1, y1 in (left.box, right.box):
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
            assert 27 <= 84 * (x1 - x0) <= 40 and 27 <= 84 * (y1 - y0) <= 43


def test_every_thing_leaves_its_colour_and_no_two_silhouettes_agree():
    shapes = {}
    for kind, color in itertools.product(THINGS, COLORS):
        scene = sample_scene(random.Random(1), [(kind, color)])
        pixels = np.asarray(render(scene)).astype(int)
        own = (np.abs(pixels - scene.things[0].rgb).sum(-1) < 30).sum()
        assert own > 150, (kind, color, own)
        if color == "red":
            shapes[kind] = np.abs(pixels - scene.background).sum(-1) > 60
    for a, b in itertools.combinations(shapes, 2):
        overlap = (shapes[a] & shapes[b]).sum() / (shapes[a] | shapes[b]).sum()
        assert overlap < 0.8, (a, b, overlap)


def test_colours_and_backgrounds_are_far_apart():
    for (a, one), (b, other) in itertools.combinations(COLORS.items(), 2):
        assert np.linalg.norm(np.subtract(one, other)) > 80, (a, b)
    for name, background in itertools.product(COLORS, BACKGROUNDS):
        assert np.linalg.norm(np.subtract(COLORS[name], background)) > 85, (name, background)


def test_captions_and_refusals():
    scene = sample_scene(random.Random(0), [("cup", "red"), ("hat", "orange")])
    assert caption(scene) == "a red cup left of an orange hat"
    assert listed(scene) == "one cup is red one hat is orange"
    assert isinstance(scene.things[0], Thing) and scene.things[0].name == "red cup"
    several = sample_scene(random.Random(0), [("cup", "red")] * 3)
    assert (caption(several), listed(several)) == ("three red cup", "three cup is red")
    sign = sample_scene(random.Random(0), [("sign", "red")])
    assert sign.word in SIGN_WORDS and caption(sign) == f"a red sign {sign.word}"
    assert listed(sign) == f"one sign is red says {sign.word}"
    for wanted in ([], [("cup", "red")] * 5, [("sign", "red"), ("cup", "red")]):
        with pytest.raises(ValueError, match="one to four things"):
            sample_scene(random.Random(0), wanted)
    for pair in (("dog", "red"), ("cup", "pink")):
        with pytest.raises(KeyError):
            sample_scene(random.Random(0), [pair])


def test_up_to_four_stand_apart_in_a_grid():
    for n, seed in itertools.product((3, 4), range(50)):
        things = sample_scene(random.Random(seed), [("ball", "blue")] * n).things
        for a, b in itertools.combinations(things, 2):
            assert (
                a.box[2] <= b.box[0]
                or b.box[2] <= a.box[0]
                or a.box[3] <= b.box[1]
                or b.box[3] <= a.box[1]
            )


@pytest.mark.parametrize("kind", LOOSE)
def test_the_other_side_is_the_mirror_image(kind):
    one, other = (
        sample_scene(random.Random(5), [(kind, "red")], turned=turned) for turned in (False, True)
    )
    assert one.things[0].box == other.things[0].box
    box = [round(84 * v) for v in one.things[0].box]
    front, back = (np.asarray(render(scene).crop(box)).astype(int) for scene in (one, other))
    assert np.abs(front[:, ::-1] - back).mean() < 14  # the edges fall between pixels otherwise
    assert (
        kind in ("hat", "ball", "book", "lamp", "car") or np.abs(front - back).mean() > 14
    )  # these look the same


def test_words_and_styles_look_different():
    words = {}
    for seed in range(60):
        scene = sample_scene(random.Random(seed), [("sign", "blue")])
        x0, y0, x1, y1 = (round(84 * v) for v in scene.things[0].box)
        words.setdefault(
            scene.word,
            np.asarray(render(scene).convert("L").crop((x0, y0, x1, y1)).resize((60, 28))),
        )
    assert set(words) == set(SIGN_WORDS)
    for a, b in itertools.combinations(words.values(), 2):
        assert np.abs(a.astype(int) - b).mean() > 10
    cups = [sample_scene(random.Random(1), [("cup", "red")], style) for style in PICTURE_STYLES]
    drawn = [np.asarray(render(cup)).astype(int) for cup in cups]
    for a, b in itertools.combinations(drawn, 2):
        assert np.abs(a - b).mean() > 5
