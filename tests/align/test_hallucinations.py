"""The closed-domain loop in a world whose facts are known: a lister that is exact, and rewriters that are not."""

import itertools
import random
import re

import pytest

from gpt4jax import model
from gpt4jax.align import examples, hallucinations
from gpt4jax.align.hallucinations import Settings
from gpt4jax.data import tokenizer
from gpt4jax.errors import UserError
from gpt4jax.evals.asking import Asker, TooLong
from gpt4jax.evals.calls import Generated
from gpt4jax.inference import Engine
from tests.conftest import SHAPES, perturbed

COLORS = ("red", "blue", "green")
CLAIM = re.compile(r"The box holds (\d+) (\w+) balls")


def passage(number: int) -> dict:
    """A prompt of three facts, other ones for each number; the counts are below ten."""
    facts = " ".join(f"The box holds {(number * (i + 2) + i) % 9 + 1} {color} balls." for i, color in enumerate(COLORS))
    return {"messages": [{"role": "user", "content": f"Box {number}. {facts} What does the box hold?"}], "id": number}


def said(call, heading: str) -> str:
    """What stands under a heading of a call's text."""
    return call.prompt[0][1].split(f"[{heading}]\n")[1].split("\n\n[")[0]


class World:
    """Answers calls: a response with `wrong` false counts, and rewrites that mend `mends` of them each.

    `wrong(number)` and `mends(number)` are functions of the passage; what is false is told by comparing with the facts.
    """

    def __init__(self, wrong, mends, seed: int = 0):
        self.wrong, self.mends, self.rng, self.batches = wrong, mends, random.Random(seed), []

    def answer(self, call) -> str:
        text = call.prompt[0][1]
        number = int(re.search(r"Box (\d+)", text)[1])
        if "[Assistant]" not in text:
            facts = CLAIM.findall(text)
            bad = self.wrong(number)
            return " ".join(
                f"The box holds {int(n) + 10 * (i < bad)} {color} balls." for i, (n, color) in enumerate(facts)
            )
        facts = {color: n for n, color in CLAIM.findall(said(call, "User"))}
        claims = CLAIM.findall(said(call, "Assistant"))
        if hallucinations.LIST in text:
            false = [f"The box holds {n} {color} balls" for n, color in claims if facts[color] != n]
            return "\n".join(f"{i}. {one}" for i, one in enumerate(false, 1)) or "NONE"
        listed = CLAIM.findall(said(call, "Statements"))
        assert listed == [(n, color) for n, color in claims if facts[color] != n]
        mended = {color for _, color in listed[: self.mends(number)]}
        return " ".join(
            f"The box holds {facts[c] if c in mended else int(n) + 1 if (n, c) in listed else n} {c} balls."
            for n, c in claims
        )

    def ask(self, calls):
        self.batches.append(list(calls))
        order = list(range(len(calls)))
        self.rng.shuffle(order)
        for i in order:
            yield i, Generated(self.answer(calls[i]), "stop", 0.0)


def by_hand(number: int, wrong: int, mends: int, rewrites: int) -> tuple[str, int]:
    """The outcome, and how many rewrites it takes to mend `wrong` counts, `mends` at a time."""
    if not wrong:
        return hallucinations.KEPT, 0
    needed = -(-wrong // mends) if mends else rewrites + 1
    return (hallucinations.COMPARED, needed) if needed <= rewrites else (hallucinations.GAVE_UP, rewrites)


@pytest.mark.parametrize("rewrites", [1, 2, 5])
def test_the_loop_gives_what_the_facts_say_for_every_number_of_faults(rewrites):
    cases = list(itertools.product(range(4), range(4)))  # wrong counts, mended by each rewrite
    world = World(lambda number: cases[number][0], lambda number: cases[number][1])
    rows = [passage(number) for number in range(len(cases))]
    checked = hallucinations.check(world.ask, rows, Settings(rewrites=rewrites), as_text=False)
    ends = [by_hand(i, *case, rewrites) for i, case in enumerate(cases)]
    assert [(one.outcome, one.rewrites) for one in checked] == ends
    assert [one.row for one in checked] == rows
    for (wrong, mends), one in zip(cases, checked, strict=True):
        left = [max(wrong - mends * n, 0) for n in range(one.rewrites + 1)]
        assert [len(statements) for statements in one.lists] == left
    for one in hallucinations.comparisons(checked):
        facts = [number for number, _ in CLAIM.findall(one["messages"][0]["content"])]
        better, worse = ([number for number, _ in CLAIM.findall(text)] for text in one["responses"])
        assert one["ranks"] == [0, 1] and better == facts
        wrong, mends = cases[one["id"]]
        assert sum(a != b for a, b in zip(worse, facts, strict=True)) == wrong == len(one["hallucinations"])
        assert one["rewrites"] == -(-wrong // mends)
    counts = hallucinations.tally(checked, rewrites)
    assert sum(counts.values()) == len(cases)
    assert counts["no_hallucination"] == 4
    assert counts["gave_up"] == sum(end == hallucinations.GAVE_UP for end, _ in ends)
    assert [counts[f"compared_after_{n}"] for n in range(1, rewrites + 1)] == [
        sum(end == (hallucinations.COMPARED, n) for end in ends) for n in range(1, rewrites + 1)
    ]


def test_five_rewrites_and_no_more():
    world = World(lambda number: 1, lambda number: 0)
    (one,) = hallucinations.check(world.ask, [passage(3)], Settings(), as_text=False)
    assert (one.outcome, one.rewrites, len(one.lists)) == (hallucinations.GAVE_UP, 5, 6)
    assert [hallucinations.REWRITE in batch[0].prompt[0][1] for batch in world.batches] == [False, *[False, True] * 5,
                                                                                            False]  # fmt: skip


def test_prompts_go_step_by_step_together_and_are_as_if_each_were_alone():
    rows = [passage(number) for number in range(12)]
    world = World(lambda number: number % 4, lambda number: number % 3, seed=1)
    together = hallucinations.check(world.ask, rows, Settings(), as_text=False)
    assert [len(batch) for batch in world.batches[:3]] == [12, 12, 9]
    for batch in world.batches[1:]:
        assert len({hallucinations.LIST in call.prompt[0][1] for call in batch}) == 1
    assert len(world.batches) == 2 + 2 * 5  # as many as the longest alone
    shuffled = random.Random(0).sample(rows, 12)
    again = hallucinations.check(world.ask, shuffled, Settings(), as_text=False)
    assert sorted(again, key=lambda one: one.row["id"]) == together
    alone = [hallucinations.check(world.ask, [row], Settings(), as_text=False)[0] for row in rows]
    assert alone == together
    assert hallucinations.check(world.ask, [], Settings(), as_text=False) == []


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("NONE", ()),
        (" **NONE**.\n", ()),
        ("NONE\nThe passage says all of it.", ()),
        ("1. The box is red\n\n2) It holds 3 balls", ("The box is red", "It holds 3 balls")),
        ("1. 3 balls", ("3 balls",)),
        ("", None),
        ("None", None),  # another word than what was asked for
        ("There are NONE.", None),
        ("NONE\n1. The box is red", None),
        ("1. NONE", None),
        ("1. The box is red\n2. none.", None),
        ("The hallucinations are:\n1. The box is red", None),
        ("1. The box is red\nand that is all", None),
        ("- The box is red", None),
        ("2. The box is red", None),
        ("1. The box is red\n1. It holds 3 balls", None),
        ("1.", None),
        ("1.5 balls", None),
    ],
)
def test_lists_are_read_strictly(text, wanted):
    assert hallucinations.listed(text) == wanted


def scripted(*answers):
    """Gives these outputs, one at each step."""
    steps = iter(answers)
    return lambda calls: [(i, next(steps)) for i, _ in enumerate(calls)]


def told(text, finish="stop"):
    return Generated(text, finish, 0.0)


@pytest.mark.parametrize(
    ("answers", "outcome", "versions", "answer"),
    [
        ([TooLong(9, 8)], "too_long", (), ""),
        ([told("A"), TooLong(9, 8)], "too_long", ("A",), ""),
        ([told("A"), told("1. a"), TooLong(9, 8)], "too_long", ("A",), ""),
        ([told(" \n")], "empty", (), " \n"),
        ([told("A", "length")], "cut_off", (), "A"),
        ([told("A"), told("Fine.")], "outside_the_format", ("A",), "Fine."),
        ([told("A"), told("1. a"), told("")], "empty", ("A",), ""),
        ([told("A"), told("1. a"), told("B", "length")], "cut_off", ("A",), "B"),
        ([told("A"), told("1. a"), told("A ")], "repeated", ("A",), "A "),
        # A version that was there before is no rewrite, whatever the lister would say of it now.
        ([told("A"), told("1. a"), told("B"), told("1. b"), told("A")], "repeated", ("A", "B"), "A"),
        ([told("A"), told("1. a"), told("B"), told("?")], "outside_the_format", ("A", "B"), "?"),
        ([told("A"), told("1. a\n2. b", "length"), told("B"), told("NONE")], "compared", ("A", "B"), ""),
    ],
)
def test_what_is_no_answer_is_counted_and_never_guessed(answers, outcome, versions, answer):
    (one,) = hallucinations.check(scripted(*answers), [{"prompt": "P"}], Settings(), as_text=True)
    assert (one.outcome, one.versions, one.answer) == (outcome, versions, answer)
    assert len(hallucinations.comparisons([one])) == (outcome == "compared")
    assert {name for name, count in hallucinations.tally([one]).items() if count} == {
        "compared_after_1" if outcome == "compared" else outcome
    }


def test_comparisons_are_read_by_the_reward_stage_and_do_not_differ_in_white_space():
    asked = []

    def ask(calls):
        asked.append(calls[0])
        return answers(calls)

    answers = scripted(told(" Old one.\n"), told("1. old"), told("New one."), told("NONE"))
    checked = hallucinations.check(ask, [{"prompt": "P:", "held_out": True}], Settings(), as_text=True)
    (row,) = hallucinations.comparisons(checked)
    assert row == {
        "prompt": "P:", "held_out": True, "responses": [" New one.", " Old one."], "ranks": [0, 1], "rewrites": 1,
        "hallucinations": ["old"],
    }  # fmt: skip
    bytes_ = tokenizer.from_bytes()
    ranked = examples.Encoder(bytes_, None, 64, 32).ranked(row, 2)
    assert [bytes_.decode(one[:-1]) for one in ranked.answers] == row["responses"] and ranked.ranks == [0, 1]
    assert asked[0].prompt == "P:" and asked[0].stop == ()  # the prompt is continued as it is
    for call in asked[1:]:
        assert call.prompt.endswith("\n\n[Answer]\n") and call.stop == ("\n[",)
        assert "[User]\nP:\n\n[Assistant]\n" in call.prompt
    assert "[Statements]\n1. old\n\n" in asked[2].prompt


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, 'needs "messages", or "prompt"'),
        ({"prompt": " "}, 'needs "messages", or "prompt"'),
        ({"messages": "P"}, "no list"),
        ({"messages": []}, "no messages"),
        ({"messages": [{"role": "user", "content": "P"}, {"role": "assistant", "content": "A"}]}, "nothing to answer"),
    ],
)
def test_prompts_that_are_none(row, words):
    with pytest.raises(UserError, match=words):
        hallucinations.check(scripted(), [row], Settings(), as_text=False)
    with pytest.raises(ValueError, match="at least one rewrite"):
        Settings(rewrites=0)


def test_open_domain_flags_with_a_better_response_are_comparisons():
    messages = [{"role": "user", "content": "Who?"}]
    rows = [
        {"messages": messages, "response": "Ada", "flagged": True, "better": "Bob"},
        {"prompt": "Who? ", "response": "Ada", "flagged": True},
        {"prompt": "Who? ", "response": "Ada", "flagged": False, "better": "Bob"},
        {"prompt": "Who? ", "response": "Cy", "flagged": True, "better": "Bob", "held_out": True},
    ]
    found, counts = hallucinations.open_domain(rows)
    assert found == [
        {"messages": messages, "responses": ["Bob", "Ada"], "ranks": [0, 1]},
        {"prompt": "Who? ", "responses": ["Bob", "Cy"], "ranks": [0, 1], "held_out": True},
    ]
    assert counts == {"compared": 2, "not_flagged": 1, "no_better": 1}
    for wrong, words in (
        ({"flagged": True, "response": " "}, 'row 1: it needs "response"'),
        ({"flagged": 1, "response": "Ada"}, '"flagged", true or false'),
        ({"flagged": True, "response": "Ada", "better": "Ada "}, "another than"),
        ({"flagged": True, "response": "Ada", "better": ""}, "another than"),
    ):
        with pytest.raises(UserError, match=words):
            hallucinations.open_domain([{"prompt": "Who?"} | wrong])
    with pytest.raises(UserError, match="row 1: a prompt needs"):
        hallucinations.open_domain([{"flagged": True, "response": "Ada"}])


def test_a_real_decoder_goes_through_the_loop():
    """One of random parameters: it lists nothing, and what it writes is counted."""
    config = model.Config(**{**SHAPES["llama"], "vocab_size": 257, "max_seq_len": 1024})
    engine = Engine(config, perturbed(config), tokenizer=tokenizer.from_bytes(), rows=2)
    ask = Asker(engine, None, batch_size=2).ask
    rows = [{"prompt": "The box holds 3 balls."}, {"prompt": "x" * 1020}]
    checked = hallucinations.check(ask, rows, Settings(max_tokens=8, list_tokens=8), as_text=True)
    assert [one.outcome for one in checked] == ["cut_off", "too_long"]
    with pytest.raises(UserError, match="no chat template"):
        hallucinations.check(ask, [passage(0)], Settings(), as_text=False)
