"""Training under `accelerate launch` and torchrun, on one GPU with NCCL, and on two where two exist."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_helpers import needs_cuda, needs_two

pytestmark = needs_cuda

SCRIPT = Path(__file__).with_name("launched.py")
OPTIONS = "--num_machines 1 --mixed_precision no --dynamo_backend no"
PLAIN = ["-m", "accelerate.commands.launch", *OPTIONS.split()]
ONE = [*PLAIN, "--num_processes", "1"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def launch(how: list[str], folder: Path, per_device: int, devices: str = "0") -> dict:
    done = subprocess.run(
        [sys.executable, *how, str(SCRIPT), str(folder), str(per_device)],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": devices, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "contiguous chunk" not in done.stderr
    (record,) = [line.removeprefix("RECORD ") for line in done.stdout.splitlines() if line.startswith("RECORD ")]
    assert (folder / "model.safetensors").exists() and (folder / "modeling_lstm.py").exists()
    return json.loads(record)


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict:
    return launch(ONE, tmp_path_factory.mktemp("alone"), 4)


def test_accelerate_launch_on_one_gpu(alone):
    assert alone["processes"] == 1
    assert alone["device"].startswith("cuda")
    assert alone["losses"][-1] < alone["losses"][0]


def test_one_gpu_with_nccl(alone, tmp_path):
    record = launch([*TORCHRUN, "1"], tmp_path, 4)
    assert (record["processes"], record["backend"]) == (1, "nccl")
    assert record["losses"] == pytest.approx(alone["losses"], rel=1e-5)


@needs_two
@pytest.mark.parametrize(
    "how", [[*PLAIN, "--multi_gpu", "--num_processes", "2"], [*TORCHRUN, "2"]], ids=["accelerate", "torchrun"]
)
def test_two_gpus_give_the_losses_of_one(how, alone, tmp_path):
    """A17 on GPUs: 2 processes of 2 rows are one process of 4 rows, with ragged labels."""
    record = launch(how, tmp_path, 2, devices="0,1")
    assert (record["processes"], record["backend"]) == (2, "nccl")
    assert record["wrapper"] == "DistributedDataParallel"
    assert record["losses"] == pytest.approx(alone["losses"], rel=1e-5)
