"""Options of everything that is built from recurrent layers, and of those that can choose the cell."""

import math

from .shared_configuration import MOST_WIDTH, SequenceConfig
from .shared_versions import strict


@strict
class RecurrentLayerOptions(SequenceConfig):
    """Options of recurrent layers.

    Args:
        embedding_size (`int`, *optional*, defaults to `hidden_size`): width of the token embeddings.
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
        weight_drop (`float`, defaults to 0.0): DropConnect on `weight_hh`, one mask for a forward pass (Merity 2017,
            section 2).
        weight_noise (`float`, defaults to 0.0): standard deviation of Gaussian noise on all parameters of the cells,
            drawn once for a forward pass in training and not stored (Graves 2011; 0.075 in Chung 2014).
        layer_norm (`bool`, defaults to False): layer-normalised cells (Ba 2016), whose equations are in the cells'
            files. They run in a Python loop, since torch has no kernel for them.
    """

    embedding_size: int | None = None
    initializer_range: float | int = 0.1
    bidirectional: bool = False
    weight_init: str = "orthogonal"
    bias_init: str = "constant"
    chrono_max_time: int = 100
    weight_drop: float | int = 0.0
    weight_noise: float | int = 0.0
    layer_norm: bool = False

    def check_ranges(self) -> None:
        super().check_ranges()
        self.require("embedding_size", f"between 1 and {MOST_WIDTH}", 1 <= (self.embedding_size or 0) <= MOST_WIDTH)
        self.require("weight_init", "'orthogonal' or 'uniform'", self.weight_init in ("orthogonal", "uniform"))
        self.require("bias_init", "'constant' or 'chrono'", self.bias_init in ("constant", "chrono"))
        self.require("chrono_max_time", "at least 3 steps", self.chrono_max_time >= 3)
        self.require_probability("weight_drop")
        self.require("weight_noise", "at least 0 and finite", 0 <= self.weight_noise < math.inf)

    def require_finite(self, *names: str) -> None:
        """Raise ValueError unless each named option is a finite number."""
        for name in names:
            self.require(name, "a finite number", math.isfinite(getattr(self, name)))


@strict
class AnyCellOptions(RecurrentLayerOptions):
    """Options of recurrent layers whose cell can be chosen.

    Args:
        cell (`str`, defaults to `"lstm"`): `"rnn"`, `"lstm"` or `"gru"`.
        nonlinearity, peephole, reset_after, forget_bias, update_bias: options of the cells, as in [`RNNConfig`],
            [`LSTMConfig`] and [`GRUConfig`].
    """

    cell: str = "lstm"
    nonlinearity: str = "tanh"
    peephole: bool = False
    reset_after: bool = True
    forget_bias: float | int = 1.0
    update_bias: float | int = 1.0

    def check_ranges(self) -> None:
        super().check_ranges()
        self.require("cell", "'rnn', 'lstm' or 'gru'", self.cell in ("rnn", "lstm", "gru"))
        self.require("nonlinearity", "'tanh' or 'relu'", self.nonlinearity in ("tanh", "relu"))
        self.require("bias_init", "'constant' for the cell 'rnn'", self.cell != "rnn" or self.bias_init == "constant")
        self.require_finite("forget_bias", "update_bias")
