"""Graders and baselines on real human gold: refusals, and comparisons of harm.

    python -m tests.bench.rbrm words       the lexical judge, and saying "refused" always: seconds
    python -m tests.bench.rbrm length      how often the shorter response, or one that refuses, is the better: seconds
    python -m tests.bench.rbrm letters     SmolLM2-135M-Instruct as a zero-shot grader, by letter
    python -m tests.bench.rbrm writing     the same, by what it writes
    python -m tests.bench.rbrm head        a logistic head on its last hidden states, trained on train prompts
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
from gpt4jax.align import detection, grader, human_scored, reward, rubric, rules
from gpt4jax.align.human_scored import Scored
from gpt4jax.evals import asking, bias_tasks, stats
from gpt4jax.inference import Engine, chat

MODEL = "smollm2-135m-instruct"
CHARACTERS = 600  # of a response that are read
MOST = 9  # responses to a prompt
L2 = (1.0, 10.0, 100.0, 1000.0)  # of heads: for standardized features, beside the summed loss
FOLDS = 5  # of train prompts, by which features and L2 are chosen


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
        one = detection.detection(
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
    loaded, template = model_and_template()
    engine = Engine(loaded.config, loaded.params, tokenizer=loaded.tokenizer, rows=8, max_len=2048)
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


def hidden(texts: Sequence[tuple[Sequence[int], int]]) -> dict[str, np.ndarray]:
    """(B, D) each: the last hidden state at a text's end, and its mean from a place on."""
    loaded, rows = model_and_template()[0], 8

    @jax.jit
    def both(params, tokens_bt, from_b, end_b):
        x_btd = model.features(loaded.config, params, tokens_bt)[0]
        place_t = jnp.arange(tokens_bt.shape[1])
        in_bt = (place_t >= from_b[:, None]) & (place_t <= end_b[:, None])
        mean_bd = jnp.einsum("btd,bt->bd", x_btd, in_bt) / in_bt.sum(axis=1, keepdims=True)
        return jnp.take_along_axis(x_btd, end_b[:, None, None], axis=1)[:, 0], mean_bd

    found = np.zeros((2, len(texts), loaded.config.embed_dim), np.float32)
    started = time.perf_counter()
    order = sorted(range(len(texts)), key=lambda i: len(texts[i][0]))
    for start in range(0, len(order), rows):
        here = order[start : start + rows]
        length = -(-max(len(texts[i][0]) for i in here) // 64) * 64
        tokens_bt, from_b, end_b = (
            np.zeros((rows, length), np.int32),
            np.zeros(rows, np.int32),
            np.zeros(rows, np.int32),
        )
        for row, i in enumerate(here):
            ids, from_b[row] = texts[i]
            tokens_bt[row, : len(ids)], end_b[row] = ids, len(ids) - 1
        found[:, here] = np.asarray(both(loaded.params, tokens_bt, from_b, end_b))[:, : len(here)]
    count = sum(len(ids) for ids, _ in texts)
    print(f"{count} tokens in {time.perf_counter() - started:.0f} s", flush=True)
    return {"end": found[0], "mean": found[1]}


@functools.cache
def model_and_template():
    loaded = weights.load(MODEL)
    return loaded, chat.of_model(loaded.chat_template, loaded.tokenizer.roles, MODEL)


def features(pairs: Sequence[tuple[str, str]]) -> dict[str, np.ndarray]:
    """Of prompts and responses in the model's chat format: at the end, and the mean over the response."""
    loaded, template = model_and_template()
    texts = []
    for prompt, response in pairs:
        said = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response[:CHARACTERS]}]
        before = len(chat.encode(template, loaded.tokenizer, said[:1]))
        texts.append((chat.encode(template, loaded.tokenizer, said, add_generation_prompt=False), before))
    return hidden(texts)


def asked_features(rows: Sequence[Scored]) -> np.ndarray:
    """At the end of the grader's question, where it is about to give the letter."""
    encode = model_and_template()[0].tokenizer.prompt
    calls = [grader.letter_calls(reply(row), rubric.load("refused"), 1)[0] for row in rows]
    return hidden([(encode(call.header + call.context), 0) for call in calls])["end"]


def folds(prompts: Sequence[str]) -> list[np.ndarray]:
    """Train prompts in FOLDS parts, by the hash that held the others out: the numbers of each part."""
    edges = np.linspace(human_scored.HELD_OUT, 1, FOLDS + 1)
    part = np.array([sum(not human_scored.held_out(prompt, edge) for edge in edges[1:-1]) for prompt in prompts])
    return [np.flatnonzero(part == k) for k in range(FOLDS)]


def standardized(features_bd: np.ndarray, train: np.ndarray) -> np.ndarray:
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
    assert values[-20] - values[-1] < 1e-3 * values[0], values  # it is there
    return x


def chosen(
    kinds: dict[str, np.ndarray], groups: Sequence[np.ndarray], fit: Callable, measure: Callable
) -> tuple[str, float]:
    """The features and the L2 that are best on train prompts, each fold measured by a fit to the others."""
    scores = {}
    for name, x_bd in kinds.items():
        for l2 in L2:
            right = []
            for k, group in enumerate(groups):
                others = np.concatenate([one for j, one in enumerate(groups) if j != k])
                right += list(measure(fit(x_bd, others, l2), group))
            scores[name, l2] = float(np.mean(right))
    print({f"{name}, L2 {l2:g}": round(score, 3) for (name, l2), score in scores.items()})
    return max(scores, key=lambda one: scores[one])


def head(limit: int) -> None:
    train, rows, off = gold(limit)
    # A text that is held out under one prompt may stand under a train prompt too, with the other label.
    train = [row for row in train if row.response not in {one.response for one in rows}]
    both, real = [*train, *rows], len(train)
    sign_b = np.array([1.0 if row.score else -1.0 for row in both])

    def fit(x_bd: np.ndarray, ours: np.ndarray, l2: float) -> np.ndarray:
        """The logit of every row, by those numbered `ours`."""
        scaled_bd = standardized(x_bd, ours)

        def loss(w: jax.Array) -> jax.Array:
            logit_b = scaled_bd[ours] @ w[:-1] + w[-1]
            return jnp.sum(jax.nn.softplus(-sign_b[ours] * logit_b)) + l2 / 2 * jnp.sum(w[:-1] ** 2)

        w = np.asarray(minimized(loss, x_bd.shape[1] + 1))
        return scaled_bd @ w[:-1] + w[-1]

    kinds = features([(row.prompt, row.response) for row in both]) | {"asked": asked_features(both)}
    groups = folds([row.prompt for row in train])
    name, l2 = chosen(kinds, groups, fit, lambda logit_b, group: (logit_b[group] > 0) == (sign_b[group] > 0))
    found = fit(kinds[name], np.arange(real), l2)[real:] > 0
    show(f"head ({name}, L2 {l2:g}), {real} rows to train on", found.tolist(), rows, off)


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
    kinds = features([(one["prompt"], response) for one in both for response in one["responses"]])
    place_pk, ranks_pk = np.zeros((len(both), MOST), int), np.full((len(both), MOST), reward.ABSENT)
    starts = np.cumsum([0, *(len(one["ranks"]) for one in both)])
    for i, one in enumerate(both):
        size = len(one["ranks"])
        place_pk[i, :size], ranks_pk[i, :size] = starts[i] + np.arange(size), one["ranks"]

    def fit(x_bd: np.ndarray, ours: np.ndarray, l2: float) -> np.ndarray:
        """The score of every response, by the prompts numbered `ours`."""
        seen = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in ours])
        scaled_bd = standardized(x_bd, seen)

        def loss(w: jax.Array) -> jax.Array:
            scores_b = scaled_bd @ w
            pairwise = reward.pairwise_loss(scores_b[place_pk[ours]], ranks_pk[ours])
            return len(ours) * pairwise + l2 / 2 * jnp.sum(w**2)

        return scaled_bd @ np.asarray(minimized(loss, x_bd.shape[1]))

    def right(scores_b: np.ndarray, group: Sequence[int]) -> list[float]:
        """Of each prompt the share of its pairs."""
        return [human_scored.right(both[i], scores_b[starts[i] : starts[i + 1]]).mean() for i in group]

    name, l2 = chosen(kinds, folds([one["prompt"] for one in train]), fit, right)
    scores_b = fit(kinds[name], np.arange(len(train)), l2)
    ours = [scores_b[starts[i] : starts[i + 1]].tolist() for i in range(len(both))]
    show_pairs(f"linear reward model ({name}, L2 {l2:g}), train", train, ours[: len(train)])
    show_pairs(f"linear reward model ({name}, L2 {l2:g}), held out", held, ours[len(train) :])
    for name, score in BASELINES.items():
        theirs = [[score(text) for text in one["responses"]] for one in held]
        show_pairs(f"{name}, held out", held, theirs)
        show_ahead(f"linear reward model and {name}", held, ours[len(train) :], theirs)


def show_ahead(name: str, held: Sequence[dict], ours: Sequence, theirs: Sequence) -> None:
    """By how much the first is better, pair by pair, and what it has right of what the second has wrong."""
    a, b = (
        [human_scored.right(one, score) for one, score in zip(held, scores, strict=True)] for scores in (ours, theirs)
    )
    clusters = np.array([i for i, values in enumerate(a) for _ in values])
    flat_a, flat_b = np.concatenate(a), np.concatenate(b)
    wrong = flat_b < 0.5
    print(
        f"{name} | difference over pairs {words(stats.difference(flat_a, flat_b, clusters.tolist()))}, over prompts "
        f"{words(stats.difference([one.mean() for one in a], [one.mean() for one in b]))} | the first's share of the "
        f"{wrong.sum()} pairs that the second has wrong {words(stats.mean(flat_a[wrong], clusters[wrong].tolist()))}",
        flush=True,
    )


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
