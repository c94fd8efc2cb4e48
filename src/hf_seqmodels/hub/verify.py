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

from .golden import GOLDEN, tolerance_of

STRANGER = Path(__file__).with_name("stranger.py")
SECONDS = 300  # for imports, loading and a line of text


class VerificationError(RuntimeError):
    """A saved model does not load, or does not compute the same, without this package."""


def verify_as_stranger(
    folder: Path, prompt: str = "", tolerance: float | None = None, with_package: bool = False
) -> dict[str, Any]:
    """Load `folder` in a fresh process, compare with its golden scores, save it there and load that again.

    Args:
        folder: what `save_pretrained` wrote, with `golden.safetensors` (see `golden.write_golden`).
        prompt: where the text-generation pipeline starts; empty: no text is written. Needs a tokenizer in the folder.
        tolerance: largest difference of scores that passes; by default that of the model's dtype
            (`golden.tolerance_of`).
        with_package: for folders without modelling code; otherwise the process cannot import this package and loads
            with `trust_remote_code=True`.

    Returns:
        `max_difference`, `saved_again_difference`, and the `generated` text (None without a prompt).

    Raises:
        VerificationError: loading failed, the scores differ, the model saved again is another one, or the package was
            imported after all.
    """
    if not Path(folder, GOLDEN).is_file():
        raise VerificationError(f"{folder} has no {GOLDEN} to compare with; `hf-seqmodels export` writes it")
    with tempfile.TemporaryDirectory() as scratch:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(Path(scratch, "modules"))}
        command = [sys.executable, "-I", str(STRANGER), str(folder.resolve()), str(Path(scratch, "again")), prompt]
        command += ["with_package"] if with_package else []
        options: dict[str, Any] = {"cwd": scratch, "env": environment, "stdin": subprocess.DEVNULL}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, **options)
        except subprocess.TimeoutExpired:
            raise VerificationError(f"{folder} did not load and answer in a fresh process in {SECONDS} s") from None
    if done.returncode != 0:
        raise VerificationError(f"{folder} does not load in a fresh process:\n{done.stderr[-2000:]}")
    answer = json.loads(done.stdout.splitlines()[-1])
    _check(folder, answer, tolerance, with_package)
    return answer


def _check(folder: Path, answer: dict[str, Any], tolerance: float | None, with_package: bool) -> None:
    dtype, largest = getattr(torch, answer.pop("dtype")), answer.pop("largest")
    tolerance = tolerance_of(dtype, largest) if tolerance is None else tolerance
    if answer.pop("imported_package") and not with_package:
        raise VerificationError(f"{folder} needs the package hf_seqmodels, which a stranger does not have")
    for name, where in (("max_difference", ""), ("saved_again_difference", ", saved again there,")):
        if not answer[name] <= tolerance:
            raise VerificationError(
                f"{folder}{where}: scores differ by {answer[name]:.2e} in a fresh process, more than {tolerance:.0e}"
            )
    if not answer.pop("saved_again_equal"):
        raise VerificationError(f"{folder}: the tensors change when a stranger saves and loads the model")
