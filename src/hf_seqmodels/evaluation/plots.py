"""Pictures of results."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from .benchmarks import MEASURES

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


def plot_benchmark(results: Mapping[str, Mapping[str, Any]], measure: str, path: Path) -> None:
    """Validation scores of the recipes of a benchmark against optimizer steps, one colour and line style a recipe.

    Args:
        results: name → recorded result; the first seed's curve is a thick line, those of the others are thin.
        measure: a key of `MEASURES`, which the losses are turned into.
        path: the PNG to write.
    """
    words, _, from_loss = MEASURES[measure]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    ends = []
    for index, (name, result) in enumerate(results.items()):
        color, line = OKABE_ITO[index % len(OKABE_ITO)], ("-", "--", ":", "-.")[index // len(OKABE_ITO) % 4]
        curves = [result["curve"], *(run["curve"] for run in result["runs"] if "curve" in run)]
        for number, curve in enumerate(curves):
            if curve["validation"]:
                steps, losses = zip(*curve["validation"], strict=True)
                values = [from_loss(loss) for loss in losses]
                ends += values[len(values) // 4 :]
                label = name if number == 0 else None
                width, alpha = (0.6, 0.5) if number else (1.4, 1.0)
                axes.plot(steps, values, lw=width, alpha=alpha, label=label, color=color, ls=line)
    if ends:
        low, high = min(ends), max(ends)
        axes.set_ylim(low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1))  # the first steps stand above
    axes.set(xlabel="step", ylabel=f"validation {words}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    save_small(figure, path)


# ---- one model, small enough to lie beside its weights ----------------------------------------------------------


def plot_loss_curve(curve: Mapping[str, Sequence[Sequence[float]]], path: Path, unit: str = "loss (nats)") -> None:
    """Training (line) and validation (points) loss of one run against steps.

    Args:
        curve: `train` and `validation` as [step, loss] pairs; either may be empty.
        path: the PNG to write.
        unit: what the loss is measured in.
    """
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    styles: dict[str, dict[str, Any]] = {
        "train": {"color": OKABE_ITO[0], "lw": 1.2},
        "validation": {"color": OKABE_ITO[5], "marker": "o", "ms": 4, "lw": 1},
    }
    for kind, style in styles.items():
        if curve.get(kind):
            steps, values = zip(*curve[kind], strict=True)
            axes.plot(steps, values, label=kind, **style)
    axes.set(xlabel="step", ylabel=unit)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    save_small(figure, path)


def plot_attention(
    weights: Sequence[tuple[str, Any]], columns: Sequence[str], rows: Sequence[str], path: Path, most: int = 4
) -> None:
    """Attention maps side by side: each row is a token that looks, each column a token that is looked at.

    Args:
        weights: (name, matrix (T, S) of shares) for each layer; the last `most` are shown.
        columns, rows: the S and T tokens as text.
        path: the PNG to write.
    """
    shown = list(weights)[-most:]
    side = min(0.9 + 0.13 * max(len(columns), len(rows)), 4.2)
    high = min(1.1 + 0.13 * len(rows), 4.4)
    figure = Figure(figsize=(side * len(shown) + 0.6, high), layout="constrained")
    panels = figure.subplots(1, len(shown), squeeze=False)[0]
    most_weight = max(float(matrix.max()) for _, matrix in shown)
    for axes, (name, matrix) in zip(panels, shown, strict=True):
        picture = axes.imshow(matrix, cmap="Blues", vmin=0, vmax=most_weight or 1, aspect="auto")
        axes.set_title(name, fontsize=7)
        axes.set_xticks(range(len(columns)), [visible(token) for token in columns], fontsize=5, parse_math=False)
        axes.set_yticks(range(len(rows)), [visible(token) for token in rows], fontsize=5, parse_math=False)
        axes.tick_params(length=0, pad=1)
    figure.colorbar(picture, ax=panels[-1], fraction=0.05).ax.tick_params(labelsize=5)
    save_small(figure, path, colors=128)


def plot_gradient_flow(flow: Mapping[str, Sequence[float]], path: Path) -> None:
    """Norm of d loss / d state against the distance of the state from the loss, in steps; a line for each state.

    Args:
        flow: from [`evaluation.internals.gradient_flow`].
        path: the PNG to write.
    """
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    for index, (name, lengths) in enumerate(flow.items()):
        style = ("-", "--", ":", "-.")[index // len(OKABE_ITO) % 4]
        axes.plot(
            range(1, len(lengths) + 1), lengths, color=OKABE_ITO[index % len(OKABE_ITO)], ls=style, lw=1.2, label=name
        )
    if any(value > 0 for lengths in flow.values() for value in lengths):
        axes.set_yscale("log")  # gradients that died out are not drawn: 0 has no place on it
    axes.set(xlabel="distance to the loss in steps", ylabel="‖d loss / d state‖")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small")
    save_small(figure, path)


def visible(token: str) -> str:
    """A token as a label: spaces and line ends are seen, and at most 12 characters."""
    shown = token.replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
    shown = "".join(char if char.isprintable() else "·" for char in shown)
    return shown if len(shown) <= 12 else f"{shown[:11]}…"


def save_small(figure: Figure, path: Path, dpi: int = 110, colors: int = 64) -> None:
    """A PNG of at most a few tens of kB, the same bytes each time: a palette of `colors`, no date, no version."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    picture = Image.open(buffer).convert("RGB").quantize(colors, dither=Image.Dither.NONE)
    staged = path.with_name(f".{path.name}.tmp")
    picture.save(staged, format="PNG", optimize=True)
    staged.replace(path)
