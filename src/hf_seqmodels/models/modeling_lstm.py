"""LSTM: long short-term memory (Hochreiter & Schmidhuber 1997).

Forget gate: Gers, Schmidhuber & Cummins 2000. Peepholes: Gers & Schmidhuber 2000.
"""

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GenerationMixin
from transformers import initialization as init

from .configuration_lstm import LSTMConfig
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


class LSTMLayer(RecurrentLayer):
    """Gers & Schmidhuber 2000 in the notation of Chung 2014 (section 3.1), gates in torch's order i, f, g, o:

    i_t = σ(W_i x_t + U_i h_{t−1} + V_i c_{t−1})        input gate
    f_t = σ(W_f x_t + U_f h_{t−1} + V_f c_{t−1})        forget gate
    g_t = tanh(W_g x_t + U_g h_{t−1})                   new content
    c_t = f_t ⊙ c_{t−1} + i_t ⊙ g_t                     cell state
    o_t = σ(W_o x_t + U_o h_{t−1} + V_o c_t)            output gate
    h_t = o_t ⊙ tanh(c_t)                               hidden state

    The peepholes V are diagonal, and present only with `peephole=True`: `peephole_i`, `peephole_f`, `peephole_o`,
    each (D,). W is `weight_ih`, U is `weight_hh`; both products have torch's biases.

    With `layer_norm=True` (Ba 2016, supplement) the products are LN(W x_t) and LN(U h_{t−1}), each over
    its four gates together, and h_t = o_t ⊙ tanh(LN(c_t)); peepholes see c itself. The gains are `layernorm_ih`,
    `layernorm_hh` (4·D,) and `layernorm_c`, with `layernorm_c_bias` (D,); the products' biases are torch's.
    """

    state_names = ("h", "c")
    num_gates = 4

    def __init__(self, config: Any, layer_idx: int):
        super().__init__(config, layer_idx)
        self.peephole = config.peephole

    def parameter_shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        peepholes = ("peephole_i", "peephole_f", "peephole_o") if config.peephole else ()
        return super().parameter_shapes(config) | dict.fromkeys(peepholes, (config.hidden_size,))

    def step(self, x: torch.Tensor, states: States, w: SimpleNamespace) -> States:
        """One step: x (B, 4·D) is W x_t + b_ih, the states are h and c, each (B, D)."""
        h, c = states
        i, f, g, o = (x + affine(h, w.weight_hh, w.bias_hh, w.layernorm_hh)).chunk(4, dim=-1)
        if self.peephole:
            i = i + w.peephole_i * c
            f = f + w.peephole_f * c
        i, f, g = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g)
        c = f * c + i * g
        if self.peephole:
            o = o + w.peephole_o * c
        content = F.layer_norm(c, c.shape[-1:], w.layernorm_c, w.layernorm_c_bias) if self.layer_norm else c
        h = torch.sigmoid(o) * torch.tanh(content)
        return h, c

    def layer_norm_shapes(self) -> dict[str, tuple[int, ...]]:
        return super().layer_norm_shapes() | dict.fromkeys(("layernorm_c", "layernorm_c_bias"), (self.hidden_size,))

    def kernel(self) -> tuple[Any, Any, int] | None:
        """torch's kernels know no peepholes and no layer norm."""
        return None if self.peephole or self.layer_norm else (torch.lstm, torch.lstm_cell, 2)

    def initial_bias(self, config: Any) -> torch.Tensor:
        """The forget gate open from the start (Jozefowicz 2015); chrono: b_f = log U(1, T_max − 1), b_i = −b_f."""
        bias = super().initial_bias(config)
        if config.bias_init == "chrono":
            bias[1] = chrono_bias(config)
            bias[0] = -bias[1]
        else:
            bias[1] = config.forget_bias
        return bias

    def init_weights(self, config: Any) -> None:
        super().init_weights(config)
        if self.peephole:  # they start closed, so that the cell begins as the vanilla LSTM
            for direction in self.directions:
                w = self.weights(direction)
                for weight in (w.peephole_i, w.peephole_f, w.peephole_o):
                    init.zeros_(weight)


class LSTMPreTrainedModel(RecurrentPreTrainedModel):
    """Loading, saving and initialisation of the LSTM."""

    config: LSTMConfig
    _no_split_modules = ["LSTMLayer"]
    _is_stateful = True  # no assisted decoding: a state cannot take back rejected tokens
    _can_record_outputs = {"hidden_states": LSTMLayer}


class LSTMModel(LSTMPreTrainedModel, RecurrentModel):
    """The LSTM without a head: tokens (B, T) to hidden states (B, T, output_size)."""

    layer_class = LSTMLayer


class LSTMForCausalLM(CausalLMHead, LSTMPreTrainedModel, GenerationMixin):
    """LSTM language model (Zaremba 2014)."""

    backbone_class = LSTMModel


class LSTMForSequenceClassification(SequenceClassificationHead, LSTMPreTrainedModel):
    """LSTM that labels a sequence from its final state (both final states if bidirectional)."""

    backbone_class = LSTMModel


class LSTMForTokenClassification(TokenClassificationHead, LSTMPreTrainedModel):
    """LSTM that labels every token; bidirectional: Graves & Schmidhuber 2005."""

    backbone_class = LSTMModel


class LSTMForMaskedLM(MaskedLMHead, LSTMPreTrainedModel):
    """Bidirectional LSTM that fills in masked tokens."""

    backbone_class = LSTMModel


class LSTMForQuestionAnswering(QuestionAnsweringHead, LSTMPreTrainedModel):
    """LSTM that finds the span of a text that answers a question."""

    backbone_class = LSTMModel


class LSTMForCTC(CTCHead, LSTMPreTrainedModel):
    """LSTM that turns frames of sound into text (Graves 2006)."""

    backbone_class = LSTMModel


class LSTMForAudioClassification(AudioClassificationHead, LSTMPreTrainedModel):
    """LSTM that labels a sound."""

    backbone_class = LSTMModel


class LSTMForTimeSeriesPrediction(TimeSeriesHead, LSTMPreTrainedModel):
    """LSTM that predicts the next step of a series (Salinas 2020)."""

    backbone_class = LSTMModel


__all__ = [
    "LSTMForAudioClassification",
    "LSTMForCTC",
    "LSTMForCausalLM",
    "LSTMForMaskedLM",
    "LSTMForQuestionAnswering",
    "LSTMForSequenceClassification",
    "LSTMForTimeSeriesPrediction",
    "LSTMForTokenClassification",
    "LSTMModel",
]
