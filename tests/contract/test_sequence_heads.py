"""Sequence classification: what it reads, its three kinds of labels, two texts, transformers' pipeline and Trainer."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, pipeline

from head_checks import check_loss_is_sum_of_rows, one_each, pair_tokenizer, train_two_steps
from model_table import (
    FEATURES,
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
HEAD = "sequence-classification"
CLASSIFIERS = [(case, head) for case, head in PAIRS if head == HEAD]
each_classifier = each_pair(CLASSIFIERS)
each_architecture = one_each(CLASSIFIERS)
LAST_TOKEN = [(case, head) for case, head in CLASSIFIERS if case.cell_only or "decoder" in case.architecture]
LSTM = Case("seq_lstm", "plain")

CLASS_IDS = torch.tensor([0, 2, 1, 1, 0])
SETS = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1]])
NUMBERS = torch.tensor([0.5, -2.0, 3.25, 0.0, 1.0])
VECTORS = torch.arange(15.0).view(5, 3) / 5 - 1


def make_batch() -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    mask = make_mask("mixed")
    return {"input_ids": make_ids(*mask.shape)}, mask


@each_pair(LAST_TOKEN)
def test_reads_the_state_after_the_last_token(case, head):
    """Of a backward direction, the state after the first: both have then read the whole row."""
    model, (batch, mask) = build(case, head, torch.float64), make_batch()
    logits = model(**batch, attention_mask=mask).logits
    for i, tokens in enumerate(mask.bool()):
        hidden = model.model(batch["input_ids"][i][tokens][None]).last_hidden_state[0]
        read = hidden[-1]
        if case.bidirectional:
            half = len(read) // 2
            read = torch.cat([hidden[-1, :half], hidden[0, half:]])
        assert_close(logits[i], model.score.weight @ read + model.score.bias, 1e-12, ROW, f"row {i}")


def by_hand(logits: torch.Tensor, labels: torch.Tensor, problem: str) -> torch.Tensor:
    """The mean over rows of −log p of the class, over labels of −log p of each yes or no, or of the squared error."""
    if problem == "single_label_classification":
        rows = [row.exp().sum().log() - row[label] for row, label in zip(logits, labels, strict=True) if label != -100]
        return torch.stack(rows).mean()
    if problem == "multi_label_classification":
        yes = 1 / (1 + (-logits).exp())
        return -torch.where(labels == 1, yes, 1 - yes).log().mean()
    return (logits.view(labels.shape) - labels).square().mean()


# problem, num_labels, labels; each is inferred as well, but for what whole numbers and several numbers would mean
PROBLEMS = {
    "class ids": ("single_label_classification", 3, CLASS_IDS, True),
    "int32 class ids": ("single_label_classification", 3, CLASS_IDS.int(), True),
    "class ids, some unknown": ("single_label_classification", 3, torch.tensor([0, -100, 1, -100, 2]), True),
    "sets": ("multi_label_classification", 3, SETS, True),
    "sets of whole numbers": ("multi_label_classification", 3, SETS.long(), False),
    "numbers": ("regression", 1, NUMBERS, True),
    "whole numbers": ("regression", 1, torch.tensor([7, -3, 0, 1, 2]), True),
    "column of numbers": ("regression", 1, NUMBERS[:, None], True),
    "double precision": ("regression", 1, NUMBERS.double(), True),
    "vectors": ("regression", 3, VECTORS, False),
}


@pytest.mark.parametrize("problem", PROBLEMS)
@each_architecture
def test_loss_by_hand(case, head, problem):
    """Inferred and configured: the same loss, and its gradients; the kind that was inferred is kept."""
    name, num_labels, labels, inferred = PROBLEMS[problem]
    batch, mask = make_batch()
    for configured in (name, None) if inferred else (name,):
        model = build(case, head, num_labels=num_labels, problem_type=configured)
        outputs = model(**batch, attention_mask=mask, labels=labels)
        assert model.config.problem_type == name
        outputs.loss.backward()
        gradients = named_gradients(model)
        expected = by_hand(model(**batch, attention_mask=mask).logits.double(), labels, name)
        expected.backward()
        assert_close(outputs.loss, expected, 1e-5, ROW)
        assert_same_gradients(gradients, named_gradients(model), 1e-5, ROW)


@pytest.mark.parametrize(
    ("labels", "options"), [(CLASS_IDS, {}), (SETS, {}), (NUMBERS, {"num_labels": 1})], ids=["ids", "sets", "numbers"]
)
@each_architecture
def test_loss_row_by_row(case, head, labels, options):
    model, (batch, mask) = build(case, head, torch.float64, **options), make_batch()
    check_loss_is_sum_of_rows(model, batch | {"labels": labels}, mask, [0.2] * 5, 1e-12, ROW)


@each_architecture
def test_no_label_in_the_batch(case, head):
    """The mean over nothing is 0, not 0/0, and moves nothing."""
    model, (batch, mask) = build(case, head), make_batch()
    loss = model(**batch, attention_mask=mask, labels=torch.full((5,), -100)).loss
    assert loss == 0
    loss.backward()
    assert all(not gradient.any() for gradient in named_gradients(model).values())


def test_half_precision_counts_its_loss_in_fp32():
    model, (batch, mask) = build(LSTM, HEAD), make_batch()
    expected = model(**batch, attention_mask=mask, labels=CLASS_IDS).loss
    loss = model.to(torch.bfloat16)(**batch, attention_mask=mask, labels=CLASS_IDS).loss
    assert loss.dtype == torch.float32
    assert_close(loss, expected.detach(), 2e-2, "A10 bf16")


SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


@pytest.mark.parametrize(
    ("labels", "options", "problem"),
    [
        (CLASS_IDS[:4], {}, SINGLE),  # another number of rows
        (SETS.long(), {}, SINGLE),  # sets of labels as whole numbers, and nobody said that they are sets
        (CLASS_IDS.float(), {"problem_type": SINGLE}, SINGLE),
        (CLASS_IDS.float(), {}, MULTI),  # class ids as floats
        (CLASS_IDS, {"problem_type": MULTI}, MULTI),
        (SETS[:, :2], {}, MULTI),
        (SETS[:1], {}, MULTI),
        (NUMBERS[:4], {"num_labels": 1}, REGRESSION),
        (NUMBERS[:1], {"num_labels": 1}, REGRESSION),  # torch would compare every row with it
        (NUMBERS[None], {"num_labels": 1}, REGRESSION),
        (VECTORS[:, :1], {"problem_type": REGRESSION}, REGRESSION),  # and here every column
        (VECTORS[0], {"problem_type": REGRESSION}, REGRESSION),
        (torch.tensor(1), {}, SINGLE),
    ],
)
@each_architecture
def test_labels_that_do_not_fit(case, head, labels, options, problem):
    model, (batch, mask) = build(case, head, **options), make_batch()
    shape = "\\(5,\\)" if problem == SINGLE or options.get("num_labels") == 1 else "\\(5, 3\\)"
    message = f"^labels of shape .* and {labels.dtype} do not fit problem_type='{problem}' with num_labels=.*{shape}"
    with pytest.raises(ValueError, match=message) as error:
        model(**batch, attention_mask=mask, labels=labels)
    assert "\n" not in str(error.value)


@each_architecture
def test_features_and_embeddings_have_labels_too(case, head):
    """The rows are counted in whatever is read."""
    model = build(case, head)
    embeddings = model.get_input_embeddings()(make_ids(5, 4))
    assert_close(
        model(inputs_embeds=embeddings, labels=CLASS_IDS).loss, model(make_ids(5, 4), labels=CLASS_IDS).loss, 1e-6, ROW
    )
    model = build(case, head, num_features=FEATURES, **({"embedding_size": None} if case.recurrent else {}))
    features = torch.randn(5, 4, FEATURES)
    assert torch.isfinite(model(input_features=features, labels=CLASS_IDS).loss)
    with pytest.raises(ValueError, match=r"labels of shape \(5,\)"):
        model(input_features=features[:2], labels=CLASS_IDS)


# -- with transformers ------------------------------------------------------------------------------------------------
TEXTS = [("w5 w6 w7", "w8 w9"), ("w10", "w11 w12 w13 w14 w15"), ("w7 w7", "w20")]


@each_architecture
def test_pair_of_texts_through_the_pipeline(case, head, tmp_path):
    """The stock pipeline on a saved model: one text and two, alone and in a batch; a separator tells them apart."""
    build(case, head).save_pretrained(tmp_path)
    tokenizer = pair_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    classify = pipeline("text-classification", model=str(tmp_path), device="cpu", top_k=None)
    assert "token_type_ids" in classify.tokenizer(*TEXTS[0])
    pairs = [{"text": text, "text_pair": pair} for text, pair in TEXTS]
    for inputs, expected in (
        (pairs, [tokenizer(*texts, return_tensors="pt") for texts in TEXTS]),
        ([text for text, _ in TEXTS], [tokenizer(text, return_tensors="pt") for text, _ in TEXTS]),
    ):
        for given, batched, tokens in zip(inputs, classify(inputs, batch_size=3), expected, strict=True):
            scores = model(**tokens).logits[0].softmax(-1).tolist()
            for answers in (*classify([given]), batched):
                found = {answer["label"]: answer["score"] for answer in answers}
                assert [found[f"LABEL_{index}"] for index in range(3)] == pytest.approx(scores, abs=1e-5)
    swapped = model(**tokenizer(*reversed(TEXTS[0]), return_tensors="pt")).logits
    assert not torch.allclose(swapped, model(**tokenizer(*TEXTS[0], return_tensors="pt")).logits, atol=1e-4)


@each_architecture
def test_token_types_of_a_tokenizer(case, head):
    """Read by a model that has them; others read the separator, and the types change nothing."""
    model, tokens = build(case, head), pair_tokenizer()(*TEXTS[0], return_tensors="pt")
    without = model(tokens["input_ids"], tokens["attention_mask"]).logits
    same = torch.equal(model(**tokens).logits, without)
    assert same != bool(getattr(model.config, "type_vocab_size", 0))


@pytest.mark.parametrize(
    ("labels", "options"),
    [(CLASS_IDS, {}), (SETS, {}), (NUMBERS, {"num_labels": 1})],
    ids=["class-ids", "sets", "numbers"],
)
@each_architecture
def test_stock_trainer(case, head, labels, options, tmp_path):
    """Predictions are the logits and nothing else: no cache, no weights of a pooling."""
    model, tokenizer = build(case, head, pad_token_id=0, **options), pair_tokenizer()
    rows = [{**tokenizer(*texts), "labels": label} for texts, label in zip(TEXTS, labels[:3].tolist(), strict=True)]
    metrics, seen = train_two_steps(model, rows, DataCollatorWithPadding(tokenizer), tmp_path)
    assert seen.predictions.shape == (3, options.get("num_labels", 3))
    assert torch.equal(torch.as_tensor(seen.label_ids), labels[:3])
    expected = by_hand(torch.tensor(seen.predictions), labels[:3], model.config.problem_type)
    assert metrics["eval_loss"] == pytest.approx(float(expected), rel=1e-4)


def test_vocabulary_of_the_tokenizer():
    """A guard: the pipelines above would otherwise read ids that the models do not have."""
    assert len(pair_tokenizer()) == SIZES["vocab_size"]
