"""Numbers from result files into the places where people read them: README, recipe headers, results/.

    python -m hf_seqmodels.evaluation.tables runs .

copies the results of the demo (`runs/demo`) and of single recipes (`runs/lm/<recipe>`) into the checkout's `results/`,
and rewrites the README's table and the `Takes` and `Expected` lines of the recipes from all that is there.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..writing import write_whole

COLUMNS = {
    "model": "model",
    "parameters": "parameters",
    "validation_bits": "validation bits/char",
    "test_bits": "test bits/char",
    "training_speed": "training char/s",
    "generation_speed": "generation char/s",
    "state_bytes": "state bytes at 1,000 characters",
}


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The demo's rows as a Markdown table; what a row does not have is a dash."""

    def cell(column: str, value: Any) -> str:
        if value is None:
            return "–"
        if column.endswith("bits"):
            return f"{value:.3f}"
        return value if isinstance(value, str) else f"{value:,.0f}"

    lines = [[cell(column, row[column]) for column in COLUMNS] for row in rows]
    left, *right = [max(map(len, column)) for column in zip(COLUMNS.values(), *lines, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [text.rjust(width) for text, width in zip(cells[1:], right, strict=True)]
        return "| " + " | ".join([cells[0].ljust(left), *padded]) + " |"

    rule = "|" + "|".join(["-" * (left + 2), *("-" * (width + 1) + ":" for width in right)]) + "|"
    return "\n".join([line(list(COLUMNS.values())), rule, *map(line, lines)])


def describe(result: Mapping[str, Any]) -> str:
    """One line under the table: where and how long."""
    hardware, versions = result["hardware"], result["versions"]
    return (
        f"Measured in {result['seconds']:.0f} s on {hardware['cores']} CPU cores ({hardware['machine']}), "
        f"Python {versions['python']}, torch {versions['torch']}, transformers {versions['transformers']}; "
        f"batch order digest `{result['batch_order']['digest'][:16]}`, the same for all five. "
        "Written by `make results` from `results/demo.json`."
    )


def replace_between(text: str, name: str, content: str) -> str:
    """Replace what stands between `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ValueError: the markers are not there.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", flags=re.DOTALL)
    if not pattern.search(text):
        raise ValueError(
            f"no '<!-- {name} -->' … '<!-- /{name} -->' in the text: put the two markers where it belongs"
        )
    return pattern.sub(lambda match: f"{match[1]}{content}\n{match[2]}", text)


def update_recipe(text: str, record: Mapping[str, Any], source: str) -> str:
    """A recipe whose header lines `Takes` and `Expected` say what the run's record says."""
    cores, metrics = record["hardware"]["cores"], record["metrics"]
    takes = f"{record['seconds'] / 60:.1f} minutes on {cores} cores"
    bits = ", ".join(f"{split} {found['bits_per_token']:.3f}" for split, found in metrics.items())
    text = re.sub(r"^# Takes:.*$", f"# Takes:    {takes}", text, flags=re.MULTILINE)
    return re.sub(r"^# Expected:.*$", f"# Expected: {bits} bits per character ({source})", text, flags=re.MULTILINE)


def collect(runs: Path, checkout: Path) -> None:
    """Copy `demo.json`, `demo.csv`, the plot and every run's `result.json` into `results/`."""
    results = checkout / "results"
    (results / "lm").mkdir(parents=True, exist_ok=True)
    for name in ("demo.json", "demo.csv", "loss_curves.png"):
        shutil.copyfile(runs / "demo" / name, results / name)
    for record in (*runs.glob("demo/*/result.json"), *runs.glob("lm/*/result.json")):
        shutil.copyfile(record, results / "lm" / f"{record.parent.name}.json")


def rewrite(checkout: Path) -> None:
    """README and recipes from `results/`."""
    result = json.loads((checkout / "results" / "demo.json").read_text(encoding="utf-8"))
    readme = checkout / "README.md"
    content = f"{format_table(result['rows'])}\n\n{describe(result)}"
    write_whole(readme, replace_between(readme.read_text(encoding="utf-8"), "demo table", content))
    for file in sorted((checkout / "results" / "lm").glob("*.json")):
        recipe = checkout / "configs" / "lm" / f"{file.stem}.yaml"
        record = json.loads(file.read_text(encoding="utf-8"))
        write_whole(recipe, update_recipe(recipe.read_text(encoding="utf-8"), record, f"results/lm/{file.name}"))


if __name__ == "__main__":
    runs_folder, checkout_folder = map(Path, sys.argv[1:])
    collect(runs_folder, checkout_folder)
    rewrite(checkout_folder)
