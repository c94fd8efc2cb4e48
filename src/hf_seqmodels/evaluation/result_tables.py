"""Tables from recorded results: `results/README.md`, the README's short table, the headers of recipes, curves."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from ..writing import write_whole
from .benchmarks import BENCHMARKS, GROUPS, MEASURES, MOST_MINUTES, ONE_SEED_MINUTES, Benchmark, Reference
from .plots import plot_benchmark
from .recorded import Record, minutes_of, read_results, same_batches, scores_of
from .tables import replace_between

MARKER, SCALING_MARKER = "results table", "scaling"
_HEAD = f"""\
# Results

Written from the files beside this one by `make results`; nothing here is typed in. `make results TASK=<folder>` or
`TASK=<folder>/<recipe>` runs one part anew. Each number is that of the checkpoint with the lowest validation loss,
as a mean over the seeds (lowest–highest). A run has at most {MOST_MINUTES:g} minutes unless its recipe says
otherwise; where one takes more than {ONE_SEED_MINUTES:g}, one seed suffices, but for the chorales. Minutes are those
of training and evaluation, the median over the seeds; other work on the machine is in them. What does not reach its
goal, or, without one, is worse than its published number, is shown as it is, in bold.
"""


def write_reports(checkout: Path) -> list[str]:
    """Everything that is written from the results of a checkout; returns what a reader should be told.

    `results/README.md`, `results/<task>/curves.png`, the README's table and its sentence on two processes, and the
    headers of the recipes that ran.
    """
    folder, told = checkout / "results", []
    results = read_results(folder)
    recipes = recipes_of(checkout / "configs")
    write_whole(folder / "README.md", format_results(results, recipes))
    for task in BENCHMARKS:
        finished = {name: result for name, result in of_task(results, task).items() if result["runs"]}
        if finished and task != "lm":  # the demo has a picture of its own
            plot_benchmark(finished, BENCHMARKS[task].measure, folder / task / "curves.png")
    readme, scaling, parts = checkout / "README.md", folder / "scaling.json", {MARKER: format_short(results)}
    if scaling.is_file():
        parts[SCALING_MARKER] = format_scaling(json.loads(scaling.read_text(encoding="utf-8")))
    for marker, content in parts.items():
        try:
            write_whole(readme, replace_between(readme.read_text(encoding="utf-8"), marker, content))
        except (ValueError, FileNotFoundError) as error:
            told.append(f"NOT WRITTEN: the {marker} in {readme}: {error}")
    for recipe, result in results.items():
        path = checkout / "configs" / f"{recipe}.yaml"
        if recipe.startswith("lm/") or not path.is_file():  # `tables.rewrite` does those of the demo
            continue
        write_whole(path, update_header(path.read_text(encoding="utf-8"), result))
    return told


def recipes_of(configs: Path) -> list[str]:
    """The benchmarks' recipes in a folder of recipes, as `<task>/<architecture>`."""
    return [f"{task}/{path.stem}" for task in BENCHMARKS for path in sorted((configs / task).glob("*.yaml"))]


def of_task(results: Mapping[str, Record], task: str) -> dict[str, Any]:
    """Architecture → result, for one folder."""
    return {recipe.split("/")[1]: result for recipe, result in results.items() if recipe.startswith(f"{task}/")}


def format_scaling(result: Record) -> str:
    """What `make bench` measured, in a sentence."""
    one, two = result["runs"].values()
    reach = f"{result['reach']['ratio']:g}" + ("" if result["reached"] else ", **not reached**")
    return (
        f"- Two processes with one thread each beside one with one thread (`make bench`): {two['median']:,.0f} and "
        f"{one['median']:,.0f} tokens/s, {result['ratio']:.2f} times as many (to reach: {reach}), losses equal to "
        f"{result['loss_difference']:.1e}; an LSTM of {one['parameters']:,} parameters, {two['backend']}, "
        f"{result['hardware']['cores']} cores, torch {result['versions']['torch']} "
        "([scaling.json](results/scaling.json))."
    )


# ---- numbers in words -------------------------------------------------------------------------------------------


def number(value: float, digits: int) -> str:
    """So many digits after the point; a smaller number than these can show as a power of ten."""
    return f"{value:.{digits}f}" if value == 0 or abs(value) >= 10.0 ** (2 - digits) / 2 else f"{value:.1e}"


def in_words(values: Sequence[float], digits: int) -> str:
    """The mean, with the range where there are several seeds."""
    if not values:
        return "–"
    if len(values) == 1:
        return number(values[0], digits)
    low, high = (number(edge(values), digits) for edge in (min, max))
    return f"{number(mean(values), digits)} ({low}–{high})"


def _published(reference: Reference | None) -> str:
    if reference is None:
        return "–"
    more = "" if reference.goal in (None, reference.value) else f"; to reach: {reference.goal:g}"
    return f"{reference.value:g} ({reference.source}{more})"


def _verdict(benchmark: Benchmark, reference: Reference | None, values: Sequence[float]) -> str:
    if reference is None or not values:
        return "–"
    if not reference.comparable:
        return "not comparable"
    score = mean(values)
    as_published = benchmark.reaches(score, reference.value)
    if reference.goal is None:
        return "reached, no goal" if as_published else "**worse**, no goal"
    if not benchmark.reaches(score, reference.goal):
        return "**not reached**"
    return "reached" if as_published else "goal reached, worse than published"


def _seeds(result: Record, benchmark: Benchmark) -> str:
    """How many seeds; with a note where there are fewer than the benchmark wants, or some failed."""
    count, wanted = len(result["runs"]), 1 if result.get("seed_rule") else len(benchmark.seeds)
    failed = len(result.get("failed", {}))
    told = f"{count}" if count >= wanted else f"{count} of {wanted}"
    return f"{told}, **{failed} failed**" if failed else told


def minutes(result: Record) -> float:
    """Of a run: the median over the seeds, as some of them may have shared the machine with other work."""
    return median(minutes_of(run) for run in result["runs"])


def _minutes(result: Record) -> str:
    if not result["runs"]:
        return "–"
    stopped = any("stopped_after_minutes" in run for run in result["runs"])
    return f"{minutes(result):.1f}" + (" (limit)" if stopped else "")


# ---- results/README.md ------------------------------------------------------------------------------------------


def format_results(results: Mapping[str, Record], recipes: Sequence[str]) -> str:
    """The whole `results/README.md`.

    Args:
        results: from [`read_results`].
        recipes: all recipes of benchmarks; those without a result are named as not yet run.
    """
    parts = [_HEAD]
    for task, benchmark in BENCHMARKS.items():
        here = of_task(results, task)
        waiting = [recipe for recipe in recipes if recipe.startswith(f"{task}/") and recipe not in results]
        if here or waiting:
            parts.append(_section(task, benchmark, here, waiting))
    more = (
        "## Others\n\nDoes every system learn? [learning/table.md](learning/table.md). Memory of the attention "
        "patterns: [attention_memory.csv](attention_memory.csv). The demo: [demo.csv](demo.csv).\n"
    )
    return "\n".join([*parts, more])


def _section(task: str, benchmark: Benchmark, here: Mapping[str, Record], waiting: Sequence[str]) -> str:
    words, digits, _ = MEASURES[benchmark.measure]
    lines = [f"## {task}: {benchmark.what}\n"]
    if here:
        better = "lower" if benchmark.lower_is_better else "higher"
        score = f"{benchmark.split} {words}"
        lines.append(
            f"The score is the {score}; {better} is better.{f' {benchmark.note}' if benchmark.note else ''}\n"
        )
        lines += [
            f"| recipe | parameters | seeds | {score} | steps | minutes | published | |",
            "|---|---:|---|---:|---:|---:|---|---|",
        ]
        for name, result in sorted(here.items(), key=lambda item: item[0]):
            reference, values = benchmark.reference(name), scores_of(result)
            steps = f"{mean(run['steps'] for run in result['runs']):,.0f}" if result["runs"] else "–"
            size = f"{result['parameters']:,}" if "parameters" in result else "–"
            cells = [f"[{name}]({task}/{name}.json)", size, _seeds(result, benchmark), in_words(values, digits)]
            cells += [steps, _minutes(result), _published(reference), _verdict(benchmark, reference, values)]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", *_notes(here)]
        if task != "lm" and any(result["runs"] for result in here.values()):
            lines.append(f"\n![Validation {words} against steps]({task}/curves.png)")
    if waiting:
        lines += ([""] if here else []) + [f"Not yet run: {', '.join(waiting)}."]
    return "\n".join(lines).rstrip() + "\n"


def _notes(here: Mapping[str, Record]) -> list[str]:
    """Under a table: the same data and batches or not, what was left out, where it was measured, what failed."""
    finished = {name: result for name, result in here.items() if result["runs"]}
    lines = []
    if finished:
        lines.append(f"- data: {_grouped({name: _data(result) for name, result in finished.items()})}")
        lines += [f"- {line}" for line in _batches(finished)]
        lines += [f"- a guess has {told}" for told in dict.fromkeys(filter(None, map(_chance, finished.values())))]
        lines.append(f"- measured on {_grouped({name: _machine(result) for name, result in finished.items()})}")
        lines.append(f"- code: {_grouped({name: _code(result) for name, result in finished.items()})}")
    for name, result in here.items():
        lines += [f"- {name}: seed {seed} failed: {why}" for seed, why in result.get("failed", {}).items()]
        lines += [f"- {name}: {result['seed_rule']}"] if result.get("seed_rule") else []
    return lines


def _grouped(told: Mapping[str, str]) -> str:
    """What several recipes share is said once."""
    groups: dict[str, list[str]] = {}
    for name, text in told.items():
        groups.setdefault(text, []).append(name)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in groups.items())


def _data(result: Record) -> str:
    known, config = result["data"], result["config"]["data"]
    name = config.get("path") or config.get("train_file") or config["dataset"]
    left = {split: count for split, count in (known.get("skipped") or {}).items() if count}
    skipped = ", ".join(f"{count:,} of {split}" for split, count in left.items())
    hashes = dict.fromkeys({**result, **run}["data"]["sha256"][:16] for run in result["runs"])
    told = f"{name}, sha256 " + ", ".join(f"`{found}`" for found in hashes)
    told += " (**the seeds learned from different data**)" if len(hashes) > 1 else ""
    return told + (f", examples left out: {skipped}" if skipped else "")


def _chance(result: Record) -> str:
    """What a guess scores, where that is known."""
    known = {name: value for name, value in (result.get("chance") or {}).items() if name in MEASURES}
    return ", ".join(f"{MEASURES[name][0]} {number(value, MEASURES[name][1])}" for name, value in known.items())


def _batches(finished: Mapping[str, Record]) -> list[str]:
    """Who learned from the same batches in the same order: proven by digests."""
    groups, lines = same_batches(finished), []
    for names, steps, digest in groups:
        if len(names) > 1:
            whole = "all" if len(names) == len(finished) else ", ".join(names)
            lines.append(f"the same batches in the same order, for {steps:,} steps (digest `{digest}`): {whole}")
    alone = [names[0] for names, _, _ in groups if len(names) == 1]
    if alone and len(finished) > 1:
        lines.append(f"batches of its own, as its recipe cuts them otherwise: {', '.join(alone)}")
    parted = [name for name, result in finished.items() if not result["same_batches"]]
    return lines + ([f"seeds that did not see the same batches: {', '.join(parted)}"] if parted else [])


def _machine(result: Record) -> str:
    found = [{**result, **run}["hardware"] for run in result["runs"]]
    return "; ".join(dict.fromkeys(place(hardware) for hardware in found))


def place(hardware: Record) -> str:
    """A machine in a few words."""
    if hardware.get("gpu"):
        return str(hardware["gpu"])
    cores, threads = hardware["cores"], hardware.get("torch_threads")
    used = f", {threads} thread{'s' * (threads > 1)}" if threads not in (None, cores) else ""
    return f"{cores} cores{used}"


def _code(result: Record) -> str:
    """Versions and commits; work that was not committed is marked."""
    versions = result["versions"]
    found = [{**result, **run}.get("git") for run in result["runs"]]
    commits = [f"`{git['commit'][:10]}`" + " with changes not committed" * git["dirty"] for git in found if git]
    named = ", ".join(dict.fromkeys(commits))
    return f"{f'commit {named}, ' if named else ''}torch {versions['torch']}, transformers {versions['transformers']}"


# ---- README and recipes -----------------------------------------------------------------------------------------


def format_short(results: Mapping[str, Record]) -> str:
    """The README's table: a line for each benchmark."""
    lines = [
        "| | task | score | measured: mean over the seeds | published |",
        "|---|---|---|---|---|",
    ]
    for group in GROUPS:
        for task, benchmark in BENCHMARKS.items():
            here = {name: result for name, result in of_task(results, task).items() if result["runs"]}
            if benchmark.group == group != "lm" and here:
                lines.append(_short_line(group, task, benchmark, here))
    return "\n".join([*lines, "", _LEGEND])


_LEGEND = (
    "Seeds, ranges, minutes, curves and what was run where: [results/README.md](results/README.md). In bold what does "
    "not reach its goal or, without one, its published number. Written by `make results`."
)


def _short_line(group: str, task: str, benchmark: Benchmark, here: Mapping[str, Record]) -> str:
    digits = MEASURES[benchmark.measure][1]
    measured, known = [], []
    for name, result in here.items():
        values, reference = scores_of(result), benchmark.reference(name)
        text = f"{name} {number(mean(values), digits)}"
        measured.append(f"**{text}**" if _verdict(benchmark, reference, values).startswith("**") else text)
        if reference is not None and reference.comparable:
            known.append(f"{name} {_published(reference)}")
    score = f"{benchmark.split} {benchmark.measure.replace('_', ' ')}"
    cells = [group, f"{task}: {benchmark.what}", score, ", ".join(measured), "; ".join(known) or "–"]
    return f"| {' | '.join(cells)} |"


def update_header(text: str, result: Record) -> str:
    """A recipe whose header lines `Takes` and `Expected` say what was measured; as it is where nothing was."""
    if not result["runs"]:
        return text
    task = result["recipe"].split("/")[0]
    benchmark = BENCHMARKS[task]
    words, digits, _ = MEASURES[benchmark.measure]
    takes = f"{minutes(result):.1f} minutes on {_machine(result)}"
    seeds = f" over {len(result['runs'])} seeds" if len(result["runs"]) > 1 else ""
    score = f"{benchmark.split} {words} {in_words(scores_of(result), digits)}{seeds}"
    text = re.sub(r"^# Takes:.*$", lambda _: f"# Takes:    {takes}", text, flags=re.MULTILINE)
    expected = f"# Expected: {score} (results/{result['recipe']}.json)"
    return re.sub(r"^# Expected:.*$", lambda _: expected, text, flags=re.MULTILINE)


if __name__ == "__main__":
    for line in write_reports(Path(*sys.argv[1:2])):
        print(line, file=sys.stderr)
