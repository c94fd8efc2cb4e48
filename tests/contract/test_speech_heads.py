"""CTC against all its paths (Graves 2006), audio classification by hand, both with transformers' pipelines."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from transformers import pipeline, set_seed

from head_checks import check_loss_is_sum_of_rows, one_each, train_two_steps
from hf_seqmodels.models import ARCHITECTURES
from model_table import (
    FEATURES,
    PADDINGS,
    PAIRS,
    Case,
    assert_close,
    assert_same_gradients,
    build,
    each_pair,
    make_mask,
    named_gradients,
)
from sounds import (
    BINS,
    HOP,
    RATE,
    VOCABULARY,
    SpeechCollator,
    draw_texts,
    make_extractor,
    make_rows,
    make_tokenizer,
    say,
)

ROW = "losses of heads"
SPEECH = [(case, head) for case, head in PAIRS if head == "ctc"]
SOUNDS = [(case, head) for case, head in PAIRS if head == "audio-classification"]
each_ctc, each_audio = each_pair(SPEECH), each_pair(SOUNDS)
on_cpu = pytest.mark.skipif(
    "os.environ.get('HF_SEQMODELS_TEST_DEVICE', 'cpu') != 'cpu'", reason="looked at on the CPU"
)
LSTM = Case("seq_lstm", "plain")
# Labels (5, 4) for rows of 8, 5, 4, 4 and 1 frames: −100 stands anywhere, twice the same needs a blank between.
LABELS = torch.tensor([[1, 1, 3, -100], [3, -100, 1, -100], [-100] * 4, [-100, 3, 3, -100], [1, -100, -100, -100]])


def build_ctc(case: Case, **options):
    """Four symbols of which 2 is the blank."""
    return build(case, "ctc", torch.float64, **({"vocab_size": 4, "pad_token_id": 2} | options))


def make_batch(padding: str = "mixed") -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    mask = make_mask(padding)
    return {"input_features": torch.randn(*mask.shape, FEATURES, dtype=torch.float64), "labels": LABELS}, mask


# -- CTC --------------------------------------------------------------------------------------------------------------
def collapse(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    """B of Graves 2006, section 3.1: first repeated symbols, then blanks, are removed."""
    return tuple(symbol for symbol, _ in itertools.groupby(path) if symbol != blank)


@functools.cache
def fitting_paths(length: int, symbols: int, labels: tuple[int, ...], blank: int) -> torch.Tensor:
    """(paths, T): all of the V^T paths that collapse to the labels."""
    paths = itertools.product(range(symbols), repeat=length)
    return torch.tensor([path for path in paths if collapse(path, blank) == labels])


def likelihood(logits: torch.Tensor, labels: list[int], blank: int) -> torch.Tensor:
    """p(l|x) (eq. 2–3): the sum over the paths of the product of their symbols; logits (T, V)."""
    y = logits.softmax(-1)
    return y.gather(1, fitting_paths(*y.shape, tuple(labels), blank).T).prod(0).sum()


@each_ctc
def test_loss_against_all_paths(case, head):
    """Rows of 8 frames have 65,536 paths; a frame of padding is in none."""
    model, (batch, mask) = build_ctc(case, ctc_loss_reduction="sum"), make_batch()
    loss = model(**batch, attention_mask=mask).loss
    loss.backward()
    gradients, expected = named_gradients(model), 0.0
    logits = model(input_features=batch["input_features"], attention_mask=mask).logits
    for row, tokens, labels in zip(logits, mask.bool(), LABELS.tolist(), strict=True):
        expected = expected - likelihood(row[tokens], [label for label in labels if label != -100], 2).log()
    expected.backward()
    assert_close(loss, expected, 1e-12, ROW)
    assert_same_gradients(gradients, named_gradients(model), 1e-12, ROW)


@pytest.mark.parametrize("blank", [0, 1, 3])
def test_the_blank_is_the_padding_token(blank):
    model, (batch, _) = build_ctc(LSTM, pad_token_id=blank), make_batch()
    features, labels = batch["input_features"][:1, :5], torch.tensor([[(blank + 1) % 4, (blank + 2) % 4]])
    outputs = model(input_features=features, labels=labels)
    expected = -likelihood(outputs.logits[0], labels[0].tolist(), blank).log() / 2
    assert_close(outputs.loss, expected, 1e-12, ROW)


@pytest.mark.parametrize("padding", PADDINGS)
def test_row_in_batch_equals_row_alone(padding):
    """Sum: the rows' losses; mean: each over its number of labels (at least 1), then averaged, as in torch."""
    for reduction, weights in (("sum", [1.0] * 5), ("mean", [0.2] * 5)):
        model, (batch, mask) = build_ctc(Case("seq_gru", "bidirectional"), ctc_loss_reduction=reduction), make_batch()
        mask = make_mask(padding)
        check_loss_is_sum_of_rows(model, batch, mask, weights, 1e-12, ROW)


def test_mean_is_over_labels_and_then_over_rows():
    batch, mask = make_batch()
    rows = [
        build_ctc(LSTM, ctc_loss_reduction="sum")(batch["input_features"][i : i + 1], mask[i : i + 1], LABELS[i][None])
        for i in range(5)
    ]
    expected = sum(row.loss / max(1, int((LABELS[i] != -100).sum())) for i, row in enumerate(rows)) / 5
    assert_close(build_ctc(LSTM)(**batch, attention_mask=mask).loss, expected, 1e-12, ROW)


@pytest.mark.parametrize("frames", [0, 2])
def test_labels_that_do_not_fit(frames):
    """ "aa" needs three frames: infinite as it is, or no loss and no gradient, the other rows as without it."""
    batch, mask = make_batch()
    mask[0] = torch.arange(8) < frames  # of LABELS[0], 1 1 3
    assert torch.isinf(build_ctc(LSTM, ctc_zero_infinity=False)(**batch, attention_mask=mask).loss)
    model = build_ctc(LSTM, ctc_loss_reduction="sum")
    loss = model(**batch, attention_mask=mask).loss
    loss.backward()
    gradients = named_gradients(model)
    others = {name: value[1:] for name, value in batch.items()}
    expected = model(**others, attention_mask=mask[1:]).loss
    expected.backward()
    assert_close(loss, expected, 1e-12, ROW)
    assert_same_gradients(gradients, named_gradients(model), 1e-12, ROW)


@each_ctc
@pytest.mark.parametrize(
    "padding", [pytest.param(p, marks=[] if p in ("mixed", "holes") else pytest.mark.slow) for p in PADDINGS]
)
def test_best_path_of_a_padded_row(case, head, padding):
    """Who decodes takes the argmax of all frames and does not look at the mask: padding spells nothing."""
    model, (batch, _) = build_ctc(case), make_batch()
    mask = make_mask(padding)
    with torch.no_grad():  # no symbol is the best everywhere; the blank is rare, under padding too
        hidden = model.model(input_features=batch["input_features"], attention_mask=mask).last_hidden_state[
            mask.bool()
        ]
        model.lm_head.bias.copy_(-model.lm_head.weight @ hidden.mean(0))
        model.lm_head.bias[2] -= 0.1
        together = model(batch["input_features"], mask).logits
    texts = set()
    for row, features, tokens in zip(together, batch["input_features"], mask.bool(), strict=True):
        alone = model(features[tokens][None]).logits[0]
        assert_close(row[tokens], alone.detach(), 1e-12, "A2 padding", "logits")
        expected = collapse(tuple(alone.argmax(-1).tolist()), 2)
        assert collapse(tuple(row.argmax(-1).tolist()), 2) == expected
        outside = torch.ones_like(tokens)
        outside[tokens.nonzero()[0, 0] : tokens.nonzero()[-1, 0] + 1] = False
        assert (row[outside].argmax(-1) == 2).all()
        texts.add(expected)
    assert torch.isfinite(together).all()
    assert len(texts) > 1 and max(map(len, texts)) > 1, "texts to tell apart"


@on_cpu
@one_each(SPEECH)
@pytest.mark.parametrize("wrong", [-1, 2, 4])
def test_labels_that_are_no_symbols(case, head, wrong):
    batch, mask = make_batch()
    batch["labels"] = torch.where(LABELS == 3, wrong, LABELS)
    message = (
        "is not a symbol of CTC but its blank" if wrong == 2 else "is outside the vocabulary of 4: use 0 to 3, −1"
    )
    with pytest.raises(ValueError, match=f"^label {wrong} {message}"):
        build_ctc(case)(**batch, attention_mask=mask)


@one_each(SPEECH)
def test_without_a_blank(case, head):
    with pytest.raises(ValueError, match="pad_token_id=None leaves no blank: set it to the tokenizer's pad_token_id"):
        build_ctc(case, pad_token_id=None)


# -- audio classification ---------------------------------------------------------------------------------------------
@each_audio
def test_audio_by_hand(case, head):
    """The mean over the frames that are none of padding, then a linear layer; −log p of the class."""
    model, (batch, mask) = build(case, head, torch.float64), make_batch()
    features, labels = batch["input_features"], torch.tensor([0, 1, 2, 0, 1])
    outputs = model(features, attention_mask=mask, labels=labels)
    losses = []
    for i, tokens in enumerate(mask.bool()):
        mean = model.model(input_features=features[i][tokens][None]).last_hidden_state[0].mean(0)
        logits = model.score.weight @ mean + model.score.bias
        assert_close(outputs.logits[i], logits, 1e-12, ROW)
        losses.append(logits.exp().sum().log() - logits[labels[i]])
    assert_close(outputs.loss, torch.stack(losses).mean(), 1e-12, ROW)
    batch = {"input_features": features, "labels": labels}
    check_loss_is_sum_of_rows(model, batch, mask, [0.2] * 5, 1e-12, ROW)


# -- with transformers ------------------------------------------------------------------------------------------------
@one_each(SPEECH)
def test_stock_trainer_trains_ctc(case, head, tmp_path):
    model = build(case, head, num_features=BINS, vocab_size=len(VOCABULARY))
    rows = make_rows(draw_texts(8, seed=5), make_extractor())
    metrics, seen = train_two_steps(model, rows, SpeechCollator(), tmp_path)
    longest = max(len(row["input_features"]) for row in rows)
    assert seen.predictions.shape == (8, longest, len(VOCABULARY))
    assert math.isfinite(metrics["eval_loss"])
    assert [[label for label in row if label != -100] for row in seen.label_ids.tolist()] == [
        row["labels"] for row in rows
    ]


@one_each(SOUNDS)
def test_stock_trainer_trains_audio_classification(case, head, tmp_path):
    model = build(case, head, num_features=BINS)
    rows = make_rows(["a", "b", "c", "ab", "bb", "ca", "a", "b"], make_extractor())
    rows = [row | {"labels": row["labels"][0] - 3} for row in rows]
    metrics, seen = train_two_steps(model, rows, SpeechCollator(), tmp_path)
    assert seen.predictions.shape == (8, 3)
    assert seen.label_ids.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    logits = torch.tensor(seen.predictions)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(seen.label_ids))
    assert metrics["eval_loss"] == pytest.approx(float(expected), rel=1e-4)


@pytest.fixture(scope="module")
def listener(tmp_path_factory):
    """A bidirectional LSTM that learned to hear three tones, saved with its tokenizer and feature extractor."""
    set_seed(0)
    folder, extractor = tmp_path_factory.mktemp("listener"), make_extractor()
    architecture = ARCHITECTURES["seq_lstm"]
    config = architecture.config(
        vocab_size=len(VOCABULARY), hidden_size=24, num_features=BINS, pad_token_id=0, bidirectional=True,
        inputs_to_logits_ratio=HOP,
    )  # fmt: skip
    model = architecture.models["ctc"](config)
    rows = make_rows(draw_texts(96, seed=1), extractor)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for step in range(60):
        batch = SpeechCollator()([rows[(step * 16 + i) % len(rows)] for i in range(16)])
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    for part in (model, extractor, make_tokenizer(folder)):
        part.save_pretrained(folder)
    return pipeline("automatic-speech-recognition", model=str(folder), device="cpu")


def test_learns_to_hear(listener):
    """No letter wrong in sounds that were not trained on, alone and in padded batches."""
    texts = draw_texts(12, seed=2)
    sounds = [say(text, seed=100 + index) for index, text in enumerate(texts)]
    spoken = [text.replace("|", " ") for text in texts]
    assert [listener(sound)["text"] for sound in sounds] == spoken
    assert [heard["text"] for heard in listener(sounds, batch_size=6)] == spoken
    assert len({len(sound) for sound in sounds}) > 1, "a batch has padding"


def test_time_stamps(listener):
    """A letter is heard while it sounds, counted in seconds by way of inputs_to_logits_ratio."""
    text, seconds, pause = "ab|ca", 0.06, 0.04
    sound = say(text, seconds, pause, seed=7)
    letters = listener(sound, return_timestamps="char")["chunks"]
    assert "".join(chunk["text"] for chunk in letters) == text.replace("|", " ")
    for index, chunk in enumerate(letters):
        start, stop = chunk["timestamp"]
        if chunk["text"] != " ":
            begins = index * (seconds + pause)
            assert begins - 0.03 <= start < stop <= begins + seconds + pause + 0.03, chunk
        assert start * RATE / HOP == pytest.approx(round(start * RATE / HOP))
    words = listener(sound, return_timestamps="word")["chunks"]
    assert [chunk["text"] for chunk in words] == ["ab", "ca"]
    assert words[0]["timestamp"] == (letters[0]["timestamp"][0], letters[1]["timestamp"][1])
    assert words[1]["timestamp"] == (letters[3]["timestamp"][0], letters[4]["timestamp"][1])


def test_audio_classification_pipeline(tmp_path):
    """Saved, loaded and asked for its scores: those of the model."""
    labels = {0: "low", 1: "middle", 2: "high"}
    names = {"id2label": labels, "label2id": {name: index for index, name in labels.items()}}
    model = build(Case("seq_gru", "bidirectional"), "audio-classification", num_features=BINS, **names).cpu()
    for part in (model, make_extractor()):
        part.save_pretrained(tmp_path)
    classify = pipeline("audio-classification", model=str(tmp_path), device="cpu")
    sounds = [say("ab"), say("cabc", seed=1)]
    for sound, batched in zip(sounds, classify(sounds, batch_size=2), strict=True):
        features = make_extractor()(sound, sampling_rate=RATE, return_tensors="pt")["input_features"]
        scores = model(features).logits[0].softmax(-1)
        for answers in (classify(sound), batched):
            found = torch.tensor([{a["label"]: a["score"] for a in answers}[labels[index]] for index in range(3)])
            torch.testing.assert_close(found, scores.detach())
    assert np.isfinite(sounds[0]).all()
