"""Model outputs that transformers has no class for."""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from transformers.utils import ModelOutput


@dataclass
class AttentionPoolingOutput(SequenceClassifierOutputWithPast):
    """A sequence classifier's output with the weights of its attention pooling.

    Args:
        pooling_attentions (B, T): how much each token counts; sums to 1 over a row's tokens. Returned with
            `output_attentions=True`.
    """

    pooling_attentions: torch.Tensor | None = None


@dataclass
class TimeSeriesPredictionOutput(ModelOutput):
    """What a time-series head predicts for each step of past and future.

    Args:
        loss: mean of −log p in nats over the observed target steps.
        params: the parameters of each step's distribution in scaled units, a tensor for each; (B, T, V), of a
            mixture (B, T, K) and (B, T, K, V).
        loc, scale (B, 1, V): the series is loc + scale times what the parameters speak of.
        past_key_values: the state after the last step, if `use_cache`.
        hidden_states, attentions: the backbone's, if asked for.
    """

    loss: torch.Tensor | None = None
    params: tuple[torch.Tensor, ...] | None = None
    loc: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
