"""Out of memory: smaller micro-batches, the same effective batch, from the initial state (B12)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from micro_batch_training import arguments, little_memory, write_texts
from safetensors.torch import load_file
from test_distributed import launch

from hf_seqmodels.arguments import ConfigError
from hf_seqmodels.config import parse
from hf_seqmodels.run import run
from hf_seqmodels.training.micro_batch import is_out_of_memory, smaller

AUTO = ["--auto_micro_batch", "true"]
STREAMS = ["--windows", "streams", "--carry_state", "true"]


def train(folder: Path, out: str, batch: int, accumulation: int, *more: str) -> dict:
    return run(parse(arguments(folder, out, batch, accumulation, *write_texts(folder), *more)), quiet=True)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_run(folder: Path, one: str, other: str) -> None:
    """Weight for weight, batch for batch, line for line."""
    records = [json.loads((folder / out / "result.json").read_text()) for out in (one, other)]
    for entry in ("batch_order", "steps", "curve", "metrics", "targets"):
        assert records[0][entry] == records[1][entry], entry
    expected = weights(folder / other)
    assert all(weight.equal(expected[name]) for name, weight in weights(folder / one).items())
    lines = [(folder / out / "log.jsonl").read_text().splitlines() for out in (one, other)]
    assert [json.loads(line)["step"] for line in lines[0]] == [json.loads(line)["step"] for line in lines[1]]


def test_sizes():
    assert [smaller(*sizes) for sizes in [(20, 1), (10, 2), (5, 4), (7, 1), (9, 2), (2, 3)]] == [
        *[(10, 2), (5, 4), (1, 20), (1, 7), (3, 6), (1, 6)]
    ]
    with pytest.raises(ConfigError, match="micro-batch of 1"):
        smaller(1, 8)


def test_errors_that_mean_memory():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory."))


@pytest.mark.parametrize("more", [[], STREAMS], ids=["windows", "streams"])
@pytest.mark.parametrize("late", [False, True], ids=["forward", "backward"])
def test_a_run_that_had_to_try_is_the_run_with_what_it_found(tmp_path, late, more):
    with little_memory(3, late=late):
        record = train(tmp_path, "auto", 12, 1, *AUTO, *more)
    assert record["micro_batch"]["asked"] == {"batch": 12, "accumulation": 1}
    assert record["micro_batch"]["used"] == {"batch": 3, "accumulation": 4}
    assert [(failure["batch"], failure["step"]) for failure in record["micro_batch"]["failures"]] == [(12, 1), (6, 1)]
    assert "DefaultCPUAllocator" in record["micro_batch"]["failures"][0]["reason"]
    train(tmp_path, "clean", 3, 4, *more)
    assert_same_run(tmp_path, "auto", "clean")
    whole = train(tmp_path, "whole", 12, 1, *AUTO, *more)  # with enough memory: one batch, and the same effective one
    assert "micro_batch" not in whole
    assert (whole["batch_order"], whole["steps"]) == (record["batch_order"], record["steps"])


def test_memory_that_runs_out_late_leaves_nothing_of_the_attempt(tmp_path):
    """The longest batch may come in the middle: checkpoints and log of the steps before it are not the run's."""
    saving = ["--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "9"]
    saving += ["--eval_strategy", "no", "--load_best_model_at_end", "false"]
    with little_memory(2, first=4):
        record = train(tmp_path, "auto", 4, 1, *AUTO, *saving)
    assert [(failure["batch"], failure["step"]) for failure in record["micro_batch"]["failures"]] == [(4, 5)]
    train(tmp_path, "clean", 2, 2, *saving)
    assert_same_run(tmp_path, "auto", "clean")


def test_what_cannot_be_mended_is_said(tmp_path):
    with little_memory(0), pytest.raises(ConfigError, match="micro-batch of 1"):
        train(tmp_path, "one", 2, 1, *AUTO)
    with little_memory(1), pytest.raises(RuntimeError, match="can't allocate memory"):
        train(tmp_path, "not_asked", 2, 1)
    with pytest.raises(ConfigError, match=r"auto_find_batch_size=True is not supported.*--auto_micro_batch true"):
        parse(arguments(tmp_path, "theirs", 2, 1, "--auto_find_batch_size", "true"))


def test_a_resumed_run_begins_with_what_was_found(tmp_path):
    steps = ["--save_strategy", "steps", "--save_steps", "2", "--eval_strategy", "no"]
    steps += ["--load_best_model_at_end", "false", "--max_steps", "4", "--lr_scheduler_type", "constant"]
    train(tmp_path, "whole", 2, 2, *steps)
    with little_memory(2):
        train(tmp_path, "auto", 4, 1, *AUTO, *steps[:-4], "--max_steps", "2", *steps[-2:])
        record = train(tmp_path, "auto", 4, 1, *AUTO, *steps, "--resume", "true")
    assert record["resumed_at_step"] == 2
    assert record["micro_batch"] == {
        "asked": {"batch": 4, "accumulation": 1},
        "used": {"batch": 2, "accumulation": 2},
        "failures": [],
    }
    expected = weights(tmp_path / "whole")
    assert all(weight.equal(expected[name]) for name, weight in weights(tmp_path / "auto").items())
    more = [argument if argument != "4" else "6" for argument in steps]
    with little_memory(1), pytest.raises(ConfigError, match=r"resumed at step 4.*--per_device_train_batch_size 1 "):
        train(tmp_path, "auto", 4, 1, *AUTO, *more, "--resume", "true")


@pytest.mark.slow
def test_all_processes_try_again_when_one_runs_out(tmp_path):
    """The second process fails in its backward pass; the first would wait for its gradients for ever."""
    script, texts = Path(__file__).with_name("micro_batch_training.py"), write_texts(tmp_path)
    for out, limit, sizes, auto in (("auto", "2", (8, 1), AUTO), ("clean", "99", (2, 4), [])):
        done = launch(2, script, limit, "late", "1", *arguments(tmp_path, out, *sizes, *texts, *auto))
        assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "auto" / "result.json").read_text())
    assert (record["world_size"], record["micro_batch"]["used"]) == (2, {"batch": 2, "accumulation": 4})
    assert [failure["reason"] for failure in record["micro_batch"]["failures"]] == [
        *["another process ran out of memory"] * 2
    ]
    clean = json.loads((tmp_path / "clean" / "result.json").read_text())
    assert (record["batch_order"], record["steps"]) == (clean["batch_order"], clean["steps"])
    expected = weights(tmp_path / "clean")
    for name, weight in weights(tmp_path / "auto").items():
        assert (weight - expected[name]).abs().max() <= 1e-6, name
