"""Options of the architectures that are built from a cell."""

import math

from ._configuration import MOST_WIDTH
from ._configuration_stack import StackConfig
from ._versions import strict


@strict
class RecurrentConfig(StackConfig):
    """Options of the architectures built from a cell.

    Args:
        embedding_size (`int`, *optional*, defaults to `hidden_size`): width of the token embeddings; with
            `num_features` that number, since features go into the first cell as they are.
        bidirectional (`bool`, defaults to False): each layer also reads the sequence backwards; outputs are
            concatenated to 2·D. Not for causal language models.
        weight_init (`str`, defaults to `"orthogonal"`): `"orthogonal"`: `weight_hh` orthogonal (Saxe 2014) and
            `weight_ih` Xavier-uniform (Glorot 2010), each per gate; `"uniform"`: U(−1/√D, 1/√D) for both, torch's
            default.
        bias_init (`str`, defaults to `"constant"`): `"constant"`: zero but for the gate that keeps the state (see the
            architecture's `forget_bias` or `update_bias`); `"chrono"`: Tallec & Ollivier 2018, section 3, keeping
            times drawn from U(1, `chrono_max_time` − 1).
        chrono_max_time (`int`, defaults to 100): longest expected dependency in steps, at least 3.
        initializer_range (`float`, defaults to 0.1): standard deviation of linear layers and of tied
            embeddings; embeddings that are not tied start from N(0, 1), as in torch.nn.Embedding.
            There is no norm behind them that would undo smaller ones.
        dropout: between layers, on every layer's output but the last (as in torch.nn.LSTM).
    """

    embedding_size: int | None = None
    initializer_range: float | int = 0.1
    bidirectional: bool = False
    weight_init: str = "orthogonal"
    bias_init: str = "constant"
    chrono_max_time: int = 100

    def __post_init__(self, **kwargs):
        if self.embedding_size is None:
            self.embedding_size = self.num_features or self.hidden_size
        if self.bidirectional:
            self.use_cache = False  # there is no state to continue from when both directions are read
        super().__post_init__(**kwargs)

    def check_ranges(self) -> None:
        super().check_ranges()
        self.require("embedding_size", f"between 1 and {MOST_WIDTH}", 1 <= (self.embedding_size or 0) <= MOST_WIDTH)
        if self.num_features is not None:
            rule = f"num_features={self.num_features} (or left out), since features go into the first cell as they are"
            self.require("embedding_size", rule, self.embedding_size == self.num_features)
        self.require("weight_init", "'orthogonal' or 'uniform'", self.weight_init in ("orthogonal", "uniform"))
        self.require("bias_init", "'constant' or 'chrono'", self.bias_init in ("constant", "chrono"))
        self.require("chrono_max_time", "at least 3 steps", self.chrono_max_time >= 3)

    def require_finite(self, *names: str) -> None:
        """Raise ValueError unless each named option is a finite number."""
        for name in names:
            self.require(name, "a finite number", math.isfinite(getattr(self, name)))

    @property
    def output_size(self) -> int:
        return self.hidden_size * (2 if self.bidirectional else 1)

    @property
    def layer_types(self) -> list[str]:
        """Which cache layer transformers builds for each layer (see `_cache.py`)."""
        return ["seq_recurrent"] * self.num_hidden_layers

    def validate_layer_type(self):
        """The upstream check knows only transformers' own layer types; ours is the property above."""
