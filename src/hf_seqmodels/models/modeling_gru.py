"""GRU: gated recurrent unit (Cho 2014)."""

from types import SimpleNamespace
from typing import Any

import torch
from transformers import GenerationMixin

from .configuration_gru import GRUConfig
from .shared_heads import CausalLMHead, MaskedLMHead
from .shared_heads_classification import (
    AudioClassificationHead,
    QuestionAnsweringHead,
    SequenceClassificationHead,
    TokenClassificationHead,
)
from .shared_heads_series import TimeSeriesHead
from .shared_heads_speech import CTCHead
from .shared_recurrence import RecurrentLayer, States, affine, chrono_bias
from .shared_recurrent_model import RecurrentModel, RecurrentPreTrainedModel


class GRULayer(RecurrentLayer):
    """Cho 2014, section 2.3, with torch's meaning of z (it keeps) and order of gates r, z, n:

    r_t = σ(W_r x_t + U_r h_{t−1})                      reset gate
    z_t = σ(W_z x_t + U_z h_{t−1})                      update gate
    n_t = tanh(W_n x_t + r_t ⊙ (U_n h_{t−1} + b_n))     new content, `reset_after=True` (torch, cuDNN)
    n_t = tanh(W_n x_t + U_n (r_t ⊙ h_{t−1}) + b_n)     new content, `reset_after=False` (Cho 2014, Chung 2014)
    h_t = (1 − z_t) ⊙ n_t + z_t ⊙ h_{t−1}               hidden state

    W is `weight_ih`, U is `weight_hh`; both products have torch's biases, of which b_n is the n part of `bias_hh`.

    With `layer_norm=True` (Ba 2016, supplement) the four products are LN(W_rz x_t), LN(U_rz h_{t−1}), r and
    z together, LN(W_n x_t) and LN(U_n …), with the gains `layernorm_ih` and `layernorm_hh` (3·D,).
    """

    state_names = ("h",)
    num_gates = 3

    def __init__(self, config: Any, layer_idx: int):
        super().__init__(config, layer_idx)
        self.reset_after = config.reset_after

    def step(self, x: torch.Tensor, states: States, w: SimpleNamespace) -> States:
        """One step: x (B, 3·D) is W x_t + b_ih, the state is h (B, D)."""
        (h,) = states
        x_rz, x_n = self._split(x, dim=-1)
        (u_rz, u_n), (b_rz, b_n), (g_rz, g_n) = map(self._split, (w.weight_hh, w.bias_hh, w.layernorm_hh))
        r, z = torch.sigmoid(x_rz + affine(h, u_rz, b_rz, g_rz)).chunk(2, dim=-1)
        if self.reset_after:
            n = torch.tanh(x_n + r * affine(h, u_n, b_n, g_n))
        else:
            n = torch.tanh(x_n + affine(r * h, u_n, b_n, g_n))
        return ((1 - z) * n + z * h,)

    def input_part(self, x: torch.Tensor, w: SimpleNamespace) -> torch.Tensor:
        """With layer norm the part of r and z, and the part of n, each normalised on its own."""
        if not self.layer_norm:
            return super().input_part(x, w)
        parts = zip(*map(self._split, (w.weight_ih, w.bias_ih, w.layernorm_ih)), strict=True)
        return torch.cat([affine(x, *part) for part in parts], dim=-1)

    def _split(self, rows: torch.Tensor | None, dim: int = 0) -> tuple[Any, ...]:
        """The rows of r and z, and those of n."""
        return (None, None) if rows is None else rows.split((2 * self.hidden_size, self.hidden_size), dim)

    def kernel(self) -> tuple[Any, Any, int] | None:
        """torch's kernels reset after the product only, and know no layer norm."""
        return (torch.gru, torch.gru_cell, 3) if self.reset_after and not self.layer_norm else None

    def initial_bias(self, config: Any) -> torch.Tensor:
        """The update gate keeps from the start; chrono: b_z = log U(1, T_max − 1)."""
        bias = super().initial_bias(config)
        bias[1] = chrono_bias(config) if config.bias_init == "chrono" else config.update_bias
        return bias


class GRUPreTrainedModel(RecurrentPreTrainedModel):
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


class GRUForTimeSeriesPrediction(TimeSeriesHead, GRUPreTrainedModel):
    """GRU that predicts the next step of a series (Chung 2014)."""

    backbone_class = GRUModel


__all__ = [
    "GRUForAudioClassification",
    "GRUForCTC",
    "GRUForCausalLM",
    "GRUForMaskedLM",
    "GRUForQuestionAnswering",
    "GRUForSequenceClassification",
    "GRUForTimeSeriesPrediction",
    "GRUForTokenClassification",
    "GRUModel",
]
