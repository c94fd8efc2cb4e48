"""Regularisation that acts around the recurrent layers, as in AWD-LSTM (Merity 2017); what acts on their weights is in
`shared_recurrence.py`."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast


@dataclass
class RegularisedOutput(BaseModelOutputWithPast):
    """A backbone's output with what activation regularisation adds to the loss.

    Args:
        activation_penalty (B, T): see [`activation_penalty`]; None in evaluation and without the options.
    """

    activation_penalty: torch.Tensor | None = None


class LockedDropout(nn.Module):
    """Variational dropout (Gal & Ghahramani 2016, section 4): a row's unit is dropped at all its steps or at none."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, D), dropped with one mask (B, 1, D) in training, and scaled by 1 / (1 − p)."""
        if not self.training or self.p == 0:
            return x
        return x * F.dropout(x.new_ones(x.shape[0], 1, x.shape[2]), self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"


def drop_words(embeddings: torch.Tensor, input_ids: torch.Tensor, vocab_size: int, p: float) -> torch.Tensor:
    """Embedding dropout (Merity 2017, section 4.3): words dropped wherever they stand in the batch, the others scaled.

    Args:
        embeddings (B, T, E) of input_ids (B, T).
        p: probability that a word of the vocabulary is dropped in this forward pass.
    """
    kept = F.dropout(embeddings.new_ones(vocab_size), p)
    return embeddings * kept[input_ids][..., None]


def activation_penalty(
    output: torch.Tensor, dropped: torch.Tensor, valid: torch.Tensor | None, alpha: float, beta: float
) -> torch.Tensor:
    """(B, T) what each token adds to the loss, zero under padding (Merity 2017, section 4.6).

    α · mean_D (m ⊙ h_t)² + β · mean_D (h_t − h_{t+1})², the squares averaged over the units as in the authors' code.
    t + 1 is the row's next token, however much padding is between; the last token has only the first term.

    Args:
        output (B, T, D): h, the last layer's output before dropout.
        dropped (B, T, D): m ⊙ h, after dropout.
        valid (B, T) bool: where the tokens are; None: everywhere.
        alpha: of activation regularisation.
        beta: of temporal activation regularisation.
    """
    if valid is None:
        valid = output.new_ones(output.shape[:2], dtype=torch.bool)
    penalty = alpha * dropped.float().square().mean(-1)
    length = output.shape[1]
    if beta and length > 1:
        places = torch.where(valid, torch.arange(length, device=valid.device), length)
        following = places[:, 1:].flip(1).cummin(1).values.flip(1)  # (B, T − 1) the next token's place, or T
        after = output.gather(1, following.clamp(max=length - 1)[..., None].expand(-1, -1, output.shape[2]))
        change = (output[:, :-1] - after).float().square().mean(-1)
        penalty = penalty + beta * F.pad(torch.where(following < length, change, 0.0), (0, 1))
    return torch.where(valid, penalty, 0.0)


def mean_penalty(penalty: torch.Tensor, targets: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """The penalty (B, T) of the tokens that predict a target, over the number of targets, as the loss is counted.

    Args:
        targets (B, T or T − 1): what each token should predict, −100 where nothing.
        count: the targets by which the summed loss is divided, so that accumulated gradients stay those of one batch.
    """
    return torch.where(targets != -100, penalty[:, : targets.shape[1]], 0.0).sum() / count
