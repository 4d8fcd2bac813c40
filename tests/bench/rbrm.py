"""Graders and baselines on real human gold: refusals, and comparisons of harm.

    python -m tests.bench.rbrm words       the lexical judge, and saying "refused" always: seconds
    python -m tests.bench.rbrm length      how often the shorter response, or one that refuses, is the better: seconds
    python -m tests.bench.rbrm letters     SmolLM2-135M-Instruct as a zero-shot grader, by letter
    python -m tests.bench.rbrm writing     the same, by what it writes
    python -m tests.bench.rbrm head        a logistic head on its last hidden states, trained on the train prompts
    python -m tests.bench.rbrm reward      a linear reward model on them, by the pairwise loss, beside length

All measure on held-out prompts (`human_scored.held_out`), --limit of them at most, and give 95 % intervals clustered by
prompt. Of a response the first 600 characters are read. "said" leaves out the answers to another question, which the
gold calls refusals too: those whose text is accepted as the answer to another prompt.
"""

import argparse
import functools
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gpt4jax import files, model, weights
from gpt4jax.align import grader, human_scored, reward, rubric, rules, safety_scores
from gpt4jax.align.human_scored import Scored
from gpt4jax.evals import asking, bias_tasks, stats
from gpt4jax.inference import Engine, chat

MODEL = "smollm2-135m-instruct"
CHARACTERS = 600  # of a response that are read
MOST = 9  # responses to a prompt
L2 = 1.0  # of the head: added to the summed loss, for standardized features; chosen beforehand


def gold(limit: int) -> tuple[list[Scored], list[Scored], set[Scored]]:
    """Refusals of train and of held-out prompts, and those that are answers to something else."""
    rows = [row for row in human_scored.distinct(human_scored.load(files.cache_dir())) if row.scale == "refusal"]
    accepted = {row.response for row in rows if not row.score}
    train, held = human_scored.split(rows, lambda row: row.prompt)
    human_scored.check_apart([row.prompt for row in train], [row.prompt for row in held])
    prompts = sorted({row.prompt for row in held})[: limit or None]
    held = [row for row in held if row.prompt in prompts]
    return train, held, {row for row in rows if row.score and row.response in accepted}


def words(estimate: stats.Estimate | None) -> str:
    if estimate is None:
        return "undefined"
    return f"{estimate.mean:.3f} ({estimate.low:.3f}-{estimate.high:.3f})"


def show(name: str, found: Sequence[bool], rows: Sequence[Scored], off: set[Scored]) -> None:
    """A line for all rows and one without what is beside the question."""
    for part, kept in (("all ", [True] * len(rows)), ("said", [row not in off for row in rows])):
        here = [i for i, keep in enumerate(kept) if keep]
        one = safety_scores.detection(
            [found[i] for i in here], [bool(rows[i].score) for i in here], [rows[i].prompt for i in here]
        )
        print(
            f"{name} | {part} {len(here)} rows | F1 {words(one.f1)} | precision {words(one.precision)} | "
            f"recall {words(one.recall)} | accuracy {words(one.accuracy)}", flush=True,
        )  # fmt: skip


def lexical(limit: int) -> None:
    _, rows, off = gold(limit)
    show("always refused", [True] * len(rows), rows, off)
    show("bias_tasks.refuses", [bias_tasks.refuses(row.response) for row in rows], rows, off)
    show("rules.refuses", [rules.refuses(row.response) for row in rows], rows, off)


def reply(row: Scored) -> grader.Reply:
    return grader.Reply(row.response[:CHARACTERS], row.prompt)


def asker() -> tuple[Engine, grader.Ask]:
    """The model; a question that was asked before is not asked again."""
    loaded = weights.load(MODEL)
    assert loaded.tokenizer is not None
    engine = Engine(loaded.config, loaded.params, tokenizer=loaded.tokenizer, rows=8, max_len=2048)
    template = chat.of_model(loaded.chat_template, loaded.tokenizer.roles, MODEL)
    put, known = asking.Asker(engine, template, batch_size=8), {}

    def ask(calls):
        new = [call for call in dict.fromkeys(calls) if call not in known]
        for i, output in put.ask(new):
            known[new[i]] = output
        return ((i, known[call]) for i, call in enumerate(calls))

    return engine, ask


def letters(limit: int) -> None:
    _, rows, off = gold(limit)
    engine, ask = asker()
    for name in ("refused", "refusal_classes"):
        for turns, calibrated in ((0, False), (0, True), (1, False), (1, True)):  # a whole turn first: it has the rest
            started = time.perf_counter(), engine.tokens_scored
            replies = [reply(row) for row in rows]
            grades = grader.by_letter(ask, replies, rubric.load(name), rotations=turns, calibrated=calibrated)
            how = f"{name}, {'all orders' if not turns else 'one order'}{', calibrated' if calibrated else ''}"
            show(how, [grade.cls in rubric.REFUSALS for grade in grades], rows, off)
            seconds, tokens = time.perf_counter() - started[0], engine.tokens_scored - started[1]
            mass = np.mean([grade.mass for grade in grades])
            print(f"  {dict(grader.tally(grades))} mass {mass:.3f} {tokens} tokens {seconds:.0f} s", flush=True)


def writing(limit: int) -> None:
    _, rows, off = gold(limit)
    _, ask = asker()
    for name in ("refused", "refusal_classes", "refusal_style"):
        started = time.perf_counter()
        grades = grader.by_writing(ask, [reply(row) for row in rows], rubric.load(name), max_tokens=12, as_text=False)
        show(f"{name}, written", [grade.cls in rubric.REFUSALS for grade in grades], rows, off)
        print(f"  {dict(grader.tally(grades))} {time.perf_counter() - started:.0f} s")
        print(f"  {[grade.written[0] for grade in grades[:6]]}", flush=True)


def features(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """(B, D): the last hidden state at the end of each prompt and response, in the model's chat format."""
    loaded = weights.load(MODEL)
    tokenizer = loaded.tokenizer
    assert tokenizer is not None
    template = chat.of_model(loaded.chat_template, tokenizer.roles, MODEL)
    texts = []
    for prompt, response in pairs:
        said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response[:CHARACTERS]}]
        texts.append(chat.encode(template, tokenizer, said, add_generation_prompt=False))
    last = jax.jit(
        lambda params, tokens_bt, end_b: jnp.take_along_axis(
            model.features(loaded.config, params, tokens_bt)[0], end_b[:, None, None], axis=1
        )[:, 0]
    )
    found = np.zeros((len(texts), loaded.config.embed_dim), np.float32)
    started, rows = time.perf_counter(), 8
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), rows):
        here = order[start : start + rows]
        length = -(-max(len(texts[i]) for i in here) // 64) * 64
        tokens_bt, end_b = np.zeros((rows, length), np.int32), np.zeros(rows, np.int32)
        for row, i in enumerate(here):
            tokens_bt[row, : len(texts[i])], end_b[row] = texts[i], len(texts[i]) - 1
        found[here] = np.asarray(last(loaded.params, tokens_bt, end_b))[: len(here)]
    print(f"{sum(map(len, texts))} tokens in {time.perf_counter() - started:.0f} s", flush=True)
    return found


def standardized(features_bd: np.ndarray, train: Sequence[int]) -> np.ndarray:
    """By mean and deviation of the rows to train on."""
    return (features_bd - features_bd[train].mean(axis=0)) / (features_bd[train].std(axis=0) + 1e-6)


def minimized(loss: Callable[[jax.Array], jax.Array], size: int, steps: int = 200) -> jax.Array:
    """The minimum of a smooth convex function, from zero, by L-BFGS."""
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def step(carry, _):
        x, state = carry
        value, gradient = value_and_grad(x, state=state)
        updates, state = solver.update(gradient, state, x, value=value, grad=gradient, value_fn=loss)
        return (optax.apply_updates(x, updates), state), value

    x = jnp.zeros(size)
    (x, _), values = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps))((x, solver.init(x)))
    print(f"loss {values[0]:.2f} to {values[-1]:.2f}, {values[-20]:.2f} 20 steps before")
    return x


def head(limit: int) -> None:
    train, rows, off = gold(limit)
    both = [*train, *rows]
    x_bd = standardized(features([(row.prompt, row.response) for row in both]), range(len(train)))
    sign_b = jnp.array([1.0 if row.score else -1.0 for row in train])

    def loss(w: jax.Array) -> jax.Array:
        logit_b = x_bd[: len(train)] @ w[:-1] + w[-1]
        return jnp.sum(jax.nn.softplus(-sign_b * logit_b)) + L2 / 2 * jnp.sum(w[:-1] ** 2)

    w = minimized(loss, x_bd.shape[1] + 1)
    found = np.asarray(x_bd[len(train) :] @ w[:-1] + w[-1]) > 0
    seen = {row.response for row in train}
    show(f"head, {len(train)} rows to train on", found.tolist(), rows, off)
    new = [i for i, row in enumerate(rows) if row.response not in seen]
    show("head, responses never seen", [bool(found[i]) for i in new], [rows[i] for i in new], off)


def compared(limit: int) -> tuple[list[dict], list[dict]]:
    """Comparisons of train and of held-out prompts."""
    rows = human_scored.load(files.cache_dir())
    train, held = human_scored.split(human_scored.comparisons(rows, MOST), lambda one: one["prompt"])
    return train, held[: limit or None]


def show_pairs(name: str, held: Sequence[dict], scores: Sequence[Sequence[float]]) -> None:
    """Accuracy over pairs, and over prompts, each of which counts once."""
    right = [human_scored.right(one, score) for one, score in zip(held, scores, strict=True)]
    clusters = [i for i, values in enumerate(right) for _ in values]
    pairs = stats.mean(np.concatenate(right), clusters)
    prompts = stats.mean([values.mean() for values in right])
    print(
        f"{name} | {len(held)} prompts, {pairs.items} pairs | pairs {words(pairs)} | prompts {words(prompts)}",
        flush=True,
    )


BASELINES: dict[str, Callable[[str], float]] = {
    "the shorter": lambda text: -len(text),
    "refuses (rules.refuses)": lambda text: float(rules.refuses(text)),
}


def length(limit: int) -> None:
    train, held = compared(limit)
    for name, score in BASELINES.items():
        for part, these in (("train", train), ("held out", held)):
            show_pairs(f"{name}, {part}", these, [[score(text) for text in one["responses"]] for one in these])
        for scale in ("harm", "objective"):
            these = [one for one in held if one["scale"] == scale]
            show_pairs(f"{name}, {scale}", these, [[score(text) for text in one["responses"]] for one in these])


def linear_reward(limit: int) -> None:
    train, held = compared(limit)
    both = [*train, *held]
    texts = [(one["prompt"], response) for one in both for response in one["responses"]]
    count = sum(len(one["responses"]) for one in train)
    x_bd = standardized(features(texts), range(count))
    place_pk, ranks_pk = np.zeros((len(both), MOST), int), np.full((len(both), MOST), reward.ABSENT)
    start = 0
    for i, one in enumerate(both):
        size = len(one["ranks"])
        place_pk[i, :size], ranks_pk[i, :size] = np.arange(start, start + size), one["ranks"]
        start += size
    ours = slice(len(train))
    for l2 in (1.0, 10.0, 100.0):

        def loss(w: jax.Array, l2: float) -> jax.Array:
            scores_b = x_bd @ w
            fit = reward.pairwise_loss(scores_b[place_pk[ours]], ranks_pk[ours])
            return len(train) * fit + l2 / 2 * jnp.sum(w**2)

        scores_b = np.asarray(x_bd @ minimized(functools.partial(loss, l2=l2), x_bd.shape[1]))
        for name, these, first in (("train", train, 0), ("held out", held, len(train))):
            scores = [scores_b[place_pk[first + i, : len(one["ranks"])]].tolist() for i, one in enumerate(these)]
            show_pairs(f"linear reward model, L2 {l2:g}, {name}", these, scores)
    for name, score in BASELINES.items():
        show_pairs(f"{name}, held out", held, [[score(text) for text in one["responses"]] for one in held])


PARTS = {
    "words": lexical, "length": length, "letters": letters, "writing": writing, "head": head, "reward": linear_reward
}  # fmt: skip


def main() -> None:
    """Reads the flags and measures one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--limit", type=int, default=0, help="held-out prompts at most (default: all)")
    flags = parser.parse_args()
    PARTS[flags.part](flags.limit)


if __name__ == "__main__":
    main()
