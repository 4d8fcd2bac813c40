"""Records what Hugging Face's TRL computes in a PPO update, in DPO and for a reward model: for tests/align/test_trl.py.

    pip install trl==1.12.0 transformers==5.18.0 torch==2.13.0 && python -m tests.bench.trl_losses

1.12.0 is the last release with a PPO trainer. Its own trainers run here, on tiny random Llamas on the CPU in float32;
nothing of theirs is replaced. Before they call a function that we name (the optimiser's step, say) we read the
variables of the function that calls it, so arrays have the names that they have in TRL's source.

Writes tests/align/fixtures/trl.npz:

    config, temperature, ...                config.json of the Llamas, and options of all runs
    names, before                           parameters of the policy and the value model before any PPO run: names and
                                            shapes, and all of them one behind the other
    reference_names, reference              likewise of the reference model
    ended/NAME, undiscounted/NAME, full/NAME  PPO runs: answers that end at a token, the same with lam 1, and answers
                                            of full length; `rewards_before`, `advantages_before`: before whitening
    RUN/I/NAME                              what is there when step I is taken; grad_NAME: the gradient
    ended/gradient, RUN/after               of the parameters: at the first step, and what they are after the last
    dpo/NAME, dpo_smooth/I/NAME, reward/NAME  a batch of pairs; each of them with wrong labels; and scores
"""

import contextlib
import json
import pathlib
import sys
import tempfile
from collections.abc import Callable

import numpy as np
import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

PAD, EOS, VOCAB = 0, 1, 16
SHAPE = dict(
    vocab_size=VOCAB, hidden_size=12, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=6, max_position_embeddings=32, rms_norm_eps=1e-5, tie_word_embeddings=False,
    pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None, num_labels=1, attn_implementation="eager",
)  # fmt: skip
SHARED = dict(
    temperature=0.7, missing_eos_penalty=1.0, kl_coef=0.2, vf_coef=0.3, cliprange=0.2, cliprange_value=0.2,
    learning_rate=0.01, weight_decay=0.1, adam_epsilon=1e-5,
)  # fmt: skip
RUNS: dict[str, dict] = {  # with seeds by which no answer holds the padding's id, which TRL would take for its end
    "ended": dict(seed=71, stop_token_id=EOS, gamma=1.0, lam=0.9, num_mini_batches=2, num_ppo_epochs=2),
    "undiscounted": dict(seed=71, stop_token_id=EOS, gamma=1.0, lam=1.0, num_ppo_epochs=1),
    "full": dict(seed=62, kl_estimator="k3", gamma=0.95, lam=0.8, whiten_rewards=True, num_ppo_epochs=1),
}
ROLLOUT = (
    "query_responses", "context_length", "padding_mask", "padding_mask_p1", "logprobs", "ref_logprobs", "values",
    "scores", "contain_eos_token", "kl", "rewards", "advantages", "returns",
)  # fmt: skip
STEP = ("mini_batch_inds", "new_logprobs", "vpred", "pg_loss", "vf_loss", "loss")
DPO = (
    "input_ids", "completion_mask", "chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps",
    "chosen_rewards", "rejected_rewards", "loss",
)  # fmt: skip
PATH = pathlib.Path(__file__).parents[1] / "align" / "fixtures" / "trl.npz"
QUIET = dict(use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no")


@contextlib.contextmanager
def before_calls(owner, name: str, caller: str, look: Callable[[dict], None]):
    """Inside, `look` gets the variables of the function `caller` each time before that calls `owner.name`."""
    function = getattr(owner, name)

    def looked_at(*args, **kwargs):
        frame = sys._getframe(1)
        if frame.f_code.co_name == caller:
            look(frame.f_locals)
        return function(*args, **kwargs)

    setattr(owner, name, looked_at)
    try:
        yield
    finally:
        setattr(owner, name, function)


def plain(value) -> np.ndarray:
    """A copy, as an array."""
    return value.detach().numpy().copy() if isinstance(value, torch.Tensor) else np.array(value)


def drawn(kind, seed: int):
    """A Llama whose every tensor is drawn, norm scales too."""
    torch.manual_seed(seed)
    model = kind(LlamaConfig(**SHAPE))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter) + (1 if "norm" in name else 0))
    return model


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{i}": i for i in range(2, VOCAB)}
    core = Tokenizer(models.WordLevel(words, unk_token="w2"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="w2", padding_side="left"
    )


def flat(model, kind: str = "data") -> np.ndarray:
    """All parameters, or their gradients, one behind the other in the order of `named_parameters`."""
    return np.concatenate([plain(getattr(parameter, kind)).ravel() for parameter in model.parameters()])


def ppo_trainer_of(options: dict, folder: str) -> PPOTrainer:
    """With four Llamas and eight prompts of 2 to 4 tokens."""
    policy, reference = drawn(LlamaForCausalLM, 1), drawn(LlamaForCausalLM, 2)
    value, reward = (drawn(LlamaForSequenceClassification, seed) for seed in (3, 4))
    policy.generation_config.pad_token_id = PAD
    prompts = [[2 + (5 * row + 3 * i) % (VOCAB - 2) for i in range(2 + row % 3)] for row in range(8)]
    config = PPOConfig(
        folder, per_device_train_batch_size=8, total_episodes=8, response_length=6, num_sample_generations=0,
        **SHARED, **options, **QUIET,
    )  # fmt: skip
    transformers.set_seed(config.seed)
    return PPOTrainer(config, tokenizer(), policy, reference, reward, Dataset.from_dict({"input_ids": prompts}), value)


def ppo(name: str, options: dict, folder: str) -> dict[str, np.ndarray]:
    """One update of PPOTrainer: a rollout, and the steps of its inner epochs."""
    trainer = ppo_trainer_of(options, folder)
    out: dict[str, np.ndarray] = {}
    if name == "ended":
        out |= {"before": flat(trainer.model), "reference": flat(trainer.ref_model)}
        for key, model in (("names", trainer.model), ("reference_names", trainer.ref_model)):
            out[key] = np.array(json.dumps({at: parameter.shape for at, parameter in model.named_parameters()}))
    steps = 0

    def whitens(seen: dict) -> None:
        for key in ("rewards", "advantages"):
            if key in seen:  # the rewards' turn comes first, if they are whitened at all
                out.setdefault(f"{name}/{key}_before", plain(seen[key]))

    def differentiates(seen: dict) -> None:
        seen["new_logprobs"].retain_grad()
        seen["vpred"].retain_grad()

    def steps_on(seen: dict) -> None:
        nonlocal steps
        if not steps:
            out.update({f"{name}/{key}": plain(seen[key]) for key in ROLLOUT})
            rows = torch.cat((seen["queries"], seen["postprocessed_responses"]), 1)
            with torch.no_grad():  # as TRL had them before its penalty
                _, scores, _ = ppo_trainer.get_reward(seen["reward_model"], rows, PAD, seen["context_length"])
            out[f"{name}/scores_before"] = plain(scores)
        if not steps and name == "ended":
            out["ended/gradient"] = flat(trainer.model, "grad")
        out.update({f"{name}/{steps}/{key}": plain(seen[key]) for key in STEP})
        out.update({f"{name}/{steps}/grad_{key}": plain(seen[key].grad) for key in ("new_logprobs", "vpred")})
        steps += 1

    def logs(seen: dict) -> None:
        out.update({f"{name}/{key}": plain(seen[f"{key}_stats"].ravel()) for key in ("pg_clipfrac", "vf_clipfrac")})

    with (
        before_calls(ppo_trainer, "masked_whiten", "train", whitens),
        before_calls(trainer.accelerator, "backward", "train", differentiates),
        before_calls(trainer.optimizer, "step", "train", steps_on),
        before_calls(trainer, "log", "train", logs),
    ):
        trainer.train()
    if name != "undiscounted":
        out[f"{name}/after"] = flat(trainer.model)
    check(name, out)
    chosen = ("gamma", "lam", "kl_estimator", "whiten_rewards")
    return out | {f"{name}/{key}": np.array(getattr(trainer.args, key)) for key in chosen}


def check(name: str, out: dict[str, np.ndarray]) -> None:
    """That a run shows what it is there to show."""
    lengths, width = (~out[f"{name}/padding_mask"]).sum(1), out[f"{name}/padding_mask"].shape[1]
    answers = out[f"{name}/query_responses"][:, out[f"{name}/context_length"] :]
    for answer, length in zip(answers, lengths, strict=True):
        assert length == width or (length > 0 and answer[length - 1] == EOS), "an answer holds the padding's id"
    print(f"{name}: answers of {lengths.tolist()} tokens; clipped {out[f'{name}/pg_clipfrac'].round(2).tolist()}, ")
    print(f"    values {out[f'{name}/vf_clipfrac'].round(2).tolist()}; end {out[f'{name}/contain_eos_token'].tolist()}")
    if name == "full":
        assert (lengths == width).all()
    else:
        assert (lengths < width).any() and (lengths == width).any()
    assert len(set(out[f"{name}/contain_eos_token"])) == 2, "the penalty befalls all answers or none"
    if name == "ended":
        assert (out["ended/pg_clipfrac"][1:] > 0).all() and (out["ended/vf_clipfrac"][1:] > 0).all()


def pairs() -> Dataset:
    def text(start: int, length: int) -> str:
        return " ".join(f"w{2 + (start + 5 * i) % (VOCAB - 2)}" for i in range(length))

    return Dataset.from_list(
        [
            dict(prompt=text(row, 2 + row % 2), chosen=f" {text(3 + row, 1 + row)}", rejected=f" {text(7 * row, 4)}")
            for row in range(4)
        ]
    )


def dpo(folder: str, batch: int, **options) -> list[dict[str, np.ndarray]]:
    """What DPOTrainer computes of the pairs, a batch at a time; no step is taken."""
    policy, reference = drawn(LlamaForCausalLM, 1), drawn(LlamaForCausalLM, 2)
    config = trl.DPOConfig(folder, per_device_train_batch_size=batch, beta=0.4, **options, **QUIET)
    trainer = trl.DPOTrainer(policy, reference, config, train_dataset=pairs(), processing_class=tokenizer())
    batches: list[dict[str, np.ndarray]] = []
    current: dict[str, np.ndarray] = {}

    def gathers(seen: dict) -> None:
        by = [seen["chosen_logps"], seen["rejected_logps"]]
        gradients = torch.autograd.grad(seen["loss"], by, retain_graph=True)
        current.update({key: plain(seen[key]) for key in DPO})
        current.update(zip(("grad_chosen", "grad_rejected"), map(plain, gradients), strict=True))

    with before_calls(trainer.accelerator, "gather", "_compute_loss", gathers):
        for rows in trainer.get_train_dataloader():
            trainer.compute_loss(trainer.model, rows)
            batches.append(dict(current))
    return batches


def reward(folder: str) -> dict[str, np.ndarray]:
    """What RewardTrainer computes of the pairs."""
    config = trl.RewardConfig(folder, per_device_train_batch_size=4, **QUIET)
    model = drawn(LlamaForSequenceClassification, 4)
    trainer = trl.RewardTrainer(model, config, train_dataset=pairs(), processing_class=tokenizer())
    out: dict[str, np.ndarray] = {}

    def gathers(seen: dict) -> None:
        by = [seen["rewards_chosen"], seen["rewards_rejected"]]
        gradients = torch.autograd.grad(seen["loss"], by, retain_graph=True)
        out.update({key: plain(seen[key]) for key in ("rewards_chosen", "rewards_rejected", "loss")})
        out.update(zip(("grad_chosen", "grad_rejected"), map(plain, gradients), strict=True))

    (rows,) = trainer.get_train_dataloader()
    with before_calls(trainer.accelerator, "gather", "compute_loss", gathers):
        trainer.compute_loss(trainer.model, rows)
    return out | {"accuracy": np.array(trainer._metrics["train"]["accuracy"][0])}


def main() -> None:
    """Writes the fixture."""
    config = json.loads(LlamaConfig(**SHAPE).to_json_string()) | {"architectures": ["LlamaForCausalLM"]}
    out = {"config": np.array(json.dumps(config)), "versions": np.array(f"trl {trl.__version__}")}
    out |= {key: np.array(value) for key, value in SHARED.items()} | {"beta": np.array(0.4), "smoothing": np.array(0.1)}
    with tempfile.TemporaryDirectory() as folder:
        for name, options in RUNS.items():
            out |= ppo(name, options, folder)
        out |= {f"dpo/{key}": value for key, value in dpo(folder, 4)[0].items()}
        # TRL's sigmoid loss knows no wrong labels; its AOT loss does, and of a single pair it is the sigmoid loss.
        for i, batch in enumerate(dpo(folder, 1, loss_type="aot", label_smoothing=0.1)):
            out |= {f"dpo_smooth/{i}/{key}": value for key, value in batch.items()}
        out |= {f"reward/{key}": value for key, value in reward(folder).items()}
    PATH.parent.mkdir(exist_ok=True)
    np.savez_compressed(PATH, **out)
    print(f"{PATH.name}: {PATH.stat().st_size:,} bytes, {len(out)} arrays")


if __name__ == "__main__":
    main()
