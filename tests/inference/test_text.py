"""Text comes as early as it is certain, and never a part of a stop text."""

import itertools
import random

import pytest

from gpt4jax.inference.text import TextStream


def pieces_of(text: str, rng: random.Random) -> list[bytes]:
    data = text.encode()
    cuts = sorted(rng.sample(range(1, len(data)), min(len(data) - 1, 6))) if len(data) > 1 else []
    return [data[a:b] for a, b in itertools.pairwise([0, *cuts, len(data)])]


def test_any_cut_into_tokens_gives_the_text_up_to_the_stop_that_is_complete_first():
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choice("abé€😀") for _ in range(rng.randint(1, 12)))
        stops = ["".join(rng.choice("abé") for _ in range(rng.randint(1, 3))) for _ in range(rng.randint(0, 2))]
        pieces = pieces_of(text, rng)
        stream = TextStream(pieces, stops)
        out = ""
        for token in range(len(pieces)):
            out += stream.feed(token)
            if stream.stopped:
                break
        out += stream.end()
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        assert out == text[: min(found)[1] if found else len(text)]
        assert stream.stopped == bool(found)


@pytest.mark.parametrize(("stops", "expected"), [([], ["a", "", "é", "b"]), (["éx"], ["a", "", "", "éb"])])
def test_text_is_held_back_no_longer_than_it_must(stops, expected):
    stream = TextStream([b"a", b"\xc3", b"\xa9", b"b"], stops)
    assert [stream.feed(token) for token in range(4)] == expected


def test_what_is_no_utf8_is_replaced():
    stream = TextStream([b"a\xff", b"\xc3"])
    assert [stream.feed(0), stream.feed(1), stream.end()] == ["a\ufffd", "", "\ufffd"]
