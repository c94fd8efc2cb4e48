"""Run transformers' common tests on all architectures, print a summary, write `results/common_tests.json`.

    python tests/common/run.py [pytest options]        (make common-tests)

Fails when a test fails, or when more than 5 % are skipped by our own choice. Upstream's own skips (no accelerator, no
flash attention, not a mixture of experts …) are counted apart; `-rs` lists them.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest
from fetch import VERSION, fetch

HERE = Path(__file__).parent
RESULTS = HERE.parents[1] / "results" / "common_tests.json"
COUNTS = ("passed", "failed", "skipped_upstream", "skipped_by_us")
MOST_SKIPPED_BY_US = 0.05


class Summary:
    """Pytest plugin: the outcome of each test by architecture; the worst of its reports and sub-tests counts."""

    def __init__(self) -> None:
        self.outcomes: dict[str, dict[str, str]] = {}
        self.own_skips: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        _, architecture, test = report.nodeid.split("::")
        outcome: str = report.outcome
        if report.skipped:
            reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
            ours = reason.removeprefix("Skipped: ").startswith("ours: ")
            outcome = "skipped_by_us" if ours else "skipped_upstream"
            if ours:
                self.own_skips[f"{architecture}::{test}"] = reason.partition("ours: ")[2]
        tests = self.outcomes.setdefault(architecture, {})
        worst_first = ("failed", "skipped_by_us", "skipped_upstream", "passed")
        tests[test] = min(outcome, tests.get(test, "passed"), key=worst_first.index)

    def report(self) -> dict:
        """What is written to `results/common_tests.json`."""
        counted = {name: Counter(tests.values()) for name, tests in self.outcomes.items()}
        return {
            "transformers": VERSION,
            "architectures": {name: {key: count[key] for key in COUNTS} for name, count in counted.items()},
            "skipped_by_us": self.own_skips,
        }


def main(options: list[str]) -> int:
    """Exit status: 0 when all is well."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path.insert(0, str(fetch()))
    summary = Summary()
    # Upstream's markers are not ours, so the project's strict options do not hold here.
    status = pytest.main(
        ["-o", "addopts=", "-q", "-W", "ignore", "-p", "no:cacheprovider", str(HERE / "suite.py"), *options],
        plugins=[summary],
    )
    report = summary.report()
    print(f"\n{'':24}" + "".join(f"{key:>18}" for key in COUNTS))
    for name, counts in report["architectures"].items():
        print(f"{name:24}" + "".join(f"{counts[key]:18}" for key in COUNTS))
    for test, reason in report["skipped_by_us"].items():
        print(f"skipped by us: {test}: {reason}")
    if not options:  # a selection is no result
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    total = sum(sum(counts.values()) for counts in report["architectures"].values())
    if len(report["skipped_by_us"]) > MOST_SKIPPED_BY_US * total:
        print(f"more than {MOST_SKIPPED_BY_US:.0%} of {total} tests are skipped by our own choice")
        return 1
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
