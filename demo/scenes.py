"""Scenes that the demo draws itself: coloured, textured shapes with captions such as the web would give them.

A scene is a pure function of its split and index, so the web server that draws it, the list of URLs that captions
it and the evaluation that labels it agree without sharing any state. Read `scene` first.

The held-out split is more than fresh draws: each colour is missing one shape in training (`UNSEEN`), and a quarter
of the held-out scenes show just those pairs, so a model does well only if it learns colour and shape apart.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Outline = tuple[tuple[float, float], ...]

SPLITS: Final = ("train", "held_out")

COLOURS: Final[dict[str, Colour]] = {
    "red": (214, 40, 40),
    "orange": (244, 138, 24),
    "yellow": (246, 214, 38),
    "green": (48, 150, 62),
    "blue": (38, 84, 204),
    "purple": (124, 52, 168),
    "pink": (246, 136, 184),
    "brown": (122, 76, 40),
}
SHAPES: Final = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "diamond")
TEXTURES: Final = ("plain", "striped", "dotted", "checked")
SIZES: Final[dict[str, float]] = {"small": 0.4, "medium": 0.55, "large": 0.72}  # width over the image's width
PLACES: Final[dict[str, tuple[float, float]]] = {  # 0 and 1 are as far as an object can go inside the image
    "centre": (0.5, 0.5),
    "top left": (0.0, 0.0),
    "top right": (1.0, 0.0),
    "bottom left": (0.0, 1.0),
    "bottom right": (1.0, 1.0),
}
RELATIONS: Final[dict[str, tuple[float, float]]] = {  # where the other object lies, seen from the main one
    "above": (0.0, 1.0),
    "below": (0.0, -1.0),
    "left of": (1.0, 0.0),
    "right of": (-1.0, 0.0),
}
GROUNDS: Final[dict[str, Colour]] = {
    "white": (246, 246, 244),
    "grey": (164, 166, 170),
    "black": (26, 26, 30),
    "light blue": (186, 214, 238),
    "beige": (232, 216, 190),
    "mint": (190, 232, 206),
}
GROUND_KINDS: Final = ("plain", "gradient", "noise")

UNSEEN: Final = frozenset((colour, SHAPES[(3 * place + 1) % len(SHAPES)]) for place, colour in enumerate(COLOURS))
"""(colour, shape) pairs that no object of the training split has: one for each colour and for each shape."""

CLASSES: Final[tuple[str, ...]] = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""What zero-shot evaluation tells apart: the main object's colour and shape, e.g. "red circle"."""

TEMPLATES: Final[tuple[str, ...]] = ("a {}", "a picture of a {}", "one {} on a plain background", "a large {}")
"""Prompts for zero-shot evaluation; `{}` takes a class name."""

_UNSEEN_SHARE = 0.25
_SUPERSAMPLING = 2
_SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "red": ("crimson", "scarlet"),
    "orange": ("tangerine",),
    "yellow": ("golden", "lemon yellow"),
    "green": ("dark green", "emerald"),
    "blue": ("navy", "royal blue"),
    "purple": ("violet",),
    "pink": ("rose", "light pink"),
    "brown": ("chocolate",),
    "circle": ("disc", "round shape"),
    "square": ("box", "block"),
    "triangle": ("three-sided shape",),
    "star": ("five-pointed star",),
    "heart": ("love heart",),
    "cross": ("plus sign",),
    "ring": ("hoop", "doughnut"),
    "diamond": ("rhombus",),
    "striped": ("stripy",),
    "dotted": ("spotted", "polka dot"),
    "checked": ("chequered",),
    "plain": ("solid",),
    "small": ("little", "tiny"),
    "large": ("big", "huge"),
    "above": ("over", "on top of"),
    "below": ("under", "beneath"),
    "left of": ("to the left of",),
    "right of": ("to the right of",),
}
_COUNTS: Final[dict[int, tuple[str, ...]]] = {
    1: ("a", "a", "a", "one"),
    2: ("two", "two", "a pair of"),
    3: ("three", "3"),
    4: ("four", "4"),
}
_FRAMES: Final = (
    *("{}",) * 8,
    "a picture of {}",
    "image of {}",
    "drawing of {}",
    "{} - clip art",
    "{} (free vector)",
    "stock photo: {}",
    "simple icon, {}",
    "{} isolated",
)
_EMPTY_CAPTIONS: Final = ("untitled", "click to enlarge", "image 1", "my drawing", "photo of the day")


@dataclass(frozen=True)
class Thing:
    """One object of a scene.

    `x`, `y` (of the centre, from the top left) and `size` (of the whole shape) are fractions of the image's width.
    `colour` names an entry of `COLOURS` and `tint` is how it came out this time. `angle` is in radians.
    """

    shape: str
    colour: str
    texture: str
    x: float
    y: float
    size: float
    angle: float
    tint: Colour


@dataclass(frozen=True)
class Ground:
    """What lies behind the objects: `kind` is one of `GROUND_KINDS`, `colour` names an entry of `GROUNDS`."""

    kind: str
    colour: str


@dataclass(frozen=True)
class Scene:
    """Everything there is to know about one image; `things[0]` is the main object.

    `seed` drives only what has no name (the grain of a noisy ground).
    """

    things: tuple[Thing, ...]
    ground: Ground
    caption: str
    label: str
    seed: int

    @property
    def unseen(self) -> bool:
        """Whether the main object's colour and shape never come together in the training split."""
        return (self.things[0].colour, self.things[0].shape) in UNSEEN


class _Look(NamedTuple):
    colour: str
    shape: str
    texture: str


def scene(index: int, split: str) -> Scene:
    """Return scene number `index` (from 0, no upper end) of a split: always the same, in any process, in any order.

    Raises ValueError for a split that is not one of `SPLITS` or an index below 0.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if index < 0:
        raise ValueError(f"scene index {index} is below 0")
    seed = int.from_bytes(hashlib.sha256(f"scene/{split}/{index}".encode()).digest()[:8])
    draw = random.Random(seed)
    pick_unseen = split == "held_out" and draw.random() < _UNSEEN_SHARE
    colour, shape = _pick_pair(draw, seen=not pick_unseen)
    texture = _pick_texture(draw)
    ground = Ground(draw.choice(GROUND_KINDS), draw.choice(tuple(GROUNDS)))
    arrange = draw.choices((_alone, _several, _beside), weights=(6, 2, 2))[0]
    things, phrase = arrange(draw, _Look(colour, shape, texture))
    return Scene(things, ground, _write_caption(draw, phrase, ground), f"{colour} {shape}", seed)


def render(scene: Scene, pixels: int) -> Image.Image:
    """Draw a scene as an RGB image of `pixels` × `pixels`, anti-aliased by drawing it larger and reducing it."""
    wide = pixels * _SUPERSAMPLING
    canvas = _draw_ground(scene, wide)
    for thing in scene.things:
        side = max(4, round(thing.size * wide * 1.1))  # a turned shape needs a little more room than its size
        mask = _draw_mask(thing, side, thing.size * wide)
        corner = (round(thing.x * wide - side / 2), round(thing.y * wide - side / 2))
        canvas.paste(_fill(thing, side), corner, mask)
    return canvas.reduce(_SUPERSAMPLING)


def _pick_pair(draw: random.Random, *, seen: bool) -> tuple[str, str]:
    pairs = [(colour, shape) for colour in COLOURS for shape in SHAPES if ((colour, shape) in UNSEEN) != seen]
    return draw.choice(pairs)


def _pick_texture(draw: random.Random) -> str:
    return draw.choices(TEXTURES, weights=(5, 2, 2, 2))[0]


def _make_thing(draw: random.Random, look: _Look, at: tuple[float, float], size: float) -> Thing:
    red, green, blue = (min(255, max(0, part + draw.randint(-14, 14))) for part in COLOURS[look.colour])
    x, y = (part + draw.uniform(-0.03, 0.03) for part in at)
    return Thing(
        look.shape,
        look.colour,
        look.texture,
        x,
        y,
        size * draw.uniform(0.9, 1.1),
        draw.uniform(-0.2, 0.2),  # a square turned further would pass for a diamond
        (red, green, blue),
    )


def _alone(draw: random.Random, look: _Look) -> tuple[tuple[Thing, ...], str]:
    size = draw.choice(tuple(SIZES))
    place = draw.choice(tuple(PLACES)) if draw.random() < 0.5 else "centre"
    room = 0.96 - SIZES[size]
    across, down = (0.02 + SIZES[size] / 2 + room * part for part in PLACES[place])
    thing = _make_thing(draw, look, (across, down), SIZES[size])
    phrase = _describe(draw, look, size)
    if draw.random() < 0.35:
        if place == "centre":
            phrase += draw.choice((" in the middle", " in the centre", ""))
        else:
            phrase += draw.choice((" in the {} corner", " at the {}", ", {}")).format(place)
    return (thing,), phrase


def _several(draw: random.Random, look: _Look) -> tuple[tuple[Thing, ...], str]:
    count = draw.choice((2, 3, 4))
    corners = ((0.28, 0.28), (0.72, 0.28), (0.28, 0.72), (0.72, 0.72))
    row: Sequence[tuple[float, float]]
    row = ((0.28, 0.5), (0.72, 0.5)) if count == 2 and draw.random() < 0.5 else draw.sample(corners, count)
    things = tuple(_make_thing(draw, look, at, 0.4) for at in row)
    return things, _describe(draw, look, "medium", count)


def _beside(draw: random.Random, look: _Look) -> tuple[tuple[Thing, ...], str]:
    relation = draw.choice(tuple(RELATIONS))
    other = _Look(*_pick_pair(draw, seen=True), _pick_texture(draw))
    across, down = RELATIONS[relation]
    # The main object is the larger one, so that a picture has one label.
    main = _make_thing(draw, look, (0.5 - 0.2 * across, 0.5 - 0.2 * down), 0.5)
    at = (0.5 + 0.29 * across, 0.5 + 0.29 * down)
    lesser = _make_thing(draw, other, at, 0.34)
    first = _describe(draw, look, "medium")
    if draw.random() < 0.3:
        return (main, lesser), first
    second = _describe(draw, other, "small")
    joint = f" {_say(draw, relation)} " if draw.random() < 0.8 else draw.choice((" and ", " with "))
    return (main, lesser), first + joint + second


def _describe(draw: random.Random, look: _Look, size: str, count: int = 1) -> str:
    """Return the noun phrase of one kind of object, with the omissions and synonyms that captions have."""
    words = []
    if size != "medium" and draw.random() < 0.35:
        words.append(_say(draw, size))
    if draw.random() < (0.1 if look.texture == "plain" else 0.4):
        words.append(_say(draw, look.texture))
    if draw.random() < 0.9:
        words.append(_say(draw, look.colour))
    noun = _say(draw, look.shape) if draw.random() < 0.95 else "shape"
    if count > 1:
        noun += "es" if noun.endswith(("s", "x")) else "s"
    words.append(noun)
    article = draw.choice(_COUNTS[count])
    if article == "a" and words[0][0] in "aeiou":
        article = "an"
    return " ".join((article, *words))


def _write_caption(draw: random.Random, phrase: str, ground: Ground) -> str:
    if draw.random() < 0.02:
        return draw.choice(_EMPTY_CAPTIONS)
    if draw.random() < 0.15:
        kind = {"plain": "background", "gradient": "gradient", "noise": "noisy background"}[ground.kind]
        phrase += f" on a {ground.colour} {kind}"
    caption = draw.choice(_FRAMES).format(phrase)
    return caption.capitalize() if draw.random() < 0.3 else caption


def _say(draw: random.Random, word: str) -> str:
    return draw.choice(_SYNONYMS[word]) if word in _SYNONYMS and draw.random() < 0.1 else word


def _draw_ground(scene: Scene, wide: int) -> Image.Image:
    colour = GROUNDS[scene.ground.colour]
    if scene.ground.kind == "plain":
        return Image.new("RGB", (wide, wide), colour)
    shade = _mix(colour, (0, 0, 0) if sum(colour) > 240 else (255, 255, 255), 0.22)
    if scene.ground.kind == "gradient":
        blend = _make_ramp(wide)
    else:
        grain = 40
        noise = Image.frombytes("L", (grain, grain), random.Random(scene.seed).randbytes(grain * grain))
        blend = noise.resize((wide, wide), Image.Resampling.NEAREST)
    canvas = Image.new("RGB", (wide, wide), colour)
    canvas.paste(shade, (0, 0, wide, wide), blend)
    return canvas


@lru_cache(maxsize=8)
def _make_ramp(wide: int) -> Image.Image:
    return Image.linear_gradient("L").resize((wide, wide))


def _draw_mask(thing: Thing, side: int, size: float) -> Image.Image:
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    cos, sin = math.cos(thing.angle), math.sin(thing.angle)
    for outline, ink in _OUTLINES[thing.shape]:
        points = [
            (side / 2 + size / 2 * (x * cos - y * sin), side / 2 + size / 2 * (x * sin + y * cos)) for x, y in outline
        ]
        pen.polygon(points, fill=ink)
    return mask


def _fill(thing: Thing, side: int) -> Image.Image:
    filled = Image.new("RGB", (side, side), thing.tint)
    if thing.texture != "plain":
        pattern = _make_pattern(thing.texture, side, max(8, side // 5))
        filled.paste(_mix(thing.tint, (255, 255, 255), 0.5), (0, 0, side, side), pattern)
    return filled


@lru_cache(maxsize=512)
def _make_pattern(texture: str, side: int, step: int) -> Image.Image:
    pattern = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(pattern)
    half = step / 2
    for place in range(-side, side, step):
        if texture == "striped":
            pen.polygon([(place, 0), (place + half, 0), (place + half + side, side), (place + side, side)], 255)
            continue
        for down in range(0, side, step):
            if texture == "dotted":
                pen.ellipse([place, down, place + 0.6 * step, down + 0.6 * step], 255)
            else:
                pen.rectangle([place, down, place + half - 1, down + half - 1], 255)
                pen.rectangle([place + half, down + half, place + step - 1, down + step - 1], 255)
    return pattern


def _mix(colour: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def _trace_circle(radius: float) -> Outline:
    turns = [2 * math.pi * place / 40 for place in range(40)]
    return tuple((radius * math.cos(turn), radius * math.sin(turn)) for turn in turns)


def _trace_star() -> Outline:
    turns = [math.pi * place / 5 - math.pi / 2 for place in range(10)]
    radii = [1.0 if place % 2 == 0 else 0.42 for place in range(10)]
    return tuple((radius * math.cos(turn), radius * math.sin(turn)) for turn, radius in zip(turns, radii, strict=True))


def _trace_heart() -> Outline:
    turns = [2 * math.pi * place / 48 for place in range(48)]
    points = []
    for turn in turns:
        height = 13 * math.cos(turn) - 5 * math.cos(2 * turn) - 2 * math.cos(3 * turn) - math.cos(4 * turn)
        points.append((math.sin(turn) ** 3, -height / 15.5 - 0.08))
    return tuple(points)


# Each shape is a list of outlines in a box from -1 to 1, drawn in turn: 255 adds to the shape, 0 takes away.
_OUTLINES: Final[dict[str, tuple[tuple[Outline, int], ...]]] = {
    "circle": ((_trace_circle(0.95), 255),),
    "square": ((((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)), 255),),
    "triangle": ((((0.0, -0.95), (0.95, 0.8), (-0.95, 0.8)), 255),),
    "star": ((_trace_star(), 255),),
    "heart": ((_trace_heart(), 255),),
    "cross": (
        (((-0.32, -0.95), (0.32, -0.95), (0.32, 0.95), (-0.32, 0.95)), 255),
        (((-0.95, -0.32), (0.95, -0.32), (0.95, 0.32), (-0.95, 0.32)), 255),
    ),
    "ring": ((_trace_circle(0.95), 255), (_trace_circle(0.55), 0)),
    "diamond": ((((0.0, -1.0), (0.72, 0.0), (0.0, 1.0), (-0.72, 0.0)), 255),),
}
