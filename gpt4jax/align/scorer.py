"""A reward model that a stage exported, as a function of texts."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from gpt4jax import files, weights
from gpt4jax.align import answers, examples, exports, policy, rollout
from gpt4jax.errors import UserError
from gpt4jax.inference import chat
from gpt4jax.parallel import partition
from gpt4jax.parallel.mesh import make_mesh

Score = Callable[[Sequence[tuple[str, str]]], np.ndarray]


def of_export(folder: str, rows: int = 8, room: int = 0) -> Score:
    """The scores of (prompt, response) pairs by a reward model; NaN for what is empty or too long for it.

    So many are read at once, and of each response `room` tokens at most (0: all).

    Raises:
        UserError: it is none, or has no chat template.
    """
    about = weights.open_weights(folder)
    if about.tokenizer is None:
        raise UserError(f"{folder} has no tokenizer: without it there are no texts")
    config = dataclasses.replace(about.config, dtype="float32", param_dtype="float32")
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    model = exports.reward_model(folder, config, about.tokenizer, mesh, files.cache_dir())
    score = policy.on_answers(*model, partition.batch_sharding(mesh))
    template = chat.of_model(about.tokenizer.chat_template, about.tokenizer.roles, folder)
    encoder = examples.Encoder(
        about.tokenizer, template, config.max_seq_len, room or config.max_seq_len, cut=bool(room)
    )

    def score_all(pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        encoded = {}
        for i, (prompt, response) in enumerate(pairs):
            row = {"messages": [{"role": "user", "content": prompt}]}
            with contextlib.suppress(examples.TooLongError):
                if response.strip():
                    answer = encoder.answer(row, response)
                    encoded[i] = encoder.fits(encoder.prompt(row), len(answer)), answer
        found = np.full(len(pairs), np.nan)
        lengths = {i: len(tokens) + len(answer) for i, (tokens, answer) in encoded.items()}
        order = sorted(lengths, key=lambda i: lengths[i])  # rows that are read together are about as long
        for start in range(0, len(order), rows):
            some = order[start : start + rows]
            filled = some + [some[-1]] * (rows - len(some))
            length = min(-(-lengths[some[-1]] // 64) * 64, config.max_seq_len)
            each = [examples.answer_row(encoded[i][0], [encoded[i][1]], 1, length) for i in filled]
            arrays = (
                jnp.asarray(np.concatenate([row[name] for row in each])) for name in ("tokens", "start", "length")
            )
            drawn = rollout.Drawn(answers.Answers(*arrays), np.ones(rows, bool), ("",) * rows)
            found[some] = score(np.array(filled), drawn)[: len(some)]
        return found

    return score_all
