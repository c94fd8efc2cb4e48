"""Options that all Transformers share: decoder, encoder, and encoder–decoder."""

from .shared_configuration import MOST_TOKENS, MOST_WIDTH, SequenceConfig
from .shared_versions import strict

POSITIONS = ("learned", "sinusoidal", "rotary", "relative", "none")
ACTIVATIONS = ("gelu", "gelu_new", "relu", "swiglu", "geglu")
GATED = ("swiglu", "geglu")


@strict
class TransformerOptions(SequenceConfig):
    """Options of all Transformers (Vaswani 2017).

    Args:
        num_attention_heads (`int`, defaults to 4): heads H.
        head_dim (`int`, *optional*): width K of a head; defaults to D/H, and then H divides `hidden_size`.
        intermediate_size (`int`, *optional*): width of the feed-forward layer; defaults to 4·D, with gated activations
            to 8/3·D rounded up to a multiple of 8 (the same number of parameters; Shazeer 2020).
        hidden_act (`str`): `"gelu"` (Hendrycks & Gimpel 2016), `"gelu_new"` (its tanh approximation, of GPT-2),
            `"relu"` (Vaswani 2017, eq. 2), or gated (Shazeer 2020): `"swiglu"`, `"geglu"` (with the approximation, as
            in T5 v1.1).
        use_bias (`bool`, defaults to True): biases in the linear layers of attention and feed-forward (T5 has none).
        norm (`str`): `"layernorm"` (Ba 2016) or `"rmsnorm"` (Zhang & Sennrich 2019).
        norm_position (`str`): `"post"` is Vaswani 2017; `"pre"` as in GPT-2 (Xiong 2020).
        norm_eps (`float`, defaults to 1e-5): added to the variance.
        final_norm (`bool`, *optional*): a norm after the last layer; by default there is one with `"pre"` only.
            torch.nn.Transformer has one with both.
        positions (`str`): `"learned"` (a table), `"sinusoidal"` (Vaswani 2017, section 3.5; the embeddings are
            multiplied by √D, section 3.4), `"rotary"` (Su 2021), `"relative"` (T5: Raffel 2020, section 2.1: a learned
            number for each head and distance, the same in all layers, is added to the scores; none in cross-attention)
            or `"none"`.
        max_position_embeddings (`int`, defaults to 1024): rows of the learned table; a longer sequence is refused.
            The others have no limit.
        rope_theta (`float`, defaults to 10000.0): base of the rotary frequencies.
        relative_attention_num_buckets (`int`, defaults to 32): numbers for each head with relative positions: half of
            them (of each side, in an encoder) for single distances, the others for ranges that grow with the distance.
        relative_attention_max_distance (`int`, defaults to 128): all distances beyond share one bucket.
        dropout: on the embeddings and on the output of every sub-layer (Vaswani 2017, section 5.4).
        attention_dropout (`float`, defaults to 0.0): on the attention weights.
    """

    num_attention_heads: int = 4
    head_dim: int | None = None
    intermediate_size: int | None = None
    hidden_act: str = "gelu"
    use_bias: bool = True
    norm: str = "layernorm"
    norm_position: str = "pre"
    norm_eps: float | int = 1e-5
    final_norm: bool | None = None
    positions: str = "learned"
    max_position_embeddings: int = 1024
    rope_theta: float | int = 10_000.0
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    attention_dropout: float | int = 0.0

    def __post_init__(self, **kwargs):
        if self.intermediate_size is None:
            gated = self.hidden_act in GATED
            self.intermediate_size = -(-8 * self.hidden_size // 24) * 8 if gated else 4 * self.hidden_size
        super().__post_init__(**kwargs)

    def check_ranges(self) -> None:
        super().check_ranges()
        heads, width = self.num_attention_heads, self.hidden_size
        rule = f"a divisor of hidden_size={width}, or at least 1 with a head_dim"
        divides = heads >= 1 and (self.head_dim is not None or width % heads == 0)
        self.require("num_attention_heads", rule, divides and heads <= MOST_WIDTH)
        rule = f"None or between 1 and {MOST_WIDTH}"
        self.require("head_dim", rule, self.head_dim is None or 1 <= self.head_dim <= MOST_WIDTH)
        rule = f"between 1 and {MOST_WIDTH}"
        self.require("intermediate_size", rule, 1 <= (self.intermediate_size or 0) <= MOST_WIDTH)
        for name, known in (
            ("hidden_act", ACTIVATIONS),
            ("norm", ("layernorm", "rmsnorm")),
            ("norm_position", ("pre", "post")),
            ("positions", POSITIONS),
        ):
            self.require(name, f"one of {', '.join(map(repr, known))}", getattr(self, name) in known)
        self.require("norm_eps", "above 0 and at most 1", 0 < self.norm_eps <= 1)
        if self.positions == "rotary":
            name = "head_dim" if self.head_dim is not None else "num_attention_heads"
            self.require(name, "one that leaves heads of even width for rotary positions", self.head_width % 2 == 0)
        rule = f"between 1 and {MOST_TOKENS}"
        self.require("max_position_embeddings", rule, 1 <= self.max_position_embeddings <= MOST_TOKENS)
        self.require("rope_theta", "above 0", 0 < self.rope_theta < float("inf"))
        buckets = self.relative_attention_num_buckets
        rule = f"an even number between 4 and {MOST_WIDTH}"
        self.require("relative_attention_num_buckets", rule, 4 <= buckets <= MOST_WIDTH and buckets % 2 == 0)
        rule = f"above half of relative_attention_num_buckets={buckets}, which single distances take, "
        rule += f"and at most {MOST_TOKENS}"
        fits = buckets // 2 < self.relative_attention_max_distance <= MOST_TOKENS
        self.require("relative_attention_max_distance", rule, fits)
        self.require_probability("attention_dropout")

    @property
    def head_width(self) -> int:
        """K: `head_dim`, or D/H where it is not set."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def has_final_norm(self) -> bool:
        """Whether a norm follows the last layer."""
        return self.norm_position == "pre" if self.final_norm is None else self.final_norm
