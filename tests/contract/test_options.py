"""Every option value constructs, runs and trains every parameter; wrong values are refused in one line."""

import inspect
import itertools

import pytest
import torch

from hf_seqmodels.models import ARCHITECTURES
from hf_seqmodels.models._configuration_patterns import AttentionPatternOptions
from hf_seqmodels.models._configuration_stack import StackConfig
from model_table import (
    CASES,
    Case,
    build,
    each_case_and_plain_head,
    make_inputs,
    make_labels,
    make_mask,
    make_masks,
    output_of,
)
from model_table import (
    RECURRENT as RECURRENT_ARCHITECTURES,
)

TINY_BERT = {"model_type": "bert", "vocab_size": 23, "hidden_size": 12, "num_hidden_layers": 1}
TINY_BERT |= {"num_attention_heads": 2, "intermediate_size": 14, "max_position_embeddings": 20}

RECURRENT = {
    "weight_init": ["orthogonal", "uniform"],
    "bias_init": ["constant", "chrono"],
    "bidirectional": [False, True],
    "num_hidden_layers": [1, 3],
    "embedding_size": [7, 12],
    "tie_word_embeddings": [False, True],
    "dropout": [0.0, 0.3],
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
WITH_ENCODER = {"freeze_encoder": [False, True]}  # tried together with `encoder`
NO_GATE_FOR_CHRONO = RECURRENT | {"bias_init": ["constant"]}
TRANSFORMER = {
    "positions": ["learned", "sinusoidal", "rotary"],
    "norm": ["layernorm", "rmsnorm"],
    "norm_position": ["pre", "post"],
    "hidden_act": ["gelu", "swiglu"],
    "attn_implementation": ["eager", "sdpa"],
    "tie_word_embeddings": [False, True],
    "dropout": [0.0, 0.3],
    "attention_dropout": [0.0, 0.3],
    "intermediate_size": [None, 9],
    "num_attention_heads": [1, 3],
    "norm_eps": [1e-5, 1e-3],
    "rope_theta": [10_000.0, 500],
}
OPTIONS = {
    "seq_rnn": NO_GATE_FOR_CHRONO | {"nonlinearity": ["tanh", "relu"]},
    "seq_lstm": RECURRENT | {"peephole": [False, True], "forget_bias": [1.0, 3]},
    "seq_gru": RECURRENT | {"reset_after": [True, False], "update_bias": [1.0, 0]},
    "seq_attention_rnn": NO_GATE_FOR_CHRONO
    | {
        "cell": ["rnn", "lstm", "gru"],
        "score": ["additive", "dot", "general"],
        "window": [None, 2, 4],  # over a single step every score has the weight 1, and gets no gradient
        "nonlinearity": ["tanh", "relu"],
        "peephole": [False, True],
        "reset_after": [True, False],
    },
    "seq_transformer_decoder": TRANSFORMER,
}
# Architectures whose options are tried in tests of their own.
ELSEWHERE = {"seq_conv_lstm", "seq_attention_rnn_seq2seq", "seq_transformer", "seq_transformer_encoder"}
# The whole product of these is the slow table; the other options are tried one at a time.
SHAPES = ("bidirectional", "num_hidden_layers", "tie_word_embeddings")
PRODUCT = {
    "seq_rnn": ("nonlinearity", "layer_norm", "weight_init", *SHAPES),
    "seq_lstm": ("peephole", "layer_norm", "weight_init", "bias_init", *SHAPES),
    "seq_gru": ("reset_after", "layer_norm", "weight_init", "bias_init", *SHAPES),
    "seq_attention_rnn": ("cell", "score", "window", "peephole", "reset_after", *SHAPES),
    "seq_transformer_decoder": (
        "positions", "norm", "norm_position", "hidden_act", "attn_implementation", "tie_word_embeddings",
    ),
}  # fmt: skip


def single_options():
    """Each value of each option, the others as they come."""
    for architecture, options in OPTIONS.items():
        for name, values in options.items():
            for value in values:
                yield pytest.param(architecture, {name: value}, id=f"{architecture}-{name}={value}")


def combined_options():
    for architecture, names in PRODUCT.items():
        for values in itertools.product(*(OPTIONS[architecture][name] for name in names)):
            yield pytest.param(
                architecture,
                dict(zip(names, values, strict=True)),
                id=f"{architecture}-{'-'.join(map(str, values))}",
            )


def check_training(case: Case, head: str, **options) -> None:
    """Forward, loss and backward on a padded batch; every parameter gets a gradient, and in training nothing fails."""
    model, mask = build(case, head, **options), make_mask("mixed")
    inputs, labels = make_inputs(case, head), make_labels(case, head, mask)
    outputs = model(**inputs, **make_masks(inputs, mask), **labels)
    assert torch.isfinite(output_of(outputs)).all()
    loss = outputs.loss if labels else output_of(outputs).square().sum()
    assert torch.isfinite(loss)
    loss.backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    without = [name for name in trained if model.get_parameter(name).grad is None]
    assert not without, f"no gradient for {without}"
    zero = [name for name in trained if not model.get_parameter(name).grad.any()]
    assert not zero, f"nothing but zeros for {zero}"
    assert all(torch.isfinite(model.get_parameter(name).grad).all() for name in trained)
    if options:
        outputs = model.train()(**inputs, **make_masks(inputs, mask), **labels)
        loss = outputs.loss if labels else output_of(outputs).square().sum()
        loss.backward()
        assert all(torch.isfinite(model.get_parameter(name).grad).all() for name in trained)


@each_case_and_plain_head
def test_every_parameter_gets_a_gradient(case, head):
    check_training(case, head)


def heads_of(options: dict) -> list[str]:
    return ["sequence-classification"] if options.get("bidirectional") else ["causal-lm", "sequence-classification"]


@pytest.mark.parametrize(("architecture", "options"), single_options())
def test_every_option_value(architecture, options):
    for head in heads_of(options):
        check_training(Case(architecture, "plain"), head, **options)


@pytest.mark.parametrize("freeze", WITH_ENCODER["freeze_encoder"])
@pytest.mark.parametrize("architecture", RECURRENT_ARCHITECTURES)
def test_encoder_options(architecture, freeze):
    """An encoder's keys have no gradient of their own to speak of (a softmax does not see their bias)."""
    options = {"encoder": TINY_BERT, "freeze_encoder": freeze, "embedding_size": None}
    model = build(Case(architecture, "plain"), "sequence-classification", **options).train()
    inputs = make_inputs(Case(architecture, "plain"), "sequence-classification")
    model(**inputs, labels=torch.arange(5) % 3).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {name for name in model.state_dict() if freeze and name.startswith("model.encoder.")}


@pytest.mark.slow
@pytest.mark.parametrize(("architecture", "options"), combined_options())
def test_every_combination_of_options(architecture, options):
    for head in heads_of(options):
        check_training(Case(architecture, "plain"), head, **options)


def test_the_tables_are_whole():
    """A new option or architecture must be added above."""
    assert OPTIONS.keys() == PRODUCT.keys() == WRONG_OWN.keys()
    assert ARCHITECTURES.keys() <= OPTIONS.keys() | ELSEWHERE
    assert len(CASES) >= 23
    sizes = {"vocab_size", "hidden_size", "initializer_range", "use_cache", "chrono_max_time"}
    sizes |= {"pad_token_id", "bos_token_id", "eos_token_id", "max_position_embeddings", "num_hidden_layers"}
    sizes |= set(inspect.get_annotations(StackConfig))  # the options of heads, which have tests of their own
    for name in OPTIONS:
        own = set()
        for cls in ARCHITECTURES[name].config.__mro__:
            if cls.__module__.startswith("hf_seqmodels"):
                own |= set(inspect.get_annotations(cls))
        elsewhere = {"forget_bias", "update_bias"} if name == "seq_attention_rnn" else set()
        if name == "seq_transformer_decoder":  # attention patterns, and layouts of imported models
            elsewhere |= {"head_dim", "use_bias", "final_norm", *inspect.get_annotations(AttentionPatternOptions)}
            elsewhere |= {"relative_attention_num_buckets", "relative_attention_max_distance"}
        if name in RECURRENT_ARCHITECTURES:
            elsewhere |= {"encoder", *WITH_ENCODER}
        assert own - sizes - elsewhere == OPTIONS[name].keys() - {"num_hidden_layers", "attn_implementation"}, name


WRONG = [
    ("hidden_size", 0), ("hidden_size", -1), ("vocab_size", 0), ("num_hidden_layers", 0), ("num_hidden_layers", 10**9),
    ("dropout", 1.5), ("dropout", 1.0), ("dropout", -0.1), ("dropout", float("nan")), ("classifier_dropout", 2),
    ("initializer_range", 0), ("initializer_range", float("nan")),
]  # fmt: skip
WRONG_RECURRENT = [
    ("embedding_size", 0), ("weight_init", "zeros"), ("bias_init", "random"), ("chrono_max_time", 2),
    ("input_dropout", 1.0), ("output_dropout", -0.1), ("embedding_dropout", 1), ("weight_drop", 1.5),
    ("weight_drop", float("nan")), ("weight_noise", -0.1), ("weight_noise", float("inf")), ("activation_reg", -1),
    ("activation_reg", float("nan")), ("temporal_activation_reg", float("inf")), ("freeze_encoder", True),
]  # fmt: skip
WRONG_OWN = {
    "seq_rnn": [("nonlinearity", "gelu"), ("bias_init", "chrono")],
    "seq_lstm": [("forget_bias", float("nan")), ("forget_bias", float("inf"))],
    "seq_gru": [("update_bias", float("nan"))],
    "seq_attention_rnn": [("cell", "conv"), ("score", "cosine"), ("window", 0)],
    "seq_transformer_decoder": [
        ("num_attention_heads", 5), ("num_attention_heads", 0), ("norm", "batchnorm"), ("norm_position", "middle"),
        ("positions", "alibi"), ("hidden_act", "tanh"), ("max_position_embeddings", 0), ("rope_theta", 0),
        ("norm_eps", 0), ("attention_dropout", 1.0), ("intermediate_size", 0),
    ],
}  # fmt: skip


def wrong_values():
    for name, own in WRONG_OWN.items():
        recurrent = [] if name == "seq_transformer_decoder" else WRONG_RECURRENT
        for option, value in WRONG + recurrent + own:
            yield pytest.param(name, option, value, id=f"{name}-{option}={value}")


@pytest.mark.parametrize(("architecture", "option", "value"), wrong_values())
def test_wrong_value_is_refused(architecture, option, value):
    """One line that names the option, the value and the rule."""
    with pytest.raises(ValueError) as error:
        ARCHITECTURES[architecture].config(**{option: value})
    message = str(error.value)
    assert "\n" not in message
    assert f"{option}={value!r} is not allowed" in message
    assert "must be" in message


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_wrong_type_is_refused(architecture):
    wrong = [("hidden_size", "many"), ("hidden_size", 2.5), ("dropout", "0.1"), ("use_cache", "yes")]
    if architecture in RECURRENT_ARCHITECTURES:
        wrong += [("layer_norm", 1), ("residual", "no"), ("weight_drop", "0.5"), ("encoder", "roberta-base")]
    for option, value in wrong:
        with pytest.raises(Exception, match=option):
            ARCHITECTURES[architecture].config(**{option: value})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("typed", "meant"), [("hiden_size", "hidden_size"), ("num_hidden_layer", "num_hidden_layers")]
)
def test_misspelt_option_is_refused(architecture, typed, meant):
    with pytest.raises(ValueError, match=f"has no option '{typed}': did you mean '{meant}'"):
        ARCHITECTURES[architecture].config(**{typed: 3})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_configuration_made_wrong_is_not_saved(architecture, tmp_path):
    config = ARCHITECTURES[architecture].config()
    with pytest.raises(Exception, match="dropout"):
        config.dropout = 1.5
        config.save_pretrained(tmp_path)
