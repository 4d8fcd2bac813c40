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
CELL = 16  # pixels of a place in a scene
_NAMES = tuple(COLOURS)
_SIDES = {"left of": (0, -1), "right of": (0, 1), "above": (-1, 0), "below": (1, 0)}


class Question(NamedTuple):
    """A question about a picture, and its answer."""

    task: str
    question: str
    answer: str


class Chart(NamedTuple):
    """A bar chart: of each bar its letter, whole value from 1 to 9, colour and place; 64 x 48 pixels."""

    letters: str
    values: tuple[int, ...]
    colours: tuple[str, ...]
    left: tuple[int, ...]  # of each bar, in pixels

    @property
    def contents(self) -> tuple:
        """What is in it, wherever it stands."""
        return self.letters, self.values


class Word(NamedTuple):
    """A few letters on a light ground, 48 x 16 pixels."""

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
    """A picture (H, W, 3) uint8 and what is asked about it."""

    kind: str
    pixels_hwc: np.ndarray
    questions: tuple[Question, ...]


def spec_of(rng: np.random.Generator) -> Spec:
    """What is in a picture: a chart, a word or a scene, each in a third of them."""
    return (_chart, _word, _scene)[rng.integers(3)](rng)


def _chart(rng: np.random.Generator) -> Chart:
    count = int(rng.integers(3, 5))
    letters = "".join(rng.choice(list(LETTERS), count, replace=False))
    values = tuple(int(v) for v in rng.integers(1, 10, count))
    width = 64 // count
    left = tuple(i * width + (width - 10) // 2 + int(rng.integers(-1, 2)) for i in range(count))
    return Chart(letters, values, tuple(rng.choice(_NAMES, count).tolist()), left)


def _word(rng: np.random.Generator) -> Word:
    text = "".join(rng.choice(list(ALPHABET), rng.integers(3, 6)))
    place = int(rng.integers(1, 5)), int(rng.integers(-1, 2))
    return Word(text, place, tuple(int(v) for v in rng.integers(220, 256, 3)))  # type: ignore[arg-type]


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


def pictures(seed: int, count: int, evaluation: bool) -> Iterator[Picture]:
    """The first `count` pictures of a seed that are held out, or that are not."""
    found = index = 0
    while found < count:
        rng = np.random.default_rng((seed, index))
        spec = spec_of(rng)
        index += 1
        if held_out(spec) == evaluation:
            found += 1
            yield Picture(type(spec).__name__.lower(), draw(spec), ask(spec, rng))


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
        image = Image.new("RGB", (48, 16), spec.ground)
        x, y = spec.place
        for i, letter in enumerate(spec.text):
            ImageDraw.Draw(image).text((x + 4 + 9 * i, 8 + y), letter, fill="black", font=_font(12), anchor="mm")
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


def ask(spec: Spec, rng: np.random.Generator) -> tuple[Question, ...]:
    """Questions about a picture, no two of them the same."""
    if isinstance(spec, Word):
        return (Question("read_text", "What is written?", spec.text),)
    return _ask_chart(spec, rng) if isinstance(spec, Chart) else _ask_scene(spec, rng)


def _ask_chart(spec: Chart, rng: np.random.Generator) -> tuple[Question, ...]:
    """A bar's value, the higher one of two, and the sum of two, with its way there before it (report, appendix G)."""
    value = dict(zip(spec.letters, spec.values, strict=True))
    one, a, b, c, d = (str(letter) for letter in _pick(rng, spec.letters, 1, 2, 2))
    found = [Question("chart_value", f"What is {one}?", str(value[one]))]
    if value[a] != value[b]:
        found.append(Question("chart_compare", f"Is {a} or {b} higher?", a if value[a] > value[b] else b))
    reasons = f"{value[c]} + {value[d]} = {value[c] + value[d]}"
    return (*found, Question("chart_sum", f"What is {c} plus {d}?", reasons))


def _pick(rng: np.random.Generator, among: Sequence[str], *counts: int) -> list[str]:
    return [one for count in counts for one in rng.choice(list(among), count, replace=False)]


def _ask_scene(spec: Scene, rng: np.random.Generator) -> tuple[Question, ...]:
    """The colour of the only thing of its shape, how many have a colour, and what lies beside a thing."""
    found = []
    shapes = [thing.shape for thing in spec.things]
    single = [thing for thing in spec.things if shapes.count(thing.shape) == 1]
    if single:
        thing = single[rng.integers(len(single))]
        found.append(Question("scene_colour", f"What colour is the {thing.shape}?", thing.colour))
    counts = {colour: sum(thing.colour == colour for thing in spec.things) for colour in _NAMES}
    wanted = int(rng.choice(sorted(set(counts.values()))))  # so that no number is the likeliest by far
    colour = str(rng.choice([colour for colour in _NAMES if counts[colour] == wanted]))
    found.append(Question("scene_count", f"How many are {colour}?", str(wanted)))
    names = [thing.name for thing in spec.things]
    at = {(thing.row, thing.column): thing for thing in spec.things}
    beside = [
        (side, thing, at[thing.row + dy, thing.column + dx])
        for thing in spec.things
        for side, (dy, dx) in _SIDES.items()
        if names.count(thing.name) == 1 and (thing.row + dy, thing.column + dx) in at
    ]
    if beside:
        side, thing, other = beside[rng.integers(len(beside))]
        found.append(Question("scene_relation", f"What is {side} the {thing.name}?", other.name))
    return tuple(found)
