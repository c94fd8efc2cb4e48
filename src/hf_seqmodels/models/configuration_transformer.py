"""Configuration of the encoder–decoder Transformer."""

import copy

from .shared_configuration import MOST_LAYERS, MOST_WIDTH
from .shared_configuration_transformer import TransformerOptions
from .shared_versions import strict


@strict
class TransformerConfig(TransformerOptions):
    """Configuration of a [`TransformerModel`]: the encoder–decoder of Vaswani 2017.

    Options shared by all architectures, and by all Transformers, are described in `_configuration*.py`; they hold for
    both halves. The defaults are Vaswani's: sinusoidal positions, norms behind the sub-layers, ReLU.

    Args:
        num_hidden_layers: layers of the encoder.
        num_decoder_layers (`int`, *optional*, defaults to `num_hidden_layers`): layers of the decoder.
        num_features (`int`, *optional*): the encoder reads `input_features` (B, S, F) of this width F, through a
            linear layer, instead of tokens (speech to text).
        share_embeddings (`bool`, defaults to False): source and target are embedded with one matrix.
        tie_word_embeddings: the output layer shares the matrix that the target is embedded with. With both, there is
            one matrix in the whole model (Vaswani 2017, section 3.4).
        lm_head_bias (`bool`, defaults to False): the output layer adds a bias.
        decoder_start_token_id (`int`, defaults to 0): the token that the decoder reads first.
        is_encoder_decoder (`bool`): True, as transformers wants to know.

    The text-to-text layout of T5 (Raffel 2020) is `positions="relative", norm="rmsnorm", norm_position="pre",
    use_bias=False, share_embeddings=True, tie_word_embeddings=True`; T5 v1.1 adds `hidden_act="geglu"` and does not
    tie. Two things are ours: scores are divided by √K, which T5 leaves to its initial weights, and with tied
    embeddings the logits are not divided by √D. Imported weights account for both.

    Example:
        >>> from hf_seqmodels import TransformerConfig, TransformerForSeq2SeqLM
        >>> model = TransformerForSeq2SeqLM(TransformerConfig(vocab_size=100, hidden_size=64))
    """

    model_type = "seq_transformer"

    positions: str = "sinusoidal"
    norm_position: str = "post"
    hidden_act: str = "relu"
    num_decoder_layers: int | None = None
    num_features: int | None = None
    share_embeddings: bool = False
    lm_head_bias: bool = False
    is_encoder_decoder: bool = True
    decoder_start_token_id: int = 0

    def __post_init__(self, **kwargs):
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_hidden_layers
        super().__post_init__(**kwargs)

    def check_ranges(self) -> None:
        super().check_ranges()
        rule = f"between 1 and {MOST_LAYERS}"
        self.require("num_decoder_layers", rule, 1 <= (self.num_decoder_layers or 0) <= MOST_LAYERS)
        rule = f"None (tokens) or between 1 and {MOST_WIDTH}"
        self.require("num_features", rule, self.num_features is None or 1 <= self.num_features <= MOST_WIDTH)
        rule = "False with num_features, since the source has no tokens then"
        self.require("share_embeddings", rule, not self.share_embeddings or self.num_features is None)
        self.require("is_encoder_decoder", "True", self.is_encoder_decoder)
        rule = f"a token id, 0 to vocab_size − 1 = {self.vocab_size - 1}"
        self.require("decoder_start_token_id", rule, 0 <= self.decoder_start_token_id < self.vocab_size)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None):
        """This configuration; for the decoder as a model of its own, which transformers builds the cache from."""
        if not decoder or encoder:
            return self
        if self.num_decoder_layers == self.num_hidden_layers and self.num_features is None:
            return self
        config = copy.copy(self)
        config.num_hidden_layers = self.num_decoder_layers or self.num_hidden_layers
        config.num_features = None
        return config


__all__ = ["TransformerConfig"]
