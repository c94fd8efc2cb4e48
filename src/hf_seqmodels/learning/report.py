"""What the checks measured: JSON and a picture for each, a table and a picture of all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from ..evaluation.plots import plot_learning, plot_learning_overview
from ..evaluation.tables import replace_between
from .checks import CHECKS


def write_check(output: Path, name: str, result: Mapping[str, Any]) -> None:
    """`<name>.json` and `<name>.png`."""
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    plot_learning(result, output / f"{name}.png")


def write_report(output: Path, checkout: Path | None = None) -> None:
    """`table.md` and `overview.png` from all results there are; with `checkout`, its README and recipes too."""
    paths = [output / f"{name}.json" for name in CHECKS]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
    table = format_results(results)
    (output / "table.md").write_text(table + "\n", encoding="utf-8")
    plot_learning_overview(results, output / "overview.png")
    if checkout is not None:
        readme = checkout / "README.md"
        text = replace_between(readme.read_text(encoding="utf-8"), "learning table", table)
        readme.write_text(text, encoding="utf-8")
        update_recipes(output, checkout / "configs")


def format_results(results: list[dict[str, Any]]) -> str:
    """A Markdown table: task, chance, what each system reached, the bar, and whether it holds."""
    lines = [
        "| check | measure | chance | measured (mean of the seeds) | bar | | s |",
        "|---|---|---:|---|---|---|---:|",
    ]
    for result in results:
        measured = ", ".join(f"{name} {_scores(entry['scores'])}" for name, entry in result["systems"].items())
        chance = "–" if result["chance"] is None else f"{result['chance']:.3f}"
        bars = "; ".join(bar["text"] if bar["holds"] else f"**{bar['text']}**" for bar in result["bars"])
        verdict = "holds" if result["passed"] else "**missed**"
        cells = [result["what"], result["measure"].replace("_", " "), chance, measured, bars, verdict]
        lines.append(f"| {' | '.join(cells)} | {result['seconds']:.0f} |")
    return "\n".join(lines)


def _scores(scores: list[float]) -> str:
    """The mean; with many seeds also how many reached 0.99."""
    solved = f" ({sum(score >= 0.99 for score in scores)} of {len(scores)} solved)" if len(scores) >= 5 else ""
    return f"{mean(scores):.3f}{solved}"


def update_recipe(text: str, seconds: float, cores: int, expected: str) -> str:
    """A recipe whose header lines `Takes` and `Expected` say what was measured."""
    takes = f"{seconds / 60:.1f} minutes on {cores} cores"
    text = re.sub(r"^# Takes:.*$", f"# Takes:    {takes}", text, flags=re.MULTILINE)
    return re.sub(r"^# Expected:.*$", f"# Expected: {expected}", text, flags=re.MULTILINE)


def update_recipes(output: Path, configs: Path) -> None:
    """Headers of the recipes from the results: the seconds of the first seed's run, and its score."""
    for file in (output / f"{name}.json" for name in CHECKS):
        result = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"systems": {}}
        for entry in result["systems"].values():
            recipe = re.search(r"--config (\S+)", entry["command"])
            assert recipe is not None
            path = configs / f"{recipe[1]}.yaml"
            score = f"{result['measure'].replace('_', ' ')} {entry['scores'][0]:.3f}"
            expected = f"test {score} (results/learning/{file.name})"
            text = path.read_text(encoding="utf-8")
            header = update_recipe(text, entry["seconds"][0], result["hardware"]["cores"], expected)
            path.write_text(header, encoding="utf-8")
