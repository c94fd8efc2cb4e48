"""Runs the recipes of benchmarks: each with its seeds through the same `run(config)` as a recipe, one after the other
or several at a time; what is finished is not repeated, what was interrupted goes on."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from transformers.utils import logging

from ..arguments import ConfigError
from ..config import one_line, parse
from ..data.sources import ENVIRONMENT, find_data
from ..demo import MODELS, DemoError, run_demo
from ..evaluation.benchmarks import BENCHMARKS, MEASURES
from ..evaluation.recorded import as_record, dumps, merge, minutes_of
from ..evaluation.result_tables import number, write_reports
from ..evaluation.tables import collect, rewrite
from ..hub.verify import VerificationError
from ..loading import load_data
from ..run import run
from ..training import TrainingDiverged
from ..writing import write_whole
from .plan import FAILED, Job, choose, enough_seeds, finished, how_to_start, records_of, seeds_of

PROG = "python -m hf_seqmodels.results"


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m hf_seqmodels.results`: exit status 0; 1 when a run failed; 2 for what the user can mend; 130 after
    Ctrl-C, which loses nothing that a checkpoint holds."""
    arguments = _arguments(argv)
    if arguments.data is not None:  # in the environment, so that no place of this machine gets into a record
        os.environ[ENVIRONMENT] = str(arguments.data)
    try:
        try:
            failed = [] if arguments.tables else run_all(arguments)
            told, status = [f"failed: {name}" for name in failed], 1 if failed else 0
        except KeyboardInterrupt:
            told, status = [_after_interrupt(arguments)], 130
        with _alone(arguments.checkout):
            told += write_reports(arguments.checkout)
    except (ConfigError, ValueError, OSError) as error:
        told, status = [f"error: {one_line(error)}"], 2
    for line in told:
        print(f"{PROG}: {line}", file=sys.stderr)
    return status


def _after_interrupt(arguments: argparse.Namespace) -> str:
    if arguments.overwrite:
        return "interrupted; --overwrite would begin again: without it, started runs go on and older ones stay"
    return "interrupted; the same command goes on where it stopped"


@contextmanager
def _alone(checkout: Path) -> Iterator[None]:
    """One process at a time writes the results of a checkout."""
    file = checkout / "runs" / "results" / ".lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file):
        yield


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=PROG, description=__doc__)
    parser.add_argument("--task", nargs="+", default=[], metavar="PART", help="groups, folders, recipes; default: all")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="N", help="instead of those that the benchmark names")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help=f"folder of data sets; default: ${ENVIRONMENT}, data …"
    )
    parser.add_argument("--checkout", type=Path, default=Path("."), help="its configs/, runs/, results/, README.md")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="runs at a time; default: %(default)s")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch in each run; default: cores / workers")
    parser.add_argument("--overwrite", action="store_true", help="repeat runs that are finished")
    parser.add_argument("--tables", action="store_true", help="run nothing; write tables and pictures from results/")
    arguments = parser.parse_args(argv)
    for name in ("workers", "threads"):
        if (getattr(arguments, name) or 1) < 1:
            parser.error(f"--{name} {getattr(arguments, name)}: must be at least 1")
    arguments.threads = arguments.threads or max(1, (os.cpu_count() or 1) // arguments.workers)
    return arguments


def run_all(arguments: argparse.Namespace) -> list[str]:
    """Run what was asked for; returns what failed.

    The first seed of every recipe runs before the others: how long it takes decides whether these are wanted.

    Raises:
        ConfigError: a part, a recipe or a data set is not there, or a part of `lm` is wanted; before anything runs.
    """
    recipes = choose(arguments.task, arguments.checkout / "configs")
    if any(name.startswith("lm/") for name in arguments.task) or (arguments.seeds and "lm" in arguments.task):
        raise ConfigError("lm is the demo and runs as a whole, with its own seed; give --task lm, and no --seeds")
    others = [recipe for recipe in recipes if not recipe.startswith("lm/")]
    for recipe in others:
        check(_jobs(recipe, arguments)[0])
    failed = [] if len(others) == len(recipes) else run_demo_results(arguments)
    first = [_jobs(recipe, arguments)[0] for recipe in others]
    failed += _run(first, arguments)
    rest = []
    for recipe in others:
        jobs = _jobs(recipe, arguments)
        record = finished(jobs[0].folder, jobs[0].config().values)
        if arguments.seeds is not None or enough_seeds(recipe.split("/")[0], record) is None:
            rest += jobs[1:]
    return failed + _run(rest, arguments)


def _jobs(recipe: str, arguments: argparse.Namespace) -> list[Job]:
    """A recipe with each of its seeds."""
    seeds = arguments.seeds if arguments.seeds is not None else BENCHMARKS[recipe.split("/")[0]].seeds
    path, runs = arguments.checkout / "configs" / f"{recipe}.yaml", arguments.checkout / "runs" / "results"
    return [
        Job(recipe, seed, path, runs / recipe / f"seed-{seed}", arguments.threads, arguments.overwrite)
        for seed in dict.fromkeys(seeds)
    ]


def check(job: Job) -> None:
    """Raise ConfigError if the recipe cannot be run, or its data are not there."""
    config = job.config()
    if config.data.path is not None:
        try:
            find_data(config.data.path, config.data.data_dir)
        except FileNotFoundError as error:
            raise ConfigError(f"{job.recipe}: {one_line(error)}") from None


def _run(jobs: Sequence[Job], arguments: argparse.Namespace) -> list[str]:
    """Run jobs, write a recipe's result after each of its seeds, and tell; returns what failed."""
    failed = []
    for count, (job, error) in enumerate(_outcomes(jobs, arguments.workers), start=1):
        record = write_result(job, arguments)
        name = f"{job.recipe}, seed {job.seed}"
        if error is not None:
            failed.append(f"{name}: {error}")
        told = f"FAILED: {error}" if error is not None or record is None else in_words(job, record)
        print(f"[{count}/{len(jobs)}] {name}: {told}", flush=True)
    return failed


def _outcomes(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, str | None]]:
    """Each job as it is done, with what went wrong.

    When a worker dies, those beside it are ended too, and nobody knows which one it was: each of them gets another
    go, alone, and the jobs that had not begun go on as before.
    """
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield job, run_one(job)
        return
    waiting, again = deque(jobs), list[Job]()
    while waiting:
        again += yield from _together(waiting, workers)
    for job in again:
        if (yield from _together(deque([job]), 1)):
            yield job, "its process died (killed for memory?)"


def _together(waiting: deque[Job], workers: int) -> Generator[tuple[Job, str | None], None, list[Job]]:
    """Takes from the jobs that wait until none is left or a worker dies; returns those that ran at that moment."""
    context, running = multiprocessing.get_context("spawn"), dict[Future[str | None], Job]()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_stop_at_once)
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                running[pool.submit(run_one, waiting[0])] = waiting[0]
                waiting.popleft()
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                error = done.result()
                yield running.pop(done), error
    except BrokenProcessPool:
        return list(running.values())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():  # only after Ctrl-C there are any that still train
            process.terminate()
    return []


def _stop_at_once() -> None:
    """In a worker: Ctrl-C ends it without a word, and so does the end of the process that started it, however that
    came; checkpoints are whole at any moment."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot tell its workers, which would train on for hours, unseen."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has one"
    parent.join()
    os._exit(143)


def run_one(job: Job) -> str | None:
    """One run, unless it is finished; returns what went wrong, which is also left in its folder."""
    torch.set_num_threads(job.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(job.folder.with_name(f".{job.folder.name}.lock"), blocking=False):
            return _run_alone(job)
    except Timeout:
        return f"another process trains it in '{job.folder}'; wait for that one"


def _run_alone(job: Job) -> str | None:
    """`run_one` in a folder that no other process trains in."""
    values = job.config().values
    record = None if job.overwrite else finished(job.folder, values)
    if record is not None and load_data(job.config()).hash == record["data"]["sha256"]:
        return None
    option, why = ("--overwrite", "anew") if job.overwrite else how_to_start(job.folder, values)
    if why:
        print(f"{job.recipe}, seed {job.seed}: {why}{', since the data changed' * (record is not None)}", flush=True)
    (job.folder / FAILED).unlink(missing_ok=True)
    try:
        run(job.config(option) if option else job.config(), quiet=True)
    except Exception as error:  # recorded as it is, whatever it is, and the other runs go on
        told = one_line(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {one_line(error)}"
        job.folder.mkdir(parents=True, exist_ok=True)
        found = {"seed": job.seed, "error": told, "config": values}
        (job.folder / FAILED).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return told
    for checkpoint in job.folder.glob("checkpoint-*"):  # the best one's weights lie beside the result
        shutil.rmtree(checkpoint)
    return None


def write_result(job: Job, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """`results/<task>/<architecture>.json` from all finished seeds of the recipe; the record of this one's run.

    Seeds that learned from other data than this one are left out. A result of the same recipe and data with seeds
    that have not finished here stays (a clean clone begins with those).
    """
    task, values = job.recipe.split("/")[0], job.config().values
    with _alone(arguments.checkout):
        records, failed = records_of(job.folder.parent, values)
        mine = next((record for record in records if record["seeds"]["seed"] == job.seed), None)
        if mine is not None:
            records = [record for record in records if record["data"]["sha256"] == mine["data"]["sha256"]]
        file = arguments.checkout / "results" / f"{job.recipe}.json"
        missing = seeds_of(file, values, mine) - {record["seeds"]["seed"] for record in records}
        if missing:
            print(
                f"{file} has seeds that were not run here ({', '.join(map(str, sorted(missing)))}) and stays",
                flush=True,
            )
            return mine
        rule = enough_seeds(task, records[0]) if len(records) == 1 else None
        write_whole(file, dumps(merge(job.recipe, records, failed, rule)))
        return mine


def in_words(job: Job, record: dict[str, Any]) -> str:
    """A finished run in a line."""
    benchmark = BENCHMARKS[job.recipe.split("/")[0]]
    words, digits, _ = MEASURES[benchmark.measure]
    score = as_record(merge(job.recipe, [record]))["metrics"][benchmark.split][benchmark.measure]
    return (
        f"{benchmark.split} {words} {number(score, digits)}, {record['parameters']:,} parameters, "
        f"{record['steps']:,} steps, {minutes_of(record):.1f} min"
    )


def run_demo_results(arguments: argparse.Namespace) -> list[str]:
    """The demo and the other recipes of `lm/`, all of them: into `results/`, the README and the headers of recipes.

    Returns what failed.
    """
    runs, checkout = arguments.checkout / "runs", arguments.checkout
    try:
        run_demo(runs / "demo", overwrite=True)
        for path in sorted((checkout / "configs" / "lm").glob("*.yaml")):
            if path.stem not in MODELS:
                print(f"training lm/{path.stem}", flush=True)
                folder = runs / "lm" / path.stem
                run(parse(["--config", str(path), "--output_dir", str(folder), "--overwrite"]), quiet=True)
    except (DemoError, VerificationError, TrainingDiverged) as error:
        return [f"lm: {one_line(error)}"]
    collect(runs, checkout)
    rewrite(checkout)
    return []
