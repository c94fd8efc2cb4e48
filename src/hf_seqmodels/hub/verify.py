"""Check a saved folder the way a stranger would use it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

STRANGER = Path(__file__).with_name("stranger.py")
SECONDS = 300  # for imports, loading and a line of text


class VerificationError(RuntimeError):
    """A saved model does not load, or does not compute the same, without this package."""


def verify_as_stranger(
    folder: Path, input_ids: torch.Tensor, logits: torch.Tensor, prompt: str, tolerance: float = 1e-5
) -> dict[str, Any]:
    """Load `folder` with `trust_remote_code=True` in a fresh process that cannot import this package.

    Args:
        folder: what `save_pretrained` wrote, with a tokenizer.
        input_ids (1, T), logits (1, T, V): an input and what the model computes for it here.
        prompt: where the text-generation pipeline starts.
        tolerance: largest difference of logits that passes.

    Returns:
        `max_difference` and the `generated` text.

    Raises:
        VerificationError: loading failed, the logits differ, or the package was imported after all.
    """
    with tempfile.TemporaryDirectory() as scratch:
        golden = Path(scratch, "golden.safetensors")
        save_file({"input_ids": input_ids, "logits": logits.float().contiguous()}, golden)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(scratch, "modules"))}
        command = [sys.executable, "-I", str(STRANGER), str(folder.resolve()), str(golden), prompt]
        options: dict[str, Any] = {"cwd": scratch, "env": environment, "stdin": subprocess.DEVNULL}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, **options)
        except subprocess.TimeoutExpired:
            raise VerificationError(f"{folder} did not load and answer in a fresh process in {SECONDS} s") from None
    if done.returncode != 0:
        raise VerificationError(f"{folder} does not load in a fresh process:\n{done.stderr[-2000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    if answer.pop("imported_package"):
        raise VerificationError(f"{folder} needs the package hf_seqmodels, which a stranger does not have")
    if not answer["max_difference"] <= tolerance:
        raise VerificationError(
            f"{folder}: logits differ by {answer['max_difference']:.2e} in a fresh process, more than {tolerance:.0e}"
        )
    return answer
