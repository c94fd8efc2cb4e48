"""FSDP2 on two processes without a GPU: our models sharded by torch's `fully_shard`, beside the same model whole.

torchrun --nproc_per_node 2 sharded_training.py OUT.json ARCHITECTURE …
"""

from __future__ import annotations

import copy
import gc
import json
import sys
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, set_seed

import hf_seqmodels
from hf_seqmodels.training.watch import wrapper_name

ROWS, LENGTH, VOCABULARY = 4, 12, 19


def build(model_type: str) -> torch.nn.Module:
    set_seed(0)
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2}
    config = hf_seqmodels.ARCHITECTURES[model_type].config(**sizes)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    return auto.from_config(config)


def shard(model: torch.nn.Module) -> torch.nn.Module:
    """As Accelerate's TRANSFORMER_BASED_WRAP: what `_no_split_modules` names, embedding and head, then the rest."""
    for module in list(model.modules()):
        if type(module).__name__ in model._no_split_modules:
            fully_shard(module)
    for unit in (model.get_input_embeddings(), model.get_output_embeddings()):
        fully_shard(unit)
    return fully_shard(model)


def distance(one: torch.Tensor, other: torch.Tensor, least: float = 1e-12) -> float:
    """Largest difference, relative to the largest value, or to `least` where that is smaller."""
    return float((one - other).detach().abs().max() / max(float(other.detach().abs().max()), least))


def furthest(sharded: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> float:
    """The gradient of a key's bias is 0, and rounding in practice: hence a hundredth of the largest value counts."""
    assert sharded.keys() == whole.keys()
    least = max(float(tensor.detach().abs().max()) for tensor in whole.values()) / 100
    return max(distance(tensor.full_tensor(), whole[name], least) for name, tensor in sharded.items())


def compare(model_type: str) -> dict[str, Any]:
    """Loss, gradients and weights after a step of both, and how much of each parameter this process keeps."""
    whole = build(model_type)
    sharded = shard(copy.deepcopy(whole))
    rank, batch = dist.get_rank(), torch.randint(1, VOCABULARY, (ROWS, LENGTH), generator=torch.manual_seed(1))
    own = batch.chunk(2)[rank]
    found: dict[str, Any] = {"wrapper": wrapper_name(sharded, sharded)}
    found["units"] = sum(isinstance(module, FSDPModule) for module in sharded.modules())
    kept = [parameter.to_local().numel() for parameter in sharded.parameters()]
    found["kept"], found["size"] = kept, [parameter.numel() for parameter in whole.parameters()]
    optimizers = [torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4) for model in (whole, sharded)]
    for step in range(2):
        loss, part = whole(batch, labels=batch).loss, sharded(own, labels=own).loss
        loss.backward()
        part.backward()
        mean = part.detach().clone()
        dist.all_reduce(mean)
        found[f"loss{step}"] = distance(mean / 2, loss.detach())
        gradients = [{name: p.grad for name, p in model.named_parameters()} for model in (sharded, whole)]
        found[f"gradients{step}"] = furthest(*gradients)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        found[f"weights{step}"] = furthest(dict(sharded.named_parameters()), dict(whole.named_parameters()))
    with torch.no_grad():  # the paths of inference see the new weights too
        found["inference"] = distance(sharded.eval()(own, labels=own).logits, whole.eval()(own, labels=own).logits)
    return found


if __name__ == "__main__":
    dist.init_process_group("gloo")
    results = {model_type: compare(model_type) for model_type in sys.argv[2:]}
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, results)
    if dist.get_rank() == 0:
        with open(sys.argv[1], "w") as file:
            json.dump(gathered, file)
    gc.collect()  # sharded modules are cycles that hold the group, whose threads must have ended when Python does
    dist.destroy_process_group()
