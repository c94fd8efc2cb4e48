"""What a model from elsewhere computes: whether it sees later tokens, and what its loss is a sum or a mean of."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from transformers import PreTrainedModel


class LossKind(Enum):
    """How a model's loss follows from its logits and labels."""

    COUNTED = "the sum over the targets, divided by num_items_in_batch"
    MEAN = "the mean over the targets of the batch, whatever num_items_in_batch says"
    OTHER = "neither"


@torch.no_grad()
def is_causal(model: PreTrainedModel) -> bool:
    """Whether scores do not depend on later tokens: an encoder like BERT's would learn to copy its input.

    Raises:
        ValueError: the scores are not finite, so nobody can tell.
    """
    device, training = model.device, model.training
    ids = torch.tensor([[0, 1, 2, 0], [0, 1, 2, 1]], device=device) % model.config.get_text_config().vocab_size
    one, other = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    model.train(training)
    if not (torch.isfinite(one).all() and torch.isfinite(other).all()):
        raise ValueError(f"{type(model).__name__} computes scores that are not finite: its weights are broken")
    difference = (one - other).abs()
    return bool(difference[:-1].max() <= 5e-5 * difference[-1].max())  # the rest is rounding


@torch.no_grad()
def loss_kind(model: PreTrainedModel, batch: Mapping[str, Any], shifts: bool, takes_count: bool) -> LossKind:
    """Find out what the loss is, on a batch of tokens.

    Many classes of transformers take any keyword and ignore `num_items_in_batch`; some causal ones also do not shift
    the labels, so that they learn to copy their input (BartForCausalLM and its kin).

    Args:
        batch: the model's inputs, with `labels` or `shift_labels`.
        shifts: a target is the label of the next place, as in causal language models.
        takes_count: `forward` takes `num_items_in_batch`.
    """
    inputs = {name: value.to(model.device) for name, value in batch.items() if name != "starts"}
    counts = [{"num_items_in_batch": torch.tensor(n, device=model.device)} if takes_count else {} for n in (1.0, 2.0)]
    training = model.training
    model.eval()
    one, other = (model(**inputs, **count, return_dict=True) for count in counts)
    model.train(training)
    if one.loss is None:
        return LossKind.OTHER
    if takes_count and torch.allclose(one.loss, 2 * other.loss, rtol=1e-3, equal_nan=True):
        return LossKind.COUNTED
    return LossKind.MEAN if torch.allclose(one.loss, _mean(one.logits, inputs, shifts), rtol=1e-3) else LossKind.OTHER


def _mean(logits: torch.Tensor, inputs: Mapping[str, torch.Tensor], shifts: bool) -> torch.Tensor:
    """The mean cross-entropy of the targets; NaN where the logits are no scores of classes."""
    labels = inputs.get("shift_labels")
    if labels is None:
        labels = inputs["labels"]
        logits, labels = (logits[:, :-1], labels[:, 1:]) if shifts else (logits, labels)
    if labels.is_floating_point() or logits.shape[:-1] != labels.shape:
        return torch.tensor(torch.nan, device=logits.device)
    return torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=-100)
