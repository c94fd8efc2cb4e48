"""Configuration of the attention-RNN."""

from .shared_configuration_cell import AnyCellOptions
from .shared_configuration_recurrent import RecurrentConfig
from .shared_versions import strict


@strict
class AttentionRNNConfig(AnyCellOptions, RecurrentConfig):
    """Configuration of an [`AttentionRNNModel`]: a recurrent network that attends over its own past hidden states.

    Options shared by all architectures are described in `_configuration*.py`.

    Args:
        cell (`str`, defaults to `"lstm"`): the cell underneath, `"rnn"`, `"lstm"` or `"gru"`.
        score (`str`, defaults to `"general"`): `"additive"` (Bahdanau 2014; Daniluk 2017), `"dot"` or `"general"`
            (Luong 2015).
        window (`int`, *optional*): attend over at most this many past steps (Daniluk 2017); None: over all of them.
            It bounds the memory of generation. Training computes all T² scores and masks those outside the window;
            additive scores hold B·T²·D numbers there.
        bidirectional (`bool`, defaults to False): the cells read both ways and do not attend over a past; for
            classification with attention pooling (Zhou 2016).
        nonlinearity, peephole, reset_after, forget_bias, update_bias: options of the cells, as in [`RNNConfig`],
            [`LSTMConfig`] and [`GRUConfig`].

    Example:
        >>> from hf_seqmodels import AttentionRNNConfig, AttentionRNNForCausalLM
        >>> model = AttentionRNNForCausalLM(AttentionRNNConfig(vocab_size=100, hidden_size=64, cell="gru"))
    """

    model_type = "seq_attention_rnn"

    score: str = "general"
    window: int | None = None

    def check_ranges(self) -> None:
        super().check_ranges()
        self.require("score", "'additive', 'dot' or 'general'", self.score in ("additive", "dot", "general"))
        self.require("window", "None or at least 1", self.window is None or self.window >= 1)


__all__ = ["AttentionRNNConfig"]
