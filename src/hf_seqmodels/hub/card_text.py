"""Text for cards: what a name, a label or a file says comes out as text and never as Markdown, HTML or YAML."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# What means something in Markdown (CommonMark, and tables, strikethrough, mathematics and links of GitHub's dialect).
_MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|~$@^]|(?<=:)/(?=/)|(?<=www)\.)")


def one_line(text: Any) -> str:
    """Text without line breaks and without what is not seen but changes the rest (control, bidirectional)."""
    return "".join(char for char in " ".join(str(text).split()) if char.isprintable())


def escape(text: Any) -> str:
    """Text that Markdown shows as it is, inside a line; `<`, `>` and `&` become HTML entities."""
    return html.escape(_MARKUP.sub(r"\\\1", one_line(text)), quote=False)


def code(text: Any) -> str:
    """Text as inline code, outside tables: backticks are shown, not read."""
    text = one_line(text)
    ticks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    room = " " if text.startswith("`") or text.endswith("`") or not text else ""
    return f"{ticks}{room}{text}{room}{ticks}"


def fence(text: str, language: str = "") -> str:
    """A block of code, with a fence longer than any in the text."""
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks}{language}\n{text.strip(chr(10))}\n{ticks}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A Markdown table of cells that are escaped already; after the first `words` columns come numbers."""
    lines = [head, ["---"] * words + ["---:"] * (len(head) - words), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def literal(text: str) -> str:
    """A Python string literal without a backtick, so that no fence ends inside it."""
    quoted = repr(str(text))
    if quoted[0] == "'" and '"' not in quoted and "\\" not in quoted:
        quoted = f'"{quoted[1:-1]}"'
    return quoted.replace("`", r"\x60")


def plain(value: Any, name: str = "record") -> Any:
    """JSON values only: numpy's and torch's numbers become Python's.

    Raises:
        ValueError: a number is NaN or infinite, or a value is of a kind that JSON does not have.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{name}.{one_line(key)}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{name}[{place}]") for place, item in enumerate(value)]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name}={value} is no measured number, and cards show those alone; evaluate the model again")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise ValueError(f"{name} is a {type(value).__name__}, which JSON does not have; write numbers, text or lists")
