"""Both rules beside plain string search, and on texts that were changed."""

import random
import string

import pytest

from gpt4jax.evals import contamination
from tests.bench import contamination as bench


def words(rng: random.Random, count: int) -> str:
    return " ".join("".join(rng.choices(string.ascii_letters, k=rng.randint(2, 9))) for _ in range(count))


def test_the_reports_rule_is_a_search_for_its_probes_in_the_stripped_text(monkeypatch):
    """Documents longer and shorter than a batch, probes of all lengths, many of them in no document."""
    monkeypatch.setattr(contamination, "_BUFFER", 700)
    contamination._powers.cache_clear()
    rng = random.Random(0)
    documents = [(f"d{i}", words(rng, rng.choice([1, 5, 50, 400]))) for i in range(40)]
    examples = {}
    for i in range(120):
        _, text = rng.choice(documents)
        start, size = rng.randrange(len(text)), rng.choice([1, 3, 10, 40, 70, 300])
        piece = text[start : start + size]
        examples[f"e{i}"] = piece if i % 2 else piece + " " + words(rng, 6)
    found = contamination.by_report(examples, documents, seed=3)
    stripped = {name: "".join(c for c in text if c.isalnum()) for name, text in documents}
    drawn = contamination.probes(examples, seed=3)
    expected = {
        name for name, own in drawn.items() if any(probe in text for probe in own for text in stripped.values())
    }
    assert set(found) == expected and 40 < len(expected) < 115
    for name, match in found.items():
        assert any(probe in stripped[match.document] for probe in drawn[name])
    contamination._powers.cache_clear()


def test_probes_are_three_runs_of_fifty_or_all_of_a_shorter_text():
    text = "".join(random.Random(1).choices(string.ascii_letters + string.digits, k=200))
    own = contamination.probes({"a": f"{text[:90]} -- {text[90:]}!"})["a"]
    assert len(own) == 3 and all(len(probe) == 50 and probe in text for probe in own)
    assert contamination.probes({"a": text}) != contamination.probes({"b": text})  # drawn anew for each
    assert contamination.probes({"x": "y", "a": text})["a"] == contamination.probes({"a": text})["a"]
    assert contamination.probes({"short": "A b, 7 é!"}) == {"short": ("Ab7é",)}
    assert contamination.probes({"none": " -- "}) == {"none": ()}


def test_a_match_never_crosses_documents():
    text = "".join(random.Random(2).choices(string.ascii_lowercase, k=50))
    halves = [("one", text[:25]), ("two", text[25:])]
    assert contamination.by_report({"a": text}, halves) == {}
    assert contamination.by_report({"a": text}, [("both", text[:25] + "\n--" + text[25:])])["a"].document == "both"


@pytest.mark.parametrize("form", ["verbatim", "re-wrapped", "re-cased", "diluted 10x"])
def test_overlap_survives_what_the_reports_rule_does_not(form):
    rng = random.Random(3)
    vocabulary = words(rng, 3000).split()
    text = lambda count: " ".join(rng.choices(vocabulary, k=count))  # noqa: E731
    passages = [(f"p{i}", text(120)) for i in range(200)]
    questions = [(f"q{i}", text(40)) for i in range(80)]
    documents = bench.inject(questions[:40], passages, form, seed=0)
    injected = {name for name, _ in questions[:40]}
    ours, theirs = (
        set(rule(dict(questions), documents)) for rule in (contamination.by_overlap, contamination.by_report)
    )
    assert ours == injected
    if form in ("verbatim", "re-wrapped"):
        assert theirs == injected
    else:  # a piece of eight words may be fifty characters long
        assert len(theirs) <= {"re-cased": 0, "diluted 10x": 5}[form]


def test_what_several_examples_share_says_nothing_unless_it_is_nearly_all():
    rng = random.Random(4)
    common = words(rng, 30)
    documents = [("d", f"{words(rng, 50)} {common} {words(rng, 50)}")]
    begun_alike = {f"e{i}": f"{common} {words(rng, 30)}" for i in range(5)}
    assert contamination.by_overlap(begun_alike, documents) == {}
    on_one_passage = {f"e{i}": f"{common} {words(rng, 3)}" for i in range(5)}
    for rule in (contamination.by_report, contamination.by_overlap):
        assert set(rule(on_one_passage, documents)) == set(on_one_passage)


def test_documents_are_read_once_whatever_the_lengths_of_examples():
    rng = random.Random(5)
    examples = {f"e{size}": words(rng, size) for size in (1, 2, 3, 5, 40)}
    documents = [("d", f"{words(rng, 50)} {' '.join(examples.values())}")]
    for rule in (contamination.by_report, contamination.by_overlap):
        assert set(rule(examples, iter(documents))) == set(examples), rule


def test_no_examples_and_no_documents():
    assert contamination.by_report({}, [("d", "text")]) == contamination.by_overlap({}, [("d", "text")]) == {}
    assert contamination.by_report({"a": "text"}, []) == contamination.by_overlap({"a": "text"}, []) == {}
