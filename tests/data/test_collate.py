from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets, load_from_disk
from torch.utils.data import DataLoader

from hf_seqmodels.data import (
    CausalLMCollator,
    FramesCollator,
    Seq2SeqCollator,
    SequenceClassificationCollator,
    content_hash,
    make_synthetic,
    window_dataset,
)


def test_pads_on_the_right_and_masks():
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [-100]}]
    batch = CausalLMCollator(pad_token_id=9)(rows)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7], [8, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[-100, 6, 7], [-100, -100, -100]],
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_unpadded_batches_have_a_mask_too():
    batch = CausalLMCollator(pad_token_id=0)([{"input_ids": [0, 1], "labels": [-100, 1]}] * 2)
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 1]]  # a token that is the pad token is still valid


def test_batches_of_windows_predict_every_token_once():
    windows = window_dataset(np.arange(1, 51), block_size=8)
    batches = list(DataLoader(windows, batch_size=3, collate_fn=CausalLMCollator(pad_token_id=0, vocab_size=51)))
    assert len(batches) == 3
    targets = torch.cat([batch["labels"][batch["labels"] != -100] for batch in batches])
    assert targets.tolist() == list(range(2, 51))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "0 rows"),
        ([{"input_ids": [1, 2]}], "2 input_ids and 0 labels"),
        ([{"input_ids": [1, 2], "labels": [1]}], "2 input_ids and 1 labels"),
        ([{"input_ids": [], "labels": []}], "0 input_ids and 0 labels"),
        ([{"input_ids": [1, 7], "labels": [-100, 7]}], r"token id 7 .* 0 to 6 \(vocab_size=7\)"),
        ([{"input_ids": [1, -1], "labels": [-100, 1]}], "token id -1 "),
    ],
)
def test_bad_batches_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        CausalLMCollator(pad_token_id=0, vocab_size=7)(rows)


def make_dataset(**changes):
    columns = {"topic": ["a", "b"], "n": [1, 2], "x": [0.5, float("nan")], "ids": [[1, 2], []], "raw": [b"\xff", b""]}
    return Dataset.from_dict(columns | changes)


def test_hash_depends_on_the_contents_only(tmp_path):
    data = make_dataset()
    data.save_to_disk(str(tmp_path / "saved"))
    same = [
        make_dataset(),
        load_from_disk(str(tmp_path / "saved")),
        data.select_columns(["raw", "ids", "x", "n", "topic"]),
        data.select([1, 0]).select([1, 0]),
        concatenate_datasets([data.select([0]), data.select([1])]),
        data.with_format("numpy"),
    ]
    assert {content_hash(other) for other in same} == {content_hash(data)}
    assert len({other._fingerprint for other in same}) > 1  # what it would be otherwise


def test_hash_tells_contents_apart():
    data = make_dataset()
    different = [
        data,
        make_dataset(n=[1, 3]),
        make_dataset(ids=[[1], [2]]),
        make_dataset(raw=[b"\xfe", b""]),
        data.select([1, 0]),
        data.select([0]),
        data.rename_column("n", "m"),
        data.remove_columns("n"),
        DatasetDict(train=data, test=data),
        DatasetDict(train=data, validation=data),
        DatasetDict(train=data),
    ]
    hashes = sorted(content_hash(other) for other in different)
    assert all(first != second for first, second in pairwise(hashes))
    assert all(len(value) == 64 for value in hashes)


def test_hash_of_splits_ignores_their_order():
    data = make_dataset()
    one, two = data.select([0]), data.select([1])
    assert content_hash(DatasetDict(train=one, test=two)) == content_hash(DatasetDict(test=two, train=one))
    assert content_hash(DatasetDict(train=one, test=two)) != content_hash(DatasetDict(train=two, test=one))


def test_hash_of_a_stream_is_refused():
    with pytest.raises(TypeError, match="cannot hash a IterableDataset"):
        content_hash(make_dataset().to_iterable_dataset())


def test_source_and_target_are_padded_apart():
    rows = [{"input_ids": [5, 6, 7], "labels": [8]}, {"input_ids": [5], "labels": [6, 7, 2]}]
    batch = Seq2SeqCollator(pad_token_id=0)(rows)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7], [5, 0, 0]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "labels": [[8, -100, -100], [6, 7, 2]],
    }


def test_one_class_for_each_row():
    batch = SequenceClassificationCollator(pad_token_id=9)(
        [{"input_ids": [5, 6], "labels": 1}, {"input_ids": [7], "labels": 0}]
    )
    assert batch["labels"].tolist() == [1, 0] and batch["input_ids"].tolist() == [[5, 6], [7, 9]]


@pytest.mark.parametrize(
    ("collator", "row", "message"),
    [
        (Seq2SeqCollator, {"input_ids": [], "labels": [1]}, "no source or no target"),
        (Seq2SeqCollator, {"input_ids": [1], "labels": []}, "no source or no target"),
        (Seq2SeqCollator, {"input_ids": [11], "labels": [1]}, "token id 11 is outside the vocabulary"),
        (SequenceClassificationCollator, {"input_ids": [], "labels": 1}, "no input_ids"),
    ],
)
def test_other_bad_rows_are_refused(collator, row, message):
    with pytest.raises(ValueError, match=message):
        collator(pad_token_id=0, vocab_size=10)([row])


def test_frames_for_models_of_pictures_and_of_series():
    frames = make_synthetic("moving_squares", 10, length=3)[0]["train"]
    pictures = FramesCollator("pixel_values")([frames[0], frames[1]])
    series = FramesCollator("past_values")([frames[0], frames[1]])
    assert {name: tuple(tensor.shape) for name, tensor in pictures.items()} == {
        "pixel_values": (2, 3, 1, 16, 16),
        "future_values": (2, 3, 1, 16, 16),
    }
    assert torch.equal(series["past_values"], pictures["pixel_values"].flatten(2))
    assert torch.equal(series["future_values"], pictures["future_values"].flatten(2))
    whole = torch.as_tensor(frames[1]["frames"]).view(6, 1, 16, 16)
    assert torch.equal(torch.cat([pictures["pixel_values"][1], pictures["future_values"][1]]), whole)
