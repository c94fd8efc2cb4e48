"""cuDNN wants a layer's parameters in one block of memory: they are, however loaded, and stay trainable."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from cuda_helpers import cudnn_warnings, each_recurrent, is_flat, layers_of, needs_cuda, train_step
from transformers import AutoModel

from model_table import Case, assert_close, build

pytestmark = needs_cuda


def loaded_in_every_way(case: Case, folder):
    """Name → a model of the same weights on the GPU."""
    model = build(case).cpu()
    model.save_pretrained(folder)

    def assigned():
        target = build(case, seed=3).cuda()
        target.load_state_dict({name: value.cuda() for name, value in model.state_dict().items()}, assign=True)
        return target

    def copied_into():
        target = build(case, seed=3).cuda()
        target.load_state_dict(model.state_dict())
        return target

    return {
        "constructor, then .cuda()": lambda: copy.deepcopy(model).cuda(),
        "from_pretrained, then .to": lambda: AutoModel.from_pretrained(folder).to("cuda"),
        "from_pretrained(device_map)": lambda: AutoModel.from_pretrained(folder, device_map="cuda"),
        "load_state_dict": copied_into,
        "load_state_dict(assign=True)": assigned,
        "deepcopy on the GPU": lambda: copy.deepcopy(copy.deepcopy(model).cuda()),
        "to double and back": lambda: copy.deepcopy(model).cuda().double().float(),
    }


def test_the_warning_can_be_caught():
    """The control: a stock LSTM whose parameters were replaced one by one does warn."""
    lstm = torch.nn.LSTM(4, 4).cuda()
    for name, value in list(lstm.named_parameters()):
        setattr(lstm, name, torch.nn.Parameter(value.detach().clone()))
    with cudnn_warnings() as found:
        lstm(torch.zeros(3, 2, 4, device="cuda"))
    assert found


@each_recurrent
def test_flat_after_every_way_of_loading(case, tmp_path):
    expected = train_step(build(case).cpu())
    for how, load in loaded_in_every_way(case, tmp_path).items():
        model = load()
        assert layers_of(model)
        with cudnn_warnings() as found:
            loss = train_step(model)
        assert not found, how
        assert all(is_flat(layer) for layer in layers_of(model)), how
        assert_close(loss.cpu(), expected, 1e-5, "CUDA", how)


@each_recurrent
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_half_precision_does_not_warn(case, dtype, tmp_path):
    build(case).cpu().save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, device_map="cuda", dtype=dtype)
    with cudnn_warnings() as found:
        loss = train_step(model)
    assert not found
    assert_close(loss.cpu().float(), train_step(build(case).cpu()), 2e-2, f"CUDA {dtype}")


@each_recurrent
def test_flat_through_training(case):
    """Optimizer steps, autocast and a change of mode leave the block as it is, and training goes as on the CPU."""
    on_cpu, on_gpu = build(case).cpu(), build(case).cuda()
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (on_cpu, on_gpu)]
    with cudnn_warnings() as found:
        for _ in range(3):
            expected, loss = train_step(on_cpu, optimizers[0]), train_step(on_gpu, optimizers[1])
            assert_close(loss.cpu(), expected, 1e-4, "CUDA training")
        with torch.autocast("cuda", torch.bfloat16):
            half = train_step(on_gpu)
        assert_close(half.cpu(), train_step(on_cpu), 5e-2, "CUDA autocast")
    assert not found
    assert all(is_flat(layer) for layer in layers_of(on_gpu))


@each_recurrent
def test_a_first_call_in_inference_mode_leaves_it_trainable(case, tmp_path):
    build(case).cpu().save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, device_map="cuda")
    with torch.inference_mode():
        model(torch.ones(2, 5, dtype=torch.long, device="cuda"))
    assert not any(parameter.is_inference() for parameter in model.parameters())
    train_step(model)
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.numel() and parameter.ndim)


@each_recurrent
def test_saved_from_one_block(case, tmp_path):
    """Parameters that share a block are saved one by one, and come back bit for bit."""
    model = build(case).cuda()
    train_step(model)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value.cpu(), again[name]) for name, value in model.state_dict().items())


@each_recurrent
def test_fully_sharded_parameters_are_read_anew_on_every_call(case):
    """FSDP2 gathers parameters into memory of its own; moving them into a block would freeze them silently."""
    from torch.distributed import destroy_process_group, init_process_group
    from torch.distributed.fsdp import fully_shard

    plain = build(case).cuda()
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    expected = [train_step(plain, optimizer) for _ in range(3)]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29761", "RANK": "0", "WORLD_SIZE": "1"}
    torch.cuda.set_device(0)
    init_process_group("nccl")
    try:
        sharded = build(case).cuda()
        for layer in sharded.layers:
            fully_shard(layer)
        fully_shard(sharded)
        optimizer = torch.optim.SGD(sharded.parameters(), lr=0.1)
        for loss in expected:
            assert_close(train_step(sharded, optimizer), loss, 1e-5, "FSDP2")
    finally:
        destroy_process_group()
