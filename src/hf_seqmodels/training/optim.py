"""The one optimizer and its schedules."""

from __future__ import annotations

import torch
from torch import nn
from transformers import get_scheduler

from ..arguments import SeqTrainingArguments


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups for AdamW: what decays (matrices), and what does not (biases, norms, embeddings).

    A tensor that two modules share (tied embeddings) stands in one group once; it does not decay if one of its
    owners is an embedding.
    """
    spared = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if isinstance(module, nn.Embedding) or parameter.ndim < 2 or "bias" in name
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if id(p) not in spared], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in spared], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, args: SeqTrainingArguments) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) over `parameter_groups`."""
    return torch.optim.AdamW(
        parameter_groups(model, args.weight_decay),
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        fused=args.optim == "adamw_torch_fused",
    )


def build_scheduler(
    optimizer: torch.optim.Optimizer, args: SeqTrainingArguments, num_training_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """A linear warm-up, then cosine to 0, linear to 0, or constant."""
    name = args.lr_scheduler_type
    options = args.lr_scheduler_kwargs
    return get_scheduler(
        "constant_with_warmup" if name == "constant" else name,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(num_training_steps),
        num_training_steps=num_training_steps,
        scheduler_specific_kwargs=options if isinstance(options, dict) else None,
    )
