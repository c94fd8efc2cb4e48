"""Configuration of the RNN."""

from .shared_configuration_recurrent import RecurrentConfig
from .shared_versions import strict


@strict
class RNNConfig(RecurrentConfig):
    """Configuration of an [`RNNModel`], the simple recurrent network of Elman 1990.

    Options shared by all architectures are described in `_configuration*.py`.

    Args:
        nonlinearity (`str`, defaults to `"tanh"`): `"tanh"` or `"relu"`.

    Example:
        >>> from hf_seqmodels import RNNConfig, RNNForCausalLM
        >>> model = RNNForCausalLM(RNNConfig(vocab_size=100, hidden_size=64))
    """

    model_type = "seq_rnn"

    nonlinearity: str = "tanh"

    def check_ranges(self) -> None:
        super().check_ranges()
        self.require("nonlinearity", "'tanh' or 'relu'", self.nonlinearity in ("tanh", "relu"))
        self.require("bias_init", "'constant' (an RNN has no gate for 'chrono' to set)", self.bias_init == "constant")


__all__ = ["RNNConfig"]
