"""Layer-normalised cells against Ba 2016's equations, written in numpy loops: values and gradients."""

import numpy as np
import pytest
import torch
from numpy_models import Parameters, sigmoid
from test_papers import compare

from model_table import CELLS, Case, build, build_layer

T = 5
HIDDEN = 4


def normalise(z: np.ndarray, gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """LN(z; α, β) of the supplement; the variance is that of the H units themselves (eq. 3)."""
    return (z - z.mean()) / np.sqrt(((z - z.mean()) ** 2).mean() + 1e-5) * gain + bias


def stacked(p: Parameters, gates: slice) -> tuple[np.ndarray, ...]:
    """W, b_x and its gain, U, b_h and its gain, of several gates together."""
    rows = slice(gates.start * HIDDEN, gates.stop * HIDDEN)
    names = ("weight_ih", "bias_ih", "layernorm_ih", "weight_hh", "bias_hh", "layernorm_hh")
    return tuple(p[name][rows] for name in names)


def rnn(x: np.ndarray, p: Parameters, relu: bool = False) -> np.ndarray:
    """Eq. 4: the norm is over the sum of both products."""
    h, hidden = np.zeros(HIDDEN), []
    for x_t in x:
        a = normalise(p["weight_hh"] @ h + p["weight_ih"] @ x_t, p["layernorm"], p["bias_ih"] + p["bias_hh"])
        h = np.maximum(a, 0) if relu else np.tanh(a)
        hidden.append(h)
    return np.stack(hidden)


def lstm(x: np.ndarray, p: Parameters) -> np.ndarray:
    """The supplement's LSTM: LN(W_h h) + LN(W_x x) + b over all gates, h = σ(o) ⊙ tanh(LN(c)); peepholes see c."""
    w, b_x, g_x, u, b_h, g_h = stacked(p, slice(0, 4))
    v_i, v_f, v_o = (p.get(f"peephole_{k}", np.zeros(HIDDEN)) for k in "ifo")
    h, c, hidden = np.zeros(HIDDEN), np.zeros(HIDDEN), []
    for x_t in x:
        i, f, g, o = np.split(normalise(u @ h, g_h, b_h) + normalise(w @ x_t, g_x, b_x), 4)
        c = sigmoid(f + v_f * c) * c + sigmoid(i + v_i * c) * np.tanh(g)
        h = sigmoid(o + v_o * c) * np.tanh(normalise(c, p["layernorm_c"], p["layernorm_c_bias"]))
        hidden.append(h)
    return np.stack(hidden)


def gru(x: np.ndarray, p: Parameters, reset_after: bool) -> np.ndarray:
    """The supplement's GRU: r and z normalised together, the candidate's two products each on its own."""
    w, b_x, g_x, u, b_h, g_h = stacked(p, slice(0, 2))
    w_n, b_xn, g_xn, u_n, b_hn, g_hn = stacked(p, slice(2, 3))
    h, hidden = np.zeros(HIDDEN), []
    for x_t in x:
        r, z = np.split(sigmoid(normalise(u @ h, g_h, b_h) + normalise(w @ x_t, g_x, b_x)), 2)
        recurrent = r * normalise(u_n @ h, g_hn, b_hn) if reset_after else normalise(u_n @ (r * h), g_hn, b_hn)
        h = (1 - z) * np.tanh(normalise(w_n @ x_t, g_xn, b_xn) + recurrent) + z * h
        hidden.append(h)
    return np.stack(hidden)


NORMED = {
    "tanh": rnn,
    "relu": lambda x, p: rnn(x, p, relu=True),
    "lstm": lstm,
    "peephole": lstm,
    "gru": lambda x, p: gru(x, p, reset_after=True),
    "reset_before": lambda x, p: gru(x, p, reset_after=False),
}


@pytest.mark.parametrize("cell", CELLS)
def test_layer_normalised_cell(cell):
    layer, x = build_layer(cell, layer_norm=True), torch.randn(1, T, 5, dtype=torch.float64)
    compare(layer, lambda x: layer(x), NORMED[cell], x, "paper layer norm")


@pytest.mark.parametrize("cell", CELLS)
def test_backward_direction_has_gains_of_its_own(cell):
    layer, x = build_layer(cell, layer_norm=True, bidirectional=True), torch.randn(1, T, 5, dtype=torch.float64)

    def both(x, p):
        backward = {name.removesuffix("_reverse"): value for name, value in p.items() if name.endswith("_reverse")}
        forward = {name: value for name, value in p.items() if not name.endswith("_reverse")}
        return np.concatenate([NORMED[cell](x, forward), NORMED[cell](x[::-1], backward)[::-1]], axis=1)

    compare(layer, lambda x: layer(x), both, x, "paper layer norm")


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_inside_the_attention_rnn(cell):
    sizes = {"hidden_size": HIDDEN, "embedding_size": 5, "num_hidden_layers": 1}
    model = build(Case("seq_attention_rnn", "plain"), dtype=torch.float64, cell=cell, layer_norm=True, **sizes)
    twin = NORMED["tanh" if cell == "rnn" else cell]
    layer = model.layers[0].rnn
    compare(layer, lambda x: layer(x), twin, torch.randn(1, T, 5, dtype=torch.float64), "paper layer norm")


@pytest.mark.parametrize("cell", CELLS)
def test_start_and_what_a_scale_changes(cell):
    """Gains start from 1 and biases from 0, the gate that keeps stays open, and the products' scale is undone."""
    architecture, options = CELLS[cell]
    model = build(Case(architecture, "plain"), noise=0.0, layer_norm=True, bias_init="constant", **options)
    layer, width = model.layers[0].double(), model.config.hidden_size
    for name, parameter in layer.named_parameters():
        if name.startswith("layernorm"):
            assert torch.equal(parameter, torch.full_like(parameter, 0.0 if "bias" in name else 1.0)), name
    if layer.num_gates > 1:
        starts = [bool((bias == 1).all()) for bias in layer.bias_ih.split(width)]
        assert starts == [gate == 1 for gate in range(layer.num_gates)]
    x = 10 * torch.randn(2, T, model.config.embedding_size, dtype=torch.float64)
    before = layer(x)
    with torch.no_grad():
        layer.weight_ih.mul_(3)
        layer.weight_hh.mul_(3)
    change = (layer(x) - before).abs().max().item()
    assert change < 5e-3, change  # what is left is the norm's epsilon
