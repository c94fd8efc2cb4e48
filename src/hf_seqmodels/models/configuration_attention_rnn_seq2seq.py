"""Configuration of the recurrent encoder–decoder with attention."""

import copy

from .shared_configuration import MOST_LAYERS
from .shared_configuration_cell import AnyCellOptions
from .shared_versions import strict


@strict
class AttentionRNNSeq2SeqConfig(AnyCellOptions):
    """Configuration of an [`AttentionRNNSeq2SeqModel`]: a recurrent encoder, a bridge, and a recurrent decoder that
    attends over the encoder's hidden states.

    Options shared by all architectures are described in `shared_configuration.py`, those of all recurrent layers
    (`weight_init`, `weight_drop`, `layer_norm`, …), which act on both sides, in `shared_configuration_cell.py`.

    Args:
        score (`str`, defaults to `"additive"`): how the decoder attends: `"additive"` (Bahdanau 2014), `"dot"` or
            `"general"` (Luong 2015), or `"none"`: it knows the source by its initial state only (Sutskever 2014).
        input_feeding (`bool`, defaults to False): False: attention comes after the recurrence (Luong 2015,
            section 3.1), so that training runs over all target steps at once; additive scores hold B·T·S·D numbers
            there. True: attention enters the recurrence, and training goes step by step: with `"dot"` and `"general"`
            as Luong 2015, section 3.3; with `"additive"` as Bahdanau 2014.
        cell (`str`, defaults to `"lstm"`): the cell of both sides, `"rnn"`, `"lstm"` or `"gru"`.
        hidden_size: width D of the decoder, and of each direction of the encoder.
        num_hidden_layers: layers of the encoder.
        num_decoder_layers (`int`, *optional*, defaults to `num_hidden_layers`): layers of the decoder.
        bidirectional (`bool`, defaults to False): the encoder also reads the source backwards.
        embedding_size (`int`, *optional*, defaults to `hidden_size`): width of the token embeddings.
        share_embeddings (`bool`, defaults to False): source and target are embedded with one matrix.
        tie_word_embeddings: the output layer shares the matrix that the target is embedded with.
        lm_head_bias (`bool`, defaults to False): the output layer adds a bias.
        decoder_start_token_id (`int`, defaults to 0): the token that the decoder reads first.
        is_encoder_decoder (`bool`, defaults to True): what transformers knows an encoder–decoder by; nothing else is
            allowed.
        nonlinearity, peephole, reset_after, forget_bias, update_bias: options of the cells, as in [`RNNConfig`],
            [`LSTMConfig`] and [`GRUConfig`].

    The system of Bahdanau 2014 is `score="additive", input_feeding=True, cell="gru", reset_after=False,
    bidirectional=True`; Luong 2015's is `score="general", input_feeding=True, num_hidden_layers=4`; Sutskever 2014's
    is `score="none", num_hidden_layers=4` with the source reversed by whoever prepares the data.

    Example:
        >>> from hf_seqmodels import AttentionRNNSeq2SeqConfig, AttentionRNNSeq2SeqForSeq2SeqLM
        >>> config = AttentionRNNSeq2SeqConfig(vocab_size=100, hidden_size=64, score="general", input_feeding=True)
        >>> model = AttentionRNNSeq2SeqForSeq2SeqLM(config)
    """

    model_type = "seq_attention_rnn_seq2seq"

    score: str = "additive"
    input_feeding: bool = False
    num_decoder_layers: int | None = None
    share_embeddings: bool = False
    lm_head_bias: bool = False
    is_encoder_decoder: bool = True
    decoder_start_token_id: int = 0

    def __post_init__(self, **kwargs):
        if self.embedding_size is None:
            self.embedding_size = self.hidden_size
        if self.num_decoder_layers is None:
            self.num_decoder_layers = self.num_hidden_layers
        super().__post_init__(**kwargs)

    def check_ranges(self) -> None:
        super().check_ranges()
        rule = f"between 1 and {MOST_LAYERS}"
        self.require("num_decoder_layers", rule, 1 <= (self.num_decoder_layers or 0) <= MOST_LAYERS)
        scores = ("additive", "dot", "general", "none")
        self.require("score", "'additive', 'dot', 'general' or 'none'", self.score in scores)
        rule = (
            "'additive' or 'general' with bidirectional=True, whose hidden states are twice as wide as the decoder's"
        )
        self.require("score", rule, self.score != "dot" or not self.bidirectional)
        rule = "False with score='none', which has no context to feed"
        self.require("input_feeding", rule, not (self.input_feeding and self.score == "none"))
        self.require("is_encoder_decoder", "True", self.is_encoder_decoder)
        rule = f"a token id, 0 to vocab_size − 1 = {self.vocab_size - 1}"
        self.require("decoder_start_token_id", rule, 0 <= self.decoder_start_token_id < self.vocab_size)

    @property
    def source_size(self) -> int:
        """Width C of the encoder's hidden states."""
        return self.hidden_size * (2 if self.bidirectional else 1)

    @property
    def layer_types(self) -> list[str]:
        """Which cache layer transformers builds for each layer of the decoder (see `shared_cache.py`)."""
        return ["seq_recurrent"] * (self.num_decoder_layers or self.num_hidden_layers)

    def validate_layer_type(self):
        """The upstream check knows only transformers' own layer types; ours is the property above."""

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None):
        """This configuration; for the decoder, whose cache transformers builds from it, with the decoder's depth."""
        if not decoder or encoder or self.num_decoder_layers == self.num_hidden_layers:
            return self
        config = copy.copy(self)
        config.num_hidden_layers = self.num_decoder_layers or self.num_hidden_layers
        return config


__all__ = ["AttentionRNNSeq2SeqConfig"]
