"""A Transformer-XL in float64 NumPy, one row, one head, one pair of tokens at a time: from the paper's formulas."""

import numpy as np

from tests.model.numpy_decoder import feed_forward, norm


def logits(config, params, tokens, segments, memory=None):
    """Logits (T, V) of one row, and the inputs of each layer at all tokens so far, [(M + T, D)].

    `memory` is what an earlier call gave second, with the segments of those tokens: (inputs, segments).
    """
    params = {g: {k: np.asarray(v, np.float64) for k, v in group.items()} for g, group in params.items()}
    before, before_segments = memory or ([np.zeros((0, config.embed_dim))] * config.num_layers, [])
    key_segments = [*before_segments, *segments]
    x = params["embed"]["token_vd"][tokens]
    inputs = []
    for i in range(config.num_layers):
        p = {name: leaf[i] for name, leaf in params["layers"].items()} | params.get("shared", {})
        window = config.attention[i % len(config.attention)].partition(":")[2]
        h = np.concatenate([before[i], x])
        inputs.append(h)
        y = norm(config, h, p["attention_norm_d"], p.get("attention_norm_bias_d"))
        x = x + _attention(config, p, y, len(tokens), key_segments, int(window or 10**9))
        x = x + feed_forward(config, p, norm(config, x, p["mlp_norm_d"], p.get("mlp_norm_bias_d")))
    x = norm(config, x, params["final"]["norm_d"], params["final"].get("norm_bias_d"))
    table = params["embed"]["token_vd"] if config.tie_embeddings else params["final"]["unembed_vd"]
    return x @ table.T, (inputs, key_segments)


def _encoding(config, distance):
    """R of one distance: all sines, then all cosines."""
    if config.xl_clamp_len:
        distance = min(distance, config.xl_clamp_len)
    angles = [distance / 10_000 ** (2 * i / config.embed_dim) for i in range(config.embed_dim // 2)]
    return np.array([*np.sin(angles), *np.cos(angles)])


def _attention(config, p, h, t, segments, window):
    out = np.zeros((t, config.embed_dim)) + p.get("out_bias_d", 0)
    first = len(h) - t
    for head in range(config.num_heads):
        shared = head // (config.num_heads // config.num_kv_heads)
        used = (("query", "nh", head), ("key", "kh", shared), ("value", "kh", shared))
        biases = {name: p[f"{name}_bias_{axes}"][at] if config.use_bias else 0 for name, axes, at in used}
        u, v = p["content_bias_nh"][head], p["distance_bias_nh"][head]
        for i in range(t):
            q = h[first + i] @ p["query_dnh"][:, head] + biases["query"]
            seen = [j for j in range(first + i + 1) if segments[j] == segments[first + i] and first + i - j < window]
            scores = []
            for j in seen:
                k = h[j] @ p["key_dkh"][:, shared] + biases["key"]
                r = _encoding(config, first + i - j) @ p["relative_dkh"][:, shared]
                scores.append(((q + u) @ k + (q + v) @ r) / np.sqrt(config.head_dim))
            scores = np.array(scores)
            if config.attention_soft_cap:
                scores = config.attention_soft_cap * np.tanh(scores / config.attention_soft_cap)
            weights = np.exp(scores - scores.max())
            values = h[seen] @ p["value_dkh"][:, shared] + biases["value"]
            out[i] += weights @ values / weights.sum() @ p["out_nhd"][head]
    return out
