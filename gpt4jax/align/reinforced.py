"""The stage of PPO as a run: prompts, policy, reward model and value network found, and put together."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gpt4jax import files, job
from gpt4jax.align import answers as of_answers
from gpt4jax.align import examples, exports, policy, rollout, sources, world
from gpt4jax.align.form import Form
from gpt4jax.align.setting import Built, Setting, digest, facts
from gpt4jax.data import loader, text
from gpt4jax.errors import UserError
from gpt4jax.inference import Engine
from gpt4jax.model.parameters import Params
from gpt4jax.parallel import partition
from gpt4jax.training import optimizer, step
from gpt4jax.training import run as runs
from gpt4jax.training import state as states

_CHOICES = {"kl_estimator": ("k1", "k2", "k3"), "value_from": ("reward", "policy")}
_POSITIVE = ("inner_epochs", "minibatches", "max_kl", "clip", "kl_horizon", "pretraining_rows", "temperature")
_AT_LEAST_0 = (
    "kl_coefficient", "kl_target", "value_clip", "value_coefficient", "value_learning_rate", "missing_end_penalty",
    "pretraining_coefficient", "rules",
)  # fmt: skip
_SHARES = ("discount", "decay", "average_decay")


def check(config) -> None:
    """Checks the group `ppo`.

    Raises:
        UserError: a value that can't be; minibatches that don't divide a round.
    """
    options = config.align
    for name, choices in _CHOICES.items():
        if options[name] not in choices:
            raise UserError(f"ppo.{name} is {options[name]!r}; it must be one of {', '.join(choices)}")
    for name in _POSITIVE:
        if not options[name] > 0:
            raise UserError(f"ppo.{name} is {options[name]}; it must be above 0")
    for name in _AT_LEAST_0:
        if not options[name] >= 0:
            raise UserError(f"ppo.{name} is {options[name]}; it must be at least 0")
    for name in _SHARES:
        if not 0 <= options[name] <= 1:
            raise UserError(f"ppo.{name} is {options[name]}; it must be from 0 to 1")
    if options.pretraining_coefficient and options.pretraining_rows % config.optimizer.micro_batches:
        raise UserError(
            f"ppo.pretraining_rows {options.pretraining_rows} is not a multiple of ppo.micro_batches "
            f"{config.optimizer.micro_batches}"
        )
    parts = options.minibatches * config.optimizer.micro_batches
    if config.batch_size % parts:
        raise UserError(
            f"ppo.batch_size {config.batch_size} is not a multiple of ppo.minibatches x ppo.micro_batches = {parts}"
        )


def build(setting: Setting) -> Built:
    """PPO's program."""
    config, options, mesh = setting.config, setting.config.align, setting.mesh
    check(config)
    try:
        partition.check(
            setting.model_config, mesh, config.batch_size // options.minibatches, config.optimizer.micro_batches
        )
    except ValueError as error:
        raise UserError(f"a minibatch of PPO: {error}") from error
    train, held = _prompts(setting)
    judge, scorer = _judge(setting, [row for row, _ in (*train, *held)])
    value_config, value_base = setting.model_config, setting.base
    head: of_answers.Head = of_answers.head(value_config)
    if options.value_from == "reward":
        if judge is None:
            raise UserError("ppo.value_from is 'reward', and there is no reward model; set it to 'policy'")
        value_config, value_base, head = judge
    value_form = Form.of(options, value_config)
    losses = policy.Losses(
        setting.form, value_form, options.max_response, options.temperature, options.clip, options.value_clip,
        options.value_coefficient, options.pretraining_coefficient,
    )  # fmt: skip
    frozen = policy.Frozen(setting.base, value_base)
    tx, schedule = _optimizer(setting, losses)
    begin, abstract, shardings = _state(setting, losses, tx, frozen, head)
    engine = Engine(
        setting.model_config, setting.base, tokenizer=setting.encoder.tokenizer, mesh=mesh, max_len=config.data.seq_len,
        rows=-(-config.batch_size // _shards(mesh)), prefix_bytes=0,
    )  # fmt: skip
    texts = _texts(setting) if losses.pretraining_coefficient else None
    rounds = policy.Rounds(config, losses, mesh, shardings, tx, schedule, scorer, engine, texts)
    rows = [
        {"tokens": _padded(prompt, config.data.seq_len), "start": np.int32(len(prompt)), "index": np.int32(i)}
        for i, (_, prompt) in enumerate(train)
    ]
    measure = _measure(setting, rounds, frozen, held or train, len(train) if held else 0)
    program = runs.Program(
        rows, lambda arrays: arrays, rounds, measure, states.laid_out(abstract, shardings), begin, frozen=(frozen,),
        from_foreign=True,
    )  # fmt: skip

    def exported(state: policy.PolicyState) -> tuple[Params, Any]:
        trained = state.params["policy"] if state.average is None else state.average
        return setting.form.whole(trained, setting.base), None

    return Built(program, facts(setting, options.data, digest([row for row, _ in (*train, *held)])), exported)


def _state(
    setting: Setting, losses: policy.Losses, tx: optax.GradientTransformation, frozen: policy.Frozen,
    head: of_answers.Head,
) -> tuple[Callable[[], policy.PolicyState], policy.PolicyState, policy.PolicyState]:  # fmt: skip
    """What makes the state before the first round, its shapes, and its shardings."""
    options, mesh, everywhere = setting.config.align, setting.mesh, partition.replicated(setting.mesh)
    of_value = {"decoder": losses.value_form.shardings(mesh), "head": jax.tree.map(lambda _: everywhere, head)}
    shardings_of = {"policy": setting.form.shardings(mesh), "value": of_value}

    def begin(frozen: policy.Frozen, head: of_answers.Head) -> policy.PolicyState:
        keys = jax.random.split(jax.random.key(setting.config.seed))
        value = {"decoder": losses.value_form.begin(frozen.value_base, keys[1]), "head": head}
        params = {"policy": setting.form.begin(frozen.reference, keys[0]), "value": value}
        params = jax.tree.map(jnp.copy, params)  # the first update gets them for itself
        average = jax.tree.map(jnp.copy, params["policy"]) if options.average_decay else None
        coefficient = jnp.asarray(options.kl_coefficient, jnp.float32)
        return policy.PolicyState(jnp.zeros((), jnp.int32), params, tx.init(params), coefficient, average)

    abstract = jax.eval_shape(begin, frozen, head)
    moments = states.moment_shardings(tx, abstract.params, shardings_of, mesh)
    average = shardings_of["policy"] if options.average_decay else None
    shardings = policy.PolicyState(everywhere, shardings_of, moments, everywhere, average)  # type: ignore[arg-type]
    return partial(jax.jit(begin, out_shardings=shardings), frozen, head), abstract, shardings


def _shards(mesh) -> int:
    return mesh.shape["data"] * mesh.shape["fsdp"]


def _padded(prompt: Sequence[int], length: int) -> np.ndarray:
    return np.pad(np.array(prompt, np.int32), (0, length - len(prompt)))


def _prompts(setting: Setting) -> tuple[list[tuple[examples.Row, list[int]]], list[tuple[examples.Row, list[int]]]]:
    """Prompts as rows and as tokens, to train on and held out."""
    options, encoder = setting.config.align, setting.encoder
    if not options.data:
        raise UserError(f"ppo.data is not set: where are its prompts? ({', '.join(sources.NAMES)})")

    def encode(row: examples.Row) -> tuple[examples.Row, list[int]]:
        return row, encoder.fits(encoder.prompt(row), options.max_response)

    found = []
    every = sources.rows(options.data, "prompts", setting.config.seed, files.on_disk(setting.cache_dir))
    for rows in examples.split(every, options.held_out):
        kept = examples.encode_all(rows, encode, options.too_long, f"prompts {options.data}") if rows else ([], 0)
        found.append(list(kept[0]))
        if kept[1]:
            job.say(f"{options.data}: {kept[1]} prompts too long and left out")
    job.say(f"{options.data}: {len(found[0]):,} prompts, {len(found[1]):,} held out")
    return found[0], found[1]


def _judge(setting: Setting, rows: Sequence[examples.Row]) -> tuple[exports.RewardModel | None, policy.Scorer]:
    """What answers are worth: by a reward model, or (None) without one; with rules beside it, if they count."""
    weight = setting.config.align.rules
    model, scorer = _without_rules(setting, rows)
    if not weight:
        return model, scorer
    ruled = policy.on_rules(rows)
    return model, lambda index_b, drawn: scorer(index_b, drawn) + weight * ruled(index_b, drawn)


def _without_rules(
    setting: Setting, rows: Sequence[examples.Row]
) -> tuple[exports.RewardModel | None, policy.Scorer]:  # fmt: skip
    name = setting.config.align.reward
    if not name:
        if not setting.config.align.rules:
            raise UserError("ppo.reward is empty and ppo.rules is 0: what are answers worth?")
        return None, lambda index_b, drawn: np.zeros(len(index_b))
    if name == "gold":
        if not _in_the_known_world(setting):
            raise UserError(
                f"ppo.reward is 'gold', which the known world has (ppo.data=world:1), not {setting.config.align.data!r}"
            )

        def gold(index_b: np.ndarray, drawn: rollout.Drawn) -> np.ndarray:
            told = zip(index_b, drawn.texts, drawn.ended_b, strict=True)
            return np.array([world.gold_of_text(rows[i]["prompt"], said, ended) for i, said, ended in told])

        return None, gold
    found = exports.reward_model(
        exports.place(name, setting.job_workdir), setting.model_config, setting.encoder.tokenizer, setting.mesh,
        setting.cache_dir,
    )  # fmt: skip
    if setting.config.data.seq_len > found.config.max_seq_len:
        raise UserError(
            f"data.seq_len is {setting.config.data.seq_len}, and the reward model reads no more than "
            f"{found.config.max_seq_len} tokens"
        )
    return found, policy.on_answers(*found, partition.batch_sharding(setting.mesh))


def _optimizer(setting: Setting, losses: policy.Losses):
    """Over all updates of all rounds; a learning rate of its own for the value network."""
    config, options = setting.config, setting.config.align
    updates = policy.updates_per_round(options)
    own = config.optimizer.copy_and_resolve_references()
    own.warmup_steps *= updates
    decay = {
        "policy": losses.form.decay(),
        "value": {"decoder": losses.value_form.decay(), "head": {"score_d": True, "bias": False}},
    }
    rate = (options.value_learning_rate or own.learning_rate) / own.learning_rate if own.learning_rate else 1.0
    rates = {"policy": 1.0, "value": rate}
    rates = {side: jax.tree.map(lambda _, side=side: rates[side], tree) for side, tree in decay.items()}
    try:
        schedule = optimizer.schedule(own, config.num_steps * updates)
        return optimizer.adamw_of(own, config.num_steps * updates, decay=decay, rates=rates), schedule
    except ValueError as error:
        raise UserError(f"ppo: {error}") from error


def _texts(setting: Setting):
    """Rows of pre-training text of each optimizer step: a function of its number."""
    config, tok = setting.config, setting.encoder.tokenizer
    data = text.load(config.data, setting.model_config.vocab_size, setting.cache_dir, job.say, tok)
    rows, count = loader.shuffled(data.of("train"), config.seed), config.align.pretraining_rows
    place = partition.batch_sharding(setting.mesh)

    def of_step(number: int) -> step.Batch:
        some = [rows[number * count + i] for i in range(count)]
        return step.Batch.of(jax.device_put({name: np.stack([row[name] for row in some]) for name in some[0]}, place))

    return of_step


def _measure(setting: Setting, rounds: policy.Rounds, frozen: policy.Frozen, prompts, first: int):
    """The score of answers to prompts (those held out, if any), and in the known world where the policy stands."""
    config, tok = setting.config, setting.encoder.tokenizer
    known, end = _in_the_known_world(setting), tok.end
    if known and (tok.pieces[:-1] != tuple(letter.encode() for letter in world.LETTERS)
                  or setting.model_config.vocab_size != len(world.LETTERS) + 1
                  or config.align.max_response != world.LONGEST):  # fmt: skip
        raise UserError(
            f"the known world is exact for data.tokenizer=characters:{world.LETTERS}, model.vocab_size="
            f"{len(world.LETTERS) + 1} and max_response={world.LONGEST} alone"
        )
    start = tok.start[0] if tok.start else end
    reference = world.table(setting.model_config, frozen.reference, start, end) if known else None
    count = min(len(prompts), config.eval.num_rows or len(prompts))

    def measure(params, stop) -> dict[str, float] | None:
        found: dict[str, list[float]] = {"score": [], "length": [], "ended": []}
        for begin in range(0, count, config.batch_size):
            if stop.poll():
                return None
            real = min(begin + config.batch_size, count) - begin
            index_b = np.minimum(begin + np.arange(config.batch_size), count - 1)  # the last one fills up the batch
            seeds = (index_b + config.seed).astype(np.uint32)
            drawn = rounds.answers(params["policy"], frozen, [prompts[i][1] for i in index_b], seeds)
            score_b = rounds.scorer(index_b + first, drawn)
            for name, each in (("score", score_b), ("length", drawn.answers.length_b), ("ended", drawn.ended_b)):
                found[name] += np.asarray(each)[:real].tolist()
        told = {f"eval/align/{name}": float(np.mean(values)) for name, values in found.items()}
        if reference is not None:
            policy_table = world.table(setting.model_config, rounds.whole(params["policy"], frozen), start, end)
            told |= _standing(policy_table, reference)
        return told

    return measure


def _standing(table: world.Table, reference: world.Table) -> dict[str, float]:
    """The exact gold reward and KL, and the share of the best gain at this KL."""
    here, before = world.standing(table, reference), world.standing(reference, reference)
    told = {"gold": here.gold, "kl": here.kl, "gold_before": before.gold}
    if here.kl > 1e-3:  # below that both are rounding errors
        best = world.best_at(reference, here.kl)
        told |= {"gold_best": best.gold, "share_of_best": (here.gold - before.gold) / (best.gold - before.gold)}
    return {f"eval/align/{name}": value for name, value in told.items()}


def _in_the_known_world(setting: Setting) -> bool:
    return setting.config.align.data.startswith("world:")
