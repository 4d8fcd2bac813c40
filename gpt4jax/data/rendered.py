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

HELD_OUT_PERCENT = 10
TASKS = (
    "chart_value", "chart_compare", "chart_sum", "read_text", "scene_shape", "scene_cell",
    "scene_count", "scene_relation",
)  # fmt: skip
LETTERS = "ABCDEFGHKL"  # of a chart's bars
ALPHABET = "ABCDEFGHKLMNPRSTUVXYZ234679"  # of words: no two that look alike
COLOURS = {
    "red": (214, 39, 40), "green": (44, 160, 44), "blue": (31, 90, 200), "yellow": (235, 200, 30),
    "purple": (140, 60, 180),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "cross")
AT_ONCE = ("read_text", "scene_cell")  # is answered by looking, before a description too
DESCRIBE = "Describe it."
SEEN = "seen: "  # begins what is said of a picture of several things
UNIT = 3  # pixels of a chart's value of one
CELLS = "abcdefghi"  # of a scene, row by row
_FLOOR = 30  # pixels from above: where bars stand
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
    def cell(self) -> str:
        """The letter of its cell."""
        return CELLS[3 * self.row + self.column]

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
    letters = "".join(_pick(rng, LETTERS, BARS))
    values, offsets, colours = rng.integers([[1], [-2], [0]], [[10], [3], [len(_NAMES)]], (3, BARS)).tolist()
    left = tuple(CELL * i + 3 + offset for i, offset in enumerate(offsets))
    return Chart(letters, tuple(values), tuple(_NAMES[i] for i in colours), left)


def _word(rng: np.random.Generator) -> Word:
    text = "".join(ALPHABET[i] for i in rng.integers(0, len(ALPHABET), rng.integers(3, 6)).tolist())
    x, y, red, green, blue = rng.integers((-2, -1, 220, 220, 220), (3, 2, 256, 256, 256)).tolist()
    return Word(text, (x, y), (red, green, blue))


def _scene(rng: np.random.Generator) -> Scene:
    cells = sorted(_pick(rng, range(9), int(rng.integers(3, 6))))
    few = _pick(rng, _NAMES, 3)  # few colours, so that several things share one
    drawn = rng.integers((-1, -1, 0, 0), (2, 2, len(few), len(SHAPES)), (len(cells), 4)).tolist()
    return Scene(
        tuple(
            Thing(cell // 3, cell % 3, few[colour], SHAPES[shape], (dx, dy))
            for cell, (dx, dy, colour, shape) in zip(cells, drawn, strict=True)
        )
    )


def held_out(spec: Spec) -> bool:
    """Whether a picture is for evaluation: 10 of 100 hashes of what is in it."""
    digest = hashlib.sha256(repr((type(spec).__name__, spec.contents)).encode()).digest()
    return int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT


def picture(seed: int, index: int) -> Picture:
    """A picture with its questions, held out or not."""
    rng = np.random.default_rng((seed, index))
    return _complete(spec_of(rng), rng, 1)


def _complete(spec: Spec, rng: np.random.Generator, rounds: int) -> Picture:
    """With the questions of so many rounds in any order, none of them twice."""
    asked = {one.question: one for _ in range(rounds) for one in ask(spec, rng)}
    questions = tuple(_pick(rng, list(asked.values()), len(asked)))
    return Picture(type(spec).__name__.lower(), draw(spec), describe(spec), questions)


def pictures(seed: int, count: int, evaluation: bool) -> Iterator[Picture]:
    """The first `count` pictures of a seed that are held out, or that are not.

    Those that are not have the questions of two rounds: some of their answers can be had from others.
    """
    found = index = 0
    while found < count:
        rng = np.random.default_rng((seed, index))
        spec = spec_of(rng)
        index += 1
        if held_out(spec) == evaluation:
            found += 1
            yield _complete(spec, rng, 1 if evaluation else 2)


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def draw(spec: Spec) -> np.ndarray:
    """The pixels of a picture."""
    if isinstance(spec, Chart):
        image = Image.new("RGB", (64, 48), "white")
        pen = ImageDraw.Draw(image)
        for value in (3, 6, 9):
            pen.line((0, _FLOOR - UNIT * value, 63, _FLOOR - UNIT * value), fill=(215, 215, 215))
        for letter, value, colour, left in zip(*spec, strict=True):
            pen.rectangle((left, _FLOOR + 1 - UNIT * value, left + 9, _FLOOR), fill=COLOURS[colour])
            pen.text((left + 5, 46), letter, fill="black", font=_font(15), anchor="ms")
        pen.line((0, _FLOOR, 63, _FLOOR), fill="black")
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
        pen.ellipse((x - 6, y - 6, x + 6, y + 6), fill=fill)
    elif thing.shape == "square":
        pen.rectangle((x - 6, y - 6, x + 6, y + 6), outline=fill, width=3)
    elif thing.shape == "triangle":
        pen.polygon(((x, y - 6), (x - 6, y + 6), (x + 6, y + 6)), fill=fill)
    else:
        pen.rectangle((x - 1, y - 6, x + 1, y + 6), fill=fill)
        pen.rectangle((x - 6, y - 1, x + 6, y + 1), fill=fill)


def describe(spec: Spec) -> str:
    """All that is in a picture, from left to right and from above: what questions ask about, at once."""
    if isinstance(spec, Word):
        return spec.text
    if isinstance(spec, Chart):
        return SEEN + " ".join(_bar(letter, value) for letter, value in zip(spec.letters, spec.values, strict=True))
    at = {thing.cell: thing.name for thing in spec.things}
    return SEEN + " ".join(f"{cell} {at.get(cell, 'none')}" for cell in CELLS)


def _bar(letter: str, value: int) -> str:
    return f"{letter}{value}"


def ask(spec: Spec, rng: np.random.Generator) -> tuple[Question, ...]:
    """One question about a word, two to five about other pictures, no two of them the same."""
    if isinstance(spec, Word):
        return (Question("read_text", "What is written?", spec.text),)
    return _ask_chart(spec, rng) if isinstance(spec, Chart) else _ask_scene(spec, rng)


def _ask_chart(spec: Chart, rng: np.random.Generator) -> tuple[Question, ...]:
    """Two bars' values, the higher one of two, and the sum of the others.

    Answers come with their way there, step by step (report, appendix G).
    """
    value = dict(zip(spec.letters, spec.values, strict=True))
    a, b, c, d = _pick(rng, spec.letters, BARS)
    found = [Question("chart_value", f"What is {one}?", SEEN + _bar(one, value[one])) for one in (a, b)]
    unequal = [
        (one, other)
        for one in spec.letters
        for other in spec.letters
        if value[one] != value[other] and {one, other} != {a, b}
    ]
    for one, other in _pick(rng, unequal, 1):
        higher = one if value[one] > value[other] else other
        reasons = f"{SEEN}{_bar(one, value[one])} {_bar(other, value[other])} {higher}"
        found.append(Question("chart_compare", f"Is {one} or {other} higher?", reasons))
    reasons = f"{SEEN}{_bar(c, value[c])} {_bar(d, value[d])} {value[c]}+{value[d]}={value[c] + value[d]}"
    return (*found, Question("chart_sum", f"What is {c} plus {d}?", reasons))


def _pick(rng: np.random.Generator, among: Sequence, count: int) -> list:
    """Up to `count` different ones."""
    return [among[i] for i in rng.permutation(len(among))[:count].tolist()]


def _ask_scene(spec: Scene, rng: np.random.Generator) -> tuple[Question, ...]:
    """The shape of the only thing of its colour, what is in a cell, how many things have a colour, what lies beside.

    What lies beside a thing, for up to two: its cell is searched for from the first one on, then the other's is named.
    """
    colours = [thing.colour for thing in spec.things]
    single = [thing for thing in spec.things if colours.count(thing.colour) == 1]
    found = [
        Question("scene_shape", f"What shape is {thing.colour}?", SEEN + thing.name) for thing in _pick(rng, single, 1)
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
        found.append(
            Question(
                "scene_relation",
                f"What is {side} the {thing.name}?",
                f"{SEEN}{_search(spec, thing)} {other.cell} {other.name}",
            )
        )
    for thing in _pick(rng, spec.things, 1):
        found.append(Question("scene_cell", f"What is in {thing.cell}?", f"{SEEN}{thing.cell} {thing.name}"))
    return (*found, _ask_count(spec, rng))


def _search(spec: Scene, wanted: Thing) -> str:
    """The cells up to a thing's own, with what is in those that have its colour."""
    at = {thing.cell: thing for thing in spec.things}
    passed = CELLS[: CELLS.index(wanted.cell) + 1]
    return " ".join(
        f"{cell} {at[cell].name}" if cell in at and at[cell].colour == wanted.colour else cell for cell in passed
    )


def _ask_count(spec: Scene, rng: np.random.Generator) -> Question:
    """How many things have a colour, counted from cell to cell; the numbers 0 to 4 are answers about as often."""
    colours = [thing.colour for thing in spec.things]
    # A number first, then one of the colours that have it: most colours have none, and 0 would be the best guess.
    counts = sorted({colours.count(name) for name in _NAMES} & {*range(len(_COUNT_WEIGHTS))})
    weights = np.array([_COUNT_WEIGHTS[count] for count in counts])
    wanted = int(rng.choice(counts, p=weights / weights.sum()))
    (colour,) = _pick(rng, [name for name in _NAMES if colours.count(name) == wanted], 1)
    cells = [thing.cell for thing in spec.things if thing.colour == colour]
    so_far = " ".join(f"{cell}{sum(other <= cell for other in cells)}" for cell in CELLS)
    return Question("scene_count", f"How many are {colour}?", f"{SEEN}{so_far} {wanted}")
