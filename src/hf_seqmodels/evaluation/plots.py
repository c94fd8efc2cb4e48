"""Pictures of results."""

from __future__ import annotations

import math
from collections.abc import Mapping
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
