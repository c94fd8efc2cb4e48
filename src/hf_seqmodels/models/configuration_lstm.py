"""Configuration of the LSTM."""

from .shared_configuration_recurrent import RecurrentConfig
from .shared_versions import strict


@strict
class LSTMConfig(RecurrentConfig):
    """Configuration of an [`LSTMModel`]: Hochreiter & Schmidhuber 1997 with the forget gate of
    Gers, Schmidhuber & Cummins 2000.

    Options shared by all architectures are described in `_configuration*.py`.

    Args:
        peephole (`bool`, defaults to False): diagonal connections from the cell state to the gates (Gers &
            Schmidhuber 2000).
        forget_bias (`float`, defaults to 1.0): initial bias of the forget gate (Jozefowicz 2015); with
            `bias_init="chrono"` it is not used.

    Example:
        >>> from hf_seqmodels import LSTMConfig, LSTMForCausalLM
        >>> model = LSTMForCausalLM(LSTMConfig(vocab_size=100, hidden_size=64, peephole=True))
    """

    model_type = "seq_lstm"

    peephole: bool = False
    forget_bias: float | int = 1.0

    def check_ranges(self) -> None:
        super().check_ranges()
        self.require_finite("forget_bias")


__all__ = ["LSTMConfig"]
