"""The comparison of two processes with one, at toy size: the same batches, the same losses, a readable record."""

from __future__ import annotations

import json

import pytest

from hf_seqmodels.evaluation.scaling import REACH, Setting, launch, main, make_text, measure, table

TINY = Setting(hidden_size=8, vocab_size=60, block_size=6, batch=4, steps=8)


def test_text_has_a_full_batch_for_every_step_and_something_to_learn():
    rows = make_text(TINY)
    assert len(rows) == TINY.steps * TINY.batch and {len(ids) for ids in rows["input_ids"]} == {TINY.block_size + 1}
    assert max(max(ids) for ids in rows["input_ids"]) < TINY.vocab_size and min(min(i) for i in rows["input_ids"]) > 0
    assert all(ids[1] == 1 + (ids[0] * 7) % 59 for ids in rows["input_ids"])  # a block is even: windows begin alike


@pytest.mark.slow
def test_two_processes_are_compared_with_one():
    result = measure(TINY, repetitions=1)
    assert set(result["runs"]) == {"1 x 4", "2 x 2"} and result["reach"] == REACH
    one, two = result["runs"].values()
    assert (one["wrapper"], two["wrapper"], two["backend"]) == ("none", "DistributedDataParallel", "gloo")
    assert one["batch_order"] == two["batch_order"] and len(one["losses"]) == len(two["losses"]) == TINY.steps
    assert 0 <= result["loss_difference"] <= 1e-5
    assert result["ratio"] == pytest.approx(two["median"] / one["median"], abs=1e-3)
    assert f"ratio {result['ratio']:.2f}" in table(result)
    json.dumps(result, allow_nan=False)
    with pytest.raises(RuntimeError, match="1 processes failed"):
        launch(1, Setting(batch=0, steps=5))


def test_too_few_steps_are_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(tmp_path / "x.json"), "--steps", "3"])
    assert "leaves nothing to measure" in capsys.readouterr().err
