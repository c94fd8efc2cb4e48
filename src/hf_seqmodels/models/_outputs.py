"""Model outputs that transformers has no class for."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import SequenceClassifierOutputWithPast


@dataclass
class AttentionPoolingOutput(SequenceClassifierOutputWithPast):
    """A sequence classifier's output with the weights of its attention pooling.

    Args:
        pooling_attentions (B, T): how much each token counts; sums to 1 over a row's tokens. Returned with
            `output_attentions=True`.
    """

    pooling_attentions: torch.Tensor | None = None
