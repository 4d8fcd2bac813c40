"""The decode loop: one prompt through a KV cache."""

from collections.abc import Collection, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gpt4jax import model
from gpt4jax.errors import UserError
from gpt4jax.inference.sampling import sample
from gpt4jax.model.decoder import State
from gpt4jax.model.parameters import Params


def generate(
    config: model.Config,
    params: Params,
    prompt: Sequence[int],
    max_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Collection[int] = (),
    vocab_size: int | None = None,
) -> Iterator[int]:
    """Yields up to `max_tokens` ids that continue the prompt, ending early at one of `stop`, without it.

    Prompts and caches are padded to powers of two, so that few programs are compiled. Token i is drawn
    with a key that depends on (seed, i) alone. `vocab_size` is the tokenizer's, where the model's is padded:
    ids from there on are never drawn.

    Raises:
        UserError: an empty prompt, or prompt and tokens together longer than max_seq_len.
    """
    if not len(prompt):
        raise UserError("the prompt has no tokens")
    length = len(prompt) + max_tokens
    if length > config.max_seq_len:
        raise UserError(
            f"a prompt of {len(prompt)} tokens and {max_tokens} more exceed the model's max_seq_len "
            f"{config.max_seq_len}"
        )
    padded = np.zeros((1, min(_power_of_two(len(prompt)), config.max_seq_len)), np.int32)
    padded[0, : len(prompt)] = prompt
    state = model.init_cache(config, 1, min(_power_of_two(length), config.max_seq_len))
    settings = (jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p))
    logits_bv, state = _prefill(config, params, padded, jnp.int32(len(prompt)), state)
    key = jax.random.key(seed)
    for i in range(max_tokens):
        token_b = _choose(logits_bv[:, :vocab_size], jax.random.fold_in(key, i), *settings)
        token = int(token_b[0])
        if token in stop:
            return
        yield token
        if i + 1 < max_tokens:
            logits_bv, state = _step(config, params, token_b[:, None], state)


def _power_of_two(n: int) -> int:
    return 1 << max(4, (n - 1).bit_length())


_choose = jax.jit(sample)


@partial(jax.jit, static_argnums=0, donate_argnums=4)
def _prefill(config, params, tokens_bt, length, state: State) -> tuple[jax.Array, State]:
    """The logits after the prompt's last token. What the padding wrote lies past the length: hidden, overwritten."""
    x_btd, grown = model.features(config, params, tokens_bt, state=state)
    assert grown is not None
    last_b1d = jax.lax.dynamic_slice_in_dim(x_btd, length - 1, 1, axis=1)
    return model.unembed(config, params, last_b1d)[:, 0], grown._replace(length_b=jnp.full_like(state.length_b, length))


@partial(jax.jit, static_argnums=0, donate_argnums=3)
def _step(config, params, tokens_b1, state: State) -> tuple[jax.Array, State]:
    x_b1d, grown = model.features(config, params, tokens_b1, state=state)
    assert grown is not None
    return model.unembed(config, params, x_b1d)[:, 0], grown
