"""RNN: the simple recurrent network (Elman 1990)."""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GenerationMixin

from .configuration_rnn import RNNConfig
from .shared_heads import CausalLMHead, MaskedLMHead
from .shared_heads_classification import (
    AudioClassificationHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TokenClassificationHead,
)
from .shared_heads_series import TimeSeriesHead
from .shared_heads_speech import CTCHead
from .shared_recurrence import RecurrentLayer, States
from .shared_recurrent_model import RecurrentModel, RecurrentPreTrainedModel


class RNNLayer(RecurrentLayer):
    """Elman 1990, with torch's two biases:

    h_t = tanh(W_ih x_t + b_ih + W_hh h_{t−1} + b_hh), or relu in place of tanh.

    With `layer_norm=True` (Ba 2016, eq. 4), the gain being `layernorm`:
    h_t = tanh(LN(W_ih x_t + W_hh h_{t−1}) + b_ih + b_hh)
    """

    state_names = ("h",)
    num_gates = 1

    def __init__(self, config: Any, layer_idx: int):
        super().__init__(config, layer_idx)
        self.relu = config.nonlinearity == "relu"

    def step(self, x: torch.Tensor, states: States, w: SimpleNamespace) -> States:
        """One step: x (B, D) is W_ih x_t + b_ih, the state is h (B, D)."""
        (h,) = states
        if self.layer_norm:
            a = F.layer_norm(x + F.linear(h, w.weight_hh), h.shape[-1:], w.layernorm, w.bias_ih + w.bias_hh)
        else:
            a = x + F.linear(h, w.weight_hh, w.bias_hh)
        return (torch.relu(a) if self.relu else torch.tanh(a),)

    def input_part(self, x: torch.Tensor, w: SimpleNamespace) -> torch.Tensor:
        """The norm is over the sum of both products, so the biases wait for it."""
        return F.linear(x, w.weight_ih) if self.layer_norm else super().input_part(x, w)

    def layer_norm_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"layernorm": (self.hidden_size,)}

    def kernel(self) -> tuple[Any, Any, int] | None:
        """torch's kernels know no layer norm."""
        if self.layer_norm:
            return None
        return (torch.rnn_relu, torch.rnn_relu_cell, 0) if self.relu else (torch.rnn_tanh, torch.rnn_tanh_cell, 1)


class RNNPreTrainedModel(RecurrentPreTrainedModel):
    """Loading, saving and initialisation of the RNN."""

    config: RNNConfig
    _no_split_modules = ["RNNLayer"]
    _is_stateful = True  # no assisted decoding: a state cannot take back rejected tokens
    _can_record_outputs = {"hidden_states": RNNLayer}


class RNNModel(RNNPreTrainedModel, RecurrentModel):
    """The RNN without a head: tokens (B, T) to hidden states (B, T, output_size)."""

    layer_class = RNNLayer


class RNNForCausalLM(CausalLMHead, RNNPreTrainedModel, GenerationMixin):
    """RNN language model (Mikolov 2010)."""

    backbone_class = RNNModel


class RNNForSequenceClassification(SequenceClassificationHead, RNNPreTrainedModel):
    """RNN that labels a sequence from its final state."""

    backbone_class = RNNModel


class RNNForTokenClassification(TokenClassificationHead, RNNPreTrainedModel):
    """RNN that labels every token."""

    backbone_class = RNNModel


class RNNForMaskedLM(MaskedLMHead, RNNPreTrainedModel):
    """Bidirectional RNN that fills in masked tokens."""

    backbone_class = RNNModel


class RNNForQuestionAnswering(QuestionAnsweringHead, RNNPreTrainedModel):
    """RNN that finds the span of a text that answers a question."""

    backbone_class = RNNModel


class RNNForCTC(CTCHead, RNNPreTrainedModel):
    """RNN that turns frames of sound into text."""

    backbone_class = RNNModel


class RNNForAudioClassification(AudioClassificationHead, RNNPreTrainedModel):
    """RNN that labels a sound."""

    backbone_class = RNNModel


class RNNForTimeSeriesPrediction(TimeSeriesHead, RNNPreTrainedModel):
    """RNN that predicts the next step of a series (Boulanger-Lewandowski 2012)."""

    backbone_class = RNNModel


__all__ = [
    "RNNForAudioClassification",
    "RNNForCTC",
    "RNNForCausalLM",
    "RNNForMaskedLM",
    "RNNForQuestionAnswering",
    "RNNForSequenceClassification",
    "RNNForTimeSeriesPrediction",
    "RNNForTokenClassification",
    "RNNModel",
]
