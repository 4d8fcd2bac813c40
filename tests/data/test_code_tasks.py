"""Tasks against Python itself: our own solutions are executed, what a model wrote is only interpreted."""

import ast
import collections
import dataclasses
import itertools
import re
import time

import pytest

from gpt4jax.data.code_tasks import MAX_BYTES, Problem, documents, passes, problems
from gpt4jax.data.operations import DESCRIBED, NAMED, Operations


@pytest.fixture(scope="module", params=[DESCRIBED, NAMED], ids=["described", "named"])
def family(request) -> Operations:
    return request.param


@pytest.fixture(scope="module")
def held_out(family) -> tuple[Problem, ...]:
    return problems(seed=0, per_level=40, operations=family)


@pytest.fixture(scope="module")
def texts(family) -> list[str]:
    return list(documents(seed=0, count=20_000, operations=family))


def executed(source: str, argument):
    """What Python gives; the source is our own."""
    names: dict = {}
    exec(source, names)
    return names["f"](argument)


def code_of(text: str) -> str:
    """A text without its description."""
    return text.partition("\n")[2]


def double(tests=((3, 6), (-2, -4))) -> Problem:
    return Problem("double", 1, "# double\ndef f(x):\n", tuple(tests), "    return x * 2\n")


MEANINGS = {
    "add 7 if below 5": (lambda x: x + 7 if x < 5 else x),
    "at least 4": (lambda x: x if x > 4 else 4),
    "cap at 4": (lambda x: 4 if x > 4 else x),
    "distance to 3": (lambda x: x - 3 if x > 3 else 3 - x),
    "double if even": (lambda x: x if x % 2 else x + x),
    "last digit": (lambda x: int(str(x)[-1])),
    "negate if above 6": (lambda x: x if x <= 6 else 0 - x),
    "round down to 4s": (lambda x: max(y for y in range(-200, 200, 4) if y <= x)),
    "subtract from 8": (lambda x: 8 - x),
    "zero if below 3": (lambda x: x if x >= 3 else 0),
    "is a multiple of 3": (lambda x: x in range(-300, 300, 3)),
    "every second letter": (lambda s: "".join(c for i, c in enumerate(s) if i % 2 == 0)),
    "last 3": (lambda s: s[len(s) - 3 :]),
    "sort letters": (lambda s: "".join(sorted(s))),
    "drop first 2": (lambda a: a[2:]),
    "keep above 6": (lambda a: list(filter(lambda i: i > 6, a))),
    "sort downwards": (lambda a: sorted(a, reverse=True)),
    "spread": (lambda a: sorted(a)[-1] - sorted(a)[0]),
}


def test_phrases_mean_what_the_solutions_do():
    solutions = {text.partition("\n")[0][len("# return: ") :]: text for text in documents(0, 20_000, levels=1)}
    solutions |= {p.prompt.partition("\n")[0][len("# return: ") :]: p.prompt + p.solution for p in problems(0, 60, 1)}
    arguments = {int: range(-60, 60), str: ["abcdEFG", "zYx", "aab"], list: [[3, 7, -2, 9, 9], [8, 6, 1]]}
    assert len(MEANINGS.keys() & solutions.keys()) > 15  # a few are too rare for these seeds
    for phrase in MEANINGS.keys() & solutions.keys():
        kind = str if "letter" in phrase or phrase == "last 3" else list
        kind = kind if re.search("letter|last 3|drop|keep|sort|spread", phrase) else int
        for argument in arguments[kind]:
            assert executed(solutions[phrase], argument) == MEANINGS[phrase](argument), phrase


def test_expected_values_are_pythons(held_out):
    for problem in held_out:
        for argument, expected in problem.tests:
            value = executed(problem.prompt + problem.solution, argument)
            assert value == expected and type(value) is type(expected), problem


def test_solutions_pass_and_those_of_others_do_not(held_out):
    assert all(passes(problem, problem.solution) for problem in held_out)
    wrong = [
        passes(dataclasses.replace(problem, prompt=other.prompt), other.solution)
        for problem, other in itertools.pairwise(held_out)
        if problem.solution != other.solution  # names may mean the same
    ]
    assert sum(wrong) < 0.02 * len(wrong)


def share_caught(held_out: tuple[Problem, ...], constants: str) -> float:
    """Of the programs with one of these constants increased by 1, the share that fails."""
    caught = []
    for problem in held_out:
        for found in re.finditer(constants, problem.solution):
            start, end = found.span(1)
            other = problem.solution[:start] + str(int(found[1]) + 1) + problem.solution[end:]
            caught.append(not passes(problem, other))
    assert len(caught) >= 10
    return sum(caught) / len(caught)


def test_tests_tell_a_constant_from_its_neighbour(family, held_out):
    assert share_caught(held_out, r"(?<![<>] )\b(\d+)") > 0.97
    if family is DESCRIBED:
        assert share_caught(held_out, r"(\d+)") > 0.97
        assert share_caught(held_out, r"[<>] (\d+)") > 0.6  # the others make no difference, by other steps


def rechained(body: list[ast.stmt], argument: str) -> str:
    """Statements in order, each on the result of the one before, whatever it was called."""
    lines, last = [], argument
    for position, statement in enumerate(body):
        value = statement.value
        for node in ast.walk(value):
            if isinstance(node, ast.Name) and len(node.id) == 1 and node.id != "i":
                node.id = last
        last = f"v{position}"
        lines.append(f"    {last} = {ast.unparse(value)}\n")
    return "".join(lines) + f"    return {last}\n"


def test_every_step_matters_and_tests_differ(held_out):
    for problem in held_out:
        source = problem.prompt + problem.solution
        problem = dataclasses.replace(problem, prompt=problem.prompt.rstrip(" "))  # what follows is whole lines
        assert passes(problem, rechained(ast.parse(source).body[0].body, "x")), problem
        for left_out in range(problem.level):
            body = ast.parse(source).body[0].body
            assert not passes(problem, rechained(body[:left_out] + body[left_out + 1 :], "x")), problem
        assert len({str(value) for _, value in problem.tests}) > 1


def test_levels_are_numbers_of_steps(family, held_out, texts):
    counts = [0] * (family.levels + 1)
    for problem in held_out:
        assert problem.prompt.count(", ") + 1 == problem.solution.count("\n") == problem.level
        counts[problem.level] += 1
    assert counts == [0, *[40] * family.levels]
    of_texts = [text.count("\n") - 2 for text in texts]
    for level in range(1, family.levels + 1):
        assert of_texts.count(level) / len(texts) == pytest.approx(1 / family.levels, abs=0.02)


def test_held_out_problems_occur_in_no_training_text(family, held_out, texts):
    descriptions = {text.partition("\n")[0] for text in texts}
    codes = {code_of(text) for text in texts}
    assert not any(problem.prompt.partition("\n")[0] in descriptions for problem in held_out)
    if not family.synonyms:  # else the same steps may come by other names, which say nothing of these
        assert not any(code_of(problem.prompt + problem.solution) in codes for problem in held_out)
    # Were they drawn alike, many would: of the texts of another seed, most of level 1 are here.
    again = [text.partition("\n")[0] in descriptions for text in documents(1, 500, 1, family)]
    assert sum(again) > 400


def test_a_description_has_one_solution(texts):
    solutions: dict[str, str] = {}
    for text in texts:
        description, _, code = text.partition("\n")
        assert solutions.setdefault(description, code) == code


def test_problems_are_distinct_and_more_than_there_are_is_said(family, held_out):
    assert len({problem.name for problem in held_out}) == len(held_out)
    assert len({problem.prompt.partition("\n")[0] for problem in held_out}) == len(held_out)
    with pytest.raises(ValueError, match=r"level 1 gave \d+ different problems, not 2000"):
        problems(0, 2000, 1, family)
    for levels in (0, family.levels + 1):
        with pytest.raises(ValueError, match=f"levels is {levels}"):
            problems(0, 1, levels, family)
        with pytest.raises(ValueError, match=f"levels is {levels}"):
            next(documents(0, 1, levels, family))


def test_texts_are_short_and_python(texts):
    assert max(map(len, texts)) <= MAX_BYTES
    assert all(text.isascii() for text in texts)
    for text in texts[:2000]:
        compile(text, "text", "exec")


def test_seeds_repeat_and_differ(family, texts):
    assert list(documents(0, 50, operations=family)) == texts[:50]
    assert list(documents(1, 50, operations=family)) != texts[:50]
    assert problems(3, 2, None, family) == problems(3, 2, None, family) != problems(4, 2, None, family)


def test_completion_ends_at_the_first_line_that_is_blank_or_not_indented():
    for rest in (
        "",
        "\n",
        "\nimport os\n",
        "def g(x):\n    return 1\n",
        "# negate\ndef f(x):\n    return -x\n",
        "    ",
    ):
        assert passes(double(), "    return x * 2\n" + rest), rest
    assert passes(double(), "    return x * 2")  # without a line's end
    assert not passes(double(), "    y = x * 2\n\n    return y\n")
    assert not passes(double(), "return x * 2\n")


def test_other_ways_to_the_same_value_pass():
    ways = (
        "return x + x", "x = x + x\n    return x", "x += x\n    return x", "return sum([x, x])",
        "if x > 0:\n        return x * 2\n    else:\n        return -(-x - x)", "return x * 2 if x else 0",
        "return int(str(x * 2))", "return [i * 2 for i in [x] if i == x][0]", "return (x * x * 2) // x",
        "return len('a') * x * 2", "return x * 2 if 0 < abs(x) <= 3 and not x == 7 else -1",
        "return 0 or x * 2", "return x * 2 ** 1",
    )  # fmt: skip
    for way in ways:
        assert executed(f"def f(x):\n    {way}\n", 3) == 6
        assert passes(double(), f"    {way}\n"), way


def test_a_value_of_another_type_fails():
    one = Problem("", 1, "# is even\ndef f(x):\n", ((2, True), (3, False)), "")
    assert passes(one, "    return x % 2 == 0\n")
    assert executed("def f(x):\n    return 1 - x % 2\n", 2) == True  # noqa: E712  # equal, and yet
    assert not passes(one, "    return 1 - x % 2\n")


HOSTILE = {
    "import": "return __import__('os').getcwd()",
    "import statement": "import os\n    return 6",
    "power": "return 9**9**9",
    "power of many": "return 2**64**8",
    "too large on the way": "return x * 2 + 2**64 - 2**64",
    "string": "return 'a' * 10**9",
    "string of a number": "return len('a' * 1000000000)",
    "list": "return [0] * 10**9",
    "list on the left": "return 10**9 * [0]",
    "doubling": "y = 'ab'\n" + "    y = y + y\n" * 40 + "    return x * 2",
    "doubling numbers": "y = x\n" + "    y = y * y\n" * 40 + "    return x * 2",
    "nested lists": "y = [x]\n" + "    y = [y, y]\n" * 30 + "    return x * 2 if y == y else 0",
    "parentheses": "return " + "(" * 150 + "x" + ")" * 150,
    "minus signs": "return " + "-" * 400 + "x * 2",
    "deep lists": "return " + "[" * 90 + "x" + "]" * 90,
    "long": "return x * 2 + " + "0 + " * 5000 + "0",
    "recursion": "return f(x)",
    "endless": "while True:\n        x = x",
    "for": "for i in [1]:\n        x = x * 2\n    return x",
    "comprehensions": "return len([i for i in [j for j in ['a' * 250][0] for k in 'a' * 250]])",
    "quadratic": "y = [i for i in 'a' * 250 for j in 'a' * 250]\n    return x * 2",
    "steps": "y = [[j for j in 'a' * 250] == i for i in 'a' * 250]\n    return x * 2",
    "lambda": "return (lambda y: y * 2)(x)",
    "attribute": "return x.__class__(x * 2)",
    "dunder of a string": "return len('a'.__class__.__mro__) * x",
    "format": "return '{0.__class__}'.format(x)",
    "percent": "return len('%999999999d' % x)",
    "f-string": "return int(f'{x * 2}')",
    "walrus": "return (y := x * 2)",
    "global": "global y\n    return x * 2",
    "eval": "return eval('x * 2')",
    "open": "return open('/etc/passwd')",
    "unknown name": "return y",
    "nothing": "return",
    "no return": "x = x * 2",
    "pass": "pass",
    "float": "return x * 2.0",
    "division": "return x / 0",
    "by zero": "return x // 0",
    "index": "return [1][5]",
    "type": "return 'a' - x",
    "none": "return None",
    "bytes": "return b'a' * x",
    "ellipsis": "return ...",
    "complex": "return 2j * x",
    "huge literal": "return " + "9" * 500,
    "literal is called": "return 1(2)",
    "odd escape": "return len('\\d') * x * x",
    "half": "return x *",
    "half string": "return 'abc",
    "only def": "def",
    "decorator": "@x",
    "second function": "def g(y):\n        return y\n    return g(x * 2)",
    "type comment": "x: int = 2\n    return x * 2",
    "tuple": "x, y = x, x\n    return x + y",
    "starred": "return max(*[x, x]) * 2",
    "keyword": "return sorted([x * 2], reverse=True)[0]",
    "shadow": "sum = x\n    return sum * 2",
    "null": "return x * 2\x00",
    "carriage return": "return x * 2\rimport os",
    "surrogate": "return '\ud800'",
    "unicode": "return ｘ．＊２",
    "emoji": "🎉🎉🎉",
    "async": "return [i async for i in [x * 2]][0]",
    "set": "return len({x}) * 2 * x",
    "dict": "return {}",
    "method of a number": "return x.bit_length()",
    "replace": "return len('a'.replace('', 'a' * 250).replace('', 'a' * 250))",
    "join": "return len(('a' * 250).join(['a'] * 250))",
}


@pytest.mark.parametrize("completion", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_completions_fail_at_once(completion, recwarn):
    started = time.process_time()
    assert not passes(double(), f"    {completion}\n")
    assert time.process_time() - started < 0.5
    assert not recwarn.list


@pytest.mark.parametrize("completion", ["", "\n", " ", "    ", "\x00", "\t\n", "\ud800", "    \x00", "é", "    é = \n"])
def test_no_statement_at_all_fails(completion):
    assert not passes(double(), completion)


def test_slowest_that_fits_takes_little_time():
    lists = [list(range(-100, 100))] * 8
    problem = Problem("", 1, "# sum\ndef f(x):\n", tuple((x, -1) for x in lists), "")
    body = "".join(f"    {v} = [i * i * i for i in x if i % 2 < 3]\n" for v in "abcdefgh")
    started = time.process_time()
    assert not passes(problem, body + "    return sum(h)\n")  # over the limit of steps
    assert time.process_time() - started < 1


def test_arguments_are_not_changed(held_out):
    before = [str(problem.tests) for problem in held_out]
    for problem in held_out:
        passes(problem, problem.solution)
        if isinstance(problem.tests[0][0], list):
            passes(problem, "    x += [1]\n    return x\n")
    assert before == [str(problem.tests) for problem in held_out]


def test_random_cuts_of_solutions_never_raise(held_out):
    for problem in held_out[::4]:
        for end in range(len(problem.solution)):
            assert passes(problem, problem.solution[:end]) in (True, False)


def test_every_described_operation_comes_up():
    steps = {step for text in documents(seed=0, count=20_000) for step in text[2:].partition("\n")[0].split(", ")}
    phrases = {re.sub(r"\d", "#", step.partition(": ")[2]) for step in steps}
    for row in itertools.chain.from_iterable(DESCRIBED.rows.values()):
        shape = re.sub(r"\{[nkm]\}", "#", row[0])
        assert any(re.fullmatch(re.sub(r"\{[cdw]\}", "[a-z]+", shape), phrase) for phrase in phrases), row


def named_steps(text: str) -> list[tuple[str, str]]:
    """Names, and what the solution does for each to x."""
    names = re.findall(r": (\w+)", text.partition("\n")[0])
    body = [statement.value for statement in ast.parse(text).body[0].body]
    for value in body:
        for node in ast.walk(value):
            if isinstance(node, ast.Name) and node.id in "abcde":
                node.id = "x"
    return list(zip(names, map(ast.unparse, body), strict=True))


@pytest.fixture(scope="module")
def asked() -> list[list[tuple[str, str]]]:
    """The steps of held-out named problems."""
    return [named_steps(p.prompt + p.solution) for p in problems(0, 40, operations=NAMED)]


@pytest.fixture(scope="module")
def shown() -> list[tuple[str, str]]:
    """The steps of named training texts."""
    return [step for text in documents(0, 40_000, operations=NAMED) for step in named_steps(text)]


def test_a_name_has_one_meaning_wherever_it_stands(asked, shown):
    meanings: dict[str, str] = {}
    for name, meaning in [*itertools.chain.from_iterable(asked), *shown]:
        assert meanings.setdefault(name, meaning) == meaning
    assert len(meanings) > 500 and len(set(meanings.values())) < 100  # so an unknown one can be guessed
    assert meanings["davupe"] == "[i for i in x if i > 2]" and meanings["rugofa"] == "min(x)"  # as docstrings say


def test_names_are_dealt_evenly_to_meanings(shown):
    """Of an unknown name no meaning is more likely than others: knowing is worth more than one good guess."""
    meaning_of = dict(shown)
    assert max(collections.Counter(meaning_of.values()).values()) < 0.05 * len(meaning_of)


def test_names_of_problems_stand_in_training_texts_and_those_of_level_1_in_longer_ones(asked, shown):
    """What is held out are names: their meanings are among the one-step texts, by other names."""
    known = dict(shown)
    alone = dict(step for text in documents(0, 10_000, 1, NAMED) for step in named_steps(text))
    assert sum(name in known for steps in asked for name, _ in steps) > 0.95 * sum(map(len, asked))
    of_level_1 = [step for steps in asked if len(steps) == 1 for step in steps]
    assert len(of_level_1) == 40 and not any(name in alone for name, _ in of_level_1)
    assert {meaning for _, meaning in of_level_1} <= set(alone.values())


def test_names_are_drawn_by_the_law_of_zipf(shown):
    count = collections.Counter(name for name, _ in shown)
    law = {row[0]: rank**-1.5 for rank, row in enumerate(NAMED.rows["list"], 1) if row[2:] == ()}
    common, rare = list(law)[:20], list(law)[60:200]
    drawn = sum(count[name] for name in rare) / sum(count[name] for name in common)
    assert drawn == pytest.approx(sum(law[name] for name in rare) / sum(law[name] for name in common), rel=0.1)
