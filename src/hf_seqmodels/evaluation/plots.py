"""Pictures of results."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

matplotlib.use("Agg")  # files only; no screen is needed


def plot_loss_curves(records: Mapping[str, Mapping[str, Any]], baselines: Mapping[str, float], path: Path) -> None:
    """Training (thin) and validation (points) bits per token against steps, one colour a model.

    Args:
        records: name → a run's record with `curve.train` and `curve.validation` as [step, nats] pairs.
        baselines: name → bits per token, drawn as dashed lines.
        path: the PNG to write.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for index, (name, record) in enumerate(records.items()):
        color = f"C{index}"
        for kind, style in (("train", {"lw": 0.8, "alpha": 0.6}), ("validation", {"marker": "o", "label": name})):
            points = record["curve"][kind]
            if points:
                steps, nats = zip(*points, strict=True)
                axes.plot(steps, [loss / math.log(2) for loss in nats], color=color, **style)
    for index, (name, bits) in enumerate(baselines.items()):
        axes.axhline(bits, color="0.4", ls=(0, (4, 2 + 2 * index)), lw=1)
        axes.annotate(name, (0.005, bits), xycoords=("axes fraction", "data"), va="bottom", color="0.3")
    axes.set(xlabel="step", ylabel="bits per character", title="Training (thin) and validation (points)")
    highest = max((r["curve"]["train"][1][1] for r in records.values() if len(r["curve"]["train"]) > 1), default=5.0)
    axes.set_ylim(top=highest / math.log(2))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


# Okabe & Ito 2008: eight colours that colour-blind readers can tell apart.
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def plot_learning(result: Mapping[str, Any], path: Path) -> None:
    """One check of the learning suite: training loss against steps, and each seed's score with the chance level.

    Args:
        result: a check's result (`measure`, `chance`, `what`; `systems` with `scores` and `curves`).
        path: the PNG to write.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    for index, (name, entry) in enumerate(result["systems"].items()):
        color, marker = OKABE_ITO[index], MARKERS[index]
        for number, curve in enumerate(entry["curves"]):
            steps, values = zip(*curve, strict=True)
            losses.plot(steps, values, color=color, lw=1, alpha=0.8, label=name if number == 0 else None)
        spread = [index + 0.06 * (number - len(entry["scores"]) / 2) for number in range(len(entry["scores"]))]
        scores.plot(spread, entry["scores"], color=color, marker=marker, ls="none")
    if result["chance"] is not None:
        scores.axhline(result["chance"], color="0.4", ls="--", lw=1, label="chance, or the plain guess")
        scores.legend(fontsize="small")
    losses.set(xlabel="step", ylabel="training loss", yscale="log", title=result["what"])
    losses.grid(alpha=0.3)
    losses.legend(fontsize="small")
    names = list(result["systems"])
    scores.set_xticks(range(len(names)), names, rotation=20, ha="right")
    scores.set(ylabel=f"test {result['measure'].replace('_', ' ')}", title="each seed")
    scores.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def plot_learning_overview(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """All checks whose score is a share: each system's mean as a point, chance as a bar, one row a system."""
    shares = [result for result in results if result["measure"] in ("accuracy", "exact_match")]
    rows = [(result, name) for result in shares for name in result["systems"]]
    figure = Figure(figsize=(8, 1.2 + 0.26 * max(len(rows), 1)), layout="constrained")
    axes = figure.subplots()
    for place, (result, name) in enumerate(rows):
        group = shares.index(result)
        scores = result["systems"][name]["scores"]
        axes.plot([min(scores), max(scores)], [place, place], color="0.7", lw=3, zorder=1)
        axes.plot(sum(scores) / len(scores), place, color=OKABE_ITO[group % 6], marker=MARKERS[group % 8], zorder=2)
        if result["chance"] is not None:
            axes.plot(result["chance"], place, color="0.3", marker="|", ms=10, ls="none")
    axes.set_yticks(range(len(rows)), [f"{result['check']}: {name}" for result, name in rows], fontsize="small")
    axes.set(xlabel="test score: mean over the seeds (points), their range (grey), chance (|)", xlim=(-0.03, 1.03))
    axes.invert_yaxis()
    axes.grid(alpha=0.3, axis="x")
    figure.savefig(path, dpi=120)
