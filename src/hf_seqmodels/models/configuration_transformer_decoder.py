"""Configuration of the Transformer decoder."""

from ._configuration import SequenceConfig
from ._versions import strict


@strict
class TransformerDecoderConfig(SequenceConfig):
    """Configuration of a [`TransformerDecoderModel`]: the GPT layout of Vaswani 2017's decoder.

    Options shared by all architectures are described in `_configuration.py`.

    Args:
        num_attention_heads (`int`, defaults to 4): heads H; divides `hidden_size`.
        intermediate_size (`int`, *optional*): width of the feed-forward layer; defaults to 4·D, with `"swiglu"` to
            8/3·D rounded up to a multiple of 8 (the same number of parameters; Shazeer 2020).
        hidden_act (`str`, defaults to `"gelu"`): `"gelu"` or `"swiglu"`.
        norm (`str`, defaults to `"layernorm"`): `"layernorm"` (Ba 2016) or `"rmsnorm"` (Zhang & Sennrich 2019).
        norm_position (`str`, defaults to `"pre"`): `"post"` is Vaswani 2017; `"pre"` as in GPT-2 (Xiong 2020).
        norm_eps (`float`, defaults to 1e-5): added to the variance.
        positions (`str`, defaults to `"learned"`): `"learned"` (a table), `"sinusoidal"` (Vaswani 2017, section 3.5)
            or `"rotary"` (Su 2021).
        max_position_embeddings (`int`, defaults to 1024): rows of the learned table; a longer sequence is refused.
            The other two have no limit.
        rope_theta (`float`, defaults to 10000.0): base of the rotary frequencies.
        dropout: on the embeddings and on the output of every sub-layer (Vaswani 2017, section 5.4).
        attention_dropout (`float`, defaults to 0.0): on the attention weights.

    Example:
        >>> from hf_seqmodels import TransformerDecoderConfig, TransformerDecoderForCausalLM
        >>> config = TransformerDecoderConfig(vocab_size=100, hidden_size=64, positions="rotary")
        >>> model = TransformerDecoderForCausalLM(config)
    """

    model_type = "seq_transformer_decoder"

    num_attention_heads: int = 4
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    norm: str = "layernorm"
    norm_position: str = "pre"
    norm_eps: float | int = 1e-5
    positions: str = "learned"
    max_position_embeddings: int = 1024
    rope_theta: float | int = 10_000.0
    attention_dropout: float | int = 0.0

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None:
            gated = self.hidden_act == "swiglu"
            self.intermediate_size = -(-8 * self.hidden_size // 24) * 8 if gated else 4 * self.hidden_size
        super().__post_init__(**kwargs)

    def check_ranges(self) -> None:
        super().check_ranges()
        heads, width = self.num_attention_heads, self.hidden_size
        self.require("num_attention_heads", f"a divisor of hidden_size={width}", heads >= 1 and width % heads == 0)
        self.require("intermediate_size", "at least 1", (self.intermediate_size or 0) >= 1)
        self.require("hidden_act", "'gelu' or 'swiglu'", self.hidden_act in ("gelu", "swiglu"))
        self.require("norm", "'layernorm' or 'rmsnorm'", self.norm in ("layernorm", "rmsnorm"))
        self.require("norm_position", "'pre' or 'post'", self.norm_position in ("pre", "post"))
        self.require("norm_eps", "above 0 and at most 1", 0 < self.norm_eps <= 1)
        names = ("learned", "sinusoidal", "rotary")
        self.require("positions", "'learned', 'sinusoidal' or 'rotary'", self.positions in names)
        if self.positions == "rotary":
            rule = f"a divisor of hidden_size={width} that leaves heads of even width for rotary positions"
            self.require("num_attention_heads", rule, (width // heads) % 2 == 0)
        self.require("max_position_embeddings", "at least 1", self.max_position_embeddings >= 1)
        self.require("rope_theta", "above 0", 0 < self.rope_theta < float("inf"))
        self.require("attention_dropout", "at least 0 and below 1", 0 <= self.attention_dropout < 1)


__all__ = ["TransformerDecoderConfig"]
