"""The architectures: one table entry each, two files each, in one flat folder that is shipped with the weights."""

from dataclasses import dataclass, field
from typing import Any

import transformers
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from . import (
    configuration_attention_rnn,
    configuration_attention_rnn_seq2seq,
    configuration_conv_lstm,
    configuration_gru,
    configuration_lstm,
    configuration_rnn,
    configuration_transformer,
    configuration_transformer_decoder,
    configuration_transformer_encoder,
    modeling_attention_rnn,
    modeling_attention_rnn_seq2seq,
    modeling_conv_lstm,
    modeling_gru,
    modeling_lstm,
    modeling_rnn,
    modeling_transformer,
    modeling_transformer_decoder,
    modeling_transformer_encoder,
)

HEADS = {
    "backbone": "AutoModel",
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "question-answering": "AutoModelForQuestionAnswering",
    "ctc": "AutoModelForCTC",
    "audio-classification": "AutoModelForAudioClassification",
    "time-series-prediction": "AutoModelForTimeSeriesPrediction",
}


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    Args:
        config: its configuration class; `config.model_type` is its name.
        models: head (a key of `HEADS`) → model class.
        variants: name → configuration options; each is a system of its own, with a row in tests and results. The
            empty options are the plain architecture.
        without: head → why the architecture has none. Every head of `HEADS` is in `models` or here.
    """

    config: type[PreTrainedConfig]
    models: dict[str, type[PreTrainedModel]]
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)


def _architecture(
    config_module: Any, modeling_module: Any, without: dict[str, str], **variants: dict[str, Any]
) -> Architecture:
    classes = [getattr(modeling_module, name) for name in modeling_module.__all__]
    models = {head: cls for head, auto in HEADS.items() for cls in classes if cls.auto_model == auto}
    config = getattr(config_module, config_module.__all__[0])
    return Architecture(config, models, {"plain": {}} | variants, without)


_ONE_STACK = {"seq2seq-lm": "one stack of layers; encoder–decoders are seq_attention_rnn_seq2seq and seq_transformer"}
_LEFT_TO_RIGHT = _ONE_STACK | {"masked-lm": "sees only the left of a masked token; take seq_transformer_encoder"}


_SEES_ALL = _ONE_STACK | dict.fromkeys(
    ("causal-lm", "time-series-prediction"), "sees what it should predict; take seq_transformer_decoder"
)
_ENCODER_DECODER = {
    head: "writes a text from a text; an architecture with one stack labels it"
    for head in HEADS
    if head not in ("backbone", "seq2seq-lm")
}
_FRAMES = {
    head: "frames in, frames out; no tokens to label or predict"
    for head in HEADS
    if head not in ("backbone", "time-series-prediction")
}

_LAYERS: dict[str, dict[str, Any]] = {
    "stacked": {"num_hidden_layers": 3, "dropout": 0.1},
    "bidirectional": {"bidirectional": True},
}

_T5: dict[str, Any] = {
    "positions": "relative",
    "norm": "rmsnorm",
    "norm_position": "pre",
    "use_bias": False,
    "share_embeddings": True,
}
# Chunks that no toy sequence overflows, so that a cached step sees what the whole sequence saw.
_LSH: dict[str, Any] = {"attention_pattern": "lsh", "num_buckets": 2, "num_hashes": 2}

ARCHITECTURES: dict[str, Architecture] = {
    "seq_rnn": _architecture(configuration_rnn, modeling_rnn, _ONE_STACK, relu={"nonlinearity": "relu"}, **_LAYERS),
    "seq_lstm": _architecture(configuration_lstm, modeling_lstm, _ONE_STACK, peephole={"peephole": True}, **_LAYERS),
    "seq_gru": _architecture(
        configuration_gru, modeling_gru, _ONE_STACK, reset_before={"reset_after": False}, **_LAYERS
    ),
    "seq_attention_rnn": _architecture(
        configuration_attention_rnn,
        modeling_attention_rnn,
        _ONE_STACK,
        additive={"score": "additive"},
        dot={"score": "dot", "cell": "gru"},
        windowed={"window": 3, "cell": "rnn"},
        **_LAYERS,
    ),
    "seq_attention_rnn_seq2seq": _architecture(
        configuration_attention_rnn_seq2seq,
        modeling_attention_rnn_seq2seq,
        _ENCODER_DECODER,
        dot={"score": "dot", "cell": "gru"},
        general={"score": "general", "cell": "rnn"},
        luong={"score": "general", "input_feeding": True},
        bahdanau={
            "score": "additive",
            "input_feeding": True,
            "cell": "gru",
            "reset_after": False,
            "bidirectional": True,
        },
        no_attention={"score": "none"},
        **_LAYERS,
    ),
    "seq_conv_lstm": _architecture(
        configuration_conv_lstm,
        modeling_conv_lstm,
        _FRAMES,
        peephole={"peephole": True, "image_size": 6},
        stacked={"num_hidden_layers": 3, "dropout": 0.1},
    ),
    "seq_transformer": _architecture(
        configuration_transformer,
        modeling_transformer,
        _ENCODER_DECODER,
        pre_learned={"norm_position": "pre", "positions": "learned", "hidden_act": "gelu"},
        rotary={"positions": "rotary", "norm_position": "pre", "num_decoder_layers": 1},
        t5=_T5 | {"tie_word_embeddings": True},
        t5_v1_1=_T5 | {"hidden_act": "geglu"},
        shared={"share_embeddings": True, "tie_word_embeddings": True},
        stacked={"num_hidden_layers": 3, "dropout": 0.1},
    ),
    "seq_transformer_encoder": _architecture(
        configuration_transformer_encoder,
        modeling_transformer_encoder,
        _SEES_ALL,
        rotary_pre={"positions": "rotary", "norm_position": "pre", "pooling": "mean"},
        attention_pooling={"pooling": "attention", "positions": "sinusoidal"},
        sliding_window={"attention_pattern": "sliding_window", "attention_window": 4, "num_global_tokens": 1},
        lsh=_LSH,
        stacked={"num_hidden_layers": 3, "dropout": 0.1},
    ),
    "seq_transformer_decoder": _architecture(
        configuration_transformer_decoder,
        modeling_transformer_decoder,
        _LEFT_TO_RIGHT,
        rotary={"positions": "rotary"},
        sinusoidal_post={"positions": "sinusoidal", "norm_position": "post"},
        llama={"positions": "rotary", "norm": "rmsnorm", "hidden_act": "swiglu"},
        sliding_window={"attention_pattern": "sliding_window", "attention_window": 3, "num_global_tokens": 1},
        lsh=_LSH,
        stacked={"num_hidden_layers": 3, "dropout": 0.1},
    ),
}


def register_all() -> None:
    """Make every architecture known to transformers' Auto classes (importing hf_seqmodels does this)."""
    for model_type, architecture in ARCHITECTURES.items():
        AutoConfig.register(model_type, architecture.config, exist_ok=True)
        for head, model in architecture.models.items():
            getattr(transformers, HEADS[head]).register(architecture.config, model, exist_ok=True)
