"""The kernels against the slow twin, which is the paper's equations in a Python loop: values and gradients."""

import pytest
import torch

from hf_seqmodels.models.shared_recurrence import find_valid_steps
from model_table import PADDINGS, TOLERANCE, assert_close, build_layer, make_mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("padding", [*PADDINGS, "all"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["tanh", "relu", "lstm", "gru"])
def test_kernel_equals_twin(cell, bidirectional, padding, dtype):
    layer = build_layer(cell, dtype, bidirectional=bidirectional)
    assert layer.kernel() is not None
    mask = torch.zeros(5, 8).bool() if padding == "all" else make_mask(padding).bool()
    steps = find_valid_steps(mask)
    x = torch.randn(5, 8, 5, dtype=dtype, requires_grad=True)
    states = [torch.randn(1 + bidirectional, 5, 4, dtype=dtype, requires_grad=True) for _ in layer.state_names]
    inputs = [x, *states, *layer.parameters()]
    probes = None
    results = []
    for run in (layer.run, layer.run_scan):
        output, final = run(x, tuple(states), steps)
        probes = probes or [torch.randn_like(tensor) for tensor in (output, *final)]
        loss = sum((tensor * probe).sum() for tensor, probe in zip((output, *final), probes, strict=True))
        gradients = torch.autograd.grad(loss, inputs, allow_unused=True)
        gradients = [torch.zeros_like(i) if g is None else g for i, g in zip(inputs, gradients, strict=True)]
        results.append([output, *final, *gradients])
    for fast, slow in zip(*results, strict=True):
        assert_close(fast, slow, TOLERANCE[dtype], "slow twin")
