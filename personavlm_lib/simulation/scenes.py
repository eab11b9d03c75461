"""The pictures of the simulated world: up to four colored things, or a sign, drawn with Pillow.

A scene looks the same on every machine: it needs no outline fonts, no photographs and no random
state except the generator that is passed in. A thing measures 28-40 of 84 pixels, large enough for
a vision tower of a few hundred kilobytes to recognize.
"""

import colorsys
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw, ImageFont

RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]

_DATA: dict[str, Any] = yaml.safe_load(
    Path(__file__).with_name("drawings.yaml").read_text(encoding="utf-8")
)
COLORS: dict[str, RGB] = {name: tuple(rgb) for name, rgb in _DATA["colors"].items()}
BACKGROUNDS: list[RGB] = [tuple(rgb) for rgb in _DATA["backgrounds"]]
PICTURE_STYLES = ("plain", "striped", "dotted", "checked")  # the pattern behind the things
SIGN_WORDS = "shop exit sale stop taxi bank post cafe".split()
COUNTS = ("one", "two", "three", "four")


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    `kind` is one of THINGS, `color` one of COLORS, `box` = (left, top, right, bottom) in 0..1 of
    the image. `rgb` is the exact color that is painted, a small variation of `color`. `turned`
    means seen from the other side; `word` is the text of a sign.
    """

    kind: str
    color: str
    box: Box
    rgb: RGB
    turned: bool = False
    word: str = ""

    @property
    def name(self) -> str:
        """Color and kind: `red cup`."""
        return f"{self.color} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """Things on a background, from left to right; more than two form a grid of two by two."""

    things: tuple[Thing, ...]
    background: RGB
    style: str = "plain"

    @property
    def word(self) -> str:
        """The word on the picture's sign; "" without a sign."""
        for thing in self.things:
            if thing.word:
                return thing.word
        return ""


class _Brush:
    """Draws one thing in coordinates of the unit square, whatever its size in pixels.

    A point is (x, y) in 0..1 of the thing's box.
    """

    def __init__(self, draw: ImageDraw.ImageDraw, box: Box, thing: Thing):
        self.draw = draw
        self.box = box
        self.fill = thing.rgb
        self.word = thing.word
        self.turned = thing.turned
        dark = sum(thing.rgb) <= 150
        self.shade = tuple(c + 70 if dark else c // 2 for c in thing.rgb)

    def points(self, flat: Sequence[float]) -> list[tuple[float, float]]:
        """Pixel positions of the points x0, y0, x1, y1, ..."""
        left, top, right, bottom = self.box
        points = []
        for x, y in zip(flat[::2], flat[1::2], strict=True):
            if self.turned:
                x = 1 - x
            points.append((left + x * (right - left), top + y * (bottom - top)))
        return points

    def corners(self, flat: Sequence[float]) -> list[float]:
        """Left, top, right and bottom in pixels; left and right change sides if turned."""
        (x0, y0), (x1, y1) = self.points(flat)
        return [min(x0, x1), y0, max(x0, x1), y1]

    def polygon(self, *flat: float, shaded: bool = False) -> None:
        self.draw.polygon(self.points(flat), fill=self.shade if shaded else self.fill)

    def rectangle(self, *flat: float, shaded: bool = False) -> None:
        self.draw.rectangle(self.corners(flat), fill=self.shade if shaded else self.fill)

    def ellipse(self, *flat: float, shaded: bool = False) -> None:
        self.draw.ellipse(self.corners(flat), fill=self.shade if shaded else self.fill)

    def arc(self, *flat: float, start: float, end: float, width: float) -> None:
        left, _, right, _ = self.box
        pixels = max(1, round(width * (right - left)))
        if self.turned:
            start, end = 180 - end, 180 - start
        self.draw.arc(self.corners(flat), start, end, fill=self.fill, width=pixels)


def _sign(b: _Brush) -> None:
    """A board with a word in Pillow's bitmap font, each dot drawn as a rectangle."""
    b.rectangle(0.0, 0.0, 1.0, 1.0)
    dark_board = sum(b.fill) < 480
    ink = (250, 250, 250) if dark_board else (10, 10, 10)
    mask = ImageFont.load_default_imagefont().getmask(b.word.upper())
    columns, rows = mask.size
    margin = 0.04
    dot_width = (1 - 2 * margin) / columns
    dot_height = 0.84 / rows
    for index in range(columns * rows):
        if not mask[index]:
            continue
        row, column = divmod(index, columns)
        x = margin + dot_width * column
        y = 0.08 + dot_height * row
        dot = b.corners((x, y, x + dot_width, y + dot_height))
        b.draw.rectangle(dot, fill=ink)


def _draw_thing(brush: _Brush, kind: str) -> None:
    if kind == "sign":
        _sign(brush)
        return
    for drawing in DRAWINGS[kind]:
        options = {name: drawing[name] for name in drawing if name not in ("shape", "points")}
        draw_shape = getattr(brush, drawing["shape"])
        draw_shape(*drawing["points"], **options)


DRAWINGS: dict[str, list[dict[str, Any]]] = _DATA["things"]
THINGS = (*DRAWINGS, "sign")
LOOSE = tuple(kind for kind in THINGS if kind != "sign")  # things that may stand beside others


def _varied_color(rng: random.Random, color: str) -> RGB:
    """A color of COLORS with hue and lightness slightly changed."""
    red, green, blue = COLORS[color]
    hue, light, saturation = colorsys.rgb_to_hls(red / 255, green / 255, blue / 255)
    hue = (hue + rng.uniform(-0.012, 0.012)) % 1.0
    light = min(0.99, light * rng.uniform(0.94, 1.06))
    r, g, b = colorsys.hls_to_rgb(hue, light, saturation)
    return round(255 * r), round(255 * g), round(255 * b)


def sample_thing(
    rng: random.Random,
    kind: str,
    color: str,
    area: Box = (0.0, 0.0, 1.0, 1.0),
    turned: bool = False,
    word: str = "",
) -> Thing:
    """A thing at a random place in `area`, with small variations of size and color.

    Raises KeyError if THINGS lacks the kind or COLORS the color.
    """
    if kind not in THINGS:
        raise KeyError(f"unknown kind of thing {kind!r}: choose one of THINGS")
    rgb = _varied_color(rng, color)
    if word:
        width = rng.uniform(0.86, 0.94)
        height = width * rng.uniform(0.4, 0.46)
    else:
        width = rng.uniform(0.36, 0.46)
        height = width * rng.uniform(0.9, 1.1)
    left, top, right, bottom = area
    x = rng.uniform(left + 0.02, right - 0.02 - width)
    y = rng.uniform(top + 0.02, bottom - 0.02 - height)
    box = (round(x, 4), round(y, 4), round(x + width, 4), round(y + height, 4))
    return Thing(kind, color, box, rgb, turned, word)


def sample_scene(
    rng: random.Random,
    wanted: Sequence[tuple[str, str]],
    style: str = "plain",
    turned: bool = False,
) -> Scene:
    """A scene of the one to four (kind, color) pairs in `wanted`, in this order, without overlap.

    One or two things share the picture's full height; more form a grid of two by two. `turned`
    shows the first thing from its other side. A sign stands alone, with a random word. Raises
    ValueError for any other number of things, KeyError for an unknown kind or color.
    """
    count = len(wanted)
    sign_beside_others = count > 1 and "sign" in dict(wanted)
    if not 1 <= count <= 4 or sign_beside_others:
        raise ValueError(
            f"a scene holds one to four things, or a sign alone, not {count}: {list(wanted)}"
        )
    red, green, blue = rng.choice(BACKGROUNDS)
    background = (red + rng.randint(-4, 4), green + rng.randint(-4, 4), blue + rng.randint(-4, 4))
    columns = min(2, count)
    rows = 2 if count > 2 else 1
    things = []
    for index, (kind, color) in enumerate(wanted):
        left = index % columns / columns
        top = index // columns / rows
        area = (left, top, left + 1 / columns, top + 1 / rows)
        if kind == "sign":
            word = rng.choice(SIGN_WORDS)
            thing = sample_thing(rng, kind, color, area, word=word)
        else:
            other_side = turned and index == 0
            thing = sample_thing(rng, kind, color, area, turned=other_side)
        things.append(thing)
    return Scene(tuple(things), background, style)


def _draw_pattern(draw: ImageDraw.ImageDraw, scene: Scene, size: int) -> None:
    """Draw lighter stripes, dots or squares behind the things."""
    light = tuple(min(255, channel + 40) for channel in scene.background)
    step = size // 8
    for row in range(8):
        y = row * step
        if scene.style == "striped" and row % 2:
            draw.rectangle((0, y, size, y + step), light)
        for column in range(8):
            x = column * step
            if scene.style == "checked" and (row + column) % 2:
                draw.rectangle((x, y, x + step, y + step), light)
            if scene.style == "dotted":
                draw.ellipse((x, y, x + step * 0.6, y + step * 0.6), light)


def render(scene: Scene, size: int = 84) -> Image.Image:
    """The scene as an RGB image of `size` x `size` pixels, drawn four times larger and averaged."""
    large = 4 * size
    image = Image.new("RGB", (large, large), scene.background)
    draw = ImageDraw.Draw(image)
    _draw_pattern(draw, scene, large)
    for thing in scene.things:
        left, top, right, bottom = thing.box
        pixels = (left * large, top * large, right * large, bottom * large)
        _draw_thing(_Brush(draw, pixels, thing), thing.kind)
    return image.resize((size, size), Image.Resampling.BOX)


def caption(scene: Scene) -> str:
    """The things and their places.

    Examples: `a red cup left of a blue ball`, `three red cup`, `a red sign exit`.
    """
    count = len(scene.things)
    kinds = {thing.kind for thing in scene.things}
    if count > 1 and len(kinds) == 1:
        number = COUNTS[count - 1]
        return f"{number} {scene.things[0].name}"
    names = []
    for thing in scene.things:
        name = with_article(thing.name)
        names.append(f"{name} {thing.word}" if thing.word else name)
    return " left of ".join(names)


def listed(scene: Scene) -> str:
    """All things from left to right.

    Examples: `one ball is blue one cup is red`, `three cup is red`, `one sign is red says exit`.
    """
    counts = Counter((thing.kind, thing.color) for thing in scene.things)
    parts = []
    for (kind, color), count in counts.items():
        number = COUNTS[count - 1]
        parts.append(f"{number} {kind} is {color}")
    if scene.word:
        parts.append(f"says {scene.word}")
    return " ".join(parts)


def with_article(name: str) -> str:
    """`a red cup`, `an orange hat`."""
    article = "an" if name[0] in "aeiou" else "a"
    return f"{article} {name}"
