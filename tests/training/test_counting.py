"""Targets that are no labels of tokens (steps, pixels, rows): any division of a batch has one mean (A16)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from counted_training import KINDS, build_trainer, train
from test_distributed import launch


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_changes_nothing(tmp_path, kind):
    """Ten ragged rows in batches of 4 and of 2 × 2; the last step of an epoch has 2 rows."""
    whole, parts = (train(kind, batch, k, str(tmp_path)) for batch, k in ((4, 1), (2, 2)))
    assert parts == pytest.approx(whole, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_loss_is_the_mean_over_targets(tmp_path, kind):
    """Batches of 4, 4 and 2 rows with other numbers of targets give the loss of one batch of all, and no bits."""
    trainer, rows = build_trainer(kind, 4, 1, str(tmp_path))
    found = trainer.evaluate()
    inputs = trainer.data_collator(rows)
    with torch.no_grad():
        expected = trainer.model.eval()(**inputs).loss.item()
    assert found["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert "eval_bits_per_token" not in found


@pytest.mark.parametrize("kind", ["series", "class ids"])
def test_targets_are_counted(tmp_path, kind):
    trainer, rows = build_trainer(kind, 2, 2, str(tmp_path))
    trainer.train()
    if kind == "series":
        count = sum(int(row["past_observed_mask"].sum() + row["future_observed_mask"].sum()) for row in rows)
    else:
        count = sum(row["labels"] != -100 for row in rows)
    assert trainer.record()["targets"] == 2 * count


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    """Eight ragged series in two steps an epoch; but for the evaluation, which is then a mean over batches."""
    alone, out = train("series", 4, 1, str(tmp_path), count=8), tmp_path / "numbers.json"
    done = launch(2, Path(__file__).with_name("counted_training.py"), str(out), "series", "2", "1", "8")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(out.read_text())[:-1] == pytest.approx(alone[:-1], rel=1e-5, abs=1e-7)
