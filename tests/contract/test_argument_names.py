"""A misspelt argument is named instead of vanishing in `**kwargs`; what transformers gives beside ours passes."""

import inspect

import pytest
import torch

from hf_seqmodels.models import ARCHITECTURES
from model_table import PAIRS, build, each_case, each_pair, make_inputs, make_labels, make_mask, make_masks

one_variant_each = each_pair(list({(case.architecture, head): (case, head) for case, head in PAIRS}.values()))


@one_variant_each
def test_misspelt_argument_is_named(case, head):
    """Every argument of every forward, one letter short; the rest of the call is right."""
    model, inputs = build(case, head), make_inputs(case, head)
    cls = ARCHITECTURES[case.architecture].models[head]
    own = set(inspect.signature(cls.forward).parameters) - {"self", "args", "kwargs"}
    tried = [name for name in [*own, "output_attentions", "num_items_in_batch"] if len(name) >= 6]
    assert len(tried) > 4
    for name in tried:
        wrong = name[:3] + name[4:]
        message = f"^{cls.__name__} takes no argument '{wrong}': did you mean '{name}'\\?$"
        with pytest.raises(ValueError, match=message):
            model(**inputs, **{wrong: None})


@each_case
def test_what_transformers_gives_passes(case):
    """Trainer's and the pipelines' extras, and arguments of other models, change nothing."""
    model, inputs = build(case), make_inputs(case, "backbone")
    expected = model(**inputs)[0]
    extras = {"return_dict": True, "output_hidden_states": False, "output_attentions": False, "cache_position": None}
    extras |= {"num_items_in_batch": torch.tensor(3), "is_first_iteration": True, "something_else": 1}
    assert torch.equal(model(**inputs, **extras)[0], expected)
    assert torch.equal(model(**inputs, return_dict=False)[0], expected)


@one_variant_each
def test_all_right_arguments_pass(case, head):
    """Inputs, padding and labels together, by their names."""
    mask = make_mask("mixed")
    inputs = make_inputs(case, head)
    build(case, head)(**inputs, **make_masks(inputs, mask), **make_labels(case, head, mask))
