"""Configuration of the GRU."""

from .shared_configuration_recurrent import RecurrentConfig
from .shared_versions import strict


@strict
class GRUConfig(RecurrentConfig):
    """Configuration of a [`GRUModel`] (Cho 2014).

    Options shared by all architectures are described in `_configuration*.py`.

    Args:
        reset_after (`bool`, defaults to True): apply the reset gate after the recurrent product (torch, cuDNN);
            False: before it (Cho 2014, as in Chung 2014).
        update_bias (`float`, defaults to 1.0): initial bias of the update gate z, which here *keeps* the old state
            (h' = (1−z)·n + z·h), the counterpart of the LSTM's forget bias; with `bias_init="chrono"` it is not used.

    Example:
        >>> from hf_seqmodels import GRUConfig, GRUForCausalLM
        >>> model = GRUForCausalLM(GRUConfig(vocab_size=100, hidden_size=64, reset_after=False))
    """

    model_type = "seq_gru"

    reset_after: bool = True
    update_bias: float | int = 1.0

    def check_ranges(self) -> None:
        super().check_ranges()
        self.require_finite("update_bias")


__all__ = ["GRUConfig"]
