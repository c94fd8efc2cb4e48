"""What the imports of recurrent networks share: from a stack's weights under our names to a model of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from ..models import ARCHITECTURES
from .report import ImportReport, make_report, random_features, random_tokens
from .tensors import Tensors, build

GATES = {1: "seq_rnn", 3: "seq_gru", 4: "seq_lstm"}  # G in weight_hh (G·D, D) → architecture
BATCH, TIME = 3, 8  # of the random input; rounding errors grow with every step of a network that is chaotic


@dataclass(frozen=True)
class Stack:
    """Recurrent layers on top of each other.

    Attributes:
        model_type: `seq_rnn`, `seq_gru` or `seq_lstm`.
        input_size: width of what the first layer reads.
        hidden_size: D, of every layer and direction.
        num_layers: how many layers.
        bidirectional: whether each also reads backwards.
        options: of the cell (`nonlinearity`, `reset_after`).
        assumed: which of them the source does not tell.
        weights: "0.weight_ih", "0.weight_hh_reverse", … → tensor, in our gate order.
    """

    model_type: str
    input_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool
    options: dict[str, Any] = field(default_factory=dict)
    assumed: str = ""
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def output_size(self) -> int:
        """Width of what the last layer gives."""
        return self.hidden_size * (2 if self.bidirectional else 1)

    @property
    def config_options(self) -> dict[str, Any]:
        """The options of our configuration that say the same."""
        return {
            "embedding_size": self.input_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "bidirectional": self.bidirectional,
            **self.options,
        }

    def build(
        self,
        head: str = "backbone",
        prefix: str = "",
        others: Mapping[str, torch.Tensor] | None = None,
        **options: Any,
    ) -> Any:
        """Our model with these weights.

        Args:
            head: which class (a key of `HEADS`).
            prefix: in front of "layers.0.weight_ih", as that class names it.
            others: its remaining tensors under its names.
            options: of its configuration; without a vocabulary among them it reads features.
        """
        architecture = ARCHITECTURES[self.model_type]
        options = options or {"num_features": self.input_size}
        config = architecture.config(**self.config_options, **options)
        weights = {f"{prefix}layers.{name}": tensor for name, tensor in self.weights.items()}
        return build(architecture.models[head], config, weights | dict(others or {}))


def count_gates(rows: int, hidden_size: int) -> int | None:
    """1, 3 or 4 gates, by the rows of `weight_hh` (G·D, D); None if no cell has that many."""
    return next((gates for gates in GATES if rows == gates * hidden_size > 0), None)


@torch.no_grad()
def compare(
    tensors: Tensors, stack: Stack, model: PreTrainedModel, reference: Callable[[torch.Tensor], torch.Tensor]
) -> ImportReport:
    """Run the imported model and its source on the same random features or tokens.

    Args:
        tensors, stack: what was taken from the source.
        model: ours.
        reference: the source, from features (B, T, I) or tokens (B, T) to hidden states or logits.

    Raises:
        ValueError: they differ.
    """
    if model.config.num_features is not None:
        x = random_features(BATCH, TIME, model.config.num_features)
        ours = model(input_features=x)[0]
    else:
        x = random_tokens(model.config.vocab_size, BATCH, TIME)
        ours = model(input_ids=x)[0]
    return make_report(tensors.source, tensors.taken, model, ours, reference(x), stack.assumed)
