"""The parts of the recurrent encoder–decoder: layers with states in and out, the bridge, attention over the source.

Shapes: B batch, S source time, T target time, D hidden, C = D or, of a bidirectional encoder, 2·D.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from .shared_attention import AttentionScore, attend
from .shared_cells import CELLS
from .shared_recurrence import States, ValidSteps


@dataclass
class RecurrentEncoderOutput(BaseModelOutput):
    """Hidden states of the source and where they ended.

    Args:
        final_states (B, layers, N, C): of each layer the states after the source's last token, h and, of an LSTM, c;
            of a bidirectional encoder both directions' side by side, the backward one's after the first token.
    """

    final_states: torch.Tensor | None = None


class Source(NamedTuple):
    """What the decoder attends to."""

    values: torch.Tensor  # (B, S, C)
    keys: torch.Tensor  # (B, S, D) or `values`
    allowed: torch.Tensor  # (B, 1, S) bool, False for padding


class StatefulLayer(GradientCheckpointingLayer):
    """A cell over time whose states are given and returned."""

    def __init__(self, config: Any, layer_idx: int, input_size: int, bidirectional: bool):
        super().__init__()
        sizes = {"embedding_size": input_size, "output_size": input_size, "bidirectional": bidirectional}
        self.rnn = CELLS[config.cell](SimpleNamespace(**(vars(config) | sizes)), layer_idx)

    def forward(
        self,
        hidden_states: torch.Tensor,
        steps: ValidSteps | None = None,
        drawn: tuple[str, ...] | None = None,
        *tensors: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """(B, T, I) → (B, T, directions·D) and the states afterwards.

        Args:
            drawn: names of the parameters that something was drawn for in this forward pass (`draw_weights`); None:
                it is drawn here.
            tensors: the states (directions, B, D), none of them for zeros; and what was drawn. By position, as
                gradient checkpointing wants.
        """
        states = tensors[: len(self.rnn.state_names)] or self.rnn.initial_states(hidden_states)
        started = tuple(state.to(hidden_states.dtype) for state in states)
        weights = None if drawn is None else dict(zip(drawn, tensors[len(started) :], strict=True))
        output, final = self.rnn.run(hidden_states, started, steps, weights)
        return output, *final


class Bridge(nn.Module):
    """From the encoder's final states to the decoder's initial ones, layer by layer from the top.

    One direction: the decoder goes on from the encoder's states (Sutskever 2014, section 2). Both directions:

    s_0 = tanh(W_s [→h_S; ←h_1] + b_s)

    for each layer, and likewise for the cell states of an LSTM. Bahdanau 2014 (appendix A.2.2) reads ←h_1 only, which
    is this with zeros in the other half of W_s. A decoder with more layers than the encoder starts its lowest ones
    from the encoder's lowest.
    """

    def __init__(self, config: Any):
        super().__init__()
        depth = config.num_decoder_layers or config.num_hidden_layers
        self.sources = [max(0, config.num_hidden_layers - depth + layer) for layer in range(depth)]
        self.layers = None
        if config.bidirectional:
            names = CELLS[config.cell].state_names
            width = config.hidden_size
            self.layers = nn.ModuleList(
                [nn.ModuleDict({name: nn.Linear(2 * width, width) for name in names}) for _ in range(depth)]
            )

    def forward(self, final_states: torch.Tensor) -> list[States]:
        """(B, encoder's layers, N, C) → for each of the decoder's layers N states (1, B, D)."""
        found = [final_states[:, source].unbind(1) for source in self.sources]
        if self.layers is not None:
            layers: Any = self.layers
            found = [
                tuple(torch.tanh(linear(state)) for linear, state in zip(layer.values(), states, strict=True))
                for layer, states in zip(layers, found, strict=True)
            ]
        return [tuple(state[None].contiguous() for state in states) for states in found]


class SourceAttention(GradientCheckpointingLayer):
    """e_ij = score(query_i, h_j),  α_i = softmax(e_i) over the source's tokens,  c_i = Σ_j α_ij h_j."""

    def __init__(self, config: Any):
        super().__init__()
        self.score = AttentionScore(config.score, config.hidden_size, config.source_size)

    def prepare(self, values: torch.Tensor, valid: torch.Tensor | None) -> Source:
        """What does not depend on the query, computed once for a source: values (B, S, C), valid (B, S)."""
        valid = values.new_ones(values.shape[:2], dtype=torch.bool) if valid is None else valid
        return Source(values, self.score.keys(values), valid[:, None])

    def forward(
        self, query: torch.Tensor, values: torch.Tensor, keys: torch.Tensor, allowed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries (B, T, D) → contexts (B, T, C), attention weights (B, T, S)."""
        return attend(self.score(query, keys), values, allowed)


__all__ = ["Bridge", "RecurrentEncoderOutput", "Source", "SourceAttention", "StatefulLayer"]
