"""The options of every architecture, with the values that test_options.py tries, and values that are refused.

A new option or architecture must be added here: `test_the_tables_are_whole` asks for it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from hf_seqmodels.models import ARCHITECTURES
from hf_seqmodels.models.shared_configuration_patterns import PATTERNS
from hf_seqmodels.models.shared_configuration_stack import DISTRIBUTIONS
from hf_seqmodels.models.shared_configuration_transformer import ACTIVATIONS, POSITIONS
from model_table import FEATURES, FRAME, Case, build_config
from model_table import RECURRENT as RECURRENT_ARCHITECTURES

Options = dict[str, Any]

LANGUAGE_HEADS = ("causal-lm", "masked-lm", "seq2seq-lm")
SERIES = ("time-series-prediction",)
IMAGE = FRAME[1]

SERIES_OPTIONS: dict[str, list] = {
    "num_time_features": [0, 3],
    "prediction_length": [1, 5],
    "distribution_output": list(DISTRIBUTIONS),
    "num_mixtures": [2, 3],  # the weight of a single component is 1, and gets no gradient
    "scaling": [None, "mean", "std"],
    "context_loss": [True, False],
    "num_parallel_samples": [1, 7],
}
CTC_OPTIONS: dict[str, list] = {
    "ctc_loss_reduction": ["mean", "sum"],
    "ctc_zero_infinity": [True, False],
    "inputs_to_logits_ratio": [1, 4],
}
STACK: dict[str, list] = {
    "num_features": [1, FEATURES],  # None: all other rows
    "classifier_dropout": [0.0, 0.3],
    "lm_head_bias": [False, True],
    "crf": [False, True],
    **CTC_OPTIONS,
}
CELL: dict[str, list] = {
    "weight_init": ["orthogonal", "uniform"],
    "bias_init": ["constant", "chrono"],
    "chrono_max_time": [3, 100],
    "bidirectional": [False, True],
    "num_hidden_layers": [1, 3],
    "embedding_size": [7, 12],
    "tie_word_embeddings": [False, True],
    "dropout": [0.0, 0.3],
}
RECURRENT = STACK | SERIES_OPTIONS | CELL
RECURRENT |= {
    "input_dropout": [0.0, 0.3],
    "output_dropout": [0.0, 0.3],
    "variational_dropout": [False, True],
    "embedding_dropout": [0.0, 0.1],
    "weight_drop": [0.0, 0.3],
    "weight_noise": [0.0, 0.075],
    "activation_reg": [0.0, 2],
    "temporal_activation_reg": [0.0, 1.0],
    "layer_norm": [False, True],
    "residual": [False, True],
}
WITH_ENCODER: dict[str, list] = {"freeze_encoder": [False, True]}  # tried together with `encoder`
ANY_CELL: dict[str, list] = {
    "cell": ["rnn", "lstm", "gru"],
    "nonlinearity": ["tanh", "relu"],
    "peephole": [False, True],
    "reset_after": [True, False],
    "forget_bias": [1.0, 3],
    "update_bias": [1.0, 0],
}
TRANSFORMER: dict[str, list] = {
    "positions": list(POSITIONS),
    "norm": ["layernorm", "rmsnorm"],
    "norm_position": ["pre", "post"],
    "final_norm": [None, False, True],
    "hidden_act": list(ACTIVATIONS),
    "attn_implementation": ["eager", "sdpa"],
    "use_bias": [True, False],
    "tie_word_embeddings": [False, True],
    "dropout": [0.0, 0.3],
    "attention_dropout": [0.0, 0.3],
    "intermediate_size": [None, 9],
    "num_attention_heads": [1, 3],
    "num_hidden_layers": [1, 3],
    "head_dim": [None, 5],
    "norm_eps": [1e-5, 1e-3],
    "rope_theta": [10_000.0, 500],
    "relative_attention_num_buckets": [4, 32],
    "relative_attention_max_distance": [20, 128],
}
PATTERN: dict[str, list] = {
    "attention_pattern": list(PATTERNS),
    "attention_window": [2, 4, 256],
    "num_global_tokens": [0, 1, 3],
    "num_hashes": [1, 3],
    "num_buckets": [1, 2, 4],
    "lsh_chunk_length": [4, 64],
    "hash_seed": [0, 7],
    "feed_forward_chunk": [0, 1, 3],
}
TWO_HALVES: dict[str, list] = {
    "num_decoder_layers": [None, 1, 3],
    "share_embeddings": [False, True],
    "lm_head_bias": [False, True],
    "decoder_start_token_id": [0, 3],
}
OPTIONS: dict[str, dict[str, list]] = {
    "seq_rnn": RECURRENT | {"nonlinearity": ["tanh", "relu"], "bias_init": ["constant"]},  # no gate for chrono
    "seq_lstm": RECURRENT | {"peephole": [False, True], "forget_bias": [1.0, 3]},
    "seq_gru": RECURRENT | {"reset_after": [True, False], "update_bias": [1.0, 0]},
    "seq_attention_rnn": RECURRENT
    | ANY_CELL
    | {
        "score": ["additive", "dot", "general"],
        "window": [None, 2, 4],  # over a single step every score has the weight 1, and gets no gradient
    },
    "seq_attention_rnn_seq2seq": CELL
    | ANY_CELL
    | TWO_HALVES
    | {"weight_drop": [0.0, 0.3], "weight_noise": [0.0, 0.075], "layer_norm": [False, True]}
    | {"score": ["additive", "dot", "general", "none"], "input_feeding": [False, True]},
    "seq_conv_lstm": {
        "num_hidden_layers": [1, 3],
        "dropout": [0.0, 0.3],
        "num_channels": [1, 3],
        "kernel_size": [1, 3, 5],
        "peephole": [False, True],
        "image_size": [None, IMAGE, list(FRAME[1:])],
        "forget_bias": [1.0, 3],
        "prediction_length": [1, 4],
        "loss": ["mse", "bce"],
    },
    "seq_transformer": TRANSFORMER | TWO_HALVES | {"num_features": [None, FEATURES]},
    "seq_transformer_encoder": TRANSFORMER
    | PATTERN
    | STACK
    | {
        "type_vocab_size": [0, 1, 3],
        "embedding_norm": [True, False],
        "pooling": ["first", "mean", "attention"],
        "lm_head_transform": [True, False],
    },
    "seq_transformer_decoder": TRANSFORMER | PATTERN | STACK | SERIES_OPTIONS,
}
# What an option needs beside it to be read at all; only for architectures that have these options.
NEEDS: dict[str, Options] = {
    "chrono_max_time": {"bias_init": "chrono"},
    "nonlinearity": {"cell": "rnn"},
    "reset_after": {"cell": "gru"},
    "update_bias": {"cell": "gru"},
    "peephole": {"image_size": IMAGE},
    "rope_theta": {"positions": "rotary"},
    "relative_attention_num_buckets": {"positions": "relative"},
    "relative_attention_max_distance": {"positions": "relative"},
    "attention_window": {"attention_pattern": "sliding_window"},
    "num_global_tokens": {"attention_pattern": "sliding_window", "attention_window": 2},
    "num_hashes": {"attention_pattern": "lsh", "num_buckets": 2, "lsh_chunk_length": 4},
    "num_buckets": {"attention_pattern": "lsh", "lsh_chunk_length": 4},
    "lsh_chunk_length": {"attention_pattern": "lsh", "num_buckets": 2},
    "hash_seed": {"attention_pattern": "lsh", "num_buckets": 2},
    "num_mixtures": {"distribution_output": "gaussian_mixture"},
}
# The heads to try an option with; the others belong to the layers, whatever the head is: a language model.
HEADS_OF: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("bidirectional", "pooling"), (*LANGUAGE_HEADS, "sequence-classification")),
    "num_features": ("ctc", "audio-classification", "seq2seq-lm", *SERIES),
    "classifier_dropout": ("sequence-classification", "token-classification", "question-answering"),
    "lm_head_bias": LANGUAGE_HEADS,
    "lm_head_transform": LANGUAGE_HEADS,
    "crf": ("token-classification",),
    **dict.fromkeys(CTC_OPTIONS, ("ctc",)),
    **dict.fromkeys(SERIES_OPTIONS, SERIES),
}
# The whole product of these is the slow table; the other options are tried one at a time.
SHAPES = ("bidirectional", "num_hidden_layers", "tie_word_embeddings")
LAYOUT = ("positions", "norm", "norm_position")
PRODUCT: dict[str, tuple[str, ...]] = {
    "seq_rnn": ("nonlinearity", "layer_norm", "weight_init", *SHAPES),
    "seq_lstm": ("peephole", "layer_norm", "weight_init", "bias_init", *SHAPES),
    "seq_gru": ("reset_after", "layer_norm", "weight_init", "bias_init", *SHAPES),
    "seq_attention_rnn": ("cell", "score", "window", "peephole", "reset_after", *SHAPES),
    "seq_attention_rnn_seq2seq": (
        "cell", "score", "input_feeding", "peephole", "reset_after", "share_embeddings", *SHAPES,
    ),
    "seq_conv_lstm": ("num_hidden_layers", "num_channels", "kernel_size", "peephole", "image_size", "loss"),
    "seq_transformer": (*LAYOUT, "hidden_act", "share_embeddings", "tie_word_embeddings"),
    "seq_transformer_encoder": (*LAYOUT, "attention_pattern", "pooling", "embedding_norm"),
    "seq_transformer_decoder": (*LAYOUT, "attention_pattern", "hidden_act", "attn_implementation"),
}  # fmt: skip
# Options that are not tried: sizes and token ids, of which every test has some, and …
UNTRIED = {"vocab_size", "hidden_size", "initializer_range", "use_cache"}
UNTRIED |= {"pad_token_id", "bos_token_id", "eos_token_id"}
UNTRIED_OF: dict[str, set[str]] = {
    # … an encoder, which has a test of its own,
    **{name: {"encoder", *WITH_ENCODER} for name in RECURRENT_ARCHITECTURES},
    # … what predicts series, which an encoder does not, and what speaks of tokens where there are frames,
    "seq_transformer_encoder": {"max_position_embeddings", *SERIES_OPTIONS},
    "seq_transformer_decoder": {"max_position_embeddings"},
    "seq_conv_lstm": {"tie_word_embeddings"},
    # … and what may only be True.
    "seq_transformer": {"max_position_embeddings", "is_encoder_decoder"},
    "seq_attention_rnn_seq2seq": {"is_encoder_decoder"},
}


def complete(architecture: str, options: Options) -> Options:
    """The options and what they need beside them."""
    own, beside = OPTIONS[architecture], {}
    for name in options:
        beside |= {key: value for key, value in NEEDS.get(name, {}).items() if value in own.get(key, ())}
    return beside | options


def allowed(architecture: str, options: Options) -> bool:
    """Whether a combination is one: not refused, and no option set that no other lets anybody read."""
    cell = options.get("cell")
    if (cell == "rnn" or cell == "gru") and options.get("peephole"):
        return False
    if (cell == "rnn" or cell == "lstm") and not options.get("reset_after", True):
        return False
    if architecture == "seq_attention_rnn_seq2seq":
        score = options["score"]
        return not (score == "dot" and options["bidirectional"]) and not (score == "none" and options["input_feeding"])
    if architecture == "seq_conv_lstm":
        return not (options["peephole"] and options["image_size"] is None)
    return not (options.get("positions") == "relative" and options.get("attention_pattern", "full") != "full")


def single_options() -> Iterator[tuple[str, Options, str]]:
    """Each value of each option, the others as they come: architecture, options, and a name. What every plain model
    has is left out, for those are tried with every head.
    """
    for architecture, table in OPTIONS.items():
        plain = build_config(Case(architecture, "plain"))
        for name, values in table.items():
            for value in values:
                options = complete(architecture, {name: value})
                if any(getattr(plain, key, None) != value for key, value in options.items()):
                    yield architecture, options, f"{name}={value}"


def combined_options() -> Iterator[tuple[str, Options, str]]:
    """The products, in the same form."""
    for architecture, names in PRODUCT.items():
        for values in itertools.product(*(OPTIONS[architecture][name] for name in names)):
            options = dict(zip(names, values, strict=True))
            if allowed(architecture, options):
                yield architecture, options, "-".join(map(str, values))


def heads_of(architecture: str, options: Options) -> list[str]:
    """The heads to try options with."""
    wanted = set(LANGUAGE_HEADS)
    for name in options:
        wanted = set(HEADS_OF.get(name, wanted))
    if architecture in RECURRENT_ARCHITECTURES:
        wanted -= {"causal-lm", *SERIES} if options.get("bidirectional") else {"masked-lm"}
    return [head for head in ARCHITECTURES[architecture].models if head in wanted] or list(SERIES)


NAN, INFINITE = float("nan"), float("inf")
WRONG: list[tuple[str, Any]] = [
    ("hidden_size", 0), ("hidden_size", -1), ("vocab_size", 0), ("num_hidden_layers", 0), ("num_hidden_layers", 10**9),
    ("dropout", 1.5), ("dropout", 1.0), ("dropout", -0.1), ("dropout", NAN), ("initializer_range", 0),
    ("initializer_range", NAN), ("pad_token_id", -1), ("pad_token_id", 10**9),
]  # fmt: skip
WRONG_STACK: list[tuple[str, Any]] = [
    ("num_features", 0), ("classifier_dropout", 2), ("ctc_loss_reduction", "none"), ("inputs_to_logits_ratio", 0),
    ("num_time_features", -1), ("num_time_features", 1), ("prediction_length", 0), ("num_mixtures", 0),
    ("distribution_output", "poisson"), ("scaling", "max"), ("num_parallel_samples", 0),
]  # fmt: skip
WRONG_CELL: list[tuple[str, Any]] = [
    ("embedding_size", 0), ("weight_init", "zeros"), ("bias_init", "random"), ("chrono_max_time", 2),
    ("weight_drop", 1.5), ("weight_drop", NAN), ("weight_noise", -0.1), ("weight_noise", INFINITE),
]  # fmt: skip
WRONG_RECURRENT: list[tuple[str, Any]] = [
    *WRONG_STACK, *WRONG_CELL, ("input_dropout", 1.0), ("output_dropout", -0.1), ("embedding_dropout", 1),
    ("activation_reg", -1), ("activation_reg", NAN), ("temporal_activation_reg", INFINITE), ("freeze_encoder", True),
]  # fmt: skip
WRONG_ANY_CELL: list[tuple[str, Any]] = [
    ("cell", "conv"), ("score", "cosine"), ("nonlinearity", "gelu"), ("forget_bias", NAN), ("update_bias", INFINITE),
]  # fmt: skip
WRONG_TWO_HALVES: list[tuple[str, Any]] = [
    ("num_decoder_layers", 0), ("num_decoder_layers", 10**9), ("is_encoder_decoder", False),
    ("decoder_start_token_id", -1), ("decoder_start_token_id", 10**9),
]  # fmt: skip
WRONG_TRANSFORMER: list[tuple[str, Any]] = [
    ("num_attention_heads", 5), ("num_attention_heads", 0), ("head_dim", 0), ("norm", "batchnorm"),
    ("norm_position", "middle"), ("positions", "alibi"), ("hidden_act", "tanh"), ("max_position_embeddings", 0),
    ("rope_theta", 0), ("rope_theta", INFINITE), ("norm_eps", 0), ("attention_dropout", 1.0), ("intermediate_size", 0),
    ("relative_attention_num_buckets", 2), ("relative_attention_num_buckets", 5),
    ("relative_attention_max_distance", 16), ("intermediate_size", 10**12), ("max_position_embeddings", 10**12),
    ("relative_attention_num_buckets", 10**12), ("relative_attention_max_distance", 10**12),
]  # fmt: skip
WRONG_PATTERN: list[tuple[str, Any]] = [
    *WRONG_STACK, ("attention_pattern", "random"), ("attention_window", 0), ("num_global_tokens", -1),
    ("num_hashes", 0), ("num_hashes", 10**9), ("num_buckets", 0), ("num_buckets", 3), ("lsh_chunk_length", 0),
    ("hash_seed", -1), ("hash_seed", 2**32), ("feed_forward_chunk", -1),
    ("num_hashes", 10**12), ("num_buckets", 10**12), ("lsh_chunk_length", 10**12), ("attention_window", 10**12),
    ("num_global_tokens", 10**12), ("feed_forward_chunk", 10**12),
]  # fmt: skip
WRONG_OWN: dict[str, list[tuple[str, Any]]] = {
    "seq_rnn": [*WRONG_RECURRENT, ("nonlinearity", "gelu"), ("bias_init", "chrono")],
    "seq_lstm": [*WRONG_RECURRENT, ("forget_bias", NAN), ("forget_bias", INFINITE)],
    "seq_gru": [*WRONG_RECURRENT, ("update_bias", NAN)],
    "seq_attention_rnn": [*WRONG_RECURRENT, *WRONG_ANY_CELL, ("window", 0)],
    "seq_attention_rnn_seq2seq": [*WRONG_CELL, *WRONG_ANY_CELL, *WRONG_TWO_HALVES],
    "seq_conv_lstm": [
        ("num_channels", 0), ("kernel_size", 0), ("kernel_size", 2), ("image_size", 0), ("image_size", [6]),
        ("forget_bias", NAN), ("prediction_length", 0), ("loss", "mae"),
    ],
    "seq_transformer": [*WRONG_TRANSFORMER, *WRONG_TWO_HALVES, ("num_features", 0)],
    "seq_transformer_encoder": [
        *WRONG_TRANSFORMER, *WRONG_PATTERN, ("type_vocab_size", -1), ("pooling", "max"), ("attention_window", 3),
        ("type_vocab_size", 10**12),
    ],
    "seq_transformer_decoder": [*WRONG_TRANSFORMER, *WRONG_PATTERN],
}  # fmt: skip


def wrong_values() -> Iterator[tuple[str, str, Any]]:
    """Architecture, option, and a value that it refuses."""
    for architecture, own in WRONG_OWN.items():
        for option, value in WRONG + own:
            yield architecture, option, value
