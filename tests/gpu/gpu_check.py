"""What only a GPU can show, in at most 8 minutes: `make gpu-check`, or

    python tests/gpu/gpu_check.py [--out results/gpu_check.txt]

Runs tests/gpu, then the contract tests on the GPU as far as the time goes; writes the report that is committed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent.parent
MINUTES = 8
CONTRACT = ["slow_twin", "padding", "carried_state", "generation", "precision"]


def describe() -> str:
    """The machine and the versions, by which the report is named and judged."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate"))
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"{', '.join(names)}; CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}; {versions}"


def run(title: str, arguments: list[str], seconds: float, **environment: str) -> tuple[int, str]:
    """One pytest run, its time limit in seconds; the exit status and a paragraph for the report."""
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1", **environment}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--durations=3", *arguments]
    start = time.monotonic()
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=seconds, check=False)
        status, text = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as expired:
        status, text = 124, (expired.stdout or b"").decode() + f"\nstopped after {seconds:.0f} s: NOT FINISHED"
    tail = "\n".join(text.splitlines()[-60:])
    return status, f"== {title}: exit status {status}, {time.monotonic() - start:.0f} s\n{tail}\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu_check.txt")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("SKIPPED: no CUDA device here; run it on a GPU machine")
        return 0
    deadline = time.monotonic() + 60 * MINUTES
    status, first = run("tests/gpu", ["tests/gpu", "-m", "gpu"], 60 * MINUTES)
    files = [f"tests/contract/test_{name}.py" for name in CONTRACT]
    spread = ["-n", "4"] if importlib.util.find_spec("xdist") else []
    left = max(30.0, deadline - time.monotonic())
    contract_status, second = run(
        "contract tests on CUDA", [*files, "-m", "not slow", *spread], left, HF_SEQMODELS_TEST_DEVICE="cuda"
    )
    report = f"{describe()}\n\n{first}\n{second}"
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(report)
    print(report)
    return status or contract_status


if __name__ == "__main__":
    sys.exit(main())
