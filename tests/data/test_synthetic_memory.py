"""Adding problem and copy memory as Bai, Kolter & Koltun 2018 set them: each definition once more, and the guesses."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hf_seqmodels.data import FeaturesCollator, TokenCollator, chance_level, content_hash, make_synthetic
from hf_seqmodels.scores import copied_scores, number, regression_scores


def series(number_of_rows: int, length: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Series (N, T, 2) and sums (N,) of the training split."""
    train = make_synthetic("adding", number_of_rows, length, seed)[0]["train"]
    return train[:]["input_features"].reshape(len(train), length, 2), np.asarray(train["labels"])


def test_adding_sums_the_two_marked_numbers():
    values, sums = series(2000, 60)
    assert values.shape == (2000, 60, 2) and values.dtype == sums.dtype == np.float32
    assert set(np.unique(values[..., 1])) == {0.0, 1.0} and (values[..., 1].sum(1) == 2).all()
    np.testing.assert_allclose(sums, (values[..., 0] * values[..., 1]).sum(1), rtol=1e-6)
    drawn = values[..., 0]
    assert drawn.min() >= 0 and drawn.max() < 1 and np.histogram(drawn, 10)[0].min() > 0.95 * drawn.size / 10


def test_adding_marks_any_two_steps_equally_often():
    """Any two, as in Bai's code, not one in each half: of 6 steps both lie in one half in 2 rows of 5."""
    values, _ = series(10_000, 6)
    steps = np.argwhere(values[..., 1] == 1)[:, 1].reshape(-1, 2)
    pairs, counts = np.unique(steps, axis=0, return_counts=True)
    assert len(pairs) == 15 and counts.min() > 0.85 * 10_000 / 15 and counts.max() < 1.15 * 10_000 / 15
    assert np.mean((steps < 3).all(1) | (steps >= 3).all(1)) == pytest.approx(2 / 5, abs=0.02)


def test_copy_memory_step_by_step():
    splits, tokenizer = make_synthetic("copy_memory", 300, length=30)
    drawn = []
    for row in splits["train"]:
        seen = list(map(int, tokenizer.convert_ids_to_tokens(row["input_ids"])))
        wanted = row["labels"].tolist()
        assert len(seen) == len(wanted) == 30 + 20
        assert seen[10:] == [0] * 29 + [9] * 11
        assert wanted == [0] * 40 + seen[:10]
        drawn += seen[:10]
    symbols, counts = np.unique(drawn, return_counts=True)
    assert symbols.tolist() == [*range(1, 9)] and counts.min() > 0.8 * 3000 / 8
    defaults = make_synthetic("copy_memory", 10)[0]["train"], make_synthetic("adding", 10)[0]["train"]
    assert [len(rows[0][name]) for rows, name in zip(defaults, ("labels", "input_features"), strict=True)] == [
        1020,
        1200,
    ]


# ---- guesses ----------------------------------------------------------------------------------------------------


def test_saying_one_is_as_wrong_as_stated():
    splits, _ = make_synthetic("adding", 20_000, length=4)
    assert chance_level("adding", splits["test"]) == pytest.approx(1 / 6, abs=0.01)
    ones = EvalPrediction(predictions=np.ones(2000, np.float32), label_ids=np.asarray(splits["test"]["labels"]))
    assert regression_scores(ones)["mse"] == pytest.approx(chance_level("adding", splits["test"]), rel=1e-5)


def test_knowing_all_but_the_symbols_costs_what_is_stated():
    rows = make_synthetic("copy_memory", 20, length=1000)[0]["test"]
    labels = torch.tensor(np.stack(list(rows["labels"])), dtype=torch.long)
    scores = torch.full((*labels.shape, 10), -1e9)
    scores[:, :-10, 0] = 0
    scores[:, -10:, 1:9] = 0
    loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten()).item()
    assert loss == pytest.approx(chance_level("copy_memory", rows), rel=1e-5) == pytest.approx(0.020387, abs=1e-6)
    assert chance_level("copy_memory", rows) == pytest.approx(10 * math.log(8) / 1020)


def test_scores_of_copies_leave_the_blanks_out():
    labels = np.zeros((2, 30), dtype=int)
    labels[:, -10:] = 5
    predicted = labels.copy()
    predicted[0, -4:] = 0
    predicted[1, :10] = 7
    found = copied_scores(EvalPrediction(predictions=predicted, label_ids=labels))
    assert found == {"accuracy": 16 / 20, "exact_match": 1 / 2}


# ---- how they are kept ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "column"), [("adding", "input_features"), ("copy_memory", "input_ids")])
def test_the_first_examples_do_not_depend_on_how_many_are_made(name, column):
    few, many = (make_synthetic(name, count, length=12)[0] for count in (30, 2500))
    for split, rows in few.items():
        assert np.array_equal(rows[:][column], many[split][: len(rows)][column])
    assert {split: len(rows) for split, rows in many.items()} == {"train": 2500, "validation": 250, "test": 250}


@pytest.mark.slow
def test_fifty_thousand_long_series_take_seconds_and_little_room():
    start = time.process_time()
    train = make_synthetic("adding", 50_000)[0]["train"]
    assert time.process_time() - start < 30
    assert train.data.nbytes == 50_000 * (2 * 600 + 1) * 4, "32 bits a number"
    start = time.process_time()
    for first in range(0, 320, 32):
        FeaturesCollator(2)(train.__getitems__([*range(first, first + 32)]))
    assert (time.process_time() - start) / 10 < 0.05


def test_hash_of_numbers_sees_values_order_and_shape():
    splits, _ = make_synthetic("adding", 40, length=6)
    train = splits["train"]
    found = content_hash(train)
    assert content_hash(train.select(range(40))) == found == content_hash(train.with_format("torch"))
    assert content_hash(train.select([1, 0, *range(2, 40)])) != found
    assert content_hash(train.rename_column("input_features", "features")) != found
    altered = train.map(
        lambda row: {"input_features": row["input_features"] + np.float32(1e-6)}, features=train.features
    )
    assert content_hash(altered) != found
    assert content_hash(make_synthetic("adding", 20, length=12)[0]["train"]) != found


# ---- batches ----------------------------------------------------------------------------------------------------


def test_batches():
    rows = make_synthetic("adding", 10, length=7)[0]["train"]
    batch = FeaturesCollator(2)(list(rows))
    assert batch["input_features"].shape == (10, 7, 2) and batch["labels"].shape == (10,)
    assert batch["input_features"].dtype == batch["labels"].dtype == torch.float32
    marked = (batch["input_features"][..., 0] * batch["input_features"][..., 1]).sum(1)
    torch.testing.assert_close(marked, batch["labels"])
    splits, tokenizer = make_synthetic("copy_memory", 10, length=7)
    batch = TokenCollator(tokenizer.pad_token_id, len(tokenizer))(list(splits["train"]))
    assert batch["input_ids"].shape == batch["labels"].shape == (10, 27) and batch["attention_mask"].all()
    assert number(torch.tensor([[1.0], [2.0]]), None).tolist() == [1.0, 2.0]


def test_bad_features_are_refused():
    collate = FeaturesCollator(2)
    with pytest.raises(ValueError, match=r"^a batch of 0 rows"):
        collate([])
    for lengths in ((4, 6), (3, 3)):
        rows = [{"input_features": np.zeros(length), "labels": 0.0} for length in lengths]
        with pytest.raises(
            ValueError, match=r"^input_features must be equally many in every row, and 2 for each step"
        ):
            collate(rows)
    with pytest.raises(ValueError, match=r"^length=1 leaves no room for 2 marked numbers"):
        make_synthetic("adding", 10, length=1)
