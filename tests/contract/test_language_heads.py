"""Language-model heads: losses by hand, both sides of a masked token, tying, the fill-mask pipeline, Trainer."""

import math

import pytest
import torch
from transformers import DataCollatorForLanguageModeling, pipeline

from head_checks import check_accumulation, check_loss_is_sum_of_rows, one_each, pair_tokenizer, train_two_steps
from hf_seqmodels.models import ARCHITECTURES
from model_table import (
    PAIRS,
    SIZES,
    Case,
    assert_close,
    assert_same_gradients,
    build,
    each_pair,
    make_ids,
    make_mask,
    named_gradients,
)

ROW = "losses of heads"
LANGUAGE_PAIRS = [(case, head) for case, head in PAIRS if head in ("causal-lm", "masked-lm")]
each_language_model = each_pair(LANGUAGE_PAIRS)
MASKED = [case for case, head in LANGUAGE_PAIRS if head == "masked-lm"]
each_architecture = one_each([(case, head) for case, head in LANGUAGE_PAIRS if head == "masked-lm"])
each_masked = pytest.mark.parametrize("case", MASKED, ids=str)
each_unfit = pytest.mark.parametrize("name", ["seq_rnn", "seq_lstm", "seq_gru", "seq_attention_rnn"])


def make_batch(seed: int = 4) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Ids (5, 8), labels of their own where about every second token is a target, and the padding."""
    mask = make_mask("mixed")
    labels = make_ids(*mask.shape, seed=seed)
    return {"input_ids": make_ids(*mask.shape), "labels": labels.where((labels % 2 == 0) & mask.bool(), -100)}, mask


def by_hand(logits: torch.Tensor, labels: torch.Tensor, shift: int) -> torch.Tensor:
    """−log p of each target, token by token: logits (B, T, V) at t speak of labels (B, T) at t + shift."""
    losses = []
    for row, targets in zip(logits.double(), labels.tolist(), strict=True):
        for t, target in enumerate(targets[shift:]):
            if target != -100:
                losses.append(row[t].exp().sum().log() - row[t, target])
    return torch.stack(losses)


@each_language_model
def test_loss_by_hand(case, head):
    """The mean over the targets; a causal model's come one later, a masked one's where they stand."""
    model, (batch, mask) = build(case, head), make_batch()
    outputs = model(**batch, attention_mask=mask)
    outputs.loss.backward()
    gradients = named_gradients(model)
    logits = model(batch["input_ids"], attention_mask=mask).logits
    expected = by_hand(logits, batch["labels"], shift=1 if head == "causal-lm" else 0).mean()
    expected.backward()
    assert_close(outputs.loss, expected, 1e-5, ROW)
    assert_same_gradients(gradients, named_gradients(model), 1e-5, ROW)


@each_language_model
def test_accumulated_steps_equal_one_batch(case, head):
    """A16: the targets of the rows differ in number; each counts the same."""
    model, (batch, mask) = build(case, head), make_batch()
    shift = 1 if head == "causal-lm" else 0
    count = int((batch["labels"][:, shift:] != -100).sum())
    check_accumulation(model, batch | {"attention_mask": mask}, count, 1e-5, "A16 heads")


@each_masked
def test_loss_row_by_row(case):
    """A padded batch is its rows alone, weighed by their targets."""
    model, (batch, mask) = build(case, "masked-lm"), make_batch()
    counts = (batch["labels"] != -100).sum(1).double()
    check_loss_is_sum_of_rows(model, batch, mask, (counts / counts.sum()).tolist(), 1e-5, ROW)


@each_masked
def test_no_target(case):
    model, ids = build(case, "masked-lm"), make_ids(2, 4)
    loss = model(ids, labels=torch.full_like(ids, -100)).loss
    assert loss == 0
    loss.backward()
    assert all(not gradient.any() for gradient in named_gradients(model).values())


@each_masked
def test_both_sides_count(case):
    """The prediction at a position reads what stands before and behind it."""
    model, ids = build(case, "masked-lm"), make_ids(1, 7)
    at_middle = model(ids).logits[0, 3]
    for place in (2, 4):
        other = ids.clone()
        other[0, place] = ids[0, place] % (SIZES["vocab_size"] - 1) + 1
        assert not torch.allclose(model(other).logits[0, 3], at_middle, atol=1e-4)


@each_unfit
def test_one_direction_is_refused(name):
    with pytest.raises(ValueError, match="bidirectional=False sees only the left of a masked token; use bidirec"):
        build(Case(name, "plain"), "masked-lm")


@each_masked
def test_tied_output_layer(case):
    """Logits are products with the embedding matrix, through a projection where the widths differ."""
    bias = {} if case.recurrent else {"lm_head_transform": False}
    model, ids = build(case, "masked-lm", tie_word_embeddings=True, lm_head_bias=True, **bias), make_ids(2, 5)
    embedding = model.get_input_embeddings().weight
    assert model.lm_head.weight is embedding
    hidden = model.model(ids).last_hidden_state
    if case.recurrent:  # 2 · 12 columns to 10
        assert model.lm_projection.weight.shape == (embedding.shape[1], hidden.shape[-1])
        hidden = hidden @ model.lm_projection.weight.T
    assert_close(model(ids).logits, hidden @ embedding.T + model.lm_head.bias, 1e-5, "tied heads")


# -- with transformers ------------------------------------------------------------------------------------------------
@each_architecture
def test_fill_mask_pipeline(case, head, tmp_path):
    """Scores and words of the stock pipeline are the model's; a batch of texts gets what each gets alone."""
    model = build(case, head).cpu()
    for part in (model, pair_tokenizer()):
        part.save_pretrained(tmp_path)
    fill = pipeline("fill-mask", model=str(tmp_path), device="cpu")
    assert type(fill.model) is type(model)
    texts = ["w5 w6 <mask> w7 w8 w9", "<mask> w10", "w5 w11 <mask>"]
    for found in ([fill(text, top_k=4) for text in texts], fill(texts, top_k=4, batch_size=3)):
        for text, answers in zip(texts, found, strict=True):
            inputs = pair_tokenizer()(text, return_tensors="pt")
            probabilities = model(**inputs).logits[0, text.split().index("<mask>")].softmax(-1)
            expected = probabilities.topk(4)
            assert [answer["token"] for answer in answers] == expected.indices.tolist()
            torch.testing.assert_close(torch.tensor([answer["score"] for answer in answers]), expected.values)
    (narrowed,) = fill("w5 <mask> w7", targets=["w12"])
    assert (narrowed["token"], narrowed["sequence"]) == (12, "w5 w12 w7")


@each_architecture
def test_stock_trainer(case, head, tmp_path):
    """With the stock masking collator; predictions are the logits and nothing else."""
    model = build(case, "masked-lm", pad_token_id=0)
    collator = DataCollatorForLanguageModeling(pair_tokenizer(), mlm_probability=0.5, seed=1)
    texts = [" ".join(f"w{3 + (index + place) % 19}" for place in range(2 + index % 4)) for index in range(8)]
    rows = [dict(pair_tokenizer()(text)) for text in texts]
    metrics, seen = train_two_steps(model, rows, collator, tmp_path)
    assert seen.predictions.shape == (8, 6, SIZES["vocab_size"])
    assert seen.label_ids.shape == (8, 6)
    # evaluated in two batches of 4, of which the Trainer averages the losses
    losses = [
        by_hand(torch.tensor(seen.predictions[part]), torch.tensor(seen.label_ids[part]), 0)
        for part in (slice(0, 4), slice(4, 8))
    ]
    assert math.isfinite(metrics["eval_loss"])
    assert metrics["eval_loss"] == pytest.approx(sum(float(part.mean()) for part in losses) / 2, rel=1e-4)


def test_all_masked_architectures_are_here():
    """A guard: a table without bidirectional variants would leave the tests above empty."""
    having = {name for name, architecture in ARCHITECTURES.items() if "masked-lm" in architecture.models}
    assert {case.architecture for case in MASKED} == having
