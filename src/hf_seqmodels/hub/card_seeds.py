"""What a card says of a benchmark's result: several seeds, their range, and the published number beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from ..evaluation.benchmarks import BENCHMARKS, MEASURES, Benchmark
from ..evaluation.recorded import minutes_of
from ..evaluation.result_tables import number
from .card_text import escape

Record = Mapping[str, Any]


def benchmark_of(record: Record) -> Benchmark | None:
    """The benchmark that a result belongs to; None for records of single runs."""
    return BENCHMARKS.get(str(record.get("recipe", "")).split("/")[0])


def headline(record: Record) -> str | None:
    """The measure that counts in the record's benchmark."""
    found = benchmark_of(record)
    return None if found is None else found.measure


def in_brackets(record: Record, split: str, measure: str, digits: int) -> str:
    """ " (lowest–highest)` over the seeds; nothing for one."""
    values = (record.get("spread") or {}).get(split, {}).get(measure)
    if not values or len(record.get("runs", ())) < 2:
        return ""
    return f" ({number(values['min'], digits)}–{number(values['max'], digits)})"


def steps_of(record: Record) -> str:
    """Optimizer steps: of several seeds the mean, as their scores are."""
    runs = record.get("runs") or [record]
    return f"{mean(run['steps'] for run in runs):,.0f}" if all("steps" in run for run in runs) else "–"


def published(record: Record) -> str:
    """The published number for this model, and what it was compared with; empty where there is none."""
    benchmark = benchmark_of(record)
    reference = benchmark.reference(record["recipe"].split("/")[1]) if benchmark else None
    if benchmark is None or reference is None:
        return ""
    words, digits, _ = MEASURES[benchmark.measure]
    told = f"Published: {reference.value:g} ({escape(reference.source)}; {benchmark.split} {words})"
    if not reference.comparable:
        return f"{told}. It cannot be compared: {benchmark.note[0].lower()}{benchmark.note[1:]}"
    if reference.goal is None:
        return f"{told}."
    value = record["metrics"][benchmark.split][benchmark.measure]
    reached = "reached" if benchmark.reaches(value, reference.goal) else "**not reached**"
    aim = "" if reference.goal == reference.value else f"; the goal here was {reference.goal:g}"
    return f"{told}{aim}; {reached} here with {number(value, digits)}."


def over_seeds(record: Record) -> list[str]:
    """How the numbers of the table come about."""
    count = len(record.get("runs", ()))
    return [f"The numbers are means over {count} seeds (lowest–highest)."] if count > 1 else []


def told_of_seeds(record: Record) -> list[str]:
    """The seeds; where there are several, steps and minutes of each; why there is one, and which failed."""
    runs, lines = record.get("runs", ()), []
    if record.get("seeds"):
        told = {name: value if isinstance(value, list) else [value] for name, value in record["seeds"].items()}
        between = "; " if any(len(value) > 1 for value in told.values()) else ", "
        named = (f"{escape(name)} {', '.join(map(str, value))}" for name, value in told.items())
        lines.append(f"seeds: {between.join(named)}")
    if len(runs) > 1:
        lines.append("optimizer steps by seed: " + "; ".join(f"{run['steps']:,}" for run in runs))
        lines.append("minutes by seed: " + "; ".join(f"{minutes_of(run):.1f}" for run in runs))
    lines += [escape(record["seed_rule"])] if record.get("seed_rule") else []
    lines += [f"seed {escape(seed)} failed: {escape(why)}" for seed, why in (record.get("failed") or {}).items()]
    if any("stopped_after_minutes" in run for run in runs):
        lines.append("stopped by the limit on its time, not by its own end")
    return lines


def seeds_tried(seeds: Sequence[int]) -> str:
    """A limit: how much of the spread is known."""
    if len(seeds) == 1:
        return f"One seed ({seeds[0]}) was trained: how far other seeds would differ was not measured."
    return f"{len(seeds)} seeds were trained; the table has their mean and range, and the weights are those of one."
