"""Recorded results: the records of a recipe's seeds as one JSON file, `results/<task>/<architecture>.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from .benchmarks import BENCHMARKS, MEASURES, Benchmark

MOST_POINTS = 200  # of a curve
Record = Mapping[str, Any]
# What every run has for itself; of the rest a run keeps only what differs from the first one.
_OWN = (
    *("metrics", "steps", "best_step", "batch_order", "targets", "seconds", "step_seconds", "targets_per_second"),
    *("training_minutes", "stopped_after_minutes", "resumed_at_step"),
)
_APART = ("seeds", "curve", "config")


def merge(
    recipe: str, records: Sequence[Record], failed: Mapping[int, str] | None = None, rule: str | None = None
) -> dict[str, Any]:
    """One result from the records of a recipe's seeds.

    Args:
        recipe: `<task>/<architecture>`.
        records: one for each finished seed; in the order of the seeds.
        failed: seed → why its run did not finish.
        rule: why there is one seed, if there is.

    Returns:
        The first run's record (its `config`, `data`, `versions`, `hardware`, …; curves of at most 200 points), and
        `runs` with what each seed has for itself, `spread` with mean, min and max of each score over the seeds, and
        `same_batches`: whether all seeds saw the same batches in the same order.
    """
    result: dict[str, Any] = {"recipe": recipe, "command": f"make results TASK={recipe}"}
    result |= {"failed": {str(seed): why for seed, why in failed.items()}} if failed else {}
    result |= {"seed_rule": rule} if rule else {}
    if not records:
        return result | {"runs": []}
    first, benchmark = records[0], BENCHMARKS[recipe.split("/")[0]]
    runs = [_own(record, first, benchmark) for record in records]
    shared = len(same_batches({str(record["seeds"]["seed"]): record for record in records})) == 1
    common = {key: value for key, value in first.items() if key not in (*_OWN, *_APART)}
    result |= common | {
        "batch_order": first["batch_order"],
        "same_batches": shared,
        "seeds": {"seed": [run["seed"] for run in runs], "data_seed": first["seeds"]["data_seed"]},
        "spread": spread([run["metrics"] for run in runs]),
        "runs": runs,
        "curve": {kind: thin(points) for kind, points in first["curve"].items()},
        "config": _without_places(first["config"]),
    }
    return result


def _own(record: Record, first: Record, benchmark: Benchmark) -> dict[str, Any]:
    """What a seed's run has for itself."""
    run = {"seed": record["seeds"]["seed"]} | {key: record[key] for key in _OWN if key in record}
    run["batch_order"] = {key: record["batch_order"][key] for key in ("digest", "steps")}
    run["metrics"] = {split: _with_measure(scores, benchmark.measure) for split, scores in record["metrics"].items()}
    if record is first:
        return run
    run["curve"] = {"validation": thin(record["curve"]["validation"])}
    return run | {
        key: value for key, value in record.items() if key not in (*run, *_APART) and value != first.get(key)
    }


def _with_measure(scores: Mapping[str, float], measure: str) -> dict[str, float]:
    """The scores of a split, with the benchmark's measure: recorded, or worked out from the loss."""
    if measure in scores or "loss" not in scores:
        return dict(scores)
    return dict(scores) | {measure: MEASURES[measure][2](scores["loss"])}


def _without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without where data and runs lay on that machine; the data's hash says which they were."""
    data = {key: value for key, value in config["data"].items() if key != "data_dir"}
    training = {key: value for key, value in config["training"].items() if key != "output_dir"}
    return {**config, "data": data, "training": training}


def spread(metrics: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Split → score → mean, min and max over runs."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for split, scores in metrics[0].items():
        found[split] = {}
        for name in scores:
            values = [run[split][name] for run in metrics if name in run.get(split, {})]
            found[split][name] = {"mean": mean(values), "min": min(values), "max": max(values)}
    return found


def thin(points: Sequence[Sequence[float]], most: int = MOST_POINTS) -> list[list[float]]:
    """At most so many points of a curve, evenly over its length, the last one among them; five digits each."""
    count = len(points)
    kept = points if count <= most else [points[(place + 1) * count // most - 1] for place in range(most)]
    return [[point[0], *(float(f"{value:.5g}") for value in point[1:])] for point in kept]


def same_batches(results: Mapping[str, Record]) -> list[tuple[list[str], int, str]]:
    """Which runs learned from the same batches in the same order.

    Args:
        results: name → what has a `batch_order`.

    Returns:
        Groups as (names, steps, digest): all in a group saw the same batches for at least so many steps, the last
        power of two that all of them reached. A run that shares its batches with no other is a group of its own.
    """
    groups: list[tuple[list[str], int, str]] = []
    left = {name: _milestones(order) for name, order in _orders(results).items()}
    while left:
        mine = next(iter(left.values()))
        first = min(mine)
        # The longest ago two orders can part is the first step; of those that agree there, the shortest decides.
        near = {other: at for other, at in left.items() if at.get(first) == mine[first]}
        steps = max(set.intersection(*(set(at) for at in near.values())))
        group = [other for other, at in near.items() if at[steps] == mine[steps]]
        groups.append((group, steps, mine[steps]))
        left = {other: at for other, at in left.items() if other not in group}
    return groups


def _orders(results: Mapping[str, Record]) -> dict[str, Record]:
    """The batch orders there are: of inputs of other kinds than `batches.READ` none is known."""
    return {name: result["batch_order"] for name, result in results.items() if result["batch_order"]["digest"]}


def _milestones(order: Record) -> dict[int, str]:
    """Step → digest up to it; records of earlier versions have the last step's alone."""
    at = {int(step): digest for step, digest in (order.get("at") or {}).items()}
    return at or {order["steps"]: order["digest"][:16]}


def dumps(result: Mapping[str, Any]) -> str:
    """A result as JSON with one line a point of a curve.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False)
    return re.sub(r"\[\s+(-?[\d.e+-]+),\s+(-?[\d.e+-]+)\s+\]", r"[\1, \2]", text) + "\n"


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """`<task>/<architecture>` → result, of all benchmarks in a folder of results; single records are read as results.

    Raises:
        ValueError: a file is no result.
    """
    found = {}
    for task in BENCHMARKS:
        for file in sorted((folder / task).glob("*.json")):
            found[f"{task}/{file.stem}"] = read_result(file, f"{task}/{file.stem}")
    return found


def read_result(file: Path, recipe: str) -> dict[str, Any]:
    """One result.

    Raises:
        ValueError: the file is none.
    """
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{file}' is no JSON ({' '.join(str(error).split())}); `make results` writes it") from None
    if isinstance(result, dict) and "runs" not in result and {"metrics", "seeds", "curve"} <= result.keys():
        result = merge(recipe, [result])
    if not isinstance(result, dict) or result.get("recipe") != recipe:
        raise ValueError(f"'{file}' is no result of {recipe}; `make results TASK={recipe}` writes it")
    return result


def scores_of(result: Record) -> list[float]:
    """The benchmark's score of each seed."""
    benchmark = BENCHMARKS[result["recipe"].split("/")[0]]
    return [run["metrics"][benchmark.split][benchmark.measure] for run in result["runs"]]


def minutes_of(run: Record) -> float:
    """Minutes of training and evaluation; of a resumed run, of all its training."""
    return max(run["seconds"] / 60, run.get("training_minutes", 0.0))


def as_record(result: Record) -> dict[str, Any]:
    """A result as the record of one run, for who reads those: its `metrics` are the means over the seeds."""
    means = {
        split: {name: values["mean"] for name, values in scores.items()} for split, scores in result["spread"].items()
    }
    own = {key: value for key, value in result["runs"][0].items() if key in _OWN}
    return {**own, **result, "metrics": means}
