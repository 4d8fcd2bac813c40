"""Our losses beside those of Hugging Face's TRL 1.12.0, whose own trainers tests/bench/trl_losses.py ran and recorded.

Both sides are in float32. The same in both, and compared here: the KL of a token by k1 and k3; the penalty of answers
without an end; rewards of tokens, advantages and returns; whitening; the clipped objective and the clipped values' loss
with their gradients and the shares that they clip; AdamW, which leaves norm scales undecayed; DPO's loss, its gradients
and implicit rewards; the loss of pairs. What TRL defines otherwise:

  * The end. An answer that ends before the batch's width has one more state in TRL, behind its last token: the score is
    earned there, the value model's estimate of it counts, and its squared error is trained on. Ours earns its score at
    the last token, as TRL's does where an answer fills the width. Given TRL's longer mask for rewards, advantages and
    values our functions give its numbers; with the tokens' own they do where the answers fill the width or
    gamma = lam = 1 (`test_where_an_answer_earns_its_score`).
  * Whitening divides the variance by n - 1, ours by n (as Ziegler et al.'s code does): a factor of sqrt((n - 1) / n) of
    what lies off the mean (`white`).
  * Logits are divided by the temperature plus 1e-7: about float32's precision.
  * A token with the padding's id ends an answer, wherever it stands; ours are told by a mask. None is in the record.
  * Gradient accumulation averages means of micro-batches, each over its own tokens. The record has no accumulation.
  * The loop clips no gradients, whatever max_grad_norm says; so none are clipped here.
  * What is watched: `approxkl` is k2 and, as `val/ratio`, a mean over padding too; ours are k3 and means over tokens.
  * Not in TRL's PPO: k2 in the reward, values that are never held (clip 0), an adaptive coefficient of the KL.
  * DPO's sigmoid loss ignores label_smoothing, and "robust" is another loss (unbiased under flipped labels, Chowdhury
    et al. 2024). TRL's AOT loss of a single pair is the sigmoid loss with smoothing: ours is compared with that.
  * RewardTrainer has pairs only, and terms of a margin and of centring that ours hasn't: both are off.
"""

import functools
import json
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from safetensors.numpy import save_file

from gpt4jax import model, weights
from gpt4jax.align import dpo, ppo, reward
from gpt4jax.model.parameters import tree
from gpt4jax.training import optimizer

RECORD = dict(np.load(pathlib.Path(__file__).parent / "fixtures" / "trl.npz"))
RUNS = ("ended", "undiscounted", "full")
STEPS = [(name, i) for name, count in (("ended", 4), ("undiscounted", 1), ("full", 1)) for i in range(count)]


def assert_near(ours, theirs, rtol=1e-5, atol=1e-6):
    """To float32's precision, of sums of some dozen terms of about 1 that are taken in another order."""
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=rtol, atol=atol)


def part(name):
    return {key.removeprefix(name + "/"): value for key, value in RECORD.items() if key.startswith(name + "/")}


def option(name):
    return float(RECORD[name])


def white(x_bt, mask_bt, shift):
    """Ours, made TRL's: with a variance over n - 1."""
    mean = 0 if shift else ppo.masked_mean(x_bt, mask_bt)
    n = mask_bt.sum()
    off_mean_bt = ppo.whitened(x_bt, mask_bt, shift=shift) - mean
    return jnp.where(mask_bt, mean + np.sqrt((n - 1) / n) * off_mean_bt, 0)


def estimates(run, log_p_bt, reference_bt, values_bt, places_bt):
    """By our functions: rewards as they are and as they count, advantages, returns."""
    score_b = ppo.without_end(run["scores_before"], run["contain_eos_token"], option("missing_eos_penalty"))
    pad_bt = run["padding_mask"]  # behind the last token nothing is drawn: no KL
    raw_bt = ppo.token_rewards(
        score_b, jnp.where(pad_bt, 0, log_p_bt), jnp.where(pad_bt, 0, reference_bt), places_bt,
        coefficient=option("kl_coef"), estimator=str(run["kl_estimator"]),
    )  # fmt: skip
    rewards_bt = white(raw_bt, places_bt, shift=False) if run["whiten_rewards"] else raw_bt
    discount, decay = float(run["gamma"]), float(run["lam"])
    return raw_bt, rewards_bt, *ppo.advantages(rewards_bt, values_bt, places_bt, discount=discount, decay=decay)


def recorded(run, places_bt):
    """The same of TRL's own log probabilities and values."""
    return estimates(run, run["logprobs"], run["ref_logprobs"], run["values"], places_bt)


@pytest.mark.parametrize("name", RUNS)
def test_rewards_advantages_and_returns(name):
    run = part(name)
    score_b = ppo.without_end(run["scores_before"], run["contain_eos_token"], option("missing_eos_penalty"))
    assert_near(score_b, run["scores"])
    kl_bt = getattr(ppo.divergence(run["logprobs"], run["ref_logprobs"]), str(run["kl_estimator"]))
    assert_near(kl_bt, run["kl"])
    raw_bt, rewards_bt, advantages_bt, returns_bt = recorded(run, ~run["padding_mask_p1"])
    assert_near(raw_bt, run.get("rewards_before", run["rewards"]))
    assert_near(rewards_bt, run["rewards"])
    assert_near(advantages_bt, run["advantages_before"])
    assert_near(returns_bt, run["returns"])
    assert_near(white(run["advantages_before"], ~run["padding_mask"], shift=True), run["advantages"])


def test_whitening_differs_by_a_factor():
    run = part("full")
    n = (~run["padding_mask"]).sum()
    ours_bt = ppo.whitened(run["advantages_before"], ~run["padding_mask"])
    assert_near(ours_bt, np.sqrt(n / (n - 1)) * run["advantages"])


def test_where_an_answer_earns_its_score():
    """Masks of tokens alone: the same advantages where gamma = lam = 1, else for the answers that fill the width."""
    run = part("undiscounted")
    tokens_bt = ~run["padding_mask"]
    assert not tokens_bt.all(axis=1).all()
    _, _, ours_bt, _ = recorded(run, tokens_bt)
    assert_near(ours_bt, np.where(tokens_bt, run["advantages_before"], 0))

    run = part("ended")
    tokens_bt = ~run["padding_mask"]
    filled_b = tokens_bt.all(axis=1)
    assert (filled_b & run["contain_eos_token"]).any()  # one ends at the very last place
    _, _, ours_bt, returns_bt = recorded(run, tokens_bt)
    assert_near(ours_bt[filled_b], run["advantages_before"][filled_b])
    assert_near(returns_bt[filled_b], run["returns"][filled_b])
    for b in np.flatnonzero(~filled_b):
        last = tokens_bt[b].sum() - 1
        score, behind = run["scores"][b], run["values"][b, last + 1]
        difference = run["advantages_before"][b, last] - ours_bt[b, last]
        # TRL's last token is credited with that state's value, and with lam times what the score adds to it.
        assert_near(difference, float(run["gamma"]) * (behind + float(run["lam"]) * (score - behind)) - score)
        assert abs(difference) > 0.01


def masks(run):
    """Of the answers' tokens, and of the states that TRL has values for."""
    return {"token": ~run["padding_mask"], "state": ~run["padding_mask_p1"]}


def losses(log_p_bt, values_bt, drawn, rows):
    """The sum that a step minimises, and what is beside it; `drawn` is what the rollout left of all rows."""
    old = {key: jnp.asarray(array)[rows] for key, array in drawn.items()}
    policy = ppo.policy_loss(log_p_bt, old["logprobs"], old["advantages"], old["token"], clip=option("cliprange"))
    value, held = ppo.value_loss(values_bt, old["values"], old["returns"], old["state"], clip=option("cliprange_value"))
    return policy.loss + option("vf_coef") * value, (policy, value, held)


@pytest.mark.parametrize(("name", "i"), STEPS)
def test_losses_and_their_gradients(name, i):
    run, step = part(name), part(f"{name}/{i}")
    drawn = {key: run[key] for key in ("logprobs", "values", "advantages", "returns")} | masks(run)
    of = jax.jit(jax.value_and_grad(losses, argnums=(0, 1), has_aux=True))
    (loss, (policy, value, held)), gradients = of(step["new_logprobs"], step["vpred"], drawn, step["mini_batch_inds"])
    assert_near(policy.loss, step["pg_loss"])
    assert_near(value, step["vf_loss"])
    assert_near(loss, step["loss"])
    assert_near(policy.clipped, run["pg_clipfrac"][i])
    assert_near(held, run["vf_clipfrac"][i])
    assert_near(gradients[0], step["grad_new_logprobs"])
    assert_near(gradients[1], step["grad_vpred"])
    assert (i == 0) or (run["pg_clipfrac"][i] > 0 and run["vf_clipfrac"][i] > 0)


def tensors(names, flat, prefix):
    """By name, those of `flat` that have the prefix."""
    shapes = json.loads(str(RECORD[names]))
    parts = np.split(RECORD[flat], np.cumsum([int(np.prod(shape)) for shape in shapes.values()]))
    assert not parts[-1].size
    named = {name: array.reshape(shape) for (name, shape), array in zip(shapes.items(), parts[:-1], strict=True)}
    return {name.removeprefix(prefix): array for name, array in named.items() if name.startswith(prefix)}


def load(arrays, tied=False):
    """A decoder, by our import of Hugging Face's folders."""
    with tempfile.TemporaryDirectory() as folder:
        config = json.loads(str(RECORD["config"])) | {"tie_word_embeddings": tied}
        (pathlib.Path(folder) / "config.json").write_text(json.dumps(config))
        save_file({name: array.copy() for name, array in arrays.items()}, pathlib.Path(folder) / "model.safetensors")
        loaded = weights.load(folder)
    return loaded.config, loaded.params


def both(flat):
    """The policy and the value model, which has no output matrix but a head, in one tree; and their decoders."""
    config, policy = load(tensors("names", flat, "policy."))
    value = tensors("names", flat, "value_model.")
    head_d = jnp.asarray(value.pop("score.weight")[0])
    value_config, backbone = load(value, tied=True)
    return {"policy": policy, "value": backbone, "head": head_d}, (config, value_config)


@functools.partial(jax.jit, static_argnums=0)
def hidden(config, params, rows_bt, places_bt):
    x_btd, _ = model.features(config, params, rows_bt)
    return jnp.take_along_axis(x_btd, places_bt[:, :, None], axis=1)


@functools.partial(jax.jit, static_argnums=0)
def log_probs(config, params, rows_bt, places_bt, temperature):
    """Of the tokens that come after `places_bt`."""
    logits_btv = model.unembed(config, params, hidden(config, params, rows_bt, places_bt)) / temperature
    next_bt = jnp.take_along_axis(rows_bt, places_bt + 1, axis=1)
    return jnp.take_along_axis(jax.nn.log_softmax(logits_btv), next_bt[:, :, None], axis=2)[:, :, 0]


def prompts_and_answers(run):
    """Rows that begin with their prompts, which TRL pads in front, and the place before each token of the answers."""
    context = int(run["context_length"])
    padded_b = np.argmax(run["query_responses"] != 0, axis=1)
    rows_bt = np.stack([np.roll(row, -padded) for row, padded in zip(run["query_responses"], padded_b, strict=True)])
    places_bt = context - 1 - padded_b[:, None] + np.arange(rows_bt.shape[1] - context)
    return jnp.asarray(rows_bt), jnp.asarray(places_bt)


def adamw_of(configs):
    """Our AdamW, at a constant rate."""
    options = ml_collections.ConfigDict(
        dict(
            learning_rate=option("learning_rate"), weight_decay=option("weight_decay"), beta1=0.9, beta2=0.999,
            eps=option("adam_epsilon"), grad_clip_norm=0.0, schedule="warmup_cosine", warmup_steps=0,
            final_fraction=1.0,
        )
    )  # fmt: skip
    policy, value = (tree(config, lambda row: row.decay) for config in configs)
    return optimizer.adamw_of(options, 10, decay={"policy": policy, "value": value, "head": True})


@pytest.mark.parametrize("name", ["ended", "full"])
def test_a_whole_update(name):
    """From TRL's weights, tokens, scores and order of rows to its weights after the last step; all else is ours."""
    run = part(name)
    params, configs = both("before")
    rows_bt, places_bt = prompts_and_answers(run)
    temperature = option("temperature")

    @jax.jit
    def read(params, rows_bt, places_bt):
        value_bt = hidden(configs[1], params["value"], rows_bt, places_bt) @ params["head"]
        return log_probs(configs[0], params["policy"], rows_bt, places_bt, temperature), value_bt

    tokens_bt, states_bt = masks(run).values()
    log_p_bt, values_bt = read(params, rows_bt, places_bt)
    _, reference = load(tensors("reference_names", "reference", ""))
    reference_bt = log_probs(configs[0], reference, rows_bt, places_bt, temperature)
    assert_near(log_p_bt[tokens_bt], run["logprobs"][tokens_bt])
    assert_near(reference_bt[tokens_bt], run["ref_logprobs"][tokens_bt])
    assert_near(values_bt[states_bt], run["values"][states_bt])

    _, _, advantages_bt, returns_bt = estimates(run, log_p_bt, reference_bt, values_bt, states_bt)
    advantages_bt = white(advantages_bt, tokens_bt, shift=True)
    drawn = dict(logprobs=log_p_bt, values=values_bt, advantages=advantages_bt, returns=returns_bt) | masks(run)

    adamw = adamw_of(configs)

    def loss(params, rows):
        return losses(*read(params, rows_bt[rows], places_bt[rows]), drawn, rows)[0]

    @jax.jit
    def step(params, state, rows):
        gradient = jax.grad(loss)(params, rows)
        updates, state = adamw.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, gradient

    state = adamw.init(params)
    for i in range(len(run["pg_clipfrac"])):
        params, state, gradient = step(params, state, run[f"{i}/mini_batch_inds"])
        if i == 0 and "gradient" in run:
            # Up to 1.6 in size, and summed over all tokens through two layers.
            jax.tree.map(functools.partial(assert_near, atol=5e-6), gradient, both(f"{name}/gradient")[0])
    # Adam divides a gradient by its size + eps, so rounding's 1e-7 or so counts most where a gradient is below eps.
    atol = option("learning_rate") * 5e-8 / option("adam_epsilon")
    jax.tree.map(functools.partial(assert_near, atol=atol), params, both(f"{name}/after")[0])


def test_dpo():
    seen = part("dpo")
    policy = [seen["chosen_logps"], seen["rejected_logps"]]
    reference = [seen["ref_chosen_logps"], seen["ref_rejected_logps"]]

    def loss(chosen_b, rejected_b):
        return dpo.loss(chosen_b, rejected_b, *reference, beta=option("beta"))

    found = loss(*policy)
    assert_near(found.loss, seen["loss"])
    assert_near(found.margin, np.mean(seen["chosen_rewards"] - seen["rejected_rewards"]))
    assert_near(found.accuracy, np.mean(seen["chosen_rewards"] > seen["rejected_rewards"]))
    assert 0 < found.accuracy < 1
    gradients = jax.grad(lambda *log_p: loss(*log_p).loss, argnums=(0, 1))(*policy)
    assert_near(gradients, np.stack([seen["grad_chosen"], seen["grad_rejected"]]))


def test_log_probabilities_of_whole_answers():
    """Those that DPO's loss is of, by our model from the tokens: chosen answers, then rejected ones."""
    seen = part("dpo")
    _, (config, _) = params, _ = both("before")
    rows_bt, answer_bt = jnp.asarray(seen["input_ids"]), seen["completion_mask"][:, 1:]
    places_bt = jnp.broadcast_to(jnp.arange(rows_bt.shape[1] - 1), answer_bt.shape)
    _, reference = load(tensors("reference_names", "reference", ""))
    for decoder, at in ((params["policy"], ""), (reference, "ref_")):
        log_p_b = jnp.sum(jnp.where(answer_bt, log_probs(config, decoder, rows_bt, places_bt, 1.0), 0), axis=1)
        assert_near(log_p_b, np.concatenate([seen[f"{at}chosen_logps"], seen[f"{at}rejected_logps"]]))


def test_dpo_with_wrong_labels():
    """Pair by pair in TRL, all at once here."""
    pairs = [part(f"dpo_smooth/{i}") for i in range(4)]
    names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    policy_and_reference = [np.concatenate([pair[name] for pair in pairs]) for name in names]

    def loss(*log_p):
        return dpo.loss(*log_p, beta=option("beta"), smoothing=option("smoothing")).loss

    assert_near(loss(*policy_and_reference), np.mean([pair["loss"] for pair in pairs]))
    gradients = jax.grad(loss, argnums=(0, 1))(*policy_and_reference)
    for ours_b, name in zip(gradients, ("grad_chosen", "grad_rejected"), strict=True):
        assert_near(ours_b, np.concatenate([pair[name] for pair in pairs]) / len(pairs))


def test_the_loss_of_pairs():
    seen = part("reward")
    scores_pk = np.stack([seen["rewards_chosen"], seen["rewards_rejected"]], axis=1)
    ranks_pk = jnp.array([[0, 1]] * len(scores_pk))
    loss, gradient_pk = jax.value_and_grad(reward.pairwise_loss)(scores_pk, ranks_pk)
    assert_near(loss, seen["loss"])
    assert_near(gradient_pk, np.stack([seen["grad_chosen"], seen["grad_rejected"]], axis=1))
    right_p, count_p = reward.right_pairs(scores_pk, ranks_pk)
    assert_near(right_p.sum() / count_p.sum(), seen["accuracy"])
    assert 0 < seen["accuracy"] < 1
