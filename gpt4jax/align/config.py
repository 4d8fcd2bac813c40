"""The configuration of `python -m gpt4jax.align`: what all stages share, and a group for each stage.

The shared keys are those of `gpt4jax.config`; `stage` makes of both the configuration of one run.
"""

from typing import Any

import ml_collections

from gpt4jax import config as configuration
from gpt4jax.errors import UserError

STAGES = ("sft", "reward", "ppo", "dpo")
_OF_THE_RUN = ("num_steps", "batch_size", "init_from")
_OF_THE_OPTIMIZER = ("learning_rate", "warmup_steps", "micro_batches")
_OF_THE_EVALUATION = ("eval_every_steps", "log_every_steps")


def default() -> ml_collections.ConfigDict:
    """Every key there is. The lengths of InstructGPT's stages are far longer (Ouyang et al. 2022, appendix C)."""
    c = configuration.default().unlock()
    del c.num_steps, c.batch_size  # each stage has its own
    c.stages = ("sft", "reward", "ppo")  # in this order; one that is done is not done again
    c.chat_template = ""  # a file with a Jinja template, in place of the weights' own
    c.held_out = 0.1  # share of the prompts that are kept for evaluations, by a hash of their text
    # Of examples that do not fit data.seq_len or max_response: or "drop" them, or "cut" their answers at max_response
    c.too_long = "error"
    c.max_response = 64  # tokens of an answer, the end of the text among them
    for name in STAGES:
        c[name] = _stage_default(name)
    return c.lock()


def _stage_default(name: str) -> ml_collections.ConfigDict:
    s = ml_collections.ConfigDict()
    s.num_steps = 500  # optimizer steps; of PPO: rounds of answers
    s.batch_size = 32  # of sft: packed rows; of reward and dpo: prompts with their answers; of ppo: prompts
    s.init_from = "" if name == "sft" else "sft"  # a stage, weights or a run; "": init_from, or drawn from the seed
    s.learning_rate = 1e-4  # the schedule's peak
    s.warmup_steps = 10  # linear, from 0
    s.micro_batches = 1  # parts of a batch that are computed one after another
    s.eval_every_steps = 0  # 0: only after the last
    s.log_every_steps = 10  # lines of metrics.jsonl
    s.data = ""  # "jsonl:PATH", or one of `sources.NAMES`
    s.lora_rank = 0  # of low-rank adapters in place of all parameters; 0: none
    s.lora_alpha = 16.0  # their sum is scaled by alpha / rank
    s.lora_targets = ("query", "key", "value", "out", "gate", "up", "down")  # the matrices that have them
    if name == "reward":
        s.responses = 4  # answers of a prompt that are ranked against each other, at most
        s.demonstrations = ""  # whose mean score is made 0 (as `sft.data`); "": scores are left as they are
    if name == "dpo":
        s.responses = 4  # as `reward.responses`; each pair of them counts
        s.beta = 0.1  # of the loss: how far the policy may go from the reference
        s.smoothing = 0.0  # share of the labels that are taken to be the wrong way round
    if name == "ppo":
        _ppo(s)
    return s


def _ppo(s: ml_collections.ConfigDict) -> None:
    """Published details of PPO, each a switch: `gpt4jax.align.ppo` says which is whose."""
    s.reward = "reward"  # a stage, a folder that one exported, "gold" (the known world's own), or "": rules alone
    s.rules = 0.0  # what rules say of an answer to a prompt of that "kind" (`rules.REWARDS`) counts so much beside it
    s.temperature = 1.0  # that answers are drawn at
    s.inner_epochs = 4  # passes over a round's answers
    s.minibatches = 1  # parts of a round, each an optimizer step
    s.kl_coefficient = 0.05  # of the KL to the policy before PPO, in the reward of each token
    s.kl_estimator = "k1"  # of that KL: "k1", "k2", "k3"
    s.kl_target = 0.0  # nats an answer that the coefficient is adapted to; 0: it is fixed
    s.kl_horizon = 10_000.0  # episodes: the larger, the slower it adapts
    s.max_kl = 100.0  # nats an answer; a policy that runs further away ends the run
    s.clip = 0.2  # of the ratio of probabilities
    s.value_clip = 0.2  # of the change of a value; 0: none
    s.value_coefficient = 0.5  # of the values' loss
    s.value_learning_rate = 0.0  # 0: learning_rate
    s.value_from = "reward"  # the value network starts as the reward model; or "policy": its decoder, values of 0
    s.discount = 1.0  # of later rewards
    s.decay = 0.95  # lambda of generalised advantage estimation
    s.whiten_rewards = False  # tokens' rewards to a variance of 1, their mean left
    s.whiten_advantages = True  # to a mean of 0 and a variance of 1, over the whole round
    s.missing_end_penalty = 1.0  # off the score of an answer that does not end
    s.average_decay = 0.0  # of the average of policies that is exported; 0: the last one is
    s.pretraining_coefficient = 0.0  # PPO-ptx: of the loss on rows of data.dataset; 0: none
    s.pretraining_rows = 8  # of each optimizer step


def load(path: str, overrides: Any) -> ml_collections.ConfigDict:
    """The config of a file with overrides, checked as far as it is the same for all stages.

    Raises:
        UserError: as `config.load`; a stage that does not exist, or none or one twice; a share or choice that can't be.
    """
    config = configuration.load(path, overrides, default)
    strange = [name for name in config.stages if name not in STAGES]
    if strange or not config.stages or len(set(config.stages)) < len(config.stages):
        raise UserError(f"stages are {tuple(config.stages)}; each of {', '.join(STAGES)} may be there once")
    if not 0 <= config.held_out < 1:
        raise UserError(f"held_out is {config.held_out}: a share of the prompts, at least 0 and below 1")
    if config.too_long not in ("error", "drop", "cut"):
        raise UserError(f"too_long is {config.too_long!r}; it must be 'error', 'drop' or 'cut'")
    if config.max_response < 1:
        raise UserError(f"max_response is {config.max_response}: an answer has at least 1 token")
    return config


def stage_default(name: str) -> ml_collections.ConfigDict:
    """Every key of one stage's run: those of `gpt4jax.config`, and the stage's own in the group `align`."""
    return stage(default(), name)


def stage(config: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
    """The config of one stage's run, from the job's."""
    c, own = configuration.default().unlock(), config[name]
    for key in c:
        if key in config:
            c[key] = config[key]
    for key in _OF_THE_RUN:
        c[key] = own[key]
    c.optimizer, c.eval = (group.copy_and_resolve_references() for group in (config.optimizer, config.eval))
    c.optimizer.update({key: own[key] for key in _OF_THE_OPTIMIZER})
    c.eval.update({key: own[key] for key in _OF_THE_EVALUATION})
    moved = (*_OF_THE_RUN, *_OF_THE_OPTIMIZER, *_OF_THE_EVALUATION)
    c.align = ml_collections.ConfigDict({key: own[key] for key in own if key not in moved})
    c.align.update(
        stage=name, chat_template=config.chat_template, held_out=config.held_out, too_long=config.too_long,
        max_response=config.max_response,
    )  # fmt: skip
    return c.lock()
