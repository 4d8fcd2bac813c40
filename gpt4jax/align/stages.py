"""A stage as a run: its decoder, tokenizer and examples found and checked, its program built, its export written."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt4jax import config as configuration
from gpt4jax import files, job, model
from gpt4jax.align import answers as of_answers
from gpt4jax.align import config as align_config
from gpt4jax.align import examples, exports, reinforced, report, reward, sources, supervised
from gpt4jax.align.form import Form
from gpt4jax.align.setting import Built, Setting, digest, facts
from gpt4jax.data import loader, tokenizer
from gpt4jax.errors import UserError
from gpt4jax.inference import chat
from gpt4jax.model.parameters import Params
from gpt4jax.parallel import mesh as meshes
from gpt4jax.parallel import partition
from gpt4jax.training import goodput, init_from, optimizer, step
from gpt4jax.training import run as runs
from gpt4jax.training import state as states
from gpt4jax.training import workdir as workdirs


def align(config, workdir: files.Path) -> int:
    """Runs (or resumes) the stages of a job's config, one after another; returns the exit status.

    Raises:
        UserError: as `run`.
    """
    for name in config.stages:
        status = run(config, name, workdir)
        if status:
            return status
    job.say(f"what the stages did: {report.write(workdir)}")
    return 0


def run(job_config, name: str, workdir: files.Path) -> int:
    """Runs (or resumes) a stage, unless it is done; returns the exit status.

    Raises:
        UserError: what is wrong with the config, the examples, the workdir or the state, in words.
    """
    clock = goodput.Clock(time.monotonic())
    config, here = align_config.stage(job_config, name), workdir / name
    configuration.check_values(config)
    workdirs.open_workdir(here, config, partial(align_config.stage_default, name))
    before, starts = exports.done(here), _starts(config, workdir)
    if before is not None and before.get("starts") != starts:
        raise UserError(
            f"{name} was made from other weights than the stages before it have now; remove {here} to make it anew, "
            "or leave it out of stages"
        )
    if before is not None and before["num_steps"] == config.num_steps:
        job.say(f"{name}: done before, {before['num_steps']} steps")
        return 0
    job.say(f"--- {name}")
    setting = _setting(_started_from(config, workdir), workdir)
    built = _BUILDERS[name](setting)
    known = {**built.facts, "fingerprint": digest([built.facts["fingerprint"], starts])}
    workdirs.record(here, config, known, setting.encoder.tokenizer)
    ended = runs.run(config, setting.mesh, here, built.program, clock)
    if ended.stopped is not None:
        return ended.stopped
    decoder, head = built.exported(ended.state)
    found = dict(ended.loop.evaluation)
    told = {"stage": name, "num_steps": config.num_steps, "starts": starts, **found}
    exports.write(here, setting.model_config, decoder, setting.encoder.tokenizer, head, told)
    words = [f"{key.removeprefix('eval/').removeprefix('align/')} {value:.4f}" for key, value in found.items()]
    print("; ".join([f"{name}: {config.num_steps} steps", *words, str(here / exports.FOLDER)]), flush=True)
    return 0


def _starts(config, workdir: files.Path) -> list[Any]:
    """Checksums of what a stage takes from other stages: with other weights it would be another run."""
    taken = [config.init_from, config.align.get("reward", "")]
    return [(exports.done(workdir / name) or {}).get("sha256") for name in taken if name in align_config.STAGES]


def _started_from(config, workdir: files.Path):
    """The stage's config with the folder that it starts from, whose tokenizer it takes."""
    config = config.copy_and_resolve_references().unlock()
    config.init_from = exports.place(config.init_from, workdir)
    if config.init_from:
        config.data.tokenizer = tokenizer.WEIGHTS
    return config.lock()


def _setting(config, job_workdir: files.Path) -> Setting:
    cache_dir = files.shared_cache(config.data.cache_dir)
    try:
        model_config = configuration.model_config(config)
        if model_config.vision is not None or model_config.position == "transformer_xl":
            raise UserError("alignment is of decoders of text with a KV cache: no images, no transformer_xl")
        if config.data.seq_len > model_config.max_seq_len:
            raise UserError(f"data.seq_len {config.data.seq_len} is above model.max_seq_len {model_config.max_seq_len}")
        mesh = meshes.make_mesh(config.mesh)
        partition.check(model_config, mesh, config.batch_size, config.optimizer.micro_batches, config.data.seq_len)
    except ValueError as error:
        raise UserError(str(error)) from error
    if config.mesh.verify_every_steps:
        raise UserError("mesh.verify_every_steps is for pre-training; set it to 0")
    start = init_from.named(config, model_config, cache_dir, job.say)
    tok = start.tokenizer or tokenizer.get(config.data.tokenizer, cache_dir, _no_corpus, "")
    if tok.vocab_size > model_config.vocab_size:
        raise UserError(f"tokenizer {tok.name} has {tok.vocab_size} ids, above model.vocab_size")
    if config.align.chat_template:
        tok = dataclasses.replace(tok, chat_template=_read(config.align.chat_template))
    template = None if tok.chat_template is None else chat.of_model(tok.chat_template, tok.roles, config.init_from)
    shardings = partition.param_shardings(model_config, mesh)
    if start.place is None:
        base = jax.jit(partial(model.init, model_config), out_shardings=shardings)(jax.random.key(config.seed))
    else:
        base = start.place(shardings)
    cut = config.align.too_long == "cut"
    encoder = examples.Encoder(tok, template, config.data.seq_len, config.align.max_response, cut)
    form = Form.of(config.align, model_config)
    return Setting(config, model_config, form, mesh, job_workdir, cache_dir, encoder, base)


def _no_corpus():
    raise UserError("data.tokenizer bpe:SIZE is trained on a corpus, which alignment has not; name weights (init_from)")


def _read(path: str) -> str:
    text = files.text(files.user_path(path))
    if not text:
        raise UserError(f"chat_template: {path} is not there, or empty")
    return text


# --- Stages that learn from examples.


def _examples(setting: Setting, name: str, kind: str, encode, responses: int = 0) -> tuple[list[Any], list[Any], str]:
    """Training and held-out examples of a source as tokens, and a fingerprint of them."""
    options = setting.config.align
    if not name:
        raise UserError(f"{options.stage}.data is not set: where are its {kind}? ({', '.join(sources.NAMES)})")
    rows = sources.rows(name, kind, setting.config.seed, files.on_disk(setting.cache_dir), responses)
    train, held = examples.split(rows, options.held_out)
    kept = examples.encode_all(train, encode, options.too_long, f"{kind} {name}")
    held_kept = examples.encode_all(held, encode, options.too_long, f"{kind} {name}, held out") if held else ((), 0)
    dropped = kept.dropped + held_kept[1]
    job.say(
        f"{name}: {len(kept.examples):,} {kind}, {len(held_kept[0]):,} held out"
        + (f"; {dropped} too long and left out" if dropped else "")
    )
    return kept.examples, list(held_kept[0]), digest([train, held])


def _sft(setting: Setting) -> Built:
    options, encoder = setting.config.align, setting.encoder
    train, held, found = _examples(setting, options.data, "demonstrations", encoder.demonstration)
    sizes = encoder.tokenizer.token_bytes
    rows, held_rows = (
        examples.PackedDemonstrations(some, sizes, setting.config.data.seq_len) if some else None
        for some in (train, held)
    )
    objective = supervised.sft(setting.form, setting.config.optimizer.z_loss)
    return _supervised(setting, objective, {}, rows, held_rows, step.Batch.of, facts(setting, options.data, found))


def _reward(setting: Setting) -> Built:
    options, length = setting.config.align, setting.config.data.seq_len
    encode = partial(setting.encoder.ranked, most=options.responses)
    train, held, found = _examples(setting, options.data, "comparisons", encode, options.responses)
    rows, held_rows = (
        [examples.ranked_row(one, options.responses, length) for one in some] if some else None
        for some in (train, held)
    )
    objective = supervised.reward_model(setting.form)
    head = {"head": of_answers.head(setting.model_config)}
    known = facts(setting, options.data, found)
    built = _supervised(setting, objective, head, rows, held_rows, supervised.Ranked.of, known)
    if not options.demonstrations:
        return built
    shown, _, _ = _examples(setting, options.demonstrations, "demonstrations", partial(_as_ranked, setting))
    shown_rows = [examples.ranked_row(one, 1, length) for one in shown]

    def exported(state):
        decoder, head = built.exported(state)
        scores = _scores(setting, {"decoder": state.params["decoder"], "head": head}, shown_rows)
        return decoder, {**head, "bias": head["bias"] + reward.bias(scores).astype(head["bias"].dtype)}

    return built._replace(exported=exported)


def _as_ranked(setting: Setting, row: examples.Row) -> examples.Ranked:
    """The last answer of a demonstration, alone."""
    before, text = setting.encoder.turns(row)[-1]
    prompt, answer = setting.encoder.prompt(before), setting.encoder.answer(before, text)
    return examples.Ranked(setting.encoder.fits(prompt, len(answer)), [answer], [0])


def _scores(setting: Setting, trained: Any, rows: Sequence[dict[str, np.ndarray]]) -> jax.Array:
    """The scores of single answers."""
    score = jax.jit(partial(supervised.scores_of, setting.form))
    frozen, found = _frozen(setting), []
    with jax.set_mesh(setting.mesh):
        for batch in _held_batches(setting, rows):
            some = supervised.Ranked.of(batch)
            found.append(jax.device_get((score(trained, frozen, some), some.length_bk > 0)))
    return jnp.asarray(np.concatenate([scores[real] for scores, real in found]))


def _dpo(setting: Setting) -> Built:
    options, length = setting.config.align, setting.config.data.seq_len
    encode = partial(setting.encoder.ranked, most=options.responses)
    train, held, found = _examples(setting, options.data, "comparisons", encode, options.responses)
    rows, held_rows = (
        [row for one in some for row in examples.pair_rows(one, length)] if some else None for some in (train, held)
    )
    if not options.beta > 0 or not 0 <= options.smoothing < 0.5:
        raise UserError(f"dpo.beta is {options.beta}, dpo.smoothing {options.smoothing}: above 0, and in [0, 0.5)")
    objective = supervised.direct(setting.form, options.max_response, options.beta, options.smoothing)
    return _supervised(
        setting, objective, {}, rows, held_rows, supervised.Pairs.of, facts(setting, options.data, found)
    )


def _frozen(setting: Setting) -> supervised.Frozen:
    """What the loss reads beside what is trained: adapters' base; of DPO the reference, which is the same."""
    reference = setting.base if setting.config.align.stage == "dpo" and not setting.form.rank else None
    return supervised.Frozen(setting.base if setting.form.rank else None, reference)


def _supervised(
    setting: Setting, objective: supervised.Objective, head: dict[str, Any], rows, held_rows, batch_of, known
) -> Built:  # fmt: skip
    config, form, mesh = setting.config, setting.form, setting.mesh
    everywhere, batches = partition.replicated(mesh), partition.batch_sharding(mesh)
    decay = {"decoder": form.decay(), **{name: {"score_d": True, "bias": False} for name in head}}
    try:
        schedule = optimizer.schedule(config.optimizer, config.num_steps)
        tx = optimizer.adamw_of(config.optimizer, config.num_steps, decay=decay)
    except ValueError as error:
        raise UserError(str(error)) from error
    shardings_of = {"decoder": form.shardings(mesh), **jax.tree.map(lambda _: everywhere, head)}

    # The parameters that all are trained from are the caller's: a copy is donated to the first step.
    def begin(base: Params) -> states.TrainState:
        trained = {"decoder": form.begin(base, jax.random.key(config.seed)), **head}
        trained = jax.tree.map(jnp.copy, trained)
        return states.TrainState(jnp.zeros((), jnp.int32), trained, tx.init(trained))

    abstract = jax.eval_shape(begin, setting.base)
    moments = states.moment_shardings(tx, abstract.params, shardings_of, mesh)
    shardings = states.TrainState(everywhere, shardings_of, moments)  # type: ignore[arg-type]
    frozen = _frozen(setting)
    train_step = jax.jit(
        partial(
            supervised.train_step, objective, tx, schedule, seed=config.seed,
            micro_batches=config.optimizer.micro_batches, dropout=form.config.dropout > 0,
        ),
        in_shardings=(shardings, batches, jax.tree.map(lambda leaf: leaf.sharding, frozen)),
        out_shardings=(shardings, everywhere), donate_argnums=0,
    )  # fmt: skip

    # What is frozen is an argument: a constant would be folded into the program.
    held_step = jax.jit(lambda trained, frozen, batch: objective.loss(trained, frozen, batch, None)[1])

    # Only that of demonstrations is in nats a token.
    names = {"loss": "heldout/loss" if config.align.stage == "sft" else "align/loss"}

    def measure(trained, stop) -> dict[str, float] | None:
        sums: dict[str, float] = {}
        for arrays in _held_batches(setting, held_rows) if held_rows is not None else ():
            if stop.poll():
                return None
            for key, value in jax.device_get(held_step(trained, frozen, batch_of(arrays))).items():
                sums[key] = sums.get(key, 0.0) + float(value)
        return (
            {f"eval/{names.get(key, key)}": float(value) for key, value in objective.tell(sums).items()} if sums else {}
        )

    program = runs.Program(
        rows, batch_of, train_step, measure, states.laid_out(abstract, shardings),
        partial(jax.jit(begin, out_shardings=shardings), setting.base), frozen=(frozen,),
        from_foreign=bool(config.init_from) and not head,  # a head of zeros says nothing
    )  # fmt: skip

    def exported(state: states.TrainState) -> tuple[Params, Any]:
        return form.whole(state.params["decoder"], setting.base), state.params.get("head")

    return Built(program, known, exported)


def _held_batches(setting: Setting, rows):
    config = setting.config
    return loader.eval_batches(
        rows, batch_size=config.eval.batch_size or config.batch_size, sharding=partition.batch_sharding(setting.mesh),
        prefetch=config.data.prefetch, num_rows=config.eval.num_rows,
    )  # fmt: skip


_BUILDERS: dict[str, Callable[[Setting], Built]] = {
    "sft": _sft,
    "reward": _reward,
    "dpo": _dpo,
    "ppo": reinforced.build,
}
