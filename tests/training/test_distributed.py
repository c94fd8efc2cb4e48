"""Two processes train what one trains: the same batches, losses, gradients and evaluation (A16, A17)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from ragged_training import train

SCRIPT = Path(__file__).with_name("ragged_training.py")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def launch(processes: int, script: Path, *argv: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a script under torchrun on a free port, with the package of this checkout."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command += ["--master_port", str(free_port()), str(script), *argv]
    source = str(SCRIPT.parents[2] / "src")
    environment = {**os.environ, "PYTHONPATH": source, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def two_processes(tmp_path: Path, model_type: str, batch: int, accumulation: int) -> dict:
    out = tmp_path / "record.json"
    done = launch(2, SCRIPT, str(out), model_type, str(batch), str(accumulation))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def assert_same_training(record: dict, alone: dict) -> None:
    assert record["batch_order"] == alone["batch_order"] and record["targets"] == alone["targets"]
    for name in ("losses", "grad_norms", "evaluation"):
        assert record[name] == pytest.approx(alone[name], rel=1e-5, abs=0)
    assert record["weights"] == pytest.approx(alone["weights"], rel=1e-5, abs=0)


def test_two_processes_are_one_with_twice_the_batch(tmp_path):
    """21 ragged rows and batches of 8: the last batch has 5 rows, 4 and 1 on two processes."""
    alone = train("seq_gru", 8, 1, 21, str(tmp_path))
    assert len(alone["losses"]) == 6
    record = two_processes(tmp_path, "seq_gru", 4, 1)
    assert (record["world_size"], record["wrapper"]) == (2, "DistributedDataParallel")
    assert_same_training(record, alone)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["gpt2", "seq_lstm"])
def test_two_processes_that_accumulate(tmp_path, model_type):
    assert_same_training(two_processes(tmp_path, model_type, 2, 2), train(model_type, 8, 1, 21, str(tmp_path)))


@pytest.mark.slow
def test_train_py_on_two_processes(tmp_path):
    text = "the quick brown fox jumps over the lazy dog. "
    argv = ["--model_type", "seq_lstm", "--hidden_size", "8", "--block_size", "16", "--max_steps", "2"]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text(text * 40 + split)
        argv += [f"--{split}_file", str(tmp_path / f"{split}.txt")]
    argv += ["--output_dir", str(tmp_path / "out")]
    train_py = SCRIPT.parents[2] / "train.py"
    done = launch(2, train_py, *argv)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("training on 2 processes, wrapper DistributedDataParallel, device cpu") == 1
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (record["world_size"], record["backend"], record["steps"]) == (2, "gloo", 2)

    done = launch(2, train_py, *argv, "--overwrite", "--expect_processes", "3")
    assert done.returncode != 0 and "3 processes were asked for and training would run on 2" in done.stderr
