"""On the GPU: kernels against the slow twin at real widths, generation against one pass, bf16, no hidden waiting."""

from __future__ import annotations

import pytest
import torch
from cuda_helpers import each_plain, each_recurrent, layers_of, needs_cuda, train_step

from hf_seqmodels.models.shared_recurrence import find_valid_steps
from model_table import CAUSAL_CASES, assert_close, build, make_ids, make_mask, output_of

pytestmark = needs_cuda


@each_recurrent
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_kernel_equals_twin_at_real_widths(case, padded):
    """64 columns and 50 steps, where cuDNN takes other algorithms than at toy size: values and gradients."""
    model = build(case, hidden_size=64, embedding_size=48, initializer_range=0.02).cuda()
    layer = layers_of(model)[0]
    x = torch.randn(8, 50, 48, device="cuda", requires_grad=True)
    mask = torch.ones(8, 50, dtype=torch.bool, device="cuda")
    if padded:
        mask = torch.rand(8, 50, device="cuda") < 0.7
    steps = find_valid_steps(mask)
    results = []
    for run in (layer.run, layer.run_scan):
        output, final = run(x, layer.initial_states(x), steps)
        loss = output.square().mean() + sum(state.square().mean() for state in final)
        results.append([output, *final, *torch.autograd.grad(loss, [x, *layer.parameters()])])
    for fast, slow in zip(*results, strict=True):
        assert_close(fast, slow, 1e-4, "CUDA twin")


@pytest.mark.parametrize("case", CAUSAL_CASES, ids=str)
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_gives_what_one_pass_gives(case, beams):
    model = build(case, "causal-lm", pad_token_id=0).cuda()
    ids = make_ids(3, 6).cuda()
    options = {"do_sample": False, "return_dict_in_generate": True, "output_scores": True, "output_logits": True}
    out = model.generate(ids, max_new_tokens=6, min_new_tokens=6, num_beams=beams, **options)
    with torch.no_grad():
        logits = model(out.sequences[:, :-1], use_cache=False).logits[:, 5:]
    if beams == 1:
        assert_close(torch.stack(out.logits, 1), logits, 1e-5, "CUDA generation")
    else:
        chosen = logits.log_softmax(-1).gather(-1, out.sequences[:, 6:, None]).sum((1, 2)) / 6
        assert_close(out.sequences_scores, chosen, 1e-5, "CUDA beams")


@each_plain
@pytest.mark.parametrize("padding", ["left", "right", "holes"])
def test_padding_and_device_change_nothing(case, padding):
    mask = make_mask(padding)
    ids = make_ids(*mask.shape)
    on_cpu = build(case).cpu()
    on_gpu = build(case).cuda()
    with torch.no_grad():
        expected = output_of(on_cpu(ids.cpu(), attention_mask=mask.cpu()))
        found = output_of(on_gpu(ids.cuda(), attention_mask=mask.cuda())).cpu()
    assert_close(found[mask.bool().cpu()], expected[mask.bool().cpu()], 1e-5, "CUDA padding")


@each_plain
def test_bf16_and_autocast(case):
    full, half = build(case).cuda(), build(case).cuda().bfloat16()
    expected = train_step(full)
    assert_close(train_step(half), expected, 2e-2, "CUDA bf16")
    assert all(torch.isfinite(parameter.grad).all() for parameter in half.parameters() if parameter.grad is not None)
    with torch.autocast("cuda", torch.bfloat16):
        assert_close(train_step(full), expected, 2e-2, "CUDA autocast")


@pytest.mark.parametrize("case", [case for case in CAUSAL_CASES if case.cell_only], ids=str)
def test_a_step_of_generation_does_not_wait_for_the_gpu(case):
    model = build(case, "causal-lm").cuda()
    ids = make_ids(2, 5).cuda()
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        model(ids[:, :1], past_key_values=cache)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(ids[:, :1], past_key_values=cache)
        finally:
            torch.cuda.set_sync_debug_mode("default")
