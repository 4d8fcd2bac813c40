"""The decoder's forward pass, and the thin Linen shell that holds its parameters."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gpt4jax.model import cached, context, layers, mup, patterns, position, transformer_xl, vision
from gpt4jax.model.axes import constrain, shards
from gpt4jax.model.cached import Cached, KeysValues, Ring, Tree
from gpt4jax.model.config import Config
from gpt4jax.model.layers import Matrix, Rows
from gpt4jax.model.parameters import Params, draw, table
from gpt4jax.model.transformer_xl import Memory
from gpt4jax.model.vision import Embeddings, Images


class State(NamedTuple):
    """A KV cache, keys and values (R, K, S, H) of each layer, and how many tokens each row of the batch has in it.

    Banded layers may have fewer places S than others (`cached.Ring`, which also says how far `length_b` may go back).

    Without `row_b` the batch's rows are the cache's. With it the cache is read as B equal parts, one for each row
    of the batch, and `row_b` says which row of its part that is. For -1 nothing is written.

    With `tree` rows branch: then it says where the cache's tokens and the new ones belong, and there may be no rings.
    """

    cache: tuple[KeysValues, ...]
    length_b: jax.Array
    row_b: jax.Array | None = None
    tree: Tree | None = None


class Decoder(nn.Module):
    """Declares the parameter table, group by group; the mathematics is in `forward`."""

    config: Config

    @nn.compact
    def __call__(self, tokens_bt: jax.Array, **options: Any) -> tuple[jax.Array, State | Memory | None]:
        """See `features`."""
        rows = table(self.config)
        dtype = jnp.dtype(self.config.param_dtype)
        params = {
            group: self.param(
                group, lambda key, group=group: {r.name: draw(r, key, dtype) for r in rows if r.group == group}
            )
            for group in dict.fromkeys(row.group for row in rows)
        }
        if self.is_initializing():  # parameters are all that is asked for, under whatever mesh
            return tokens_bt, None
        return forward(self.config, params, tokens_bt, **options)


def init(config: Config, key: jax.Array) -> Params:
    """Draws the parameters: plain nested dicts of arrays, `params[group][name]`, as the table has them."""
    return Decoder(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def features(
    config: Config,
    params: Params,
    tokens_bt: jax.Array,
    *,
    segment_ids_bt: jax.Array | None = None,
    positions_bt: jax.Array | None = None,
    images: Images | Embeddings | None = None,
    state: State | Memory | None = None,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, State | Memory | None]:
    """The last hidden states, after the final norm, (B, T, D) in the compute dtype, and the new state.

    Args:
        config: the decoder.
        params: what `init` gives, or `gpt4jax.inference.prepare` makes of it.
        tokens_bt: integers in [0, vocab_size).
        segment_ids_bt: documents of a packed row; a token sees its own segment only. Default: one segment, 1. With a
            memory an id must mean the same document from row to row.
        positions_bt: position within the piece of a document that a row holds, growing along each segment;
            default 0, 1, ... or, with a state, on from its length.
        images: those of the rows (`gpt4jax.model.vision`), as patches or as `vision.embed` made of them, which take the
            places of the image tokens in their order. With a state, an image's tokens must all come at once.
        state: a KV cache (`init_cache`) to read and append to. It must have room for T more tokens in
            every row: what is written past its end would overwrite its last places. Of a Transformer-XL a memory
            (`init_memory`), which comes back as long as it was, holding the newest tokens; None is an empty one, and
            the one that comes back has `memory_len` places.
        dropout_key: turns dropout on.

    Raises:
        ValueError: rows longer than the position table or than the cache takes at once, segment ids or dropout
            together with a cache, a state that is not this decoder's kind, images of a decoder without a frontend, or
            a mesh whose axis `context` does not divide the rows, or is above 1 for a decoder with a state.
    """
    if images is not None and config.vision is None:
        raise ValueError("this decoder has no image frontend (config.vision is None): images must be None")
    options: dict[str, Any] = dict(
        segment_ids_bt=segment_ids_bt, positions_bt=positions_bt, images=images, state=state, dropout_key=dropout_key
    )
    if not isinstance(params["layers"], Mapping):  # prepared for inference: not the shapes of the table
        return forward(config, params, tokens_bt, **options)
    return Decoder(config).apply({"params": params}, tokens_bt, **options)  # type: ignore[return-value] # Flax: anything


def unembed(config: Config, params: Params, x_btd: jax.Array) -> jax.Array:
    """Logits (B, T, V) of hidden states, in float32 (float64 for a float64 decoder)."""
    table_vd = params["embed"]["token_vd"] if config.tie_embeddings else params["final"]["unembed_vd"]
    x_btd = layers.times(mup.multipliers(config).output, x_btd)
    if isinstance(table_vd, Matrix):
        logits_mv = layers.outputs_first(x_btd.reshape(-1, config.embed_dim), table_vd, config.stable_dtype)
        logits_btv = logits_mv.reshape(*x_btd.shape[:2], -1)
    else:
        logits_btv = jnp.einsum(
            "btd,vd->btv", x_btd, table_vd.astype(x_btd.dtype), preferred_element_type=config.stable_dtype
        )
    if config.logit_soft_cap:
        logits_btv = config.logit_soft_cap * jnp.tanh(logits_btv / config.logit_soft_cap)
    return constrain(logits_btv, "act_batch", "act_len", "act_vocab")


def apply(config: Config, params: Params, tokens_bt: jax.Array, **options: Any) -> jax.Array:
    """The plain forward pass: logits (B, T, V). Options as in `features`."""
    x_btd, _ = features(config, params, tokens_bt, **options)
    return unembed(config, params, x_btd)


def init_cache(config: Config, batch: int, length: int, *, append: int | None = None) -> State:
    """An empty KV cache with room for `length` tokens in each of `batch` rows.

    `append` is the most tokens that are ever written past a row's end at once (None: `length`), counting padding
    and guesses that are forgotten again. A layer "banded:W" then has W - 1 + append places, in whole CACHE_BLOCKs,
    where that is less than `length` (`cached.Ring`); any other has `length`.

    Raises:
        ValueError: nothing could ever be appended, or a Transformer-XL, which carries a memory instead.
    """
    if config.position == "transformer_xl":
        raise ValueError("a transformer_xl decoder has no KV cache: it carries a memory (init_memory)")
    append = length if append is None else min(append, length)
    if append < 1:
        raise ValueError(f"a KV cache of {length} tokens, {append} at once, holds nothing: both must be at least 1")
    shape = (batch, config.num_kv_heads, length, config.head_dim)
    cache = tuple(cached.empty_layer(pattern, shape, config.compute_dtype, append) for pattern in _patterns(config))
    return State(cache, jnp.zeros((batch,), jnp.int32))


def cache_bytes(config: Config, batch: int, length: int, *, append: int | None = None) -> int:
    """Bytes that the keys and values of `init_cache` take, over all devices."""
    shapes = jax.eval_shape(lambda: init_cache(config, batch, length, append=append).cache)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def _patterns(config: Config) -> list[str]:
    """Of each layer."""
    return [config.attention[i % len(config.attention)] for i in range(config.num_layers)]


def forward(
    config: Config,
    params: Params,
    tokens_bt: jax.Array,
    *,
    segment_ids_bt: jax.Array | None = None,
    positions_bt: jax.Array | None = None,
    images: Images | Embeddings | None = None,
    state: State | Memory | None = None,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, State | Memory | None]:
    """The body of `features`, a pure function of the parameters."""
    t = tokens_bt.shape[1]
    _check_state(config, t, segment_ids_bt, state, dropout_key)
    plain = positions_bt is None and state is None
    if positions_bt is None and isinstance(state, State) and state.tree is not None:
        positions_bt, _ = state.tree.of_new(state.length_b, t)
    if positions_bt is None:
        positions_bt = jnp.arange(t)[None] + (state.length_b[:, None] if isinstance(state, State) else 0)
    embed_key, layers_key = (None, None) if dropout_key is None else jax.random.split(dropout_key)

    # Tables are gathered over fsdp before the look-up, as matrices are before a product: left alone, XLA
    # replicates the activations that it looked up.
    x_btd = _look_up(params["embed"]["token_vd"], context.spread(tokens_bt), config.compute_dtype)
    edges = None
    if images is not None and config.vision is not None:
        embedded = vision.embed(config, params, images) if isinstance(images, Images) else images
        x_btd = vision.put(config.vision, x_btd, tokens_bt, embedded)
        edges = vision.spans(config.vision, tokens_bt, positions_bt)
    cos_sin = None
    if config.position == "learned":
        position_td = constrain(params["embed"]["position_td"], "positions", "act_embed")
        x_btd += position_td[context.spread(positions_bt)].astype(config.compute_dtype)
    elif config.position == "rope":
        cos_sin = position.rope_angles(config, context.spread(positions_bt))
    # First whole over tensor, or the gradient of the look-up takes 6 GiB more of a chip (configs/pod_1t.py).
    x_btd = constrain(layers.dropout(x_btd, config.dropout, embed_key), "act_batch", "act_len", "act_embed")
    x_btd = layers.stream(config, x_btd, state)

    rows = Rows(positions_bt, segment_ids_bt, cos_sin, plain=plain, images=edges)
    if patterns.INDUCTION in config.attention:
        signed_bt = tokens_bt.astype(jnp.int32)
        rows = rows._replace(token_bt=signed_bt, before_bt=_before(signed_bt, segment_ids_bt))
    if config.position == "transformer_xl":
        x_btd, state = _run_with_memory(config, params, x_btd, rows, state, layers_key)
    elif not isinstance(state, State):
        x_btd, _ = _run_layers(config, params["layers"], x_btd, rows, layers_key)
    else:
        x_btd, cache = _run_cached(config, params["layers"], x_btd, rows, state)
        state = state._replace(cache=cache, length_b=state.length_b + t)
    final = params["final"]
    x_btd = layers.norm(config, x_btd, final["norm_d"], final.get("norm_bias_d"))
    return context.in_order(constrain(x_btd, "act_batch", "act_len", "act_embed")), state


def _look_up(table_vd: jax.Array | Matrix, tokens_bt: jax.Array, dtype: jnp.dtype) -> jax.Array:
    if not isinstance(table_vd, Matrix):
        return constrain(table_vd, "act_vocab", "act_embed")[tokens_bt].astype(dtype)
    x_btd = constrain(table_vd.values, "act_vocab", "act_embed")[tokens_bt].astype(dtype)
    return x_btd if table_vd.scale is None else x_btd * table_vd.scale[tokens_bt][..., None].astype(dtype)


def _before(tokens_bt: jax.Array, segment_ids_bt: jax.Array | None) -> jax.Array:
    """The token before each one in its segment; -1 before the first."""
    before_bt = jnp.pad(tokens_bt[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    if segment_ids_bt is None:
        return before_bt
    first_bt = jnp.diff(segment_ids_bt, axis=1, prepend=segment_ids_bt[:, :1]) != 0
    return jnp.where(first_bt, -1, before_bt)


def _check_state(config, t, segment_ids_bt, state, dropout_key) -> None:
    recurrent = config.position == "transformer_xl"
    if state is not None and recurrent != isinstance(state, Memory):
        kind = "a memory (init_memory), not a KV cache" if recurrent else "a KV cache (init_cache), not a memory"
        raise ValueError(f"the state of a decoder with position {config.position!r} is {kind}")
    if config.position == "learned" and t > config.max_seq_len:
        raise ValueError(f"rows of {t} tokens do not fit the position table of max_seq_len {config.max_seq_len}")
    if shards("act_len") > 1 and (recurrent or state is not None):
        what = "a decoder with position 'transformer_xl'" if recurrent else "a KV cache"
        raise ValueError(f"{what} can't have its tokens over mesh axis context = {shards('act_len')}; it must be 1")
    if state is None or recurrent:
        return
    if dropout_key is not None:
        raise ValueError("a decoder with a KV cache is not being trained: dropout_key and state exclude each other")
    if segment_ids_bt is not None:
        raise ValueError("a KV cache holds one document a row: segment_ids_bt and state exclude each other")
    for pattern, layer in zip(_patterns(config), state.cache, strict=True):
        if t > (room := cached.room(pattern, layer)):
            of = f"that takes {room} at once: see `append` of init_cache" if isinstance(layer, Ring) else f"of {room}"
            raise ValueError(f"{t} tokens do not fit a KV cache {of}")


def _run_with_memory(config, params, x_btd, rows, memory, dropout_key):
    """All layers of a Transformer-XL over rows behind a memory (or none): hidden states, and the next memory."""
    b, t, _ = x_btd.shape
    segment_bt = jnp.ones((b, t), jnp.int32) if rows.segment_bt is None else rows.segment_bt
    old = transformer_xl.init_memory(config, b) if memory is None else memory
    segment_bs = segment_bt if memory is None else jnp.concatenate([memory.segment_bm, segment_bt], axis=1)
    keys = transformer_xl.Keys(segment_bs, transformer_xl.encoded_distances(config, segment_bs.shape[1]))
    keep = min(t, old.segment_bm.shape[1])
    x_btd, inputs_lbtd = _run_layers(
        config, params["layers"], x_btd, rows._replace(keys=keys), dropout_key, keep=keep,
        shared=params.get("shared", {}), memory_lbmd=None if memory is None else jax.lax.stop_gradient(memory.h_lbmd),
    )  # fmt: skip
    return x_btd, old.extended(inputs_lbtd, segment_bt[:, t - keep :]) if keep else old


def _run_layers(config, params, x_btd, rows, dropout_key, *, keep=0, shared=None, memory_lbmd=None):
    """All layers over whole rows, a cycle of patterns at a time: scanned, or unrolled into one program.

    Gives their hidden states and, if asked to keep them, the inputs of every layer at the last tokens, (L, B, keep, D).
    Each layer reads the parameters that are `shared` beside its own.
    """
    cycle, first_kept = len(config.attention), x_btd.shape[1] - keep
    cycles = config.num_layers // cycle
    keys = None if dropout_key is None else jax.random.split(dropout_key, config.num_layers)

    def run_cycle(x_btd, xs):
        inputs = []
        for i, pattern in enumerate(config.attention):
            layer, key, memory_bmd = jax.tree.map(lambda leaf, i=i: leaf[i], xs) if cycle > 1 else xs
            inputs.append(x_btd[:, first_kept:])
            x_btd, _ = layers.block(config, pattern, {**layer, **(shared or {})}, x_btd, rows, None, key, memory_bmd)
        return x_btd, jnp.stack(inputs) if keep else None

    if config.remat != "none":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
        run_cycle = jax.checkpoint(run_cycle, policy=policy, prevent_cse=config.layers == "unroll")

    xs = (params, keys, memory_lbmd)
    if cycle > 1:  # An axis of one would not be free: XLA copies every weight into another layout for it.
        xs = jax.tree.map(lambda leaf: leaf.reshape(cycles, cycle, *leaf.shape[1:]), xs)
    if config.layers == "scan":
        x_btd, inputs = jax.lax.scan(run_cycle, x_btd, xs)
        return x_btd, inputs.reshape(-1, *inputs.shape[2:]) if keep else None
    parts = []
    for one in _unstack(xs, cycles):
        x_btd, inputs = run_cycle(x_btd, one)
        parts.append(inputs)
    return x_btd, jnp.concatenate(parts) if keep else None


def _run_cached(config, params, x_btd, rows, state):
    """All layers over new tokens: their hidden states, and every layer's cache with them in it.

    Always unrolled, and best over parameters that are not stacked (`gpt4jax.inference.prepare`): of stacked ones
    XLA copies every layer's weights before it reads them, and reading weights is what decoding does.
    """
    caches = []
    each = _unstack(params, config.num_layers) if isinstance(params, Mapping) else params
    for pattern, layer, held in zip(_patterns(config), each, state.cache, strict=True):
        x_btd, cache = layers.block(
            config, pattern, layer, x_btd, rows, Cached(held, state.length_b, state.row_b, state.tree), None
        )
        caches.append(cache)
    return x_btd, tuple(caches)


def _unstack(xs, n):
    """The n slices of a stacked tree. The gradient of `split` is one concatenation; that of n indexings, n sums."""
    columns = jax.tree.map(lambda leaf: [part[0] for part in jax.lax.split(leaf, [1] * n)], xs)
    return [jax.tree.map(lambda _, column, i=i: column[i], xs, columns) for i in range(n)]
