"""Each architecture against its paper's equations, written independently in numpy: values and gradients.

The reference's gradients are central differences of the numpy loops, so no automatic differentiation is shared.
"""

import math

import numpy as np
import numpy_models as reference
import pytest
import torch

from model_table import CELLS, Case, assert_close, build, build_layer

T = 5
CELL_FUNCTIONS = {
    "tanh": reference.rnn,
    "relu": lambda x, p: reference.rnn(x, p, relu=True),
    "lstm": reference.lstm,
    "peephole": reference.lstm,
    "gru": lambda x, p: reference.gru(x, p, reset_after=True),
    "reset_before": lambda x, p: reference.gru(x, p, reset_after=False),
}


def compare(module, ours, theirs, x: torch.Tensor, row: str, tolerance: float = 1e-12) -> None:
    """`ours(x (1, T, I))` against `theirs(x (T, I), parameters)`: values, and gradients of a random linear function.

    Args:
        module: owner of the parameters, given to `theirs` under their names.
        tolerance: of the values; of the gradients it is 1e-6, what central differences reach.
    """
    x = x.clone().requires_grad_()
    output = ours(x)[0]
    numbers = {name: p.detach().cpu().numpy().copy() for name, p in module.named_parameters()} | {
        "x": x.detach().cpu().numpy()[0]
    }

    def expected() -> np.ndarray:
        return theirs(numbers["x"], {name: value for name, value in numbers.items() if name != "x"})

    assert_close(output, torch.as_tensor(expected()), tolerance, row)
    probe = torch.randn_like(output)
    (output * probe).sum().backward()
    gradients = {name: p.grad for name, p in module.named_parameters()} | {"x": x.grad[0]}
    weights, step = probe.detach().cpu().numpy(), 1e-5
    for name, array in numbers.items():
        assert gradients[name] is not None, f"{name} got no gradient"
        numeric = np.zeros_like(array)
        for index in np.ndindex(array.shape):
            value, sides = array[index], []
            for sign in (1, -1):
                array[index] = value + sign * step
                sides.append((expected() * weights).sum())
            array[index] = value
            numeric[index] = (sides[0] - sides[1]) / (2 * step)
        assert_close(gradients[name], torch.as_tensor(numeric), 1e-6, f"{row} grad", name)


def test_every_cell_has_a_reference():
    assert CELLS.keys() == CELL_FUNCTIONS.keys()


@pytest.mark.parametrize("cell", CELLS)
def test_cell(cell):
    layer = build_layer(cell)
    x = torch.randn(1, T, 5, dtype=torch.float64)
    compare(layer, lambda x: layer(x), CELL_FUNCTIONS[cell], x, "paper cells")


WINDOWS = [None, 1, 3]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("score", ["additive", "dot", "general"])
@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_attention_rnn_layer(cell, score, window):
    sizes = {"hidden_size": 3, "embedding_size": 2, "num_hidden_layers": 1}
    model = build(
        Case("seq_attention_rnn", "plain"), dtype=torch.float64, cell=cell, score=score, window=window, **sizes
    )
    layer = model.layers[0]
    run = CELL_FUNCTIONS["tanh" if cell == "rnn" else cell]

    def theirs(x, p):
        hidden = run(x, {name.removeprefix("rnn."): value for name, value in p.items() if name.startswith("rnn.")})
        return reference.attention_over_past(hidden, p, score, window)

    compare(layer, lambda x: layer(x)[0], theirs, torch.randn(1, T, 2, dtype=torch.float64), "paper attention-RNN")


def test_attention_pooling_over_a_bidirectional_lstm():
    """Zhou 2016, whole: both directions, pooling, and the classifier on top (eq. 13)."""
    sizes = {"hidden_size": 3, "embedding_size": 2, "num_hidden_layers": 1, "vocab_size": 1}
    model = build(Case("seq_attention_rnn", "bidirectional"), "sequence-classification", torch.float64, **sizes)
    parts = {"rnn": model.model.layers[0].rnn, "pooling": model.pooling, "score": model.score}

    def theirs(x, p):
        cell = {name.removeprefix("rnn."): value for name, value in p.items() if name.startswith("rnn.")}
        backward = {n.removesuffix("_reverse"): value for n, value in cell.items() if n.endswith("_reverse")}
        hidden = np.concatenate([reference.lstm(x, cell), reference.lstm(x[::-1], backward)[::-1]], axis=1)
        pooled = reference.attention_pooling(hidden, p["pooling.weight"])
        return reference.linear(pooled, p, "score")

    x = torch.randn(1, T, 2, dtype=torch.float64)
    compare(torch.nn.ModuleDict(parts), lambda x: model(inputs_embeds=x).logits, theirs, x, "paper pooling")


VARIANTS = {
    "gpt": {},
    "vaswani": {"positions": "sinusoidal", "norm_position": "post"},
    "llama": {"positions": "rotary", "norm": "rmsnorm", "hidden_act": "swiglu"},
}
OTHERS = {
    f"{place}-{norm}-{act}-{positions}": {
        "norm_position": place, "norm": norm, "hidden_act": act, "positions": positions
    }
    for place in ("pre", "post")
    for norm in ("layernorm", "rmsnorm")
    for act in ("gelu", "swiglu")
    for positions in ("learned", "sinusoidal", "rotary")
}  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [pytest.param(o, id=n, marks=[] if n in VARIANTS else pytest.mark.slow) for n, o in (VARIANTS | OTHERS).items()],
)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_transformer(options, attention):
    """One layer, positions and final norm: the whole backbone from embeddings on."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 4, "intermediate_size": 3, "max_position_embeddings": T}
    sizes |= {"vocab_size": 1, "attn_implementation": attention}
    model = build(Case("seq_transformer_decoder", "plain"), dtype=torch.float64, **(sizes | options))
    config = model.config
    outer = torch.nn.ModuleDict({"layer": model.layers[0], "norm": model.norm})
    if model.embed_positions is not None:
        outer["positions"] = model.embed_positions

    def theirs(x, p):
        if config.positions == "learned":
            x = x + p["positions.weight"]
        elif config.positions == "sinusoidal":
            x = x * math.sqrt(config.hidden_size) + reference.sinusoids(T, config.hidden_size)
        base = config.rope_theta if config.positions == "rotary" else None
        layer = {name.removeprefix("layer."): value for name, value in p.items() if name.startswith("layer.")}
        x = reference.transformer_layer(x, layer, config.num_attention_heads, config.norm_position == "pre", base)
        return reference.norm(x, p, "norm", 1e-5) if config.norm_position == "pre" else x

    # The angles of positions are fp32 by design, as everywhere in transformers.
    tolerance = 1e-12 if config.positions == "learned" else 1e-6
    x = torch.randn(1, T, 4, dtype=torch.float64)
    compare(outer, lambda x: model(inputs_embeds=x).last_hidden_state, theirs, x, "paper Transformer", tolerance)
