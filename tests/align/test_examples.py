"""Demonstrations, ranked answers and prompts as tokens: what is learnt of them, and what is refused in which words."""

import dataclasses
import json

import numpy as np
import pytest

from gpt4jax.align import examples, reward
from gpt4jax.data import tokenizer
from gpt4jax.errors import UserError
from gpt4jax.inference import chat

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
BYTES = tokenizer.from_bytes()
END = BYTES.end


@pytest.fixture(scope="module")
def encoder():
    return examples.Encoder(BYTES, chat.Template(TEMPLATE), 200, 30)


def said(*turns):
    roles = ("system", "user", "assistant", "user", "assistant")
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, turns, strict=False)]}


def text_of(tokens):
    return "".join("|" if token == END else chr(token) for token in tokens)


def test_all_answers_of_a_conversation_are_learnt_and_nothing_else(encoder):
    tokens, learnt = encoder.demonstration(said("Be brief.", "2+2?", "4", "And 3?", "5"))
    assert text_of(tokens) == "<system>Be brief.|\n<user>2+2?|\n<assistant>4|\n<user>And 3?|\n<assistant>5|"
    shown = "".join(one if yes else "." for one, yes in zip(text_of(tokens), learnt, strict=True))
    assert shown.replace(".", "") == "4|5|"
    line = encoder.ranked({**said("s", "u"), "responses": ["\na", "b "], "ranks": [0, 1]}, most=2)
    assert [text_of(one) for one in line.answers] == ["\na|", "b |"]
    plain = encoder.demonstration({"prompt": "ab", "response": "cd"})
    assert text_of(plain.tokens) == "|abcd|" and plain.learnt == [False] * 3 + [True] * 3


def test_packed_rows_have_every_learnt_token_once_as_a_target_in_its_own_segment(encoder):
    rng = np.random.default_rng(0)
    rows = [{"prompt": "p" * rng.integers(1, 9), "response": "r" * rng.integers(0, 9) + str(i)} for i in range(40)]
    some = [encoder.demonstration(row) for row in rows]
    packed = examples.PackedDemonstrations(some, BYTES.token_bytes, 32)
    found = []
    for index in range(len(packed)):
        row = packed[index]
        for segment in range(1, row["segment_ids"].max() + 1):
            here = row["segment_ids"] == segment
            learnt = here & (row["targets"] >= 0)
            assert row["positions"][here].tolist() == list(range(here.sum()))
            whole = [*row["tokens"][here], row["targets"][here][-1]]
            found.append((whole, row["targets"][learnt].tolist()))
            assert (row["bytes"] == np.where(row["targets"] >= 0, BYTES.token_bytes[row["targets"]], 0)).all()
    wanted = [(one.tokens, [t for t, yes in zip(one.tokens, one.learnt, strict=True) if yes]) for one in some]
    assert sorted(found) == sorted(wanted)
    assert len(packed) < 40 and sum(len(one.tokens) - 1 for one in some) > 0.8 * 32 * len(packed)


def test_ranked_answers_follow_one_prompt(encoder):
    one = encoder.ranked({**said("s", "u"), "responses": ["good", "bad", "worse"], "ranks": [0, 1, 1]}, most=4)
    assert text_of(one.prompt) == "<system>s|\n<user>u|\n<assistant>" and text_of(one.answers[1]) == "bad|"
    row = examples.ranked_row(one, 4, 60)
    assert text_of(row["tokens"][0, : row["start"][0] + row["length"][0]]).endswith("<assistant>good|")
    assert row["length"].tolist() == [5, 4, 6, 0] and row["ranks"].tolist() == [0, 1, 1, reward.ABSENT]
    pairs = examples.pair_rows(one, 60)  # ties say nothing
    both = [
        [
            text_of(row["tokens"][i, start : start + length])
            for i, (start, length) in enumerate(zip(row["start"], row["length"], strict=True))
        ]
        for row in pairs
    ]
    assert both == [["good|", "bad|"], ["good|", "worse|"]]


def test_a_prompt_is_held_out_with_all_that_is_said_of_it():
    rows = [{"prompt": f"p{i % 50}", "response": str(i)} for i in range(200)]
    train, held = examples.split(rows, 0.3)
    sides = [{row["prompt"] for row in side} for side in (train, held)]
    assert not sides[0] & sides[1] and len(train) + len(held) == 200
    assert 5 < len(sides[1]) < 25
    assert examples.split(list(reversed(rows)), 0.3)[1] == list(reversed(held))
    more = examples.split(rows, 0.6)[1]
    assert all(row in more for row in held)
    chat_key = examples.prompt_key(said("s", "u", "an answer"))
    assert chat_key == examples.prompt_key(said("s", "u")) != examples.prompt_key(said("s", "v"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a"}, 'row 2: there is no text "response"'),
        ({"response": "a"}, 'row 2: there is no text "prompt"'),
        (said("s", "u"), "none of the assistant's"),
        (said("s", "u", " "), "a response is empty"),
        ({"messages": "hello"}, "no list"),
        ({"prompt": "a", "response": "b" * 30}, r"row 2: a response has 31 tokens with its end; max_response is 30"),
        ({"prompt": "a" * 199, "response": "b"}, r"a prompt of 202 tokens and 0 more exceed data.seq_len 200"),
    ],
)
def test_demonstrations_that_cannot_be_learnt_from(encoder, row, words):
    rows = [{"prompt": "a", "response": "b"}, row]
    with pytest.raises(UserError, match=words):
        examples.encode_all(rows, encoder.demonstration, "error", "demonstrations")


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([0, 1], "of the same length"),
        ([0, 0, 0], "all 3 responses are ranked alike"),
        ([0, 1.5, 2], "must be whole numbers"),
        ([0, -1, 2], "at least 0"),
    ],
)
def test_rankings_that_say_nothing(encoder, ranks, words):
    with pytest.raises(UserError, match=words):
        encoder.ranked({"prompt": "p", "responses": ["a", "b", "c"], "ranks": ranks}, most=4)
    with pytest.raises(UserError, match=r"1 ranked response\(s\): a comparison needs two"):
        encoder.ranked({"prompt": "p", "responses": ["a"], "ranks": [0]}, most=4)


def test_what_does_not_fit_is_left_out_if_asked_and_counted(encoder):
    rows = [{"prompt": "a", "response": "b" * n} for n in (3, 40, 5)]
    kept = examples.encode_all(rows, encoder.demonstration, "drop", "demonstrations")
    assert len(kept.examples) == 2 and kept.dropped == 1
    with pytest.raises(UserError, match="of 1 rows none is left"):
        examples.encode_all(rows[1:2], encoder.demonstration, "drop", "demonstrations")


def test_templates_that_give_no_answer_to_learn(encoder):
    bare = examples.Encoder(BYTES, None, 200, 30)
    with pytest.raises(UserError, match=r"no chat template .* --config.chat_template=FILE"):
        bare.prompt(said("s", "u"))
    endless = examples.Encoder(BYTES, chat.Template(TEMPLATE.replace("<|endoftext|>", "")), 200, 30)
    with pytest.raises(UserError, match="no token behind an answer that ends it"):
        endless.demonstration(said("s", "u", "a"))
    other = TEMPLATE.replace("<assistant>{% endif", "<assistant><think>{% endif")
    with pytest.raises(UserError, match="writes a conversation otherwise once it is answered"):
        examples.Encoder(BYTES, chat.Template(other), 200, 30).demonstration(said("s", "u", "a"))


def test_files_that_are_none(tmp_path):
    path = tmp_path / "rows.jsonl"
    for text, words in [("", "is empty"), ("{}\n[1]\n", "line 2: .* is no object"), ("{\n", "line 1: no JSON")]:
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            examples.read(path)
    with pytest.raises(UserError, match="there is no file"):
        examples.read(tmp_path / "other.jsonl")
    path.write_text(json.dumps({"prompt": "é"}) + "\n\n")
    assert examples.read(path) == [{"prompt": "é"}]


def test_the_language_of_a_few_characters():
    tok = tokenizer.get("characters:abc", None, tuple, "")
    assert (tok.encode("cab"), tok.end, tok.vocab_size, tok.decode([2, 0])) == ([2, 0, 1], 3, 4, "ca")
    with pytest.raises(UserError, match="'x' is none of the characters 'abc'"):
        tok.encode("axb")
    with pytest.raises(UserError, match="there once"):
        tokenizer.get("characters:aba", None, tuple, "")
    from gpt4jax.data import foreign

    again = foreign.from_json(tok.json(), tok.roles, tok.stops, add_bos=None, template=None, where="here")
    assert again.encode("cab") == [2, 0, 1] and again.end == 3 and again.pieces == tok.pieces
    assert dataclasses.replace(again, chat_template="x").chat_template == "x"
