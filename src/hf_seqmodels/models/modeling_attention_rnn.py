"""Attention-RNN: a recurrent network that attends over its own past hidden states (Cheng 2016; Daniluk 2017)."""

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from .configuration_attention_rnn import AttentionRNNConfig
from .shared_attention import AttentionPooling, AttentionScore, attend
from .shared_cells import CELLS
from .shared_heads import CausalLMHead, MaskedLMHead
from .shared_heads_classification import (
    AudioClassificationHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TokenClassificationHead,
)
from .shared_heads_series import TimeSeriesHead
from .shared_heads_speech import CTCHead
from .shared_outputs import AttentionPoolingOutput
from .shared_recurrence import ValidSteps
from .shared_recurrent_model import RecurrentModel, RecurrentPreTrainedModel


class AttentionRNNLayer(GradientCheckpointingLayer):
    """A recurrent layer and attention over its past (Daniluk 2017, section 2.1):

    h_t = cell(x_t, h_{t−1})
    e_ts = score(h_t, h_s)   for the past s < t, at most `window` steps back
    α_t = softmax(e_t)
    r_t = Σ_s α_ts h_s       context; zero at the first step, which has no past
    y_t = tanh(W [r_t; h_t] + b)

    As in Daniluk 2017 the context does not enter the recurrence, so all steps' attention is one product; Cheng 2016
    feeds it back. With `bidirectional=True` there is no past to speak of, and y_t = h_t.
    """

    def __init__(self, config: AttentionRNNConfig, layer_idx: int):
        super().__init__()
        self.layer_idx = layer_idx
        self.window = config.window
        self.rnn = CELLS[config.cell](config, layer_idx)
        self.attends = not config.bidirectional
        if self.attends:
            self.score = AttentionScore(config.score, config.hidden_size)
            self.combine = nn.Linear(2 * config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        skip: torch.Tensor | None = None,
        steps: ValidSteps | None = None,
        past_key_values: Cache | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, I) → y (B, T, D), zero under padding, and the weights (B, 1, T, S) over the S remembered steps.

        `skip` (B, T, D) is added to y: a residual connection.
        """
        cache: Any = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        memory = {} if cache is None else cache.read_states(hidden_states.dtype, hidden_states.device)
        hidden = self.rnn(hidden_states, steps=steps, past_key_values=past_key_values)
        if not self.attends:
            return hidden if skip is None else hidden + skip, None
        mask = None if steps is None else steps.mask
        output, weights, memory = self.attend_to_past(hidden, memory, mask)
        if cache is not None:
            cache.write_states(cache.states | memory, 0)  # the cell has written its own and counted the tokens
        return output if skip is None else output + skip, weights

    def attend_to_past(
        self, hidden: torch.Tensor, memory: dict[str, torch.Tensor], mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Outputs, weights (B, 1, T, S) and the memory with the new hidden states (B, T, D) added.

        The memory holds `values` (B, S, D), `keys` if they differ, and `positions` (B, S): the running number of each
        step among its row's tokens, −1 under padding. Distances are counted in tokens, so padding changes nothing.
        """
        positions = self._count_tokens(hidden, memory, mask)
        new = {"values": hidden, "positions": positions}
        if self.score.kind == "additive":
            new["keys"] = self.score.keys(hidden)
        if "values" in memory:
            new = {name: torch.cat([memory[name], part], dim=1) for name, part in new.items()}
        remembered, current = new["positions"][:, None], positions[:, :, None]
        allowed = (remembered >= 0) & (remembered < current)
        if self.window is not None:
            allowed &= remembered >= current - self.window
        scores = self.score(hidden, new.get("keys", new["values"]))
        # One head, so that the weights have transformers' shape (B, 1, T, S) where gradients flow through them.
        context, weights = attend(scores[:, None], new["values"][:, None], allowed[:, None])
        output = torch.tanh(self.combine(torch.cat([context[:, 0], hidden], dim=-1)))
        if mask is not None:
            output = torch.where(mask[..., None], output, output.new_zeros(()))
        return output, weights, self._forget(new)

    @staticmethod
    def _count_tokens(
        hidden: torch.Tensor, memory: dict[str, torch.Tensor], mask: torch.Tensor | None
    ) -> torch.Tensor:
        """(B, T): each new step's number among its row's tokens, counting those remembered; −1 under padding."""
        batch, length, _ = hidden.shape
        valid = hidden.new_ones(batch, length, dtype=torch.bool) if mask is None else mask
        before = memory["positions"].amax(1, keepdim=True) + 1 if "positions" in memory else 0
        return torch.where(valid, valid.cumsum(1) - 1 + before, -1)

    def _forget(self, memory: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Keep each row's last `window` tokens, so that the memory stops growing; without a window keep all."""
        positions = memory["positions"]
        if self.window is None or positions.shape[1] <= self.window:
            return memory
        last = (positions >= 0).to(torch.uint8).argsort(dim=1, stable=True)[:, -self.window :]
        return {
            name: part.gather(1, last if part.ndim == 2 else last[..., None].expand(-1, -1, part.shape[-1]))
            for name, part in memory.items()
        }


class AttentionRNNPreTrainedModel(RecurrentPreTrainedModel):
    """Loading, saving and initialisation of the attention-RNN."""

    config: AttentionRNNConfig
    _no_split_modules = ["AttentionRNNLayer"]
    _is_stateful = True  # no assisted decoding: a state cannot take back rejected tokens
    _can_record_outputs = {"hidden_states": AttentionRNNLayer, "attentions": AttentionRNNLayer}


class AttentionRNNModel(AttentionRNNPreTrainedModel, RecurrentModel):
    """The attention-RNN without a head: tokens (B, T) to hidden states (B, T, output_size)."""

    layer_class = AttentionRNNLayer


class AttentionRNNForCausalLM(CausalLMHead, AttentionRNNPreTrainedModel, GenerationMixin):
    """Language model that attends over its own past (Daniluk 2017)."""

    backbone_class = AttentionRNNModel


class AttentionRNNForSequenceClassification(SequenceClassificationHead, AttentionRNNPreTrainedModel):
    """Labels a sequence from an attention-weighted sum of its hidden states; bidirectional: Zhou 2016."""

    backbone_class = AttentionRNNModel

    def __init__(self, config: AttentionRNNConfig):
        super().__init__(config)
        self.pooling = AttentionPooling(config.output_size)
        self.post_init()

    def pool(self, hidden_states: torch.Tensor, valid: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return self.pooling(hidden_states, valid)

    def pack_output(self, weights: torch.Tensor | None, **fields: Any) -> SequenceClassifierOutputWithPast:
        return AttentionPoolingOutput(pooling_attentions=weights, **fields)


class AttentionRNNForTokenClassification(TokenClassificationHead, AttentionRNNPreTrainedModel):
    """Attention-RNN that labels every token."""

    backbone_class = AttentionRNNModel


class AttentionRNNForMaskedLM(MaskedLMHead, AttentionRNNPreTrainedModel):
    """Bidirectional attention-RNN that fills in masked tokens."""

    backbone_class = AttentionRNNModel


class AttentionRNNForQuestionAnswering(QuestionAnsweringHead, AttentionRNNPreTrainedModel):
    """attention-RNN that finds the span of a text that answers a question."""

    backbone_class = AttentionRNNModel


class AttentionRNNForCTC(CTCHead, AttentionRNNPreTrainedModel):
    """attention-RNN that turns frames of sound into text."""

    backbone_class = AttentionRNNModel


class AttentionRNNForAudioClassification(AudioClassificationHead, AttentionRNNPreTrainedModel):
    """attention-RNN that labels a sound."""

    backbone_class = AttentionRNNModel


class AttentionRNNForTimeSeriesPrediction(TimeSeriesHead, AttentionRNNPreTrainedModel):
    """Attention-RNN that predicts the next step of a series."""

    backbone_class = AttentionRNNModel


__all__ = [
    "AttentionRNNForAudioClassification",
    "AttentionRNNForCTC",
    "AttentionRNNForCausalLM",
    "AttentionRNNForMaskedLM",
    "AttentionRNNForQuestionAnswering",
    "AttentionRNNForSequenceClassification",
    "AttentionRNNForTimeSeriesPrediction",
    "AttentionRNNForTokenClassification",
    "AttentionRNNModel",
]
