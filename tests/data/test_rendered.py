"""Drawn pictures: answers recovered from the pixels, what is held out, and what can be guessed without looking."""

import itertools
from collections import Counter, defaultdict

import numpy as np

from gpt4jax.data import rendered
from gpt4jax.data.rendered import CELL, COLOURS, UNIT, Chart, Scene, Word

SPECS = [rendered.spec_of(np.random.default_rng((7, i))) for i in range(600)]


def test_bars_are_as_high_as_their_values_and_labels_lie_below():
    for spec in (one for one in SPECS if isinstance(one, Chart)):
        pixels = rendered.draw(spec)
        assert pixels.shape == (48, 64, 3)
        for value, colour, left in zip(spec.values, spec.colours, spec.left, strict=True):
            column = (pixels[:30, left + 5] == COLOURS[colour]).all(-1)
            assert column.sum() == UNIT * value - 1 and column[30 - UNIT * value + 1 :].all()
            assert (pixels[32:, left : left + 10] < 128).any()
        assert len(set(spec.letters)) == len(spec.letters)


def test_things_stand_in_their_cells_and_no_others():
    for spec in (one for one in SPECS if isinstance(one, Scene)):
        pixels = rendered.draw(spec)
        there = {(thing.row, thing.column): thing for thing in spec.things}
        for row in range(3):
            for column in range(3):
                cell = pixels[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
                found = [name for name, colour in COLOURS.items() if (cell == colour).all(-1).sum() > 30]
                assert found == ([there[row, column].colour] if (row, column) in there else [])


def _components(mask_hw: np.ndarray) -> int:
    """How many connected areas there are, by flood fill."""
    left = set(zip(*(axis.tolist() for axis in np.nonzero(mask_hw)), strict=True))
    found = 0
    while left:
        found += 1
        edge = [left.pop()]
        while edge:
            y, x = edge.pop()
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= near
            edge += near
    return found


def test_counts_are_those_of_coloured_areas():
    counted = 0
    for i, spec in enumerate(SPECS):
        if isinstance(spec, Scene):
            pixels = rendered.draw(spec)
            for task, question, answer in rendered.ask(spec, np.random.default_rng(i)):
                if task == "scene_count":
                    colour = COLOURS[question.rstrip("?").split()[-1]]
                    number = int(answer.split()[-1])
                    assert _components((pixels == colour).all(-1)) == number
                    counted += number
    assert counted > 100


def test_sides_numbers_of_questions_and_determinism():
    for i in range(300):
        one, again = rendered.picture(5, i), rendered.picture(5, i)
        np.testing.assert_array_equal(one.pixels_hwc, again.pixels_hwc)
        assert one.questions == again.questions and one.pixels_hwc.dtype == np.uint8
        height, width, channels = one.pixels_hwc.shape
        assert height % 8 == width % 8 == 0 and height * width <= 48 * 64 and channels == 3
        assert len(one.questions) == 1 if one.kind == "word" else 2 <= len(one.questions) <= 5
    assert rendered.picture(5, 0).pixels_hwc.tobytes() != rendered.picture(6, 0).pixels_hwc.tobytes()


def test_no_question_is_about_what_one_before_it_was_about():
    for i, spec in enumerate(SPECS):
        asked = rendered.ask(spec, np.random.default_rng(i))
        words = {task: [q.rstrip("?").split() for t, q, _ in asked if t == task] for task in rendered.TASKS}
        known = {found[2] for found in words["chart_value"]}
        assert not any(known & {found[2], found[4]} for found in words["chart_sum"])
        assert not any({found[1], found[3]} <= known for found in words["chart_compare"])
        told = [(q.rstrip("?"), answer) for t, q, answer in asked if t == "scene_relation"]
        beside = [(" ".join(q.split()[-2:]), " ".join(answer.split()[-2:])) for q, answer in told]
        assert not any((other, one) in beside for one, other in beside if one != other)


def test_answers_follow_from_what_is_in_the_picture():
    for i, spec in enumerate(SPECS):
        asked = rendered.ask(spec, np.random.default_rng(i))
        assert len({one.question for one in asked}) == len(asked) and {one.task for one in asked} <= set(rendered.TASKS)
        for task, question, answer in asked:
            words = question.rstrip("?").split()
            if isinstance(spec, Word):
                assert answer == spec.text
                continue
            seen, *steps, last = answer.split()
            assert seen == "seen:"
            if isinstance(spec, Chart):
                value = dict(zip(spec.letters, spec.values, strict=True))
                assert all(value[letter] == int(digit) for letter, digit in steps)
                if task == "chart_value":
                    assert last == f"{words[2]}{value[words[2]]}" and not steps
                    continue
                one, other = words[1:4:2] if task == "chart_compare" else words[2:5:2]
                assert [step[0] for step in steps] == [one, other]
                if task == "chart_compare":
                    assert value[last] == max(value[one], value[other]) > min(value[one], value[other])
                else:
                    left, right = last.split("=")
                    assert eval(left) == int(right) and left == f"{value[one]}+{value[other]}"
            elif task == "scene_shape":
                assert [thing.name for thing in spec.things if thing.colour == words[-1]] == [f"{steps[0]} {last}"]
            elif task == "scene_count":
                cells = ["abcdefghi"[3 * t.row + t.column] for t in spec.things if t.colour == words[-1]]
                so_far = itertools.accumulate((cell in cells for cell in "abcdefghi"), initial=0)
                assert steps == [f"{cell}{count}" for cell, count in zip("abcdefghi", [*so_far][1:], strict=True)]
                assert len(cells) == int(last)
            elif task == "scene_cell":
                (there,) = [t for t in spec.things if "abcdefghi"[3 * t.row + t.column] == words[-1]]
                assert [*steps, last] == [words[-1], there.colour, there.shape]
            else:
                (one,) = [thing for thing in spec.things if thing.name == " ".join(words[-2:])]
                dy, dx = {"left": (0, -1), "right": (0, 1), "above": (-1, 0), "below": (1, 0)}[words[2]]
                (other,) = [t for t in spec.things if (t.row, t.column) == (one.row + dy, one.column + dx)]
                at = {"abcdefghi"[3 * t.row + t.column]: t.name for t in spec.things}
                own, beside = ("abcdefghi"[3 * t.row + t.column] for t in (one, other))
                passed = [
                    word for cell in "abcdefghi"[: "abcdefghi".index(own) + 1]
                    for word in (cell, *(at[cell].split() if at.get(cell, "").startswith(one.colour) else ()))
                ]  # fmt: skip
                assert [*steps, last] == [*passed, beside, *other.name.split()]


def test_held_out_contents_are_never_trained_on_and_pictures_repeat():
    held, trained = (list(rendered.pictures(3, 40, evaluation)) for evaluation in (True, False))
    again = list(rendered.pictures(3, 40, True))
    for one, other in zip(held, again, strict=True):
        np.testing.assert_array_equal(one.pixels_hwc, other.pixels_hwc)
        assert one.questions == other.questions
    assert {one.kind for one in held} == {"chart", "word", "scene"} and len(trained) == 40
    share = np.mean([rendered.held_out(spec) for spec in SPECS])
    assert 0.06 < share < 0.14
    moved = [spec._replace(place=(0, 0)) for spec in SPECS if isinstance(spec, Word)]
    assert all(rendered.held_out(one) == rendered.held_out(Word(one.text, (5, 1), one.ground)) for one in moved)


def test_little_is_guessed_without_looking():
    """What a question's likeliest answer is worth: learnt of 15,000 pictures' questions, tried on 5,000 others'.

    The answer without its steps, which is its last word, or of a cell or a relation the last two.
    """
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    right, tried, first = Counter(), Counter(), Counter()
    for i in range(20_000):
        rng = np.random.default_rng((11, i))
        for task, question, whole in rendered.ask(rendered.spec_of(rng), rng):
            words = 2 if task in ("scene_cell", "scene_relation") else 1
            answer = " ".join(whole.split()[-words:]).rpartition("=")[2]
            if i < 15_000:
                seen[question][answer] += 1
            else:
                tried[task] += 1
                right[task] += bool(seen[question]) and seen[question].most_common(1)[0][0] == answer
                first[task] += question.split()[1] == answer
    assert set(tried) == set(rendered.TASKS)
    most = dict(
        chart_value=0.16, chart_compare=0.54, chart_sum=0.14, read_text=0.01, scene_shape=0.3, scene_cell=0.1,
        scene_count=0.32, scene_relation=0.13,
    )  # fmt: skip
    for task, bound in most.items():
        assert right[task] / tried[task] < bound, (task, right[task] / tried[task])
    assert 0.46 < first["chart_compare"] / tried["chart_compare"] < 0.54
