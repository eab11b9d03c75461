"""Rendered scenes: reproducible, without overlap, and distinguishable by color and shape."""

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


def test_equal_seeds_give_equal_pixels_and_other_seeds_others():
    images = [
        render(sample_scene(random.Random(seed), [("cup", "red"), ("ball", "blue")]))
        for seed in (3, 3, 4)
    ]
    digests = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    assert digests[0] == digests[1] != digests[2]
    assert images[0].size == (84, 84) and images[0].mode == "RGB"


def test_two_things_fit_side_by_side_and_are_large_enough():
    rng = random.Random(0)
    for _ in range(300):
        left, right = sample_scene(rng, [("lamp", "white"), ("fish", "green")]).things
        assert left.box[2] <= right.box[0]
        for x0, y0, x1, y1 in (left.box, right.box):
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1
            assert 27 <= 84 * (x1 - x0) <= 40 and 27 <= 84 * (y1 - y0) <= 43


def test_things_show_their_color_and_differ_in_shape():
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


def test_colors_and_backgrounds_are_far_apart():
    for (a, one), (b, other) in itertools.combinations(COLORS.items(), 2):
        assert np.linalg.norm(np.subtract(one, other)) > 80, (a, b)
    for name, background in itertools.product(COLORS, BACKGROUNDS):
        assert np.linalg.norm(np.subtract(COLORS[name], background)) > 85, (name, background)


def test_captions_and_lists_describe_the_scene():
    scene = sample_scene(random.Random(0), [("cup", "red"), ("hat", "orange")])
    assert caption(scene) == "a red cup left of an orange hat"
    assert listed(scene) == "one cup is red one hat is orange"
    assert isinstance(scene.things[0], Thing) and scene.things[0].name == "red cup"
    several = sample_scene(random.Random(0), [("cup", "red")] * 3)
    assert (caption(several), listed(several)) == ("three red cup", "three cup is red")
    sign = sample_scene(random.Random(0), [("sign", "red")])
    assert sign.word in SIGN_WORDS and caption(sign) == f"a red sign {sign.word}"
    assert listed(sign) == f"one sign is red says {sign.word}"


@pytest.mark.parametrize("wanted", [[], [("cup", "red")] * 5, [("sign", "red"), ("cup", "red")]])
def test_wrong_number_of_things_is_an_error(wanted):
    with pytest.raises(ValueError, match="one to four things"):
        sample_scene(random.Random(0), wanted)


@pytest.mark.parametrize("pair", [("dog", "red"), ("cup", "pink")])
def test_unknown_kind_or_color_is_an_error(pair):
    with pytest.raises(KeyError):
        sample_scene(random.Random(0), [pair])


def test_three_or_four_things_do_not_overlap():
    for count, seed in itertools.product((3, 4), range(50)):
        things = sample_scene(random.Random(seed), [("ball", "blue")] * count).things
        for one, other in itertools.combinations(things, 2):
            left, top, right, bottom = one.box
            other_left, other_top, other_right, other_bottom = other.box
            apart_in_x = right <= other_left or other_right <= left
            apart_in_y = bottom <= other_top or other_bottom <= top
            assert apart_in_x or apart_in_y


@pytest.mark.parametrize("kind", LOOSE)
def test_turned_thing_is_the_mirror_image(kind):
    front_scene = sample_scene(random.Random(5), [(kind, "red")])
    back_scene = sample_scene(random.Random(5), [(kind, "red")], turned=True)
    assert front_scene.things[0].box == back_scene.things[0].box
    box = [round(84 * v) for v in front_scene.things[0].box]
    front = np.asarray(render(front_scene).crop(box)).astype(int)
    back = np.asarray(render(back_scene).crop(box)).astype(int)
    assert np.abs(front[:, ::-1] - back).mean() < 14  # edges fall on other parts of pixels
    symmetric = kind in ("hat", "ball", "book", "lamp", "car")
    assert symmetric or np.abs(front - back).mean() > 14


def test_sign_words_and_picture_styles_look_different():
    signs = {}
    for seed in range(60):
        scene = sample_scene(random.Random(seed), [("sign", "blue")])
        box = [round(84 * v) for v in scene.things[0].box]
        sign = render(scene).convert("L").crop(box).resize((60, 28))
        signs.setdefault(scene.word, np.asarray(sign))
    assert set(signs) == set(SIGN_WORDS)
    for one, other in itertools.combinations(signs.values(), 2):
        assert np.abs(one.astype(int) - other).mean() > 10
    cups = [sample_scene(random.Random(1), [("cup", "red")], style) for style in PICTURE_STYLES]
    pictures = [np.asarray(render(cup)).astype(int) for cup in cups]
    for one, other in itertools.combinations(pictures, 2):
        assert np.abs(one - other).mean() > 5
