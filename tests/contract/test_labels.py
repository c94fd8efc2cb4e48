"""Labels outside the classes are named before work starts; numbers and sets of labels are no class ids."""

from __future__ import annotations

import pytest
import torch

from model_table import LABELS, Case, build, make_ids

on_cpu = pytest.mark.skipif(
    "os.environ.get('HF_SEQMODELS_TEST_DEVICE', 'cpu') != 'cpu'", reason="looked at on the CPU"
)


@on_cpu
@pytest.mark.parametrize("wrong", [LABELS["num_labels"], 7, -1, -101])
@pytest.mark.parametrize("crf", [False, True])
@pytest.mark.parametrize("architecture", ["seq_gru", "seq_attention_rnn", "seq_transformer_decoder"])
def test_label_outside_the_classes(architecture, crf, wrong):
    case, ids, labels = Case(architecture, "plain"), make_ids(2, 4), torch.zeros(2, 4, dtype=torch.long)
    labels[1, 2], labels[0, 0] = wrong, -100
    message = f"^label {wrong} is outside the 3 classes: use 0 to 2, −100 where there is no label, or .*num_labels$"
    with pytest.raises(ValueError, match=message):
        build(case, "token-classification", crf=crf)(ids, labels=labels)
    if not crf:
        with pytest.raises(ValueError, match=f"^label {wrong} is outside the 3 classes"):
            build(case, "sequence-classification")(ids, labels=torch.tensor([0, wrong]))


@pytest.mark.parametrize("architecture", ["seq_gru", "seq_transformer_decoder"])
def test_labels_that_are_no_class_ids(architecture):
    """Numbers and sets of labels are not class ids; −100 is no label."""
    case, ids = Case(architecture, "plain"), make_ids(2, 4)
    for options, labels in (
        ({"num_labels": 1}, torch.tensor([7, -3])),
        ({"num_labels": 1}, torch.tensor([7.5, -3.0])),
        ({"problem_type": "regression", "num_labels": 1}, torch.tensor([7, 9])),
        ({"problem_type": "multi_label_classification"}, torch.tensor([[0.0, 1, 1], [1, 0, 0]])),
        ({}, torch.tensor([2, -100])),
    ):
        assert torch.isfinite(build(case, "sequence-classification", **options)(ids, labels=labels).loss)
