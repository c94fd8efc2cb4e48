"""Labels outside the classes are named before work starts; numbers and sets of labels are no class ids."""

from __future__ import annotations

import pytest
import torch

from model_table import LABELS, SIZES, Case, assert_close, build, make_ids, make_inputs

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


@on_cpu
@pytest.mark.parametrize("wrong", [SIZES["vocab_size"] + 2, -1])
@pytest.mark.parametrize(
    ("architecture", "head"),
    [("seq_gru", "causal-lm"), ("seq_transformer_decoder", "causal-lm"), ("seq_transformer_encoder", "masked-lm")],
)
def test_label_outside_the_vocabulary(architecture, head, wrong):
    ids = make_ids(2, 6)
    labels = ids.clone()
    labels[1, 3], labels[0, 2] = wrong, -100
    message = f"^label {wrong} is outside the vocabulary of 23: use 0 to 22, −100 where .* this model's tokenizer$"
    with pytest.raises(ValueError, match=message):
        build(Case(architecture, "plain"), head)(ids, labels=labels)


LABELLED_TOKENS = [
    (architecture, head)
    for architecture in ("seq_gru", "seq_transformer_decoder", "seq_transformer_encoder")
    for head in ("causal-lm", "masked-lm", "token-classification")
    if head in Case(architecture, "plain").heads
]


@pytest.mark.parametrize(("architecture", "head"), LABELLED_TOKENS)
def test_labels_of_another_shape(architecture, head):
    """Transposed labels have as many numbers as the right ones, and would be trained on."""
    model, ids = build(Case(architecture, "plain"), head), make_ids(2, 6)
    labels = ids % 3
    assert torch.isfinite(model(ids, labels=labels).loss)
    for other in (labels.T, labels.flatten(), labels[:1], labels[:, :5], labels[..., None]):
        message = rf"^labels of shape \({other.shape[0]}.* do not fit this batch: pass \(2, 6\), −100 .* no label$"
        with pytest.raises(ValueError, match=message):
            model(ids, labels=other)
    with pytest.raises(ValueError, match=r"^labels are torch.float32: pass whole numbers"):
        model(ids, labels=labels.float())


def test_labels_of_kept_and_of_shifted_positions():
    """The shape is that of the logits; with `shift_labels` these are the targets, and `labels` are not read."""
    model, ids = build(Case("seq_gru", "plain"), "causal-lm"), make_ids(2, 6)
    for kept in (4, torch.tensor([2, 3, 4, 5])):
        wanted = model(
            ids[:, 2:], past_key_values=model(ids[:, :2], use_cache=True).past_key_values, labels=ids[:, 2:]
        )
        assert_close(model(ids, labels=ids[:, 2:], logits_to_keep=kept).loss, wanted.loss, 1e-5, "kept labels")
        with pytest.raises(ValueError, match=r"^labels of shape \(2, 6\) do not fit this batch: pass \(2, 4\)"):
            model(ids, labels=ids, logits_to_keep=kept)
    shifted = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], dim=1)
    expected = model(ids, labels=ids).loss
    assert_close(model(ids, labels=ids[:1] + 99, shift_labels=shifted).loss, expected, 0, "shifted labels")
    with pytest.raises(ValueError, match=r"^labels of shape \(6, 2\) do not fit"):
        model(ids, labels=ids, shift_labels=shifted.T)


@on_cpu
@pytest.mark.parametrize("wrong", [7.0, -1.0, -100.0, float("nan"), 0.5])
def test_several_labels_are_zeros_and_ones(wrong):
    model = build(Case("seq_gru", "plain"), "sequence-classification", problem_type="multi_label_classification")
    labels = torch.tensor([[0.0, 1, 1], [1, 0, wrong]])
    with pytest.raises(ValueError, match=rf"^label {wrong} does not fit problem_type='multi_.*: pass 0 or 1 for each"):
        model(make_ids(2, 4), labels=labels)


@on_cpu
@pytest.mark.parametrize("wrong", [float("nan"), float("-inf")])
def test_numbers_to_predict_are_finite(wrong):
    model = build(Case("seq_transformer_encoder", "plain"), "sequence-classification", num_labels=1)
    with pytest.raises(
        ValueError, match=f"^label {wrong} does not fit problem_type='regression': pass finite numbers$"
    ):
        model(make_ids(2, 4), labels=torch.tensor([1.0, wrong]))


def test_labels_of_another_batch_of_sounds():
    case = Case("seq_gru", "plain")
    model, inputs = build(case, "ctc"), make_inputs(case, "ctc", batch=2)
    for labels in (torch.tensor([1, 2, 3]), torch.ones(3, 2, dtype=torch.long), torch.ones(2, 2, 1, dtype=torch.long)):
        with pytest.raises(ValueError, match=r"^labels of shape .* do not fit this batch: pass \(2, \d\), −100"):
            model(**inputs, labels=labels)


def test_answers_of_another_batch():
    model, ids, ends = build(Case("seq_gru", "plain"), "question-answering"), make_ids(2, 6), torch.tensor([1, 2])
    for wrong in (torch.tensor([1, 2, 3]), torch.tensor([1]), torch.tensor([0.0, 1.0]), torch.ones(2, 2).long()):
        with pytest.raises(ValueError, match=r"^end_positions of shape .* do not fit 2 rows: pass whole numbers of"):
            model(ids, start_positions=ends, end_positions=wrong)
    assert torch.isfinite(model(ids, start_positions=ends, end_positions=ends[:, None]).loss)
    with pytest.raises(ValueError, match=r"^question answering learns from start_positions and end_positions: "):
        model(ids, labels=ends)


@pytest.mark.parametrize("head", ["ctc", "question-answering"])
@pytest.mark.parametrize("architecture", ["seq_gru", "seq_transformer_decoder", "seq_transformer_encoder"])
def test_heads_without_a_state_build_none(architecture, head):
    case, states = Case(architecture, "plain"), []
    model = build(case, head, use_cache=True)
    model.model.register_forward_hook(lambda _, __, outputs: states.append(outputs.past_key_values))
    model(**make_inputs(case, head))
    assert states == [None]
