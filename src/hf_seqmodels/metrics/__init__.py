"""`evaluate.Metric` modules shipped with the package and loaded by path: no network, no cache needed."""

from __future__ import annotations

import difflib
from pathlib import Path

import evaluate

_FOLDER = Path(__file__).parent
METRICS = tuple(sorted(path.parent.name for path in _FOLDER.glob("*/*.py") if path.stem == path.parent.name))


def load_metric(name: str) -> evaluate.Metric:
    """The metric `name`, one of `METRICS`, as `evaluate.load` gives it.

    Raises:
        ValueError: no such metric.
    """
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else "use one of those"
        raise ValueError(f"no metric '{name}': it must be one of {', '.join(METRICS)}; {hint}")
    # In memory: the alternative locks files in the cache folder, which concurrent runs would fight over.
    return evaluate.load(str(_FOLDER / name / f"{name}.py"), keep_in_memory=True)
