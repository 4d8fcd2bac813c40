"""The decoder again, in float64 NumPy, one row and one head at a time: written from the papers' formulas."""

import numpy as np


def logits(config, params, tokens, positions, segments):
    """Logits (T, V) of one row."""
    params = {g: {k: np.asarray(v, np.float64) for k, v in group.items()} for g, group in params.items()}
    x = params["embed"]["token_vd"][tokens]
    if config.position == "learned":
        x = x + params["embed"]["position_td"][positions]
    for i in range(config.num_layers):
        p = {name: leaf[i] for name, leaf in params["layers"].items()}
        pattern = config.attention[i % len(config.attention)]
        y = norm(config, x, p["attention_norm_d"], p.get("attention_norm_bias_d"))
        x = x + _attention(config, pattern, p, y, tokens, positions, segments)
        y = norm(config, x, p["mlp_norm_d"], p.get("mlp_norm_bias_d"))
        x = x + feed_forward(config, p, y)
    x = norm(config, x, params["final"]["norm_d"], params["final"].get("norm_bias_d"))
    out = x @ (params["embed"]["token_vd"] if config.tie_embeddings else params["final"]["unembed_vd"]).T
    return config.logit_soft_cap * np.tanh(out / config.logit_soft_cap) if config.logit_soft_cap else out


def feed_forward(config, p, y):
    """The MLP of one layer."""
    up = y @ p["up_df"] + p.get("up_bias_f", 0)
    if config.activation == "swiglu":
        gate = y @ p["gate_df"] + p.get("gate_bias_f", 0)
        up = gate / (1 + np.exp(-gate)) * up
    else:
        up = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
    return up @ p["down_fd"] + p.get("down_bias_d", 0)


def norm(config, x, scale, bias):
    """LayerNorm or RMSNorm."""
    if config.norm == "layernorm":
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + config.norm_eps)
    else:
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps)
    return x * scale + (0 if bias is None else bias)


def _rope(config, x, positions):
    half = config.head_dim // 2
    out = np.empty_like(x)
    for t, position in enumerate(positions):
        for i in range(half):
            angle = position * config.rope_theta ** (-2 * i / config.head_dim)
            a, b = x[t, i], x[t, i + half]
            out[t, i] = a * np.cos(angle) - b * np.sin(angle)
            out[t, i + half] = b * np.cos(angle) + a * np.sin(angle)
    return out


def _sees(pattern, head, t, s, tokens, positions, segments):
    if segments[s] != segments[t] or positions[s] > positions[t]:
        return False
    if pattern == "induction":  # itself, and what came after earlier copies of its token in the document
        return s == t or (positions[s] > 0 and tokens[s - 1] == tokens[t])
    of_heads = pattern.split("/")
    return any(_shows(piece, head, positions[t], positions[s]) for piece in of_heads[head % len(of_heads)].split("|"))


def _shows(piece, head, i, j):
    """Child et al. 2019, section 4.2; a head's summary stands `head` summaries before the end of a block."""
    name, *numbers = piece.split(":")
    size, count = [*map(int, numbers), 0, 0][:2]
    if name == "fixed":
        return _shows(f"block:{size}", head, i, j) or _shows(f"summary:{size}:{count}", head, i, j)
    if name == "strided":
        return _shows(f"banded:{size}", head, i, j) or _shows(f"column:{size}", head, i, j)
    if name == "summary":
        end = size - count * (head % (size // count))
        return j % size in range(end - count, end)
    if name == "block":
        return i // size == j // size
    return {"dense": True, "banded": i - j < size, "column": size and (i - j) % size == 0}[name]


def _attention(config, pattern, p, x, tokens, positions, segments):
    group = config.num_heads // config.num_kv_heads
    out = np.zeros_like(x) + p.get("out_bias_d", 0)
    for head in range(config.num_heads):
        shared = head // group
        q = x @ p["query_dnh"][:, head] + (p["query_bias_nh"][head] if config.use_bias else 0)
        k = x @ p["key_dkh"][:, shared] + (p["key_bias_kh"][shared] if config.use_bias else 0)
        v = x @ p["value_dkh"][:, shared] + (p["value_bias_kh"][shared] if config.use_bias else 0)
        if config.qk_norm:
            q = q / np.sqrt((q**2).mean(-1, keepdims=True) + config.norm_eps) * p["query_norm_h"]
            k = k / np.sqrt((k**2).mean(-1, keepdims=True) + config.norm_eps) * p["key_norm_h"]
        if config.position == "rope":
            q, k = _rope(config, q, positions), _rope(config, k, positions)
        y = np.zeros_like(v)
        for t in range(len(x)):
            seen = [s for s in range(len(x)) if _sees(pattern, shared, t, s, tokens, positions, segments)]
            score = k[seen] @ q[t] / np.sqrt(config.head_dim)
            if config.attention_soft_cap:
                score = config.attention_soft_cap * np.tanh(score / config.attention_soft_cap)
            weight = np.exp(score - score.max())
            y[t] = weight @ v[seen] / weight.sum()
        out = out + y @ p["out_nhd"][head]
    return out
