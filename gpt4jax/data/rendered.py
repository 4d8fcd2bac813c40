"""Pictures that are drawn, with questions whose answers are known exactly: charts, words and scenes.

A picture is a pure function of what is in it (`Chart`, `Word`, `Scene`). Which pictures are held out is decided by a
hash of their contents, so training never shows the values, words or arrangements of an evaluation.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HELD_OUT_PERCENT = 5
TASKS = (
    "chart_value", "chart_compare", "chart_sum", "read_text", "scene_colour", "scene_count", "scene_relation",
)  # fmt: skip
LETTERS = "ABCDEFGHKL"  # of a chart's bars
ALPHABET = "ABCDEFGHKLMNPRSTUVXYZ234679"  # of words: no two that look alike
COLOURS = {
    "red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 90, 200), "yellow": (235, 200, 30),
    "purple": (140, 60, 180),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross")
UNIT = 4  # pixels of a chart's value of one
CELL = 16  # pixels of a place in a scene, of a letter in a word, and of a bar in a chart
BARS = 4
_NAMES = tuple(COLOURS)
_COUNT_WEIGHTS = (1, 1.5, 2.3, 10, 60)  # of asking about 0 to 4 things: the rarer, the likelier
_SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}


class Question(NamedTuple):
    """A question about a picture, and its answer."""

    task: str
    question: str
    answer: str


class Chart(NamedTuple):
    """A chart of four bars: of each its letter, whole value from 1 to 9, colour and place; 64 x 48 pixels."""

    letters: str
    values: tuple[int, ...]
    colours: tuple[str, ...]
    left: tuple[int, ...]  # of each bar, in pixels

    @property
    def contents(self) -> tuple:
        """What is in it, wherever it stands."""
        return self.letters, self.values


class Word(NamedTuple):
    """Three to five letters on a light ground, 80 x 16 pixels."""

    text: str
    place: tuple[int, int]
    ground: tuple[int, int, int]

    @property
    def contents(self) -> tuple:
        """What is in it, wherever it stands."""
        return (self.text,)


class Thing(NamedTuple):
    """One thing of a scene: its cell, and by how many pixels it is off the middle of it."""

    row: int
    column: int
    colour: str
    shape: str
    off: tuple[int, int]

    @property
    def name(self) -> str:
        """As questions call it."""
        return f"{self.colour} {self.shape}"


class Scene(NamedTuple):
    """Coloured shapes in the cells of a 3 x 3 grid, 48 x 48 pixels."""

    things: tuple[Thing, ...]

    @property
    def contents(self) -> tuple:
        """What is in it, wherever it stands."""
        return tuple(thing[:4] for thing in self.things)


Spec = Chart | Word | Scene


class Picture(NamedTuple):
    """A picture (H, W, 3) uint8, all that is in it, and what is asked about it."""

    kind: str
    pixels_hwc: np.ndarray
    description: str
    questions: tuple[Question, ...]


def spec_of(rng: np.random.Generator) -> Spec:
    """What is in a picture: a chart, a word or a scene, each in a third of them."""
    return (_chart, _word, _scene)[rng.integers(3)](rng)


def _chart(rng: np.random.Generator) -> Chart:
    letters = "".join(rng.choice(list(LETTERS), BARS, replace=False))
    values = tuple(rng.integers(1, 10, BARS).tolist())
    left = tuple((CELL * np.arange(BARS) + 3 + rng.integers(-2, 3, BARS)).tolist())
    return Chart(letters, values, tuple(rng.choice(_NAMES, BARS).tolist()), left)


def _word(rng: np.random.Generator) -> Word:
    text = "".join(rng.choice(list(ALPHABET), rng.integers(3, 6)))
    red, green, blue = rng.integers(220, 256, 3).tolist()
    return Word(text, (int(rng.integers(-2, 3)), int(rng.integers(-1, 2))), (red, green, blue))


def _scene(rng: np.random.Generator) -> Scene:
    cells = sorted(rng.choice(9, rng.integers(3, 6), replace=False).tolist())
    few = rng.choice(_NAMES, 3, replace=False)  # few colours, so that several things share one
    offsets = rng.integers(-1, 2, (len(cells), 2)).tolist()
    things = []
    for cell, (dx, dy) in zip(cells, offsets, strict=True):
        things.append(Thing(cell // 3, cell % 3, str(rng.choice(few)), str(rng.choice(SHAPES)), (dx, dy)))
    return Scene(tuple(things))


def held_out(spec: Spec) -> bool:
    """Whether a picture is for evaluation: 5 of 100 hashes of what is in it."""
    digest = hashlib.sha256(repr((type(spec).__name__, spec.contents)).encode()).digest()
    return int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT


def picture(seed: int, index: int) -> Picture:
    """A picture with its questions, held out or not."""
    rng = np.random.default_rng((seed, index))
    return _complete(spec_of(rng), rng)


def _complete(spec: Spec, rng: np.random.Generator) -> Picture:
    return Picture(type(spec).__name__.lower(), draw(spec), describe(spec), ask(spec, rng))


def pictures(seed: int, count: int, evaluation: bool) -> Iterator[Picture]:
    """The first `count` pictures of a seed that are held out, or that are not."""
    found = index = 0
    while found < count:
        rng = np.random.default_rng((seed, index))
        spec = spec_of(rng)
        index += 1
        if held_out(spec) == evaluation:
            found += 1
            yield _complete(spec, rng)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def draw(spec: Spec) -> np.ndarray:
    """The pixels of a picture."""
    if isinstance(spec, Chart):
        image = Image.new("RGB", (64, 48), "white")
        pen = ImageDraw.Draw(image)
        for value in (3, 6, 9):
            pen.line((0, 39 - UNIT * value, 63, 39 - UNIT * value), fill=(215, 215, 215))
        for letter, value, colour, left in zip(*spec, strict=True):
            pen.rectangle((left, 40 - UNIT * value, left + 9, 39), fill=COLOURS[colour])
            pen.text((left + 5, 48), letter, fill="black", font=_font(9), anchor="ms")
        pen.line((0, 39, 63, 39), fill="black")
    elif isinstance(spec, Word):
        image = Image.new("RGB", (5 * CELL, CELL), spec.ground)
        x, y = spec.place
        for i, letter in enumerate(spec.text):
            ImageDraw.Draw(image).text((x + 8 + CELL * i, 14 + y), letter, fill="black", font=_font(15), anchor="ms")
    else:
        image = Image.new("RGB", (3 * CELL, 3 * CELL), (245, 245, 245))
        for thing in spec.things:
            _draw_thing(ImageDraw.Draw(image), thing)
    return np.asarray(image)


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing) -> None:
    x, y = CELL * thing.column + CELL // 2 + thing.off[0], CELL * thing.row + CELL // 2 + thing.off[1]
    fill = COLOURS[thing.colour]
    if thing.shape == "circle":
        pen.ellipse((x - 5, y - 5, x + 5, y + 5), fill=fill)
    elif thing.shape == "square":
        pen.rectangle((x - 5, y - 5, x + 5, y + 5), fill=fill)
    elif thing.shape == "triangle":
        pen.polygon(((x, y - 6), (x - 6, y + 5), (x + 6, y + 5)), fill=fill)
    else:
        pen.rectangle((x - 1, y - 6, x + 1, y + 6), fill=fill)
        pen.rectangle((x - 6, y - 1, x + 6, y + 1), fill=fill)


def describe(spec: Spec) -> str:
    """All that is in a picture, from left to right and from above: what questions ask about, at once."""
    if isinstance(spec, Word):
        return spec.text
    if isinstance(spec, Chart):
        return " ".join(f"{letter}{value}" for letter, value in zip(spec.letters, spec.values, strict=True))
    at = {(thing.row, thing.column): thing.name for thing in spec.things}
    return "\n".join(" ".join(at.get((row, column), "none") for column in range(3)) for row in range(3))


def ask(spec: Spec, rng: np.random.Generator) -> tuple[Question, ...]:
    """One question about a word, three to five about other pictures, no two of them the same."""
    if isinstance(spec, Word):
        return (Question("read_text", "What is written?", spec.text),)
    return _ask_chart(spec, rng) if isinstance(spec, Chart) else _ask_scene(spec, rng)


def _ask_chart(spec: Chart, rng: np.random.Generator) -> tuple[Question, ...]:
    """Two bars' values, the higher one of two, and the sum of the others, its way there first (report, appendix G).

    An answer is not to be had from those before it.
    """
    value = dict(zip(spec.letters, spec.values, strict=True))
    a, b, c, d = _pick(rng, spec.letters, BARS)
    found = [Question("chart_value", f"What is {one}?", str(value[one])) for one in (a, b)]
    unequal = [
        (one, other)
        for one in spec.letters
        for other in spec.letters
        if value[one] != value[other] and {one, other} != {a, b}
    ]
    for one, other in _pick(rng, unequal, 1):
        higher = one if value[one] > value[other] else other
        found.append(Question("chart_compare", f"Is {one} or {other} higher?", higher))
    reasons = f"{value[c]}+{value[d]}={value[c] + value[d]}"
    return (*found, Question("chart_sum", f"What is {c} plus {d}?", reasons))


def _pick(rng: np.random.Generator, among: Sequence, count: int) -> list:
    """Up to `count` different ones."""
    return [among[i] for i in rng.permutation(len(among))[:count]]


def _ask_scene(spec: Scene, rng: np.random.Generator) -> tuple[Question, ...]:
    """The colour of the only thing of its shape, what lies beside a thing or two, and how many have a colour."""
    shapes = [thing.shape for thing in spec.things]
    single = [thing for thing in spec.things if shapes.count(thing.shape) == 1]
    found = [
        Question("scene_colour", f"What colour is the {thing.shape}?", thing.colour) for thing in _pick(rng, single, 1)
    ]
    names = [thing.name for thing in spec.things]
    at = {(thing.row, thing.column): thing for thing in spec.things}
    beside = [
        (side, thing, at[thing.row + dy, thing.column + dx])
        for thing in spec.things
        for side, (dy, dx) in _SIDES.items()
        if names.count(thing.name) == 1 and (thing.row + dy, thing.column + dx) in at
    ]
    # Of two things beside each other only one is asked about: its answer would tell the other's.
    pairs = {frozenset(pair): (side, *pair) for side, *pair in _pick(rng, beside, len(beside))}
    for side, thing, other in _pick(rng, list(pairs.values()), 2):
        found.append(Question("scene_relation", f"What is {side} the {thing.name}?", other.name))
    return (*found, *_ask_counts(spec, rng, max(1, 3 - len(found))))


def _ask_counts(spec: Scene, rng: np.random.Generator, questions: int) -> list[Question]:
    """How many things have a colour, for so many colours; the numbers 0 to 4 are answers about as often."""
    colours = [thing.colour for thing in spec.things]
    left = [name for name in _NAMES if colours.count(name) < len(_COUNT_WEIGHTS)]
    found = []
    for _ in range(questions):
        # A number first, then one of the colours that have it: most colours have none, and 0 would be the best guess.
        counts = sorted({colours.count(name) for name in left})
        weights = np.array([_COUNT_WEIGHTS[count] for count in counts])
        wanted = int(rng.choice(counts, p=weights / weights.sum()))
        (colour,) = _pick(rng, [name for name in left if colours.count(name) == wanted], 1)
        left.remove(colour)
        found.append(Question("scene_count", f"How many are {colour}?", str(wanted)))
    return found
