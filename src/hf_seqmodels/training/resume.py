"""What a checkpoint may hold before training goes on from it: tensors and numbers, never objects that run code."""

from __future__ import annotations

import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch
from transformers.trainer_pt_utils import safe_globals

from ..arguments import ConfigError
from ..models.shared_base import refuse_unsafe_weights

# accelerate's save_state writes the first, and its load_state runs what they hold; the others are pickled weights.
OBJECTS = ("custom_checkpoint_*.pkl", "pytorch_model.bin", "pytorch_model.bin.index.json")


def newest_checkpoint(folder: str | Path) -> str | None:
    """The last complete one: a run killed while it saved leaves one without `trainer_state.json`, written last."""
    complete = [file.parent for file in Path(folder).glob("checkpoint-*/trainer_state.json")]
    return str(max(complete, key=lambda found: int(found.name.rpartition("-")[2]))) if complete else None


def check_checkpoint(folder: Path) -> None:
    """Look at every file that resuming would open, without opening what could run code.

    FSDP's sharded checkpoints are torch's own format and are not looked into.

    Raises:
        ConfigError: one line with the file, when it holds Python objects beside tensors or is damaged, or when an
            index or a link leads out of the folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"there is no checkpoint '{folder}' to resume from")
    for pattern in OBJECTS:
        for file in folder.glob(pattern):
            raise ConfigError(f"{file} holds pickles, which are not opened: delete it, or take another checkpoint")
    if any(folder.glob("*.safetensors*")):
        try:
            refuse_unsafe_weights(folder)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    for file in sorted([*folder.glob("*.pt"), *folder.glob("*.pth")]):
        try:
            with safe_globals():  # numpy's random state is one of few more types than tensors
                torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file))
        except (UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
            reason = "holds more than tensors" if isinstance(error, UnpicklingError) else "is damaged"
            raise ConfigError(
                f"{file} {reason} and is not opened ({type(error).__name__}): resume from another checkpoint"
            ) from None
