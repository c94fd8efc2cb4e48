"""`hf-seqmodels list`: what there is, by name."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .models import ARCHITECTURES
from .recipes import list_configs


def main(argv: Sequence[str] | None = None) -> int:
    """Print architectures with variants and heads, recipes with the first line of their headers, and the zoo."""
    parser = argparse.ArgumentParser(prog="hf-seqmodels list", description="Architectures, recipes, trained models.")
    parser.add_argument("--zoo", type=Path, default=Path("zoo"), help="folder of trained models (%(default)s)")
    zoo = read_zoo(folder := parser.parse_args(argv).zoo)
    width = max(map(len, [*ARCHITECTURES, *list_configs(), *(str(folder / name) for name in zoo)])) + 2
    print("architectures (--model_type):")
    for name, architecture in ARCHITECTURES.items():
        print(f"  {name:{width}}{', '.join(architecture.variants)}")
        print(f"  {'':{width}}heads: {', '.join(architecture.models)}")
    print("recipes (--config):")
    for name, path in list_configs().items():
        header = path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("#").strip()
        print(f"  {name:{width}}{header}")
    print("trained models (from_pretrained):" if zoo else f"trained models: none in '{folder}'; a checkout has some")
    for name, record in zoo.items():
        print(f"  {folder / name!s:{width}}{describe(record)}")
    return 0


def read_zoo(folder: Path = Path("zoo")) -> dict[str, dict[str, Any]]:
    """Name → record of every trained model in `folder`; a damaged record is an empty one."""
    found = {}
    for file in sorted(folder.glob("*/result.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            record = {}
        found[file.parent.name] = record if isinstance(record, dict) else {}
    return found


def describe(record: Mapping[str, Any]) -> str:
    """Size, test scores and measured speeds of a run, in a line."""
    if not {"parameters", "metrics"} <= record.keys():
        return "no numbers: its result.json is damaged"
    told = [f"{record['parameters']:,} parameters"]
    told += [
        f"test {name.replace('_', ' ')} {value:.3f}"
        for name, value in record["metrics"].get("test", {}).items()
        if name in ("nll", "bits_per_token", "accuracy", "exact_match", "f1", "mse")
    ]
    return ", ".join(told + [f"{value:,.0f} {name}" for name, value in record.get("measured", {}).items()])


__all__ = ["describe", "main", "read_zoo"]
