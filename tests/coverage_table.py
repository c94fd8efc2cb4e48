"""The table architecture × head × tests: counted while the tests run, written into the README by `make test-table`.

A test counts for an architecture and a head when its parameters name them (`case`, `head`), or when its file says so:
`pytestmark = pytest.mark.covers("seq_conv_lstm", "backbone", "time-series-prediction")`. With `case` alone the marker
gives the head: `pytest.mark.covers(None, "causal-lm")`.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "test_table.json"
PROPERTY = "covers"


def covered_by(item: pytest.Item) -> set[tuple[str, str]]:
    """(architecture, head) pairs that a test speaks of."""
    params = getattr(item, "callspec", None)
    case, head = (None if params is None else params.params.get(name) for name in ("case", "head"))
    named = getattr(case, "architecture", None)
    pairs = {(named, head)} if named and isinstance(head, str) else set()
    for marker in item.iter_markers(PROPERTY):
        architecture, *heads = marker.args
        if not pairs and (architecture or named):
            pairs = {(architecture or named, each) for each in heads}
    return pairs


def mark_items(items: list[pytest.Item]) -> None:
    """Each test carries its pairs, so that the reports of other processes bring them home."""
    for item in items:
        item.user_properties += [(PROPERTY, list(pair)) for pair in sorted(covered_by(item))]


class Counts:
    """Passed tests by architecture, head and test file."""

    def __init__(self) -> None:
        self.passed: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))

    def add(self, report: Any) -> None:
        if report.when == "call" and report.passed:
            group = Path(report.nodeid.split("::")[0]).stem.removeprefix("test_")
            for name, value in report.user_properties:
                if name == PROPERTY:
                    self.passed[value[0]][value[1]][group] += 1

    def write(self) -> None:
        """`results/test_table.json`, which the README's table is made from."""
        counts = {
            architecture: {head: dict(sorted(groups.items())) for head, groups in sorted(heads.items())}
            for architecture, heads in sorted(self.passed.items())
        }
        RESULTS.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")


def explained(architectures: dict[str, Any], heads: list[str], counts: dict) -> dict[tuple[str, str], str]:
    """Cell → number of tests, or why there is none.

    Raises:
        AssertionError: a hole without an explanation, or an explanation of what is there.
    """
    cells = {}
    for name, architecture in architectures.items():
        for head in heads:
            built, reason = head in architecture.models, architecture.without.get(head)
            assert built != (reason is not None), f"{name}: {head} must either exist or be explained in `without`"
            number = sum(counts.get(name, {}).get(head, {}).values())
            assert not built or number, f"{name}: {head} exists and no test speaks of it"
            cells[name, head] = str(number) if built else "–"
    return cells


def markdown(architectures: dict[str, Any], heads: list[str], counts: dict) -> str:
    """Tests that passed, by head (down) and architecture (across), the files they are in, and why there are dashes."""
    cells = explained(architectures, heads, counts)
    names = list(architectures)
    lines = ["| head | " + " | ".join(f"`{name.removeprefix('seq_')}`" for name in names) + " |"]
    lines.append("|---|" + "---:|" * len(names))
    lines += [f"| {head} | " + " | ".join(cells[name, head] for name in names) + " |" for head in heads]
    files = sorted({group for heads in counts.values() for groups in heads.values() for group in groups})
    lines += ["", "Tests in `tests/`: " + ", ".join(f"{each}" for each in files) + ".", ""]
    reasons: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name in names:
        for head, reason in architectures[name].without.items():
            reasons[reason][head].append(name.removeprefix("seq_"))
    lines.append("Why there are dashes:")
    for reason, without in reasons.items():
        where = sorted({each for architectures_without in without.values() for each in architectures_without})
        lines.append(f"- {', '.join(without)} of {', '.join(where)}: {reason}.")
    return "\n".join(lines)


def main() -> None:
    """README's table from `results/test_table.json`."""
    from hf_seqmodels.evaluation.tables import replace_between
    from hf_seqmodels.models import ARCHITECTURES, HEADS

    counts = json.loads(RESULTS.read_text(encoding="utf-8"))
    readme = ROOT / "README.md"
    table = markdown(ARCHITECTURES, list(HEADS), counts)
    readme.write_text(replace_between(readme.read_text(encoding="utf-8"), "test table", table), encoding="utf-8")


if __name__ == "__main__":
    main()
