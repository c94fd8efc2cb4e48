"""The optimizers and the schedules of their learning rate."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import get_scheduler

from ..arguments import ConfigError, SeqTrainingArguments
from .nt_asgd import NTASGD


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
    """What `optim` names.

    - `adamw_torch`, `adamw_torch_fused`: AdamW (Loshchilov & Hutter 2019, algorithm 2) over `parameter_groups`.
    - `sgd`, `rmsprop` (Tieleman & Hinton 2012), `nt_asgd` ([`NTASGD`]): `weight_decay` is an L2 penalty on every
      parameter, embeddings and biases too, as in the papers that use them (Zaremba 2014, Chung 2014, Merity 2017).
    """
    if args.optim in ("adamw_torch", "adamw_torch_fused"):
        return torch.optim.AdamW(
            parameter_groups(model, args.weight_decay),
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            eps=args.adam_epsilon,
            fused=args.optim == "adamw_torch_fused",
        )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rate, decay = args.learning_rate, args.weight_decay
    if args.optim == "nt_asgd":
        return NTASGD(trained, lr=rate, weight_decay=decay, interval=args.non_monotone_interval)
    if args.optim == "rmsprop":
        alpha, momentum = args.rmsprop_alpha, args.momentum
        return torch.optim.RMSprop(trained, lr=rate, alpha=alpha, momentum=momentum, weight_decay=decay)
    return torch.optim.SGD(trained, lr=rate, momentum=args.momentum, weight_decay=decay)


def build_scheduler(
    optimizer: torch.optim.Optimizer,
    args: SeqTrainingArguments,
    num_training_steps: int,
    steps_per_epoch: int | None = None,
) -> LRScheduler:
    """A linear warm-up from 0, and beside it what `lr_scheduler_type` says: cosine to 0, linear to 0, constant,
    `epoch_decay` ([`epoch_decay`]) or `plateau` ([`PlateauDecay`]). Epochs are counted from the first step on.

    Raises:
        ConfigError: `epoch_decay` without `steps_per_epoch`.
    """
    name, options = args.lr_scheduler_type, args.lr_scheduler_kwargs
    warmup = args.get_warmup_steps(num_training_steps)
    if name == "plateau":
        return PlateauDecay(optimizer, args.decay_factor, args.decay_patience, warmup)
    if name == "epoch_decay":
        if steps_per_epoch is None:
            raise ConfigError(
                "lr_scheduler_type=epoch_decay counts epochs, and this data has no length that is known; "
                "use constant, plateau, linear or cosine"
            )
        rule = partial(epoch_decay, warmup=warmup, steps_per_epoch=steps_per_epoch)
        return LambdaLR(optimizer, partial(rule, factor=args.decay_factor, after=args.decay_after))
    return get_scheduler(
        "constant_with_warmup" if name == "constant" else name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=num_training_steps,
        scheduler_specific_kwargs=options if isinstance(options, dict) else None,
    )


def warmed(step: int, warmup: int) -> float:
    """The share of the learning rate in step 0, 1, …: linear from 0 to 1 over `warmup` steps."""
    return min(1.0, step / warmup) if warmup else 1.0


def epoch_decay(step: int, warmup: int, steps_per_epoch: int, factor: float, after: float) -> float:
    """The share of the learning rate in step 0, 1, …: factor^max(0, e + 1 − after) in epoch e = 0, 1, …

    So it is constant for `after` epochs and is then multiplied by `factor` once an epoch (Zaremba 2014, section 4.1).
    """
    return warmed(step, warmup) * factor ** max(0.0, step // steps_per_epoch + 1 - after)


class PlateauDecay(LambdaLR):
    """The learning rate × `factor` when more than `patience` evaluations in a row were not better than the best.

    It is `torch.optim.lr_scheduler.ReduceLROnPlateau` (threshold 0) with a warm-up, which that has not.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, factor: float, patience: int, warmup: int = 0):
        self.factor, self.patience = factor, patience
        self.best, self.waited, self.decays = math.inf, 0, 0
        super().__init__(optimizer, lambda step: warmed(step, warmup) * self.factor**self.decays)

    def evaluated(self, loss: float) -> None:
        """Take note of the loss of an evaluation; the next step has the new learning rate."""
        self.waited = 0 if loss < self.best else self.waited + 1
        self.best = min(loss, self.best)
        if self.waited <= self.patience:
            return
        self.waited, self.decays = 0, self.decays + 1
        self._last_lr = [base * self.lr_lambdas[0](self.last_epoch) for base in self.base_lrs]
        for group, rate in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = rate
