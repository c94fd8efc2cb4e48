"""GRU: gated recurrent unit (Cho 2014)."""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GenerationMixin

from ._base import RecurrentModel, SequencePreTrainedModel
from ._heads import CausalLMHead, MaskedLMHead
from ._heads_classification import (
    AudioClassificationHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TokenClassificationHead,
)
from ._heads_speech import CTCHead
from ._recurrence import RecurrentLayer, States, chrono_bias
from .configuration_gru import GRUConfig


class GRULayer(RecurrentLayer):
    """Cho 2014, section 2.3, with torch's meaning of z (it keeps) and order of gates r, z, n:

    r_t = σ(W_r x_t + U_r h_{t−1})                      reset gate
    z_t = σ(W_z x_t + U_z h_{t−1})                      update gate
    n_t = tanh(W_n x_t + r_t ⊙ (U_n h_{t−1} + b_n))     new content, `reset_after=True` (torch, cuDNN)
    n_t = tanh(W_n x_t + U_n (r_t ⊙ h_{t−1}) + b_n)     new content, `reset_after=False` (Cho 2014, Chung 2014)
    h_t = (1 − z_t) ⊙ n_t + z_t ⊙ h_{t−1}               hidden state

    W is `weight_ih`, U is `weight_hh`; both products have torch's biases, of which b_n is the n part of `bias_hh`.
    """

    state_names = ("h",)
    num_gates = 3

    def __init__(self, config: Any, layer_idx: int):
        super().__init__(config, layer_idx)
        self.reset_after = config.reset_after

    def step(self, x: torch.Tensor, states: States, w: SimpleNamespace) -> States:
        """One step: x (B, 3·D) is W x_t + b_ih, the state is h (B, D)."""
        (h,) = states
        width = self.hidden_size
        x_rz, x_n = x.split((2 * width, width), dim=-1)
        u_rz, u_n = w.weight_hh.split((2 * width, width))
        b_rz, b_n = w.bias_hh.split((2 * width, width))
        r, z = torch.sigmoid(x_rz + F.linear(h, u_rz, b_rz)).chunk(2, dim=-1)
        if self.reset_after:
            n = torch.tanh(x_n + r * F.linear(h, u_n, b_n))
        else:
            n = torch.tanh(x_n + F.linear(r * h, u_n, b_n))
        return ((1 - z) * n + z * h,)

    def kernel(self) -> tuple[Any, Any, int] | None:
        """torch's kernels reset after the product only."""
        return (torch.gru, torch.gru_cell, 3) if self.reset_after else None

    def initial_bias(self, config: Any) -> torch.Tensor:
        """The update gate keeps from the start; chrono: b_z = log U(1, T_max − 1)."""
        bias = super().initial_bias(config)
        bias[1] = chrono_bias(config) if config.bias_init == "chrono" else config.update_bias
        return bias


class GRUPreTrainedModel(SequencePreTrainedModel):
    """Loading, saving and initialisation of the GRU."""

    config: GRUConfig
    _no_split_modules = ["GRULayer"]
    _is_stateful = True  # no assisted decoding: a state cannot take back rejected tokens
    _can_record_outputs = {"hidden_states": GRULayer}


class GRUModel(GRUPreTrainedModel, RecurrentModel):
    """The GRU without a head: tokens (B, T) to hidden states (B, T, output_size)."""

    layer_class = GRULayer


class GRUForCausalLM(CausalLMHead, GRUPreTrainedModel, GenerationMixin):
    """GRU language model."""

    backbone_class = GRUModel


class GRUForSequenceClassification(SequenceClassificationHead, GRUPreTrainedModel):
    """GRU that labels a sequence from its final state (both final states if bidirectional)."""

    backbone_class = GRUModel


class GRUForTokenClassification(TokenClassificationHead, GRUPreTrainedModel):
    """GRU that labels every token."""

    backbone_class = GRUModel


class GRUForMaskedLM(MaskedLMHead, GRUPreTrainedModel):
    """Bidirectional GRU that fills in masked tokens."""

    backbone_class = GRUModel


class GRUForQuestionAnswering(QuestionAnsweringHead, GRUPreTrainedModel):
    """GRU that finds the span of a text that answers a question."""

    backbone_class = GRUModel


class GRUForCTC(CTCHead, GRUPreTrainedModel):
    """GRU that turns frames of sound into text."""

    backbone_class = GRUModel


class GRUForAudioClassification(AudioClassificationHead, GRUPreTrainedModel):
    """GRU that labels a sound."""

    backbone_class = GRUModel


__all__ = [
    "GRUForAudioClassification",
    "GRUForCTC",
    "GRUForCausalLM",
    "GRUForMaskedLM",
    "GRUForQuestionAnswering",
    "GRUForSequenceClassification",
    "GRUForTokenClassification",
    "GRUModel",
]
