"""The README's picture of the app: `python tests/inference/screenshot.py zoo results/app.png`.

Serves the models of a folder (or those named before the picture), asks them to go on with a sentence in headless
Chromium, and writes what is seen.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from app_browser import ask, opened, served, what_is_missing
from PIL import Image

PROMPT = "The import statement "
ORDER = ("rnn", "lstm", "gru", "attention", "transformer")  # as in the README's table
MOST_BYTES = 200_000


def main(arguments: list[str]) -> int:
    """Exit status 0, or 2 with one line."""
    *folders, picture = arguments
    if not folders or what_is_missing():
        print(what_is_missing() or "usage: screenshot.py ZOO_OR_MODEL… PICTURE.png", file=sys.stderr)
        return 2
    models = [str(path.parent) for folder in folders for path in Path(folder).glob("**/model.safetensors")]
    models = sorted({model for model in models if "checkpoint" not in model}, key=place)
    with tempfile.TemporaryDirectory() as folder, served(models, Path(folder)) as (address, _):  # noqa: SIM117
        with opened(address, width=1360, height=800) as (page, _):
            ask(page, PROMPT, len(models), length=250)
            page.mouse.move(0, 0)
            page.wait_for_timeout(300)
            shot = page.screenshot(full_page=True)
    image = Image.open(io.BytesIO(shot)).convert("RGB").quantize(128)
    image.save(picture, optimize=True)
    size = Path(picture).stat().st_size
    print(f"{picture}: {image.width} × {image.height}, {size:,} bytes, {len(models)} models")
    return 0 if size <= MOST_BYTES else 1


def place(model: str) -> tuple[int, str]:
    """Where a model stands in the picture: by its architecture, then by its name."""
    name = Path(model).name
    return next((n for n, start in enumerate(ORDER) if name.startswith(start)), len(ORDER)), name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
