"""Configuration of the Transformer encoder."""

from .shared_configuration import MOST_WIDTH
from .shared_configuration_patterns import AttentionPatternOptions
from .shared_configuration_stack import StackConfig
from .shared_versions import strict


@strict
class TransformerEncoderConfig(AttentionPatternOptions, StackConfig):
    """Configuration of a [`TransformerEncoderModel`]: the BERT layout (Devlin 2019) of Vaswani 2017's encoder.

    Options shared by all architectures, and by all Transformers, are described in `_configuration*.py`. The defaults
    are BERT's: learned positions, norms behind the sub-layers and on the embeddings, GELU, two token types.

    Args:
        type_vocab_size (`int`, *optional*): kinds of tokens that `token_type_ids` tells apart (BERT: first and second
            text); defaults to 2, with `num_features` to 0. Without `token_type_ids` all are of the first kind.
        embedding_norm (`bool`, defaults to True): a norm on the sum of embeddings.
        pooling (`str`, defaults to `"first"`): what sequence classification reads: `"first"`, tanh of a linear layer
            over the first token's hidden state (BERT's pooler); `"mean"` of the tokens' hidden states; `"attention"`
            (Zhou 2016; `output_attentions=True` returns its weights as `pooling_attentions`).
        lm_head_transform (`bool`, defaults to True): the masked language model has a linear layer, an activation and a
            norm before its output layer, as BERT's has.

    Example:
        >>> from hf_seqmodels import TransformerEncoderConfig, TransformerEncoderForMaskedLM
        >>> model = TransformerEncoderForMaskedLM(TransformerEncoderConfig(vocab_size=100, hidden_size=64))
    """

    model_type = "seq_transformer_encoder"

    norm_position: str = "post"
    type_vocab_size: int | None = None
    embedding_norm: bool = True
    pooling: str = "first"
    lm_head_transform: bool = True

    def __post_init__(self, **kwargs):
        self.use_cache = False  # a token sees those after it, so there is nothing to continue from
        if self.type_vocab_size is None:
            self.type_vocab_size = 2 if self.num_features is None else 0
        super().__post_init__(**kwargs)

    def check_ranges(self) -> None:
        super().check_ranges()
        types = self.type_vocab_size or 0
        rule = f"between 0 and {MOST_WIDTH}, and 0 with num_features"
        fits = 0 <= types <= MOST_WIDTH and (types == 0 or self.num_features is None)
        self.require("type_vocab_size", rule, fits)
        even = self.attention_pattern != "sliding_window" or self.attention_window % 2 == 0
        self.require("attention_window", "even in an encoder: half of it on each side", even)
        known = ("first", "mean", "attention")
        self.require("pooling", f"one of {', '.join(map(repr, known))}", self.pooling in known)


__all__ = ["TransformerEncoderConfig"]
