"""What an import found: how far the imported model's outputs are from those of its source."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

LIMIT = 1e-5


@dataclass(frozen=True)
class ImportReport:
    """The result of an import.

    Attributes:
        source: what the weights come from ("torch.nn.LSTM").
        target: the class they were imported into ("LSTMModel").
        tensors: how many tensors of the source were taken.
        parameters: how many numbers the imported model holds.
        max_difference: largest |ours − theirs| / max(1, largest |theirs|) over the outputs for random input, both in
            eval mode and fp32.
        limit: what `max_difference` may be.
        assumed: what the source does not tell and the comparison therefore cannot show ("nonlinearity=tanh").
    """

    source: str
    target: str
    tensors: int
    parameters: int
    max_difference: float
    limit: float = LIMIT
    assumed: str = ""

    def __str__(self) -> str:
        return (
            f"{self.source} → {self.target}: {self.tensors} tensors, {self.parameters:,} parameters; largest output "
            f"difference {self.max_difference:.1e}, relative to the largest output where that is above 1 "
            f"(limit {self.limit:.0e})"
            + (f"; assumed, since the source does not tell: {self.assumed}" if self.assumed else "")
        )


def make_report(
    source: str, tensors: int, model: PreTrainedModel, ours: torch.Tensor, theirs: torch.Tensor, assumed: str = ""
) -> ImportReport:
    """Compare what `model` and its source computed for the same input.

    Args:
        source: what the weights come from.
        tensors: how many tensors were taken from it.
        model: the imported model.
        ours, theirs: outputs of the same shape.
        assumed: what the source does not tell.

    Raises:
        ValueError: the outputs have different shapes or are further apart than the limit (NaN always is).
    """
    target = type(model).__name__
    if ours.shape != theirs.shape:
        raise ValueError(
            f"{source} gives outputs of shape {tuple(theirs.shape)} and {target} of shape {tuple(ours.shape)}: "
            "this is not the model that the weights belong to"
        )
    ours, theirs = ours.detach().double().cpu(), theirs.detach().double().cpu()
    difference = ((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)).item()
    if not difference <= LIMIT:  # so written, NaN fails
        raise ValueError(
            f"{target} with the weights of {source} computes something else: the outputs differ by {difference:.1e}, "
            f"the limit is {LIMIT:.0e}; an option of the source is not known here, or a weight is not finite"
        )
    return ImportReport(source, target, tensors, model.num_parameters(), difference, assumed=assumed)


def random_features(*shape: int) -> torch.Tensor:
    """N(0, 1) in fp32 on the CPU, the same in every call; the caller's random state stays as it is."""
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")


def random_tokens(vocab_size: int, *shape: int) -> torch.Tensor:
    """Token ids below `vocab_size`, the same in every call; the caller's random state stays as it is."""
    return torch.randint(vocab_size, shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
