"""Runs the checks: each system with each seed through the same `run(config)` as a recipe, two at a time."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..arguments import ConfigError
from ..config import parse
from ..run import run
from ..training.provenance import hardware
from .checks import CHECKS, Check
from .report import write_check, write_report


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m hf_seqmodels.learning`: exit status 0; 1 when a bar is missed; 2 for what the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m hf_seqmodels.learning", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(CHECKS), metavar="CHECK", help=f"of {', '.join(CHECKS)}")
    parser.add_argument("--output", type=Path, default=Path("results/learning"), help="default: %(default)s")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="the runs; default: %(default)s")
    parser.add_argument("--checkout", type=Path, help="write the table into its README, the scores into its recipes")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="default: %(default)s")
    parser.add_argument("--resume", action="store_true", help="do not repeat runs that an interrupted suite finished")
    arguments = parser.parse_args(argv)
    try:
        missed = [name for name in arguments.only or CHECKS if not run_check(name, arguments)["passed"]]
        write_report(arguments.output, arguments.checkout)
    except ConfigError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    if missed:
        print(f"missed: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


def run_check(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train all systems of a check with all seeds, judge, and write `<name>.json` and `<name>.png`.

    Raises:
        ConfigError: a recipe cannot be run.
    """
    check, runs, workers = CHECKS[name], arguments.runs, arguments.workers
    jobs = [(system, seed) for seed in check.seeds for system in check.systems]
    for system in check.systems:  # a mistake shows before the first of them runs
        parse([*check.systems[system].split(), "--output_dir", str(runs / "unused")])
    start = time.perf_counter()
    found: dict[str, list[dict[str, Any]]] = {system: [] for system in check.systems}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        pending = {}
        for system, seed in jobs:
            folder = runs / name / f"{system.replace(' ', '_')}-{seed}"
            pending[pool.submit(run_one, check.systems[system], seed, folder, arguments.resume)] = system
        for number, done in enumerate(as_completed(pending), start=1):
            system, record = pending[done], done.result()
            found[system].append(record)
            score = record["metrics"]["test"][check.measure]
            print(
                f"{name} [{number}/{len(jobs)}] {system}, seed {record['seeds']['seed']}: "
                f"{check.measure} {score:.4f}, {record['seconds']:.0f} s ({record['cpu_seconds']:.0f} s of CPU)",
                flush=True,
            )
    result = judge(name, check, found)
    result |= {"seconds": round(time.perf_counter() - start, 1), "workers": workers, "hardware": hardware()}
    write_check(arguments.output, name, result)
    for bar in result["bars"]:
        print(f"{name}: {'holds' if bar['holds'] else 'MISSED'}: {bar['text']}", flush=True)
    return result


def run_one(command_line: str, seed: int, folder: Path, resume: bool = False) -> dict[str, Any]:
    """One training, in a process and a thread of its own; returns the run's record and its seconds of CPU.

    With `resume` a finished run with the same configuration is not repeated.
    """
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    config = parse([*command_line.split(), "--seed", str(seed), "--output_dir", str(folder), "--overwrite"])
    file = folder / "result.json"
    if resume and file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if before["config"] == config.values and "cpu_seconds" in before:
            return before
    start = time.process_time()
    record = run(config, quiet=True)
    record["cpu_seconds"] = round(time.process_time() - start, 1)  # what a busy machine does not lengthen
    file.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return record


def judge(name: str, check: Check, found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What was measured, and which bars hold: the content of `<name>.json`."""
    systems = {}
    for system, records in found.items():
        ordered = sorted(records, key=lambda record: record["seeds"]["seed"])
        systems[system] = {
            "command": f"python train.py {check.systems[system]}",
            "model_type": ordered[0]["model_type"],
            "parameters": ordered[0]["parameters"],
            "steps": ordered[0]["steps"],
            "seeds": [record["seeds"]["seed"] for record in ordered],
            "scores": [record["metrics"]["test"][check.measure] for record in ordered],
            "metrics": [record["metrics"] for record in ordered],
            "seconds": [record["seconds"] for record in ordered],
            "cpu_seconds": [record["cpu_seconds"] for record in ordered],
            "curves": [record["curve"]["train"] for record in ordered],
        }
    first = next(iter(found.values()))[0]
    chance = first["chance"].get(check.measure)
    measured: dict[str, list[float]] = {system: entry["scores"] for system, entry in systems.items()}
    if chance is not None:
        measured["chance"] = [chance]
    bars = [{"text": bar.text, "holds": bar.holds(measured)} for bar in check.bars]
    return {
        "check": name,
        "what": check.what,
        "measure": check.measure,
        "chance": chance,
        "passed": all(bar["holds"] for bar in bars),
        "bars": bars,
        "systems": systems,
        "data": first["data"],
        "versions": first["versions"],
    }
