"""`hf-seqmodels doctor`: is this checkpoint what it says it is? Any checkpoint of transformers, ours or not."""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import one_line
from ..recipes import did_you_mean

if TYPE_CHECKING:
    from .doctor_patient import Finding, Patient

WORDS = {True: "ok", False: "FAIL", None: "skip"}
DOWNLOADED = ["*.safetensors", "*.json", "*.py", "*.txt", "*.md", "*.jinja", "*.model", "*.yaml", "*.png", "*.onnx"]
DOWNLOADED += ["SHA256SUMS", "LICENSE", ".gitattributes"]


@dataclass(frozen=True)
class Check:
    """One row of the table.

    Args:
        module: file of this folder with a function of the check's name.
        promise: what passes, in a few words.
        needs: checks without which this one would say nothing; it is skipped where one of them failed.
    """

    module: str
    promise: str
    needs: tuple[str, ...] = ()


_WHOLE = ("safetensors", "shard_index")
_LOADS = (*_WHOLE, "config", "generation_config", "shapes", "missing_keys", "load")
_COMPUTES = (*_LOADS, "finite_weights", "uninitialised")
_FILES, _MODEL, _BATCHES, _GENERATION = (f"doctor_{name}" for name in ("files", "model", "batches", "generation"))

CHECKS = {
    "pickles": Check(_FILES, "no file that may run code when it is loaded"),
    "secrets": Check(_FILES, "no token, no private key in any file"),
    "safetensors": Check(_FILES, "weights are safetensors, and whole"),
    "shard_index": Check(_FILES, "shards lie beside their index", _WHOLE[:1]),
    "checksums": Check(_FILES, "files are those of SHA256SUMS"),
    "card": Check(_FILES, "README.md is a card that the Hub reads"),
    "config": Check(_FILES, "sizes, special tokens and class of config.json"),
    "tokenizer": Check(_FILES, "its tokens fit the vocabulary", ("config",)),
    "generation_config": Check(_FILES, "options that generate takes", ("config",)),
    "finite_weights": Check(_FILES, "no NaN, no infinity", _WHOLE),
    "shapes": Check(_MODEL, "tensors as large as config.json says", _LOADS[:3]),
    "missing_keys": Check(_MODEL, "every tensor of the model is in the files", _LOADS[:5]),
    "unexpected_keys": Check(_MODEL, "every tensor in the files is the model's", _LOADS[:5]),
    "load": Check(_MODEL, "from_pretrained loads it", _LOADS[:6]),
    "tied_weights": Check(_MODEL, "memory is shared where config.json says so", _LOADS),
    "uninitialised": Check(_MODEL, "two loads give the same bits, in memory of different content", _LOADS),
    "save_load": Check(_MODEL, "saved and loaded, the same bits", (*_LOADS, "uninitialised")),
    "fresh_process": Check(_MODEL, "another process loads it and computes the same", _COMPUTES),
    "golden": Check(_MODEL, "scores as stored in golden.safetensors", _COMPUTES),
    "padding_right": Check(_BATCHES, "padding after a row changes nothing", _COMPUTES),
    "padding_left": Check(_BATCHES, "padding before a row changes nothing", _COMPUTES),
    "padding_batch": Check(_BATCHES, "a row in a batch is the row alone", _COMPUTES),
    "accumulation": Check(_BATCHES, "the loss is the same in parts and at once", _COMPUTES),
    "cache": Check(_GENERATION, "scores with the cache are those without", _COMPUTES),
    "cache_left": Check(_GENERATION, "the same after padding on the left", (*_COMPUTES, "padding_left", "cache")),
    "beam": Check(_GENERATION, "beams are worth what a pass over them says", (*_COMPUTES, "cache")),
}

DESCRIPTION = """\
Examine a checkpoint: any of transformers, whether this package made it or not. One line for each check, with the
measured number. Nothing is written beside the Hub's cache, nothing is sent, everything runs on the CPU, and code in
the folder runs only with --trust_remote_code.

checks:
"""
DESCRIPTION += "\n".join(f"  {name:18}{check.promise}" for name, check in CHECKS.items())
EPILOG = """\
examples:
  hf-seqmodels doctor exported/lstm
  hf-seqmodels doctor user/lstm-pydoc --revision v1
  hf-seqmodels doctor exported/lstm --trust_remote_code      # loads it without this package, as a stranger would
  hf-seqmodels doctor gpt2/ --only padding_left cache --json

exit status: 0 all is well, 1 a check failed, 2 what was named cannot be examined
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit status 0, 1 when a check failed, 2 when there is nothing that could be examined."""
    options = _parser().parse_args(argv)
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    show = _progress if sys.stderr.isatty() else None
    try:
        findings = diagnose(options.target, options.revision, options.trust_remote_code, options.only, show)
    except (ValueError, OSError) as error:
        print(f"hf-seqmodels doctor: error: {one_line(error)}", file=sys.stderr)
        return 2
    failed = any(finding.ok is False for finding in findings)
    if options.json:
        print(as_json(options.target, findings))
    else:
        print(report(findings))
    return int(failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-seqmodels doctor",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="DIR_OR_REPO", help="a folder, or a repository on the Hub as user/name")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.add_argument("--revision", help="branch, tag or commit of the repository")
    parser.add_argument("--trust_remote_code", action="store_true", help="let modelling code in the folder run")
    parser.add_argument(
        "--only", metavar="NAME", nargs="+", help="report these checks only (and what they need, where it fails)"
    )
    return parser


def _progress(name: str) -> None:
    """The check that is running, on a line that the next one overwrites; an empty name clears it."""
    print(f"\r\033[K{name}{' …' if name else ''}", end="", file=sys.stderr, flush=True)


# ---- examining --------------------------------------------------------------------------------------------------
def diagnose(
    target: str | Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
    only: Sequence[str] | None = None,
    show: Callable[[str], None] | None = None,
) -> list[Finding]:
    """Examine a checkpoint.

    Args:
        target: a folder, or a repository as user/name, which is downloaded (without pickles) first.
        revision: branch, tag or commit of the repository.
        trust_remote_code: let code in the folder run; the fresh process then does without this package.
        only: names of the checks to report, all of `CHECKS` by default. What they need runs too, and is reported
            where it fails.
        show: called with the name of each check before it runs, and with "" at the end.

    Returns:
        a finding for each check, in the order of `CHECKS`.

    Raises:
        ValueError: there is no such folder or repository, it holds no checkpoint, the Hub cannot be reached,
            nobody knows its model type, its code is not trusted, config.json wants a kernel from elsewhere, or a name
            in `only` is no check.
    """
    from .doctor_patient import Patient

    wanted = _wanted(only)
    with ExitStack() as stack:
        folder, names = _find(target, revision, stack)
        patient = Patient(folder, trust_remote_code, names)
        findings: dict[str, Finding] = {}
        for name in CHECKS:
            if name in wanted:
                if show is not None:
                    show(name)
                findings[name] = _run(name, patient, findings)
        if show is not None:
            show("")
    return [finding for name, finding in findings.items() if not only or name in only or finding.ok is False]


def _wanted(only: Sequence[str] | None) -> set[str]:
    """The checks to run: those named, and all that they need."""
    for name in only or ():
        if name not in CHECKS:
            raise ValueError(
                f"--only {name}: there is no such check{did_you_mean(name, CHECKS) or '; --help lists them'}"
            )
    wanted = set(only or CHECKS)
    for name in reversed(CHECKS):
        if name in wanted:
            wanted |= set(CHECKS[name].needs)
    return wanted


def _run(name: str, patient: Patient, before: dict[str, Finding]) -> Finding:
    """One check, with its name and time. Whatever it raises is what it found."""
    import importlib

    from .doctor_patient import DoesNotApply, found

    sick = [need for need in CHECKS[name].needs if before[need].ok is False]
    start = time.perf_counter()
    if sick:
        finding = found(None, f"says nothing as long as {sick[0]} fails")
    else:
        try:
            finding = getattr(importlib.import_module(f".{CHECKS[name].module}", __package__), name)(patient)
        except DoesNotApply as reason:
            finding = found(None, str(reason))
        except Exception as error:  # a model's own code may raise anything
            finding = found(False, f"{type(error).__name__}: {one_line(error)[:500]}")
    return replace(finding, name=name, seconds=round(time.perf_counter() - start, 3))


def _find(target: str | Path, revision: str | None, stack: ExitStack) -> tuple[Path, list[str]]:
    """The folder to examine, and what else lies in the repository."""
    from .doctor_patient import CannotExamine

    if Path(target).is_dir():
        if revision is not None:
            raise CannotExamine(f"--revision {revision} is for a repository, and '{target}' is a folder: leave it out")
        return Path(target), []
    if Path(target).exists():
        raise CannotExamine(f"'{target}' is a file: name the folder that holds config.json")
    name = str(target)
    if ".." in name or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise CannotExamine(f"'{name}' is no folder here and no name of a repository: write user/name")
    return _download(name, revision, Path(stack.enter_context(tempfile.TemporaryDirectory())))


def _download(name: str, revision: str | None, folder: Path) -> tuple[Path, list[str]]:
    """A repository into `folder`, by way of the Hub's cache, whose links are replaced by the files."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled, XetDownloadError

    from .doctor_patient import CannotExamine, place

    try:  # a lost connection is an HTTPError, which is no OSError; those of Xet are RuntimeErrors
        try:
            names = HfApi().list_repo_files(name, revision=revision)
        except OfflineModeIsEnabled:
            names = []
        cached = Path(snapshot_download(name, revision=revision, allow_patterns=DOWNLOADED))
    except (ValueError, OSError, RuntimeError, HTTPError, XetDownloadError) as error:
        reason = one_line(error) or type(error).__name__
        raise CannotExamine(f"'{name}' is no folder here, and as a repository: {reason}") from None
    for path in cached.rglob("*"):
        if path.is_file():
            place(path, folder / path.relative_to(cached))
    return folder, names


# ---- reporting --------------------------------------------------------------------------------------------------
def report(findings: Sequence[Finding]) -> str:
    """One line for each check, and one with their count."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = [f"{WORDS[finding.ok]:4}  {finding.name:{width}}  {finding.measured}" for finding in findings]
    count: dict[Any, int] = {ok: sum(finding.ok is ok for finding in findings) for ok in WORDS}
    seconds = sum(finding.seconds for finding in findings)
    lines.append(f"{count[True]} ok, {count[False]} failed, {count[None]} skipped, {seconds:.1f} s")
    return "\n".join(lines)


def as_json(target: str, findings: Sequence[Finding]) -> str:
    """The same as JSON, which knows no NaN: a number that is none is null."""
    checks = []
    for finding in findings:
        number = finding.number if finding.number is not None and math.isfinite(finding.number) else None
        checks.append(asdict(finding) | {"status": WORDS[finding.ok], "number": number})
    all_well = all(finding.ok is not False for finding in findings)
    return json.dumps({"target": target, "ok": all_well, "checks": checks}, indent=2, ensure_ascii=False)


if __name__ == "__main__":
    sys.exit(main())
