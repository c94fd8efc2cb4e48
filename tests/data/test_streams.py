"""Streams: every token a target once, windows that go on where the last one ended, documents kept apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_seqmodels.data import StreamCollator, StreamDataset

STREAM = np.arange(100, 203)  # 102 targets


def rows_of(dataset: StreamDataset, epoch: int = 0) -> list[list[tuple[np.ndarray, np.ndarray, bool]]]:
    """For each row its windows of an epoch: inputs, targets, starts."""
    items = [dataset[(epoch, number)] for number in range(len(dataset))]
    windows = [(item["input_ids"], item["shift_labels"], item["starts"]) for item in items]
    return [windows[row :: dataset.rows] for row in range(dataset.rows)]


@pytest.mark.parametrize("rows", [1, 4, 7])
@pytest.mark.parametrize("random_lengths", [False, True])
def test_every_token_after_the_first_is_a_target_once(rows, random_lengths):
    dataset = StreamDataset(STREAM, rows, 9, random_lengths)
    for epoch in (0, 1):
        found = rows_of(dataset, epoch)
        targets = np.concatenate([np.concatenate([target for _, target, _ in row]) for row in found])
        assert targets.tolist() == STREAM[1:].tolist()
        for row in found:
            inputs = np.concatenate([ids for ids, _, _ in row])
            assert (inputs + 1).tolist() == np.concatenate([target for _, target, _ in row]).tolist()
            assert [starts for _, _, starts in row] == [True] + [False] * (dataset.num_windows - 1)
    assert dataset.num_targets == 102


def test_rows_differ_by_one_step_and_windows_have_the_asked_length():
    dataset = StreamDataset(STREAM, 4, 9)
    lengths = [[len(ids) for ids, _, _ in row] for row in rows_of(dataset)]
    assert lengths == [[9, 9, 8], [9, 9, 8], [9, 9, 7], [9, 9, 7]]
    assert len(dataset) == 12 and dataset[0]["input_ids"].dtype == np.int64
    with pytest.raises(IndexError):
        dataset[12]


def test_random_lengths_are_those_of_the_paper_and_come_in_another_order_each_epoch():
    dataset = StreamDataset(np.arange(70 * 4000), 2, 70, random_lengths=True, seed=3)
    lengths = np.diff(dataset.cuts(0))
    assert sorted(lengths) == sorted(np.diff(dataset.cuts(1))) and (lengths != np.diff(dataset.cuts(1))).any()
    assert lengths.min() >= 1 and sorted(lengths)[1] >= 5
    long, short = lengths[lengths > 52], lengths[lengths <= 52]
    assert 0.03 < len(short) / len(lengths) < 0.075
    assert abs(long.mean() - 70) < 0.7 and abs(short.mean() - 35) < 2.5 and abs(long.std() - 5) < 0.5
    cuts = [StreamDataset(STREAM, 2, 9, True, seed=seed).cuts(0).tolist() for seed in (1, 1, 2)]
    assert cuts[0] == cuts[1] != cuts[2]


def test_the_longest_window_is_known():
    def found(dataset):
        return max(len(ids) for epoch in (0, 1) for row in rows_of(dataset, epoch) for ids, _, _ in row)

    drawn = StreamDataset(np.arange(4000), 3, 30, random_lengths=True)
    assert drawn.longest == found(drawn) > 30
    assert StreamDataset(STREAM, 4, 9).longest == 9 and StreamDataset(STREAM, 4, 90).longest == 26
    parted = StreamDataset(STREAM, 2, 90, documents=DOCUMENTS, start_id=1)
    assert parted.longest == found(parted) == 35


def test_a_stream_shorter_than_the_batch_is_refused():
    with pytest.raises(ValueError, match=r"4 tokens is too short for 5 rows.*at most 3"):
        StreamDataset(np.arange(4), 5, 9)


# ---- documents --------------------------------------------------------------------------------------------------

DOCUMENTS = [0, 10, 13, 40, 41, 60, 95]


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
def test_no_window_holds_two_documents(rows):
    dataset = StreamDataset(STREAM, rows, 8, documents=DOCUMENTS, start_id=1)
    found = rows_of(dataset)
    ends = [*DOCUMENTS[1:], len(STREAM)]
    seen: list[int] = []
    for row in found:
        assert row[0][2] and any(len(ids) for ids, _, _ in row)
        for ids, targets, starts in row:
            if not len(ids):
                continue
            place = int(targets[0]) - 100
            document = np.searchsorted(DOCUMENTS, place, side="right") - 1
            assert starts == (place in DOCUMENTS) and len(ids) <= 8
            assert ids.tolist() == [1 if starts else place + 99, *targets[:-1].tolist()]
            assert int(targets[-1]) - 100 < ends[document], "the window ends with its document"
            seen += targets.tolist()
    assert seen == STREAM.tolist(), "every token once, the first of each document too"
    assert dataset.num_targets == len(STREAM)


def test_rows_of_documents_are_about_as_long():
    starts = np.arange(0, 5000, 7)
    dataset = StreamDataset(np.arange(5000), 4, 7, documents=starts, start_id=0)
    filled = [sum(bool(len(ids)) for ids, _, _ in row) for row in rows_of(dataset)]
    assert max(filled) - min(filled) <= 2 and sum(filled) == len(starts)


def test_documents_that_cannot_fill_the_rows_are_refused():
    with pytest.raises(ValueError, match="2 documents are too few for 3 rows"):
        StreamDataset(STREAM, 3, 8, documents=[0, 50], start_id=1)
    with pytest.raises(ValueError, match="start_id"):
        StreamDataset(STREAM, 3, 8, documents=[0, 50])
    with pytest.raises(ValueError, match="documents"):
        StreamDataset(STREAM, 1, 8, random_lengths=True, documents=[0, 50], start_id=1)


# ---- batches ----------------------------------------------------------------------------------------------------


def test_collator_pads_and_marks():
    dataset = StreamDataset(STREAM - 100, 4, 9)
    batch = StreamCollator(0, 200)([dataset[8 + row] for row in range(4)])
    assert batch["input_ids"].shape == batch["shift_labels"].shape == (4, 8)
    assert batch["attention_mask"].sum(1).tolist() == [8, 8, 7, 7]
    assert batch["shift_labels"][2].tolist() == [*range(71, 78), -100] and not batch["starts"].any()
    assert torch.equal(batch["labels"], batch["shift_labels"])
    nothing = {"input_ids": np.empty(0, np.int64), "shift_labels": np.empty(0, np.int64), "starts": True}
    batch = StreamCollator(0, 200)([dataset[0], nothing])
    assert batch["attention_mask"][1].sum() == 0 and batch["starts"].tolist() == [True, True]
    batch = StreamCollator(3, 200)([nothing, nothing])
    assert batch["input_ids"].tolist() == [[3], [3]] and batch["attention_mask"].tolist() == [[0], [0]]
    assert batch["labels"].tolist() == batch["shift_labels"].tolist() == [[-100], [-100]]
    with pytest.raises(ValueError, match="outside the vocabulary"):
        StreamCollator(0, 5)([dataset[0]])
