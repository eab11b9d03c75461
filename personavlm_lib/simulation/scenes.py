"""The images of the simulated world: up to four coloured things, or a sign with a word on it, drawn with Pillow alone.

No outline fonts, no photographs and no random state but the generator that is handed in, so a scene is the same on
every machine. A thing is big enough (28-40 of 84 pixels) to be told apart by a vision tower of a few hundred kilobytes.
"""

import colorsys
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]

COLORS: dict[str, RGB] = {
    "red": (214, 32, 36),
    "blue": (34, 70, 214),
    "green": (24, 140, 52),
    "yellow": (250, 214, 10),
    "purple": (136, 38, 168),
    "orange": (248, 128, 14),
    "black": (22, 22, 24),
    "white": (254, 254, 254),
}
# Never close to a thing's colour, white included: greys, beiges and pale tints of middle lightness.
BACKGROUNDS: tuple[RGB, ...] = (
    (178, 178, 180), (190, 180, 162), (168, 182, 194), (172, 190, 170), (196, 176, 178), (184, 172, 150),
)  # fmt: skip
PICTURE_STYLES = (
    "plain",
    "striped",
    "dotted",
    "checked",
)  # of a picture: what lies behind the things
SIGN_WORDS = "shop exit sale stop taxi bank post cafe".split()
COUNTS = ("one", "two", "three", "four")


@dataclass(frozen=True)
class Thing:
    """One object: `kind` of THINGS, `color` of COLORS, `box` = (left, top, right, bottom) in 0..1 of the image,
    the exact `rgb` it is painted in (its colour, a little off as in life), whether it is seen from the other side,
    and, on a sign, the `word`."""

    kind: str
    color: str
    box: Box
    rgb: RGB
    turned: bool = False
    word: str = ""

    @property
    def name(self) -> str:
        """What a person calls it: `red cup`."""
        return f"{self.color} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """Things on a background, from left to right; more than two of a kind fill a grid of two by two."""

    things: tuple[Thing, ...]
    background: RGB
    style: str = "plain"

    @property
    def word(self) -> str:
        """What is written in the picture; "" where nothing is."""
        return next((thing.word for thing in self.things if thing.word), "")


class _Brush:
    """Draws in the unit square of one box, so that each kind is a few lines whatever its size."""

    def __init__(self, draw: ImageDraw.ImageDraw, box: Box, thing: "Thing"):
        self.draw, self.box, self.fill, self.word, self.turned = (
            draw,
            box,
            thing.rgb,
            thing.word,
            thing.turned,
        )
        self.shade = tuple(c // 2 if sum(self.fill) > 150 else c + 70 for c in self.fill)

    def points(self, flat: Sequence[float]) -> list[tuple[float, float]]:
        left, top, right, bottom = self.box
        xs, ys = [1 - x for x in flat[::2]] if self.turned else flat[::2], flat[1::2]
        return [
            (left + x * (right - left), top + y * (bottom - top))
            for x, y in zip(xs, ys, strict=True)
        ]

    def corners(self, flat: Sequence[float]) -> list[float]:
        """Left, top, right, bottom, which change sides where the thing is turned."""
        (x0, y0), (x1, y1) = self.points(flat)
        return [min(x0, x1), y0, max(x0, x1), y1]

    def polygon(self, *flat: float, shaded: bool = False) -> None:
        self.draw.polygon(self.points(flat), fill=self.shade if shaded else self.fill)

    def rectangle(self, *flat: float, shaded: bool = False) -> None:
        self.draw.rectangle(self.corners(flat), fill=self.shade if shaded else self.fill)

    def ellipse(self, *flat: float, shaded: bool = False) -> None:
        self.draw.ellipse(self.corners(flat), fill=self.shade if shaded else self.fill)

    def arc(self, *flat: float, start: float, end: float, width: float) -> None:
        pixels = max(1, round(width * (self.box[2] - self.box[0])))
        start, end = (180 - end, 180 - start) if self.turned else (start, end)
        self.draw.arc(self.corners(flat), start, end, fill=self.fill, width=pixels)


def _cup(b: _Brush) -> None:
    b.polygon(0.05, 0.1, 0.72, 0.1, 0.64, 0.98, 0.13, 0.98)
    b.arc(0.5, 0.25, 1.0, 0.75, start=-110, end=110, width=0.1)
    b.ellipse(0.05, 0.02, 0.72, 0.2, shaded=True)


def _hat(b: _Brush) -> None:
    b.ellipse(0.0, 0.62, 1.0, 0.92)
    b.polygon(0.27, 0.75, 0.32, 0.1, 0.68, 0.1, 0.73, 0.75)
    b.rectangle(0.275, 0.55, 0.725, 0.68, shaded=True)


def _ball(b: _Brush) -> None:
    b.ellipse(0.03, 0.03, 0.97, 0.97)
    b.rectangle(0.05, 0.45, 0.95, 0.55, shaded=True)
    b.rectangle(0.45, 0.05, 0.55, 0.95, shaded=True)


def _book(b: _Brush) -> None:
    b.polygon(0.0, 0.14, 0.47, 0.26, 0.47, 0.94, 0.0, 0.8)
    b.polygon(1.0, 0.14, 0.53, 0.26, 0.53, 0.94, 1.0, 0.8)
    b.rectangle(0.46, 0.26, 0.54, 0.94, shaded=True)
    for y in (0.34, 0.48, 0.62):
        b.polygon(0.08, y, 0.39, y + 0.08, 0.39, y + 0.14, 0.08, y + 0.06, shaded=True)
        b.polygon(0.92, y, 0.61, y + 0.08, 0.61, y + 0.14, 0.92, y + 0.06, shaded=True)


def _car(b: _Brush) -> None:
    b.rectangle(0.0, 0.46, 1.0, 0.76)
    b.polygon(0.16, 0.48, 0.3, 0.2, 0.7, 0.2, 0.86, 0.48)
    b.polygon(0.29, 0.44, 0.36, 0.27, 0.64, 0.27, 0.72, 0.44, shaded=True)
    b.ellipse(0.1, 0.6, 0.38, 0.9, shaded=True)
    b.ellipse(0.62, 0.6, 0.9, 0.9, shaded=True)


def _fish(b: _Brush) -> None:
    b.ellipse(0.0, 0.22, 0.74, 0.78)
    b.polygon(0.6, 0.5, 1.0, 0.14, 1.0, 0.86)
    b.ellipse(0.14, 0.38, 0.26, 0.5, shaded=True)


def _lamp(b: _Brush) -> None:
    b.polygon(0.3, 0.02, 0.7, 0.02, 0.98, 0.46, 0.02, 0.46)
    b.rectangle(0.44, 0.44, 0.56, 0.9, shaded=True)
    b.rectangle(0.22, 0.86, 0.78, 0.98)


def _flag(b: _Brush) -> None:
    b.rectangle(0.06, 0.0, 0.17, 1.0, shaded=True)
    b.polygon(0.17, 0.06, 1.0, 0.14, 0.8, 0.32, 1.0, 0.52, 0.17, 0.58)


def _sign(b: _Brush) -> None:
    """A board with a word in the dots of Pillow's own bitmap font, each dot a rectangle."""
    b.rectangle(0.0, 0.0, 1.0, 1.0)
    mask = ImageFont.load_default_imagefont().getmask(b.word.upper())
    (width, height), left = mask.size, 0.04
    ink = (250, 250, 250) if sum(b.fill) < 480 else (10, 10, 10)
    step = (1 - 2 * left) / width
    for i in range(width * height):
        if mask[i]:
            x, y = left + step * (i % width), 0.08 + 0.84 / height * (i // width)
            b.draw.rectangle(b.corners((x, y, x + step, y + 0.84 / height)), fill=ink)


THINGS: dict[str, Callable[[_Brush], None]] = {
    "cup": _cup, "hat": _hat, "ball": _ball, "book": _book, "car": _car, "fish": _fish, "lamp": _lamp, "flag": _flag,
    "sign": _sign,
}  # fmt: skip
LOOSE = tuple(
    kind for kind in THINGS if kind != "sign"
)  # what can stand beside others: a sign fills its picture


def sample_thing(
    rng: random.Random,
    kind: str,
    color: str,
    area: Box = (0.0, 0.0, 1.0, 1.0),
    turned: bool = False,
    word: str = "",
) -> Thing:
    """A `color` `kind` somewhere in the `area`, its size, place and hue a little varied.

    Raises KeyError where the kind or the colour is not one of THINGS and COLORS.
    """
    hue, light, saturation = colorsys.rgb_to_hls(*(c / 255 for c in COLORS[color]))
    hue, light = (
        (hue + rng.uniform(-0.012, 0.012)) % 1.0,
        min(0.99, light * rng.uniform(0.94, 1.06)),
    )
    rgb = tuple(round(255 * c) for c in colorsys.hls_to_rgb(hue, light, saturation))
    width = rng.uniform(0.36, 0.46) if word == "" else rng.uniform(0.86, 0.94)
    height = width * (rng.uniform(0.9, 1.1) if word == "" else rng.uniform(0.4, 0.46))
    x = rng.uniform(area[0] + 0.02, area[2] - 0.02 - width)
    y = rng.uniform(area[1] + 0.02, area[3] - 0.02 - height)
    THINGS[kind]  # a name that nothing can draw fails here, not when somebody renders it
    return Thing(
        kind, color, tuple(round(v, 4) for v in (x, y, x + width, y + height)), rgb, turned, word
    )


def sample_scene(
    rng: random.Random,
    wanted: Sequence[tuple[str, str]],
    style: str = "plain",
    turned: bool = False,
) -> Scene:
    """A scene of the one to four (kind, color) pairs in `wanted`, in order, none covering another.

    One or two things have the picture's height to themselves; more stand in a grid of two by two. `turned`: the first
    is seen from its other side. A sign stands alone, with a word drawn at random. Raises ValueError for any other
    number of things, KeyError for an unknown kind or colour.
    """
    if len(wanted) not in (1, 2, 3, 4) or len(wanted) > 1 and "sign" in dict(wanted):
        raise ValueError(
            f"a scene holds one to four things, or a sign alone, not {len(wanted)}: {list(wanted)}"
        )
    background = tuple(c + rng.randint(-4, 4) for c in rng.choice(BACKGROUNDS))
    columns, rows = min(2, len(wanted)), 1 + (len(wanted) > 2)
    things = []
    for i, (kind, color) in enumerate(wanted):
        x, y = i % columns / columns, i // columns / rows
        word = rng.choice(SIGN_WORDS) if kind == "sign" else ""
        area = (x, y, x + 1 / columns, y + 1 / rows)
        things.append(
            sample_thing(rng, kind, color, area, turned and kind != "sign" and i == 0, word)
        )
    return Scene(tuple(things), background, style)


def _pattern(draw: ImageDraw.ImageDraw, scene: Scene, size: int) -> None:
    """Lighter stripes, dots or squares behind the things."""
    light, step = tuple(min(255, c + 40) for c in scene.background), size // 8
    for i in range(8):
        if scene.style == "striped" and i % 2:
            draw.rectangle((0, i * step, size, (i + 1) * step), light)
        for j in range(8):
            corner = (i * step, j * step)
            if scene.style == "checked" and (i + j) % 2:
                draw.rectangle((*corner, corner[0] + step, corner[1] + step), light)
            if scene.style == "dotted":
                draw.ellipse((*corner, corner[0] + step * 0.6, corner[1] + step * 0.6), light)


def render(scene: Scene, size: int = 84) -> Image.Image:
    """The scene as an RGB image of `size` x `size` pixels, drawn four times larger and averaged down."""
    large = 4 * size
    image = Image.new("RGB", (large, large), scene.background)
    draw = ImageDraw.Draw(image)
    _pattern(draw, scene, large)
    for thing in scene.things:
        THINGS[thing.kind](_Brush(draw, tuple(v * large for v in thing.box), thing))
    return image.resize((size, size), Image.Resampling.BOX)


def caption(scene: Scene) -> str:
    """What stands where: `a red cup left of a blue ball`, `three red cup`, or `a red sign exit`."""
    one = scene.things[0]
    if len({thing.kind for thing in scene.things}) == 1 and len(scene.things) > 1:
        return f"{COUNTS[len(scene.things) - 1]} {one.name}"
    return " left of ".join(
        f"{with_article(thing.name)} {thing.word}".strip() for thing in scene.things
    )


def listed(scene: Scene) -> str:
    """All that is there, from left to right: `one ball is blue one cup is red`, `three cup is red`, `one sign is red
    says exit`."""
    found = Counter((thing.kind, thing.color) for thing in scene.things)
    word = f" says {scene.word}" if scene.word else ""
    return (
        " ".join(f"{COUNTS[n - 1]} {kind} is {color}" for (kind, color), n in found.items()) + word
    )


def with_article(name: str) -> str:
    """`a red cup`, `an orange hat`."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
