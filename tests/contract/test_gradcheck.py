"""A9: derivatives against finite differences in fp64, T = 4 with padding: every cell, score, pooling and norm."""

import itertools

import pytest
import torch

from hf_seqmodels.models.shared_attention import AttentionPooling, AttentionScore, attend, eager_attention_forward
from hf_seqmodels.models.shared_recurrence import find_valid_steps
from model_table import CELLS, Case, build, build_layer, perturb

MASK = torch.tensor([[1, 1, 1, 1], [0, 1, 0, 1]])


def check(module: torch.nn.Module, function, *inputs: torch.Tensor) -> None:
    """gradcheck of `function(*inputs)` in the inputs and in every parameter of `module`."""
    names = [name for name, _ in module.named_parameters()]
    weights = [parameter.detach().clone().requires_grad_() for parameter in module.parameters()]

    class Call(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, *args):
            return function(*args)

    call = Call()

    def compute(*args):
        parameters = {f"module.{name}": weight for name, weight in zip(names, args[len(inputs) :], strict=True)}
        return torch.func.functional_call(call, parameters, args[: len(inputs)])

    # relu is not differentiable at 0: the numbers drawn are nowhere near it
    assert torch.autograd.gradcheck(compute, (*inputs, *weights))


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


# `run` of the other two cells is `run_scan`
PATHS = [(cell, "run_scan") for cell in CELLS] + [(cell, "run") for cell in ("tanh", "relu", "lstm", "gru")]


@pytest.mark.parametrize("bidirectional", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("padded", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(("cell", "path"), PATHS)
def test_cell(cell, path, padded, bidirectional):
    layer = build_layer(cell, bidirectional=bidirectional)
    steps = find_valid_steps(MASK.bool()) if padded else None
    states = [draw(1 + bidirectional, 2, 4) for _ in layer.state_names]

    def compute(x, *states):
        output, final = getattr(layer, path)(x, states, steps)
        return (output, *final)

    check(layer, compute, draw(2, 4, 5), *states)


@pytest.mark.parametrize("kind", ["additive", "dot", "general"])
def test_attention_score(kind):
    score = AttentionScore(kind, 3).double()
    perturb(score, 0.5)
    allowed = MASK.bool()[:, None] & torch.ones(4, 4, dtype=torch.bool).tril(-1)

    def compute(query, hidden):
        return attend(score(query, score.keys(hidden)), hidden, allowed)

    check(score, compute, draw(2, 4, 3), draw(2, 4, 3))


def test_attention_pooling():
    pooling = AttentionPooling(3).double()
    torch.nn.init.normal_(pooling.weight)
    check(pooling, lambda hidden: pooling(hidden, MASK.bool()), draw(2, 4, 3))


def test_multi_head_attention_weights():
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.float64).masked_fill(torch.ones(4, 4).tril() == 0, -1e30)
    module = torch.nn.Module()

    def compute(query, key, value):
        return eager_attention_forward(module, query, key, value, mask, 0.7)

    check(module, compute, draw(2, 2, 4, 3), draw(2, 2, 4, 3), draw(2, 2, 4, 3))


@pytest.mark.parametrize("score", ["additive", "dot", "general"])
@pytest.mark.parametrize("window", [None, 2])
def test_attention_rnn_layer(score, window):
    options = {"score": score, "window": window, "cell": "gru", "hidden_size": 3, "embedding_size": 3}
    model = build(Case("seq_attention_rnn", "plain"), dtype=torch.float64, num_hidden_layers=1, **options)
    layer, steps = model.layers[0], find_valid_steps(MASK.bool())
    check(layer, lambda x: layer(x, steps=steps), draw(2, 4, 3))


TRANSFORMERS = list(itertools.product(["pre", "post"], ["layernorm", "rmsnorm"], ["gelu", "swiglu"]))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("norm_position", "norm", "hidden_act"), TRANSFORMERS)
def test_transformer_layer(norm_position, norm, hidden_act, attention):
    options = {"norm_position": norm_position, "norm": norm, "hidden_act": hidden_act, "positions": "rotary"}
    sizes = {"num_hidden_layers": 1, "hidden_size": 4, "intermediate_size": 3, "attn_implementation": attention}
    model = build(Case("seq_transformer_decoder", "plain"), dtype=torch.float64, **options, **sizes)

    def compute(embeddings):  # outputs under padding are nobody's; they would only slow the check
        return model(inputs_embeds=embeddings, attention_mask=MASK).last_hidden_state[MASK.bool()]

    check(model.layers, compute, draw(2, 4, 4))
