"""Problems of arithmetic: what they ask is what they answer, by Python's own fractions."""

import ast
import itertools
import operator
import re
from fractions import Fraction

import numpy as np
import pytest

from gpt4jax.align import arithmetic
from gpt4jax.align.arithmetic import Difficulty

BY_NODE = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
RECORDED = "What is 85-23+5+2?"  # problem 0 of seed 0
HARD = Difficulty(1, 5, 60, "+-*/")


def exactly(expression: str) -> Fraction:
    """A sum by Python's own grammar, in fractions."""

    def value(node):
        if isinstance(node, ast.BinOp):
            return BY_NODE[type(node.op)](value(node.left), value(node.right))
        return Fraction(node.value)

    return value(ast.parse(expression, mode="eval").body)


@pytest.mark.parametrize("difficulty", [Difficulty(), HARD, Difficulty(2, 2, 9, "-/")])
def test_every_answer_is_the_value_of_the_expression(difficulty):
    for index in range(300):
        one = arithmetic.problem(5, index, difficulty)
        assert exactly(one.expression) == one.answer
        assert difficulty.fewest <= len(one.steps) <= difficulty.most
        assert all(0 <= result <= 10 * difficulty.largest for result in one.results)
        assert {op for op, _ in one.steps} <= set(difficulty.operators)
        *equations, last = one.path.split(". ")[:-1], one.path.split(". ")[-1]
        for equation in equations[0]:
            left, right = equation.split("=")
            assert exactly(left) == int(right)
        assert last == f"The answer is {one.answer}." and arithmetic.verify(one, one.path) == (True, True)


def test_a_story_tells_all_numbers_in_their_order_and_a_bare_sum_is_the_sum():
    for index in range(50):
        one = arithmetic.problem(0, index, HARD)
        assert [int(n) for n in re.findall(r"\d+", one.question)] == [one.start, *(n for _, n in one.steps)]
        bare = arithmetic.problem(0, index, Difficulty(1, 5, 60, "+-*/", words=False))
        assert bare.question == f"What is {bare.expression}?"


def test_other_orders_give_the_same_answer_and_all_of_them_come():
    one = arithmetic.Problem("What is 9-7+4-1?", 9, (("-", 7), ("+", 4), ("-", 1)))
    terms = [9, -7, 4, -1]
    orders = {
        order for order in itertools.permutations(terms) if order[0] > 0 and min(itertools.accumulate(order)) >= 0
    }
    rng, found = np.random.default_rng(0), set()
    for _ in range(300):
        other = arithmetic.rearranged(one, rng)
        found.add((other.start, *(int(f"{op}{n}") for op, n in other.steps)))
        assert other.answer == 5 and other.question == one.question
        assert arithmetic.verify(one, other.path) == (True, True)
    assert found == orders and len(orders) > 8
    with pytest.raises(ValueError, match="another order"):
        arithmetic.rearranged(arithmetic.Problem("What is 2*3?", 2, (("*", 3),)), rng)


def test_a_problem_is_a_function_of_seed_and_index():
    one = arithmetic.problem(3, 7, HARD)
    assert arithmetic.problem(3, 7, HARD) == one
    assert len({arithmetic.problem(seed, index, HARD).question for seed in (3, 4) for index in range(20)}) > 35
    # Recorded: another generator would be another data set under the same seed.
    assert arithmetic.problem(0, 0, Difficulty(words=False)).question == RECORDED


def test_splits_share_no_sum_whatever_the_seed_or_the_words():
    easy = Difficulty(1, 2, 20)
    sums = {
        name: {one.expression for seed in (0, 1) for one in arithmetic.problems(seed, name, 200, easy)}
        for name in arithmetic.SPLITS
    }
    names = list(sums)
    assert all(sums[a].isdisjoint(sums[b]) for a in names for b in names if a < b)
    assert sum(arithmetic.SPLITS.values()) == 100
    found = [arithmetic.split(arithmetic.problem(0, i, HARD)) for i in range(2000)]
    for name, share in arithmetic.SPLITS.items():
        assert abs(found.count(name) / 2000 - share / 100) < 0.04
    assert arithmetic.problems(0, "held_out", 30, easy) == arithmetic.problems(0, "held_out", 60, easy)[:30]
    some = arithmetic.problems(0, "questions", 200, easy)
    assert len({one.expression for one in some}) == 200


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("11-7=4. 4+9=13. The answer is 13.", (True, True)),
        ("11-7=4. 4+9=12. The answer is 13.", (True, False)),
        ("11-7=5. 5+8=13. The answer is 13.", (True, False)),
        ("The answer is 13.", (True, False)),
        ("11-7=4. The answer is 4.", (False, True)),
        ("13", (False, False)),
        ("8/2=4. 0/0=4. The answer is 13", (True, False)),
        ("The answer is 12. The answer is 13.", (False, False)),
    ],
)
def test_the_verifier(text, verdict):
    one = arithmetic.Problem("What is 11-7+9?", 11, (("-", 7), ("+", 9)))
    assert arithmetic.verify(one, text) == verdict


def test_what_can_not_be_is_told():
    for wrong in (dict(fewest=0), dict(fewest=3, most=2), dict(largest=8), dict(operators="^"), dict(operators="")):
        with pytest.raises(ValueError, match="steps|largest|operators"):
            Difficulty(**wrong)
    with pytest.raises(ValueError, match="no split 'test'"):
        arithmetic.problems(0, "test", 1, HARD)
    with pytest.raises(ValueError, match="there are only"):
        arithmetic.problems(0, "held_out", 40, Difficulty(1, 1, 9, "+"))
    with pytest.raises(ValueError, match="there are no 99 steps"):
        arithmetic.problem(0, 0, Difficulty(99, 99, 50, "-"))
