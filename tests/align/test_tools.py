"""Calls to tools, the calculator against Python's fractions, Toolformer's filter by hand, decoding that runs calls."""

import ast
import datetime
import operator
from fractions import Fraction
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.align import toolformer, tools
from gpt4jax.align.toolformer import Judged, Sampled, Settings
from gpt4jax.align.tools import Call
from gpt4jax.data.tokenizer import from_bytes
from gpt4jax.errors import UserError
from gpt4jax.inference import Engine
from tests.conftest import SHAPES, apply, perturbed

BY_NODE = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
TOOLS = {"Calculator": tools.calculator, "Calendar": tools.calendar(datetime.date(2023, 1, 30))}
BYTES = from_bytes()


def random_sum(rng, depth=3) -> str:
    if not depth or rng.random() < 0.2:
        whole = str(rng.integers(0, 200))
        return f"{whole}.{rng.integers(0, 100):02d}" if rng.random() < 0.2 else whole
    left, right = random_sum(rng, depth - 1), random_sum(rng, depth - 1)
    text = f"{left}{' ' * rng.integers(0, 2)}{rng.choice(list('+-*/'))}{' ' * rng.integers(0, 2)}{right}"
    return [text, f"({text})", f"-({text})"][rng.choice(3, p=[0.5, 0.4, 0.1])]


def exactly(text: str) -> Fraction:
    """A sum by Python's own grammar, in fractions."""

    def value(node):
        if isinstance(node, ast.BinOp):
            return BY_NODE[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp):
            return -value(node.operand)
        return Fraction(ast.get_source_segment(text, node))

    return value(ast.parse(text, mode="eval").body)


def test_the_calculator_is_pythons_fractions():
    rng = np.random.default_rng(0)
    divided = long = 0
    for _ in range(2000):
        text = random_sum(rng)
        if len(text) > tools.MAX_INPUT:
            continue
        try:
            expected = exactly(text)
        except ZeroDivisionError:
            divided += 1
            assert tools.calculator(text) is None
            continue
        found = tools.calculator(text)
        assert found is not None and Fraction(found) == round(expected, 2), text
        assert found != "-0" and not (found.endswith("0") and "." in found)
        long += "." in found
    assert divided > 5 and long > 200


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("400/1400", "0.29"), ("1/8", "0.12"), ("3/8", "0.38"), ("-1/1000", "0"), ("2*-3", "-6"), ("5-7.5", "-2.5"),
        ("", None), ("1 2", None), ("1+", None), ("(1", None), ("1)", None), ("1**2", None), ("1//2", None),
        ("2^3", None), ("+1", None), (".5", None), ("1.2.3", None), ("1e3", None), ("abs(1)", None), ("٣+1", None),
        ("1/0", None), ("1/(2-2)", None), ("1+" * 100 + "1", None), ("(" * 99 + "1" + ")" * 99, "1"),
        ("-" * 199 + "1", "-1"),
    ],
)  # fmt: skip
def test_what_the_calculator_takes(text, result):
    assert tools.calculator(text) == result


def test_the_calendar():
    assert TOOLS["Calendar"]("") == "Today is Monday, January 30, 2023."
    assert tools.calendar(datetime.date(2024, 12, 1))(" ") == "Today is Sunday, December 1, 2024."
    assert TOOLS["Calendar"]("tomorrow") is None


def test_calls_are_read_as_they_are_written():
    call = Call("Calculator", "(3+4)*2")
    assert tools.write(call) == " [Calculator((3+4)*2)]"
    assert tools.write(call, "14") == " [Calculator((3+4)*2) -> 14]"
    assert tools.write(call, "") == " [Calculator((3+4)*2) -> ]"
    text = f"It is{tools.write(call, '14')} 14, on{tools.write(Call('Calendar', ''))} Monday [sic]; x [1] y(2)"
    found = tools.find(text)
    assert [(one.call, one.result) for one in found] == [(call, "14"), (Call("Calendar", ""), None)]
    assert [text[one.start : one.end] for one in found] == [tools.write(call, "14"), " [Calendar()]"]
    assert tools.strip(text) == "It is 14, on Monday [sic]; x [1] y(2)"
    assert tools.read("Calculator((3+4)*2) ") == call
    assert [tools.read(text) for text in ("Calculator", "3+4", "Calculator(3+4", "(3)", "")] == [None] * 5
    assert tools.run(call, TOOLS) == "14" and tools.run(Call("Search", "x"), TOOLS) is None


@pytest.fixture(scope="module")
def served():
    config = model.Config(**next(iter(SHAPES.values())) | {"num_layers": 1, "max_seq_len": 128, "vocab_size": 257})
    params = perturbed(config)
    return config, params, Engine(config, params, tokenizer=BYTES, rows=3)


def logprobs(config, params, text: str) -> np.ndarray:
    """Log probabilities (len(text),) of a text's bytes in float64, by the plain forward pass on one padded row."""
    ids = [BYTES.end, *text.encode()]
    row = np.zeros((1, config.max_seq_len), np.int32)
    row[0, : len(ids)] = ids
    logits = np.asarray(apply(config, params, jnp.asarray(row))[0], np.float64)[: len(text)]
    logits -= np.log(np.sum(np.exp(logits - logits.max(-1, keepdims=True)), -1, keepdims=True)) + logits.max(
        -1, keepdims=True
    )
    return logits[np.arange(len(text)), ids[1:]]


def test_the_losses_of_the_filter_by_hand(served):
    """(5, 4, 3, 2, 1) / 15 of the first five tokens behind the place; the note stands before the text."""
    config, params, engine = served
    np.testing.assert_allclose(toolformer.weights(7), np.array([5, 4, 3, 2, 1, 0, 0]) / 15, atol=1e-15)
    np.testing.assert_allclose(toolformer.weights(2), np.array([5, 4]) / 15)
    text = "Ann has 3 figs, gets 4. Now 7."
    call = Call("Calculator", "3+4")
    found = toolformer.judge(engine, [text, text[:9]], [Sampled(0, 23, call, "7"), Sampled(1, 7, call, "7")])
    for one, whole, at in zip(found, (text, text[:9]), (23, 7), strict=True):
        for loss, note in (
            (one.without, ""), (one.unanswered, "[Calculator(3+4) -> ] "), (one.answered, "[Calculator(3+4) -> 7] "),
        ):  # fmt: skip
            tail = logprobs(config, params, note + whole)[len(note) + at :][:5]
            by_hand = -sum(w * lp for w, lp in zip((5 / 15, 4 / 15, 3 / 15, 2 / 15, 1 / 15), tail, strict=False))
            assert loss == pytest.approx(by_hand, abs=2e-5)
        assert one.gain == min(one.without, one.unanswered) - one.answered
    assert len({round(x, 4) for one in found for x in one[1:]}) == 6


def test_the_places_where_a_call_is_most_probable(served):
    config, params, engine = served
    texts = ["Ann has 3 figs, gets 4. Now 7.", "one", "a b"]
    assert [toolformer.places(text) for text in texts] == [[3, 7, 9, 15, 20, 23, 27], [], [1]]
    assert toolformer.places(" a  b\nc ") == [2, 5, 7]
    ask = lambda text: f"Calls in {len(text)}: "  # noqa: E731
    probability = {}
    for text in texts:
        for at in toolformer.places(text):
            before = ask(text) + text[:at]
            probability[text, at] = np.exp(logprobs(config, params, before + " [")[len(before) :].sum())
    ranked = sorted(toolformer.places(texts[0]), key=lambda at: -probability[texts[0], at])
    bound = (probability[texts[0], ranked[4]] + probability[texts[0], ranked[5]]) / 2
    found = toolformer.positions(engine, texts, Settings(least_probability=bound, positions=7), ask)
    assert found[0] == ranked[:5] and found[1] == [] and found[2] == ([1] if probability["a b", 1] > bound else [])
    assert toolformer.positions(engine, texts, Settings(0.0, positions=2), ask)[0] == ranked[:2]


class Scripted:
    """An engine whose continuations are a function of the text before."""

    def __init__(self, say):
        self.tokenizer, self._say, self.asked = BYTES, say, []

    def generate(self, requests):
        results = []
        for request in requests:
            before = BYTES.decode(request.prompt)
            self.asked.append(before)
            text, tops = self._say(before, request), {}
            if isinstance(text, tuple):
                text, tops = text
            cut = min((text.find(stop) for stop in request.stop if stop in text), default=-1)
            tokens = list(text.encode()) if cut < 0 else list(text[: cut + 1].encode())
            tokens = tokens[: request.max_tokens]
            likeliest = tuple(
                ((token, -0.1), *((ord(o), -3.0) for o in tops.get(t, "~"))) for t, token in enumerate(tokens)
            )
            results.append(
                SimpleNamespace(
                    tokens=tuple(tokens), text=text if cut < 0 else text[:cut], top_logprobs=likeliest,
                    finish="stop" if cut >= 0 else "length",
                )
            )  # fmt: skip
        return results


def test_calls_that_are_sampled():
    """Of three draws a place: one that is malformed, one that is the same again, one whose tool has no result."""
    said = {0: "Calculator(1+2)", 1: "Calculator(1+2) -", 2: "Calculator(1/0)"}
    count = iter(range(6))
    engine = Scripted(lambda before, request: f"{said[next(count) % 3]}]")
    drawn, found = toolformer.sample(
        engine, ["a b c"], [[3, 1]], TOOLS, Settings(calls=3), lambda text: f"{text}: "
    )  # fmt: skip
    assert drawn == 6 and found == [
        Sampled(0, 3, Call("Calculator", "1+2"), "3"),
        Sampled(0, 1, Call("Calculator", "1+2"), "3"),
    ]
    assert engine.asked == ["a b c: a b ["] * 3 + ["a b c: a ["] * 3


def test_kept_calls_are_put_into_the_text():
    call, other = Call("Calculator", "3+4"), Call("Calculator", "4+3")
    text = "3 and 4 make 7."
    kept = [
        Judged(Sampled(0, 12, call, "7"), 2.0, 2.5, 1.0), Judged(Sampled(0, 12, other, "7"), 2.0, 3.0, 0.5),
        Judged(Sampled(0, 5, call, "7"), 2.0, 1.9, 1.0),
    ]  # fmt: skip
    assert toolformer.insert(text, kept) == "3 and [Calculator(3+4) -> 7] 4 make [Calculator(4+3) -> 7] 7."
    assert tools.strip(toolformer.insert(text, kept)) == text
    assert [round(one.gain, 9) for one in kept] == [1.0, 1.5, 0.9]


def test_texts_are_annotated_with_what_passes_the_filter(served):
    """The threshold between the gains that the model gives itself: what is above stays, and is counted."""
    engine = served[2]
    texts = ["Ann has 3 figs, gets 4. Now 7.", "Ben has 5."]
    call = Call("Calculator", "3+4")
    sampled = [Sampled(0, at, call, "7") for at in (3, 15, 23)] + [Sampled(1, 3, call, "7")]
    gains = sorted(one.gain for one in toolformer.judge(engine, texts, sampled))
    patch = pytest.MonkeyPatch()
    with patch.context() as p:
        p.setattr(toolformer, "sample", lambda *_: (9, sampled))
        found = toolformer.annotate(engine, texts, TOOLS, Settings(least_gain=(gains[1] + gains[2]) / 2))
    assert (found.drawn, found.run, found.kept, found.share_kept) == (9, 4, 2, 0.5)
    inserted = [one for text in found.texts if text for one in tools.find(text)]
    assert len(inserted) == 2
    assert all(text is None or tools.strip(text) == plain for text, plain in zip(found.texts, texts, strict=True))


def test_decoding_runs_a_call_and_goes_on():
    def say(before, request):
        if before.endswith("["):
            return "Calculator(3+4) -> 9]"  # what it would say the result is does not matter
        return " 7.\n" if before.endswith("-> 7]") else " [Calculator(3+4) -> 9] 9.\n"

    engine = Scripted(say)
    (found,) = toolformer.generate(engine, ["3 and 4:"], TOOLS, top_k=1, stop=("\n",))
    assert found == (" [Calculator(3+4) -> 7] 7.", 1, 0)
    assert engine.asked == ["3 and 4:", "3 and 4: [", "3 and 4: [Calculator(3+4) -> 7]"]


def test_a_call_begins_where_its_start_is_among_the_likeliest():
    """The third likeliest at the third place: with k = 3 it begins there, with k = 2 not; and never a second one."""

    def say(before, request):
        if before.endswith("["):
            return "Calculator(1+1)]"
        return " b c", {1: "x[", 3: "y["}

    for k, text, calls in ((3, "a [Calculator(1+1) -> 2] b c", 1), (2, "a b c", 0)):
        (found,) = toolformer.generate(Scripted(say), ["a"], TOOLS, top_k=k, max_tokens=4)
        assert ("a" + found.text, found.calls) == (text, calls)
    two = toolformer.generate(Scripted(say), ["a"], TOOLS, top_k=3, max_calls=2, max_tokens=5)[0]
    assert two.calls == 2 and two.text.count("->") == 2
    off = Scripted(lambda before, request: (" [x", {1: "b"}) if before == "a" else " c")
    assert toolformer.generate(off, ["a"], TOOLS, max_calls=0, max_tokens=4)[0] == (" b c", 0, 0)


def test_a_call_that_fails_leaves_no_trace():
    for wrong in ("Calculator(1/0)]", "Calculator 1+1]", "Search(x)]", "Calculator(1+1" + "1" * 50):
        say = lambda before, request, wrong=wrong: wrong if before.endswith("[") else (" [Calc", {1: "b"})  # noqa: E731
        found = toolformer.generate(Scripted(say), ["a"], TOOLS, top_k=1, max_tokens=2)[0]
        assert found == (" b", 0, 1)


def test_decoding_without_calls_is_the_engines_greedy_text(served):
    engine = served[2]
    prompts = ["Ann has 3", "Ben"]
    from gpt4jax.inference import Request

    plain = engine.generate([Request(BYTES.prompt(text), 20, temperature=0.0) for text in prompts])
    found = toolformer.generate(engine, prompts, TOOLS, max_calls=0, max_tokens=20)
    assert [one.text for one in found] == [result.text for result in plain]
    assert all("[" not in one.text for one in found)
    with pytest.raises(UserError, match="top_k is 0"):
        toolformer.generate(engine, prompts, TOOLS, top_k=0)


def test_settings_that_can_not_be():
    for wrong in (dict(least_probability=1.0), dict(positions=0), dict(calls=0)):
        with pytest.raises(ValueError, match="at least one"):
            Settings(**wrong)
    assert jax.tree.leaves(toolformer.CALCULATOR.least_gain) == [0.5]
