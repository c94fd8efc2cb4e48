"""From a finished run to a folder that a stranger can load, understand and verify."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from .files import CHECKSUMS, UnsafeFolder, find_secrets, list_files, read_checksums, write_checksums
from .saved import first_words, load_strict, load_tokenizer, other_records, read_record, redact


class ExportError(ValueError):
    """Something that cannot be exported: one line with the value, the rule and the way out."""


def export(
    run: Path,
    folder: Path,
    *,
    overwrite: bool = False,
    name: str | None = None,
    license: str | None = None,
    onnx: bool = False,
    int8: bool = False,
    rows: Callable[[], Any] | None = None,
    code: bool = True,
) -> dict[str, Any]:
    """Write `folder` from `run`, and verify it in fresh processes before it gets its name.

    Args:
        run: a folder with config.json and model.safetensors; with `result.json` and `config.yaml` if a run wrote it.
        folder: new, or empty, or an earlier export together with `overwrite`.
        name: the model's name on the card.
        license: of the weights, an identifier of the Hub's list; None: the record's, else apache-2.0.
        onnx, int8: add ONNX models; and quantized ones, which need them.
        rows: gives the rows of tokens that the quantized models are measured on; None: the golden input.
        code: ship the modelling files. Without them the folder needs this package.

    Returns:
        `files` (names), `stranger` (what the fresh process found), and `onnx`, `int8` where asked for.

    Raises:
        ExportError, UnsafeFolder: the run or the target are not fit; nothing was written.
        VerificationError: a stranger does not get the same; nothing was written.
    """
    from .card import check_license
    from .cards import write_card
    from .golden import write_golden
    from .verify import verify_as_stranger

    check_license(license or "apache-2.0")
    _check_target(run, folder, overwrite)
    if onnx or int8:
        from .onnx_export import require_onnx

        require_onnx()
    record, model = read_record(run), load_strict(run)
    with staged(folder) as stage:
        model.save_pretrained(stage, **({} if code else {"save_code": False}))
        _save_readers(run, stage)
        if record is not None:
            license = license or record.get("license") or "apache-2.0"
            told = {
                "name": name or folder.resolve().name,
                "license": license,
                "compared_with": other_records(run, record),
            }
            _save_record(run, stage, redact(record) | told)
        write_golden(model, stage)
        report = _add_onnx(stage, int8, rows) if onnx or int8 else {}
        write_card(stage, stage, name or folder.resolve().name, license)
        write_checksums(stage)
        refuse_secrets(stage)
        prompt = first_words(record, load_tokenizer(stage))
        report["stranger"] = verify_as_stranger(stage, prompt, with_package=not code)
        report["files"] = list_files(stage)
    return report


def _add_onnx(stage: Path, int8: bool, rows: Callable[[], Any] | None) -> dict[str, Any]:
    from .onnx_export import export_onnx

    report = {"onnx": export_onnx(stage, stage)}
    if int8:
        from .quantize import quantize

        report["int8"] = quantize(stage, stage, rows() if rows else None)
    return report


def refuse_secrets(folder: Path) -> None:
    """Raise ExportError, without the secret, if any file holds what looks like a token or a private key."""
    for file, kind in find_secrets(folder):
        raise ExportError(f"'{file}' holds what looks like a secret ({kind}); take it out of the run")


def _save_readers(run: Path, stage: Path) -> None:
    """Tokenizer, feature extractor, processor: whatever prepares the model's input, as the run has it."""
    from transformers import AutoFeatureExtractor, AutoProcessor

    if (run / "processor_config.json").is_file():
        AutoProcessor.from_pretrained(run).save_pretrained(stage)
    elif (run / "preprocessor_config.json").is_file():
        AutoFeatureExtractor.from_pretrained(run).save_pretrained(stage)
    tokenizer = load_tokenizer(run)
    if tokenizer is not None:
        tokenizer.save_pretrained(stage)


def _save_record(run: Path, stage: Path, record: Mapping[str, Any]) -> None:
    """result.json (redacted already), config.yaml and training_args.json."""
    (stage / "result.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    arguments = record["config"].get("training", {})
    (stage / "training_args.json").write_text(json.dumps(arguments, indent=2) + "\n", encoding="utf-8")
    if (run / "config.yaml").is_file():
        values = read_settings(run / "config.yaml")
        (stage / "config.yaml").write_text(yaml.safe_dump(redact(values), sort_keys=False), encoding="utf-8")


# ---- writing the folder -----------------------------------------------------------------------------------------


def read_settings(file: Path) -> dict[str, Any]:
    """A run's config.yaml.

    Raises:
        ExportError: it is no YAML.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ExportError(f"'{file}' is no YAML ({' '.join(str(error).split())}); delete it, or train again") from None
    return values if isinstance(values, dict) else {}


def _check_target(run: Path, folder: Path, overwrite: bool) -> None:
    target = folder.resolve()
    if run.resolve().is_relative_to(target) or target == Path.cwd():
        what = "the current folder" if target == Path.cwd() else "the run itself, or holds it"
        raise ExportError(f"'{folder}' is {what}; give another folder for the export")
    if folder.is_file():
        raise ExportError(f"'{folder}' is a file; give a new folder")
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not there:
        return
    if not overwrite:
        raise ExportError(f"'{folder}' is not empty; give a new folder, or --overwrite to replace an earlier export")
    strange = sorted(there - {CHECKSUMS, *(name.partition("/")[0] for name in read_checksums(folder))})
    if strange:
        raise ExportError(f"'{folder}' holds '{strange[0]}', which no export wrote; it is not replaced")


@contextmanager
def staged(folder: Path):
    """A new folder beside `folder` that takes its place at the end; after an error nothing has changed."""
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    old = stage.with_name(stage.name + "-old")
    try:
        yield stage
        stage.chmod(0o755)
        if folder.exists():
            folder.rename(old)
        try:
            stage.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


__all__ = ["ExportError", "UnsafeFolder", "export"]
