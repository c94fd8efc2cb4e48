"""Every option value constructs, runs and trains every parameter; wrong values are refused in one line."""

import inspect
import json
from typing import Any

import pytest
import torch
from option_tables import (
    OPTIONS,
    PRODUCT,
    UNTRIED,
    UNTRIED_OF,
    WITH_ENCODER,
    WRONG_OWN,
    combined_options,
    complete,
    heads_of,
    single_options,
    wrong_values,
)

from hf_seqmodels.models import ARCHITECTURES
from hf_seqmodels.models.shared_configuration import OPTIONS_OF
from model_table import (
    CASES,
    FRAME,
    RECURRENT,
    Case,
    build,
    each_case_and_head,
    make_inputs,
    make_labels,
    make_mask,
    make_masks,
    output_of,
)
from series_cases import make_batch as make_series

TINY_BERT = {"model_type": "bert", "vocab_size": 23, "hidden_size": 12, "num_hidden_layers": 1}
TINY_BERT |= {"num_attention_heads": 2, "intermediate_size": 14, "max_position_embeddings": 20}


def each(rows: Any) -> pytest.MarkDecorator:
    """A test for each (architecture, options, name)."""
    found = [pytest.param(name, options, id=f"{name}-{label}") for name, options, label in rows]
    return pytest.mark.parametrize(("architecture", "options"), found)


def make_batch(model: Any, case: Case, head: str) -> dict[str, torch.Tensor]:
    """Five rows of eight steps, padded in every way, and what the head learns from."""
    config, mask = model.config, make_mask("mixed")
    if case.architecture == "seq_conv_lstm":
        frame = (config.num_channels, *FRAME[1:])
        batch = {"pixel_values": torch.rand(*mask.shape, *frame), "attention_mask": mask}
        if head != "backbone":
            batch["future_values"] = torch.rand(len(mask), config.prediction_length, *frame)
        return batch
    if head == "time-series-prediction":
        return make_series(model) | {"attention_mask": mask}
    inputs = make_inputs(case, head)
    batch = inputs | make_masks(inputs, mask) | make_labels(case, head, mask)
    if getattr(config, "num_features", None) is not None:
        batch.pop("input_ids", None)
        batch["input_features"] = torch.randn(*mask.shape, config.num_features)
    return batch


# What is added to all positions of a softmax changes nothing: the gradient is 0, or what rounding leaves of it.
UNSEEN = ("qa_outputs.bias", "k_proj.bias")


def loss_of(outputs: Any) -> torch.Tensor:
    """The loss, or of a backbone something that depends on all of its output."""
    return outputs.loss if "loss" in outputs else output_of(outputs).square().sum()


def check_training(case: Case, head: str, **options: Any) -> None:
    """Forward, loss and backward on a padded batch; every parameter gets a gradient, and in training nothing fails."""
    model = build(case, head, **options)
    batch = make_batch(model, case, head)
    if "decoder_start_token_id" in options:  # with which the decoder's inputs are made from the labels
        batch = {name: value for name, value in batch.items() if not name.startswith("decoder_")}
    outputs = model(**batch)
    assert ("loss" in outputs) == (head != "backbone")
    floats = [value for value in outputs.values() if torch.is_tensor(value)]
    assert floats and all(torch.isfinite(value).all() for value in floats)
    loss_of(outputs).backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    without = [name for name in trained if model.get_parameter(name).grad is None]
    assert not without, f"no gradient for {without}"
    zero = [name for name in trained if not model.get_parameter(name).grad.any() and not name.endswith(UNSEEN)]
    assert not zero, f"nothing but zeros for {zero}"
    assert all(torch.isfinite(model.get_parameter(name).grad).all() for name in trained)
    if options:
        loss_of(model.train()(**batch)).backward()
        assert all(torch.isfinite(model.get_parameter(name).grad).all() for name in trained)


@each_case_and_head
def test_every_parameter_gets_a_gradient(case, head):
    check_training(case, head)


@each(single_options())
def test_every_option_value(architecture, options):
    for head in heads_of(architecture, options):
        check_training(Case(architecture, "plain"), head, **options)


@pytest.mark.parametrize("freeze", WITH_ENCODER["freeze_encoder"])
@pytest.mark.parametrize("architecture", RECURRENT)
def test_encoder_options(architecture, freeze):
    """An encoder's keys have no gradient of their own to speak of (a softmax does not see their bias)."""
    options = {"encoder": TINY_BERT, "freeze_encoder": freeze, "embedding_size": None}
    model = build(Case(architecture, "plain"), "sequence-classification", **options).train()
    inputs = make_inputs(Case(architecture, "plain"), "sequence-classification")
    model(**inputs, labels=torch.arange(5) % 3).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {name for name in model.state_dict() if freeze and name.startswith("model.encoder.")}


@pytest.mark.slow
@each(combined_options())
def test_every_combination_of_options(architecture, options):
    for head in heads_of(architecture, options):
        check_training(Case(architecture, "plain"), head, **options)


def test_the_tables_are_whole():
    """A new option or architecture must be added to option_tables.py."""
    assert ARCHITECTURES.keys() == OPTIONS.keys() == PRODUCT.keys() == WRONG_OWN.keys()
    assert len(CASES) >= 47
    for name, options in OPTIONS.items():
        types: dict[str, Any] = {}
        for cls in ARCHITECTURES[name].config.__mro__:
            if cls.__module__.startswith("hf_seqmodels"):
                types |= inspect.get_annotations(cls)
        untried = UNTRIED | UNTRIED_OF.get(name, set())
        assert types.keys() - untried == options.keys() - {"attn_implementation"}, name
        assert types.keys() >= untried, name
        for option, values in options.items():
            assert types.get(option) is not bool or {*values} == {False, True}, (name, option)


@pytest.mark.parametrize(("architecture", "option", "value"), wrong_values())
def test_wrong_value_is_refused(architecture, option, value):
    """One line that names the option, the value and the rule."""
    with pytest.raises(ValueError) as error:
        ARCHITECTURES[architecture].config(**complete(architecture, {option: value}))
    message = str(error.value)
    assert "\n" not in message
    assert f"{option}={value!r} is not allowed" in message
    assert "must be" in message


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_wrong_type_is_refused(architecture):
    wrong = [("hidden_size", "many"), ("hidden_size", 2.5), ("dropout", "0.1"), ("use_cache", "yes")]
    if architecture in RECURRENT:
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


def own_options(architecture: str) -> set[str]:
    return set(ARCHITECTURES[architecture].config.__dataclass_fields__)


def test_options_of_others_are_known():
    """Every option that one architecture has and another has not stands in the table once."""
    each = [own_options(architecture) for architecture in ARCHITECTURES]
    known = [option for options in OPTIONS_OF.values() for option in options]
    assert sorted(known) == sorted(set.union(*each) - set.intersection(*each) - {"decoder_start_token_id"})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_option_of_another_architecture_is_refused(architecture):
    """And what transformers puts into any configuration, or a configuration writes of itself, is not."""
    config = ARCHITECTURES[architecture].config
    for option in {option for options in OPTIONS_OF.values() for option in options} - own_options(architecture):
        with pytest.raises(ValueError, match=f"has no option '{option}', which belongs to .*: leave it out") as error:
            config(**{option: 1})
        assert "\n" not in str(error.value)
    kept = config(num_labels=3, task_specific_params={}, tokenizer_class="T", decoder_start_token_id=1)
    assert config.from_dict(json.loads(kept.to_json_string(use_diff=False))).to_dict() == kept.to_dict()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_configuration_made_wrong_is_not_saved(architecture, tmp_path):
    config = ARCHITECTURES[architecture].config()
    with pytest.raises(Exception, match="dropout"):
        config.dropout = 1.5
        config.save_pretrained(tmp_path)
