"""Text files that are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Write a text file in one step: who reads it meanwhile finds the old text or the new one, never a part.

    A file that says the same already is left alone. Folders are made where they are missing.

    Args:
        file: is replaced.
        text: becomes its contents, UTF-8.
    """
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    staged.write_text(text, encoding="utf-8")
    staged.replace(file)
