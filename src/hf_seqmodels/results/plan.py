"""Which runs a part of the results consists of, and what each one's folder already holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..arguments import ConfigError, DataArguments, SeqTrainingArguments
from ..config import RunConfig, parse
from ..evaluation.benchmarks import BENCHMARKS, GROUPS, MOST_MINUTES, ONE_SEED_MINUTES
from ..evaluation.recorded import minutes_of
from ..evaluation.result_tables import recipes_of
from ..recipes import did_you_mean, read_recipe

FAILED = "failed.json"
# Two runs are the same but for these: what they say is in the folder's name, or in the data's hash (see `run_one`).
_PLACES = {("training", "output_dir"), ("training", "seed"), ("data", "data_dir")}
_DEFAULTS = {"data": DataArguments, "training": SeqTrainingArguments}


@dataclass(frozen=True)
class Job:
    """One run: a recipe with a seed.

    Attributes:
        recipe: `<task>/<architecture>`.
        path: its YAML file.
        folder: where it is trained.
        threads: of torch.
        overwrite: train even if the folder holds the finished run.
    """

    recipe: str
    seed: int
    path: Path
    folder: Path
    threads: int
    overwrite: bool = False

    def config(self, *more: str) -> RunConfig:
        """The run's configuration; without `more` as if its folder were empty.

        Raises:
            ConfigError: the recipe cannot be run.
        """
        argv = ["--config", str(self.path), "--seed", str(self.seed), "--output_dir", str(self.folder)]
        if "max_minutes" not in (read_recipe(self.path).get("training") or {}):
            argv += ["--max_minutes", str(MOST_MINUTES)]
        return parse([*argv, *(more or ("--overwrite",))])


def choose(wanted: Sequence[str], configs: Path) -> list[str]:
    """The recipes that groups, folders and recipes stand for; all of them for none.

    Raises:
        ConfigError: a name is none of these, or there is nothing of it to run.
    """
    there = recipes_of(configs)
    chosen: list[str] = []
    for name in wanted or GROUPS:
        if name in GROUPS:
            found = [recipe for recipe in there if BENCHMARKS[recipe.split("/")[0]].group == name]
        else:
            found = [recipe for recipe in there if name.removesuffix(".yaml") in (recipe, recipe.split("/")[0])]
        known = [*GROUPS, *BENCHMARKS, *there]
        if not found and name not in known:
            hint = did_you_mean(name, known) or f"; groups are {', '.join(GROUPS)}, folders {', '.join(BENCHMARKS)}"
            raise ConfigError(f"there is no benchmark '{name}'{hint}")
        if not found and wanted:
            raise ConfigError(f"there is no recipe of '{name}' in {configs}; put one there, or name another part")
        chosen += [recipe for recipe in found if recipe not in chosen]
    return chosen


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first thing in which two runs' options differ, in words; None where they are the same run.

    An option that was not known before counts as its default, and one that is known no longer is not compared.
    """
    for key in ("task", "model_type"):
        if before.get(key) != now[key]:
            return f"{key} was {before.get(key)} and is {now[key]}"
    for section in ("model", "data", "training"):
        old, new = before.get(section) or {}, now[section]
        cls = _DEFAULTS.get(section)
        defaults = {field.name: field.default for field in dataclasses.fields(cls)} if cls else {}
        for name in sorted({*old, *new} if cls is None else {*old, *new} & defaults.keys()):
            was, is_now = (side.get(name, defaults.get(name)) for side in (old, new))
            if was != is_now and (section, name) not in _PLACES:
                return f"{name} was {was} and is {is_now}"
    return None


def finished(folder: Path, values: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of a finished run with these options; None where there is none, or one with others."""
    file = folder / "result.json"
    if not file.is_file():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    return record if difference(record["config"], values) is None else None


def how_to_start(folder: Path, values: Mapping[str, Any]) -> tuple[str | None, str]:
    """The option that a run starts with, and a word on why.

    `--resume` where an interrupted run with the same options left a checkpoint, else `--overwrite` where anything
    lies in the way.
    """
    file = folder / "result.json"
    if file.is_file():
        changed = difference(json.loads(file.read_text(encoding="utf-8"))["config"], values)
        return "--overwrite", f"anew, since {changed}" if changed else "anew"
    saved = folder / "config.yaml"
    before = yaml.safe_load(saved.read_text(encoding="utf-8")) if saved.is_file() else {}
    changed = difference(before, values) if before else "its options are not known"
    steps = [int(path.parent.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*/trainer_state.json")]
    if steps and not changed:
        return "--resume", f"from step {max(steps):,}"
    if not folder.is_dir() or not any(folder.iterdir()):
        return None, ""
    return "--overwrite", f"anew, since {changed}" if steps and changed else "anew"


def records_of(runs: Path, values: Mapping[str, Any]) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """All finished seeds of a recipe with these options, in their order, and why others failed.

    Args:
        runs: the recipe's folder, with a folder `seed-<n>` for each.
    """
    records, failed = [], {}
    for folder in sorted(runs.glob("seed-*"), key=lambda path: int(path.name.rpartition("-")[2])):
        record = finished(folder, values)
        if record is not None:
            records.append(record)
        elif (folder / FAILED).is_file():
            found = json.loads((folder / FAILED).read_text(encoding="utf-8"))
            if difference(found["config"], values) is None:
                failed[found["seed"]] = found["error"]
    return records, failed


def seeds_of(file: Path, values: Mapping[str, Any], record: Mapping[str, Any] | None) -> set[int]:
    """The seeds of a written result that was made with these options, and from the data of a record if there is one;
    none of one that was made otherwise."""
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if "config" not in found or difference(found["config"], values) is not None:
        return set()
    if record is not None and found["data"]["sha256"] != record["data"]["sha256"]:
        return set()
    return {run["seed"] for run in found["runs"]}


def enough_seeds(task: str, record: Mapping[str, Any] | None) -> str | None:
    """Why the first seed's run is enough; None where the others are wanted too."""
    if record is None or BENCHMARKS[task].every_seed or minutes_of(record) <= ONE_SEED_MINUTES:
        return None
    return f"one seed, as a run takes {minutes_of(record):.0f} minutes (more than {ONE_SEED_MINUTES:g})"
