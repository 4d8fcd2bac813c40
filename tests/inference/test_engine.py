"""Whatever else runs beside it, a request's result is the same bits; and it is what the plain forward pass says."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.data import tokenizer as tokenizers
from gpt4jax.errors import UserError
from gpt4jax.inference import engine as engines
from gpt4jax.inference.engine import Engine
from gpt4jax.inference.request import Request
from gpt4jax.parallel.mesh import make_mesh
from tests.conftest import SHAPES, apply, perturbed


@pytest.fixture(autouse=True, scope="module")
def short_chunks():
    """Prompts here are short: let them have several chunks, as long ones do."""
    patch = pytest.MonkeyPatch()
    patch.setattr(engines, "CHUNK", 16)
    patch.setattr(engines, "_SHORTEST", 4)
    yield
    patch.undo()


def tiny(name: str, **fields) -> model.Config:
    return model.Config(**SHAPES[name] | {"max_seq_len": 64} | fields)


@pytest.fixture(scope="module", params=list(SHAPES))
def served(request):
    """A decoder of each shape, and an engine of three rows for it."""
    config = tiny(request.param)
    params = perturbed(config)
    return config, params, Engine(config, params, rows=3)


def mixed(count: int, vocab_size: int = 96, seed: int = 0) -> list[Request]:
    """Requests of all lengths and settings; some begin alike."""
    rng = np.random.default_rng(seed)
    common = rng.integers(0, vocab_size, 40).tolist()
    requests = []
    for i in range(count):
        prompt = common[: rng.integers(1, 41)] if i % 3 else rng.integers(0, vocab_size, rng.integers(1, 41)).tolist()
        settings: dict = [
            dict(temperature=0.0), dict(temperature=0.7, top_k=5), dict(top_p=0.8), dict(min_p=0.1),
            dict(repetition_penalty=3.0), dict(temperature=1.3, top_k=20, top_p=0.9, min_p=0.01),
        ][i % 6]  # fmt: skip
        score = dict(score_from=max(1, len(prompt) // 2)) if i % 4 == 0 and len(prompt) > 1 else {}
        requests.append(
            Request(prompt, int(rng.integers(1, 20)), seed=i, top_logprobs=3 * (i % 5 == 0), **settings, **score)
        )
    return requests


def assert_same(results, others):
    for ours, theirs in zip(results, others, strict=True):
        assert ours.tokens == theirs.tokens and ours.finish == theirs.finish
        assert ours.logprobs == theirs.logprobs and ours.top_logprobs == theirs.top_logprobs
        assert ours.prompt_logprobs.tobytes() == theirs.prompt_logprobs.tobytes()
        assert ours.prompt_greedy.tobytes() == theirs.prompt_greedy.tobytes()


def uncached(config, params, row):
    """Logits of every position by the plain forward pass, padded to one shape."""
    return np.asarray(apply(config, params, jnp.asarray([[*row, *[0] * (config.max_seq_len - len(row))]])))[0]


def test_cached_greedy_equals_uncached_argmax(served):
    config, params, engine = served
    requests = [Request(list(range(5, 5 + n)), 64 - n, temperature=0.0) for n in (1, 2, 7, 16, 17, 18, 33)]
    near = 0
    for request, result in zip(requests, engine.generate(requests), strict=True):
        n = len(request.prompt)
        logits = uncached(config, params, [*request.prompt, *result.tokens])[n - 1 : 63]
        best = np.sort(logits, -1)
        close = best[:, -1] - best[:, -2] < 1e-4
        assert ((logits.argmax(-1) == result.tokens) | close).all() and result.finish == "length"
        near += close.sum()
        logprobs = np.asarray(jax.nn.log_softmax(logits))[np.arange(64 - n), list(result.tokens)]
        np.testing.assert_allclose(result.logprobs, logprobs, atol=2e-4)
    assert near <= 2


def test_the_bits_are_the_same_alone_in_any_company_in_any_order_and_with_a_kept_beginning(served):
    config, params, engine = served
    requests = mixed(24)
    together = engine.generate(requests)
    assert len({result.tokens for result in together}) > 15
    assert len(engine._prefixes._blocks) > 3
    assert_same(together, engine.generate(requests[::-1])[::-1])
    cold = Engine(config, params, rows=3, prefix_bytes=0)
    assert_same(together, [cold.generate([request])[0] for request in requests])


def test_on_eight_devices_the_bits_are_the_same():
    config = tiny("llama")
    params = perturbed(config)
    requests = mixed(24)
    one = Engine(config, params, rows=3).generate(requests)
    many = Engine(config, params, rows=3, mesh=make_mesh({"data": 8, "fsdp": 1, "tensor": 1}))
    assert_same(one, many.generate(requests))
    assert_same(one[:5], many.generate(requests[:5]))


def test_an_induction_layer_keeps_its_tokens_beside_keys_and_values():
    """Prompts of few different tokens, which repeat."""
    config = tiny("llama", attention=("induction", "dense"))
    params = perturbed(config)
    engine = Engine(config, params, rows=3)
    requests = mixed(12, vocab_size=6)
    together = engine.generate(requests)
    assert engine._prefixes._blocks
    assert_same(together, engine.generate(requests[::-1])[::-1])
    cold = Engine(config, params, rows=3, mesh=make_mesh({"data": 8, "fsdp": 1, "tensor": 1}), prefix_bytes=0)
    assert_same(together, cold.generate(requests))
    for request, result in zip(requests, together, strict=True):
        logits = uncached(config, params, [*request.prompt, *result.tokens])
        drawn = np.arange(len(result.tokens)) + len(request.prompt) - 1
        logprobs = np.asarray(jax.nn.log_softmax(logits))[drawn, list(result.tokens)]
        np.testing.assert_allclose(result.logprobs, logprobs, atol=2e-4)


@pytest.mark.parametrize("first", ["dense", "induction"])
def test_matrices_over_devices_give_the_same_up_to_rounding(first):
    config = tiny("llama", attention=(first, "dense"))
    params = perturbed(config)
    prompts = [(list(range(1, 25)), list(range(10, 25))), ([1], [2, 3])]
    one = Engine(config, params, rows=2).loglikelihood(prompts)
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    many = Engine(config, params, rows=2, mesh=mesh).loglikelihood(prompts)
    np.testing.assert_allclose([x for x, _ in one], [x for x, _ in many], rtol=1e-5)


def test_loglikelihood_is_that_of_the_plain_forward_pass(served):
    config, params, engine = served
    rng = np.random.default_rng(1)
    pairs = [(rng.integers(0, 96, a).tolist(), rng.integers(0, 96, b).tolist()) for a, b in ((1, 1), (5, 20), (40, 3))]
    greedy = engine.generate([Request(pairs[1][0], 5, temperature=0.0)])[0].tokens
    pairs.append((pairs[1][0], list(greedy)))
    for (before, after), (total, is_greedy) in zip(pairs, engine.loglikelihood(pairs), strict=True):
        logprobs = np.asarray(jax.nn.log_softmax(uncached(config, params, [*before, *after])))
        each = logprobs[np.arange(len(before) - 1, len(before) + len(after) - 1), after]
        assert total == pytest.approx(each.sum(), abs=1e-3)
        assert is_greedy == (after == list(greedy))


@pytest.mark.parametrize("max_len", [64, 39])
def test_no_program_is_compiled_after_the_warm_up(served, max_len):
    config, params, engine = served
    if max_len != engine.max_len:
        engine = Engine(config, params, rows=3, max_len=max_len)
    engine.warm_up()
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if name == "/jax/core/compile/backend_compile_duration" else None
    )
    jax.jit(lambda x: x + 41)(1)
    assert len(compiled) == 1
    engine.generate(r for r in mixed(200, seed=5) if len(r.prompt) + r.max_tokens <= max_len)
    assert len(compiled) == 1


def test_consumers_do_not_take_each_others_tokens(served):
    _, _, engine = served
    requests = [Request([i + 1, 2, 3], 12, seed=i) for i in range(4)]
    expected = [result.tokens for result in engine.generate(requests)]
    submitted = engine.submit(requests[0])
    one, two = engine.stream(requests[1]), engine.stream(requests[2])
    told: tuple[list[int], list[int]] = ([], [])
    for events in itertools.zip_longest(one, two):
        for event, tokens in zip(events, told, strict=True):
            tokens += [event.token] if event is not None and event.token is not None else []
        if len(told[0]) == 5:
            assert engine.generate([requests[3]])[0].tokens == expected[3]
    assert [tuple(tokens) for tokens in told] == expected[1:3]
    assert tuple(event.token for event in engine.poll(submitted)) == expected[0]
    assert engine.poll(submitted) == [] and not engine._events


def test_a_request_that_cannot_be_leaves_nothing_behind(served):
    _, _, engine = served
    with pytest.raises(UserError, match="exceed"):
        engine.generate([Request([1], 5), Request([1], 64)])
    events = engine.generate([Request([1], 3)] * 2)
    assert len(events) == 2 and not engine._waiting and not engine._events


def test_the_oldest_prompt_is_read_first():
    config = tiny("gpt")
    engine = Engine(config, perturbed(config), rows=3, prefix_bytes=0)
    short = [engine.submit(Request([1, 2], 2, seed=i)) for i in range(2)]
    long = engine.submit(Request(list(range(50)), 2))
    short += [engine.submit(Request([1, 2], 2, seed=i)) for i in range(30)]
    order = []
    while len(order) < 33:
        engine.tick()
        order += [number for number in (*short, long) if any(event.finish for event in engine.poll(number))]
    assert order.index(long) < 12


def test_a_common_beginning_is_read_once_even_by_prompts_that_come_together(monkeypatch):
    config = tiny("llama")
    engine = Engine(config, perturbed(config), rows=3)
    read = []
    whole = engine._pool.read
    monkeypatch.setattr(engine._pool, "read", lambda chunks, size: read.append(size) or whole(chunks, size))
    engine.generate([Request([*range(40), i], 2) for i in range(3)])
    assert sorted(read) == [8, 8, 8, 16, 16]


def test_seeds_limits_and_streams(served):
    _, _, engine = served
    run = lambda **options: engine.generate([Request([1, 2], 20, **options)])[0].tokens  # noqa: E731
    assert run(seed=1) == run(seed=1) != run(seed=2)
    assert run(seed=1, top_k=1) == run(temperature=0.0) == run(seed=1, top_p=1e-6) == run(seed=1, min_p=1.0)
    whole = run(seed=3)
    assert run(seed=3, stop_ids=frozenset([whole[5]])) == whole[: whole.index(whole[5])]
    stream = engine.stream(Request([1, 2], 30, seed=3))
    told = (event.token for event in stream if event.token is not None)
    assert tuple(itertools.islice(told, 20)) == whole
    stream.close()
    assert engine.generate([Request([1, 2], 20, seed=3)])[0].tokens == whole
    assert all(slot is None for slot in engine._slots)
    with pytest.raises(UserError, match="2 tokens and 63 more exceed the model's max_seq_len 64"):
        engine.submit(Request([1, 2], 63))
    with pytest.raises(UserError, match="the token 96; ids lie in"):
        engine.submit(Request([1, 96], 5))
    with pytest.raises(UserError, match="need a tokenizer"):
        engine.submit(Request([1], 5, stop=["x"]))


def test_top_logprobs_are_the_likeliest(served):
    config, params, engine = served
    result = engine.generate([Request([3, 4, 5], 4, top_logprobs=4, seed=1)])[0]
    logprobs = np.asarray(jax.nn.log_softmax(uncached(config, params, [3, 4, 5, *result.tokens])))
    for i, told in enumerate(result.top_logprobs):
        best = np.argsort(-logprobs[2 + i])[:4]
        assert [token for token, _ in told] == best.tolist()
        np.testing.assert_allclose([value for _, value in told], logprobs[2 + i, best], atol=2e-4)


def test_a_penalty_keeps_greedy_choice_from_repeating(served):
    _, _, engine = served
    plain, never = engine.generate(
        [Request([7, 8], 40, temperature=0.0), Request([7, 8], 40, temperature=0.0, repetition_penalty=1e3)]
    )
    assert len(set(plain.tokens)) < 40 and len({7, 8, *never.tokens}) == 42


@pytest.mark.parametrize(("shape", "weights"), [("llama", "bfloat16"), ("gpt", "int8")])
def test_narrow_weights_are_those_rounded_by_hand(shape, weights):
    config = tiny(shape)
    params = perturbed(config)

    def rounded(name, array):
        array = np.asarray(array, np.float32)
        if array.ndim == 1 or "norm" in name or "bias" in name or name == "position_td":
            return array
        if weights == "bfloat16":
            return np.asarray(array.astype(jnp.bfloat16), np.float32)
        inputs = {"token_vd": (1,), "unembed_vd": (1,), "out_nhd": (1, 2)}.get(name, (1,))
        scale = np.abs(array).max(axis=inputs, keepdims=True) / 127
        return np.round(array / scale) * scale

    by_hand = {group: {n: rounded(n, a) for n, a in leaves.items()} for group, leaves in params.items()}
    pairs = [(list(range(1, 20)), list(range(20, 50)))]
    exact, narrow, expected = (
        Engine(config, p, rows=2, weights=w).loglikelihood(pairs)[0][0]
        for p, w in ((params, ""), (params, weights), (by_hand, ""))
    )
    assert narrow == pytest.approx(expected, abs=2e-3)
    assert abs(narrow - exact) > 4e-3


def test_text_stop_texts_and_ids_that_the_tokenizer_lacks():
    config = tiny("gpt", vocab_size=300)
    tokenizer = tokenizers.from_bytes()
    engine = Engine(config, perturbed(config), tokenizer=tokenizer, rows=2)
    request = dict(prompt=[256, *b"hello"], max_tokens=40, temperature=3.0, seed=4)
    whole = engine.generate([Request(**request, stop_ids=frozenset())])[0]
    assert max(whole.tokens) <= 256 and whole.text == tokenizer.decode(whole.tokens)
    printable = [i for i, c in enumerate(whole.text) if c.isprintable() and c != "\ufffd"]
    stop = whole.text[printable[5]]
    events = list(engine.stream(Request(**request, stop_ids=frozenset(), stop=["never", stop])))
    assert "".join(event.text for event in events) == whole.text[: whole.text.index(stop)]
    assert [event.finish for event in events] == [""] * (len(events) - 1) + ["stop"]
    # A special token has no text to be found in: as a stop text it is the token. Here another bears that name.
    named = dataclasses.replace(tokenizer, special={**tokenizer.special, "<|call|>": whole.tokens[7]})
    engine = Engine(config, perturbed(config), tokenizer=named, rows=2)
    short = engine.generate([Request(**request, stop_ids=frozenset(), stop=["<|call|>"])])[0]
    assert short.tokens == whole.tokens[: whole.tokens.index(whole.tokens[7])] and short.finish == "stop"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"prompt": []}, "no tokens"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": 2.5}, "max_tokens is 2.5"),
        ({"prompt": "ab"}, "prompt is a text"),
        ({"prompt": [1.5, 2]}, "whole numbers"),
        ({"prompt": [[1, 2], [3, 4]]}, "whole numbers"),
        ({"stop": "ab"}, "stop is a text"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 1e-38}, "temperature is 1e-38"),
        ({"top_k": 2**31}, "top_k is"),
        ({"top_p": 0}, "top_p is 0"),
        ({"min_p": 2}, "min_p is 2"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"repetition_penalty": 1e-44}, "repetition_penalty is"),
        ({"seed": 2**32}, "seed is"),
        ({"top_logprobs": 21}, "from 0 to 20"),
        ({"temperature": 0, "top_k": 3}, "nothing for top_k to cut"),
        ({"stop": [""]}, "stop text is empty"),
        ({"score_from": 0}, "follows nothing"),
        ({"score_from": 3}, "below the prompt's 3 tokens"),
    ],
)
def test_requests_that_cannot_be_say_why(bad, words):
    with pytest.raises(UserError, match=words):
        Request(**{"prompt": [1, 2, 3]} | bad)
