"""The papers' equations in numpy loops, fp64, one row at a time: nothing here is shared with the package.

A layer's parameters are a dict of arrays under our names. x is (T, I); results are (T, D).
"""

from __future__ import annotations

import math

import numpy as np

Parameters = dict[str, np.ndarray]
_erf = np.vectorize(math.erf)


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def softmax(a: np.ndarray) -> np.ndarray:
    exponentials = np.exp(a - a.max())
    return exponentials / exponentials.sum()


def gate(p: Parameters, index: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """W, U, b_x, b_h of one gate."""
    rows = slice(index * width, (index + 1) * width)
    return p["weight_ih"][rows], p["weight_hh"][rows], p["bias_ih"][rows], p["bias_hh"][rows]


# -- cells ------------------------------------------------------------------------------------------------------------
def rnn(x: np.ndarray, p: Parameters, relu: bool = False) -> np.ndarray:
    """Elman 1990."""
    h = np.zeros(p["weight_hh"].shape[1])
    hidden = []
    for x_t in x:
        a = p["weight_ih"] @ x_t + p["bias_ih"] + p["weight_hh"] @ h + p["bias_hh"]
        h = np.maximum(a, 0) if relu else np.tanh(a)
        hidden.append(h)
    return np.stack(hidden)


def lstm(x: np.ndarray, p: Parameters) -> np.ndarray:
    """Gers 2000 as written in Chung 2014, section 3.1 (eq. 1–5), with diagonal peepholes where there are any."""
    width = p["weight_hh"].shape[1]
    (wi, ui, bi, ci), (wf, uf, bf, cf), (wg, ug, bg, cg), (wo, uo, bo, co) = (gate(p, k, width) for k in range(4))
    vi, vf, vo = (p.get(f"peephole_{k}", np.zeros(width)) for k in "ifo")
    h, c = np.zeros(width), np.zeros(width)
    hidden = []
    for x_t in x:
        i = sigmoid(wi @ x_t + bi + ui @ h + ci + np.diag(vi) @ c)
        f = sigmoid(wf @ x_t + bf + uf @ h + cf + np.diag(vf) @ c)
        new = np.tanh(wg @ x_t + bg + ug @ h + cg)
        c = f * c + i * new
        o = sigmoid(wo @ x_t + bo + uo @ h + co + np.diag(vo) @ c)
        h = o * np.tanh(c)
        hidden.append(h)
    return np.stack(hidden)


def gru(x: np.ndarray, p: Parameters, reset_after: bool) -> np.ndarray:
    """Cho 2014, eq. 5–8 (there z keeps the old state too); `reset_after` as in torch."""
    width = p["weight_hh"].shape[1]
    (wr, ur, br, cr), (wz, uz, bz, cz), (wn, un, bn, cn) = (gate(p, k, width) for k in range(3))
    h = np.zeros(width)
    hidden = []
    for x_t in x:
        r = sigmoid(wr @ x_t + br + ur @ h + cr)
        z = sigmoid(wz @ x_t + bz + uz @ h + cz)
        recurrent = r * (un @ h + cn) if reset_after else un @ (r * h) + cn
        h = z * h + (1 - z) * np.tanh(wn @ x_t + bn + recurrent)
        hidden.append(h)
    return np.stack(hidden)


# -- attention over the past, pooling ---------------------------------------------------------------------------------
def score(kind: str, query: np.ndarray, key: np.ndarray, p: Parameters) -> float:
    """Luong 2015, eq. 8; Bahdanau 2014, A.1.2."""
    if kind == "dot":
        return query @ key
    if kind == "general":
        return (p["score.query.weight"] @ query) @ key
    inside = p["score.query.weight"] @ query + p["score.key.weight"] @ key + p["score.key.bias"]
    return (p["score.vector.weight"] @ np.tanh(inside))[0]


def attention_over_past(hidden: np.ndarray, p: Parameters, kind: str, window: int | None) -> np.ndarray:
    """Daniluk 2017, eq. 2–6: h_t attends over the h_s before it, at most `window` of them."""
    outputs = []
    for t, h in enumerate(hidden):
        past = hidden[:t] if window is None else hidden[max(0, t - window) : t]
        context = np.zeros_like(h)
        if len(past):
            weights = softmax(np.array([score(kind, h, key, p) for key in past]))
            context = sum(weight * value for weight, value in zip(weights, past, strict=True))
        outputs.append(np.tanh(p["combine.weight"] @ np.concatenate([context, h]) + p["combine.bias"]))
    return np.stack(outputs)


def attention_pooling(hidden: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Zhou 2016, eq. 9–12."""
    weights = softmax(np.array([weight @ np.tanh(h) for h in hidden]))
    return np.tanh(sum(a * h for a, h in zip(weights, hidden, strict=True)))


# -- Transformer ------------------------------------------------------------------------------------------------------
def norm(x: np.ndarray, p: Parameters, name: str, eps: float) -> np.ndarray:
    """LayerNorm (Ba 2016, eq. 3–4) where there is a bias, else RMSNorm (Zhang & Sennrich 2019, eq. 4)."""
    weight, bias = p[f"{name}.weight"], p.get(f"{name}.bias")
    if bias is None:
        return np.stack([v / math.sqrt((v**2).mean() + eps) * weight for v in x])
    return np.stack([(v - v.mean()) / math.sqrt(((v - v.mean()) ** 2).mean() + eps) * weight + bias for v in x])


def linear(x: np.ndarray, p: Parameters, name: str) -> np.ndarray:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def turn(x: np.ndarray, position: int, base: float) -> np.ndarray:
    """Su 2021, eq. 34, on the pairs (i, i + K/2): a rotation by position · base^(−2i/K)."""
    half, turned = len(x) // 2, x.copy()
    for i in range(half):
        angle = position * base ** (-2 * i / len(x))
        turned[i] = x[i] * math.cos(angle) - x[i + half] * math.sin(angle)
        turned[i + half] = x[i + half] * math.cos(angle) + x[i] * math.sin(angle)
    return turned


def self_attention(x: np.ndarray, p: Parameters, heads: int, rotary_base: float | None) -> np.ndarray:
    """Vaswani 2017, section 3.2, causal."""
    query, key, value = (linear(x, p, f"self_attn.{name}_proj") for name in "qkv")
    width = x.shape[1] // heads
    output = np.zeros_like(x)
    for head in range(heads):
        columns = slice(head * width, (head + 1) * width)
        q, k, v = query[:, columns], key[:, columns], value[:, columns]
        if rotary_base is not None:
            q = np.stack([turn(row, t, rotary_base) for t, row in enumerate(q)])
            k = np.stack([turn(row, t, rotary_base) for t, row in enumerate(k)])
        for t in range(len(x)):
            output[t, columns] = softmax(k[: t + 1] @ q[t] / math.sqrt(width)) @ v[: t + 1]
    return linear(output, p, "self_attn.o_proj")


def feed_forward(x: np.ndarray, p: Parameters) -> np.ndarray:
    """Vaswani 2017, eq. 2, with GELU (Hendrycks 2016), or SwiGLU (Shazeer 2020, eq. 6) where there is a gate."""
    up = linear(x, p, "mlp.up_proj")
    if "mlp.gate_proj.weight" in p:
        gated = linear(x, p, "mlp.gate_proj")
        return linear(gated * sigmoid(gated) * up, p, "mlp.down_proj")
    return linear(up * (1 + _erf(up / math.sqrt(2))) / 2, p, "mlp.down_proj")


def transformer_layer(x: np.ndarray, p: Parameters, heads: int, pre: bool, rotary_base: float | None) -> np.ndarray:
    """Vaswani 2017, section 3.1 (post-norm); Xiong 2020, figure 1 (pre-norm)."""
    eps = 1e-5
    if pre:
        x = x + self_attention(norm(x, p, "attention_norm", eps), p, heads, rotary_base)
        return x + feed_forward(norm(x, p, "mlp_norm", eps), p)
    x = norm(x + self_attention(x, p, heads, rotary_base), p, "attention_norm", eps)
    return norm(x + feed_forward(x, p), p, "mlp_norm", eps)


def sinusoids(length: int, width: int) -> np.ndarray:
    """Vaswani 2017, section 3.5."""
    table = np.zeros((length, width))
    for position in range(length):
        for column in range(width):
            angle = position / 10000 ** (2 * (column // 2) / width)
            table[position, column] = math.cos(angle) if column % 2 else math.sin(angle)
    return table
