"""Configuration of the Transformer decoder."""

from .shared_configuration_patterns import AttentionPatternOptions
from .shared_configuration_stack import StackConfig
from .shared_versions import strict


@strict
class TransformerDecoderConfig(AttentionPatternOptions, StackConfig):
    """Configuration of a [`TransformerDecoderModel`]: the GPT layout of Vaswani 2017's decoder.

    Options shared by all architectures, and by all Transformers, are described in `_configuration*.py`. The defaults
    are GPT-2's: learned positions, norms before the sub-layers, GELU.

    Example:
        >>> from hf_seqmodels import TransformerDecoderConfig, TransformerDecoderForCausalLM
        >>> config = TransformerDecoderConfig(vocab_size=100, hidden_size=64, positions="rotary")
        >>> model = TransformerDecoderForCausalLM(config)
    """

    model_type = "seq_transformer_decoder"


__all__ = ["TransformerDecoderConfig"]
