"""From a finished run to a folder that a stranger can load, understand and verify."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from .files import CHECKSUMS, UnsafeFolder, find_secrets, list_files, write_checksums
from .saved import first_words, load_strict, load_tokenizer, other_records, read_record, redact

FEATURES = ("preprocessor_config.json", "processor_config.json", "feature_extractor_config.json")


class ExportError(ValueError):
    """Something that cannot be exported: one line with the value, the rule and the way out."""


def export(
    run: Path,
    folder: Path,
    *,
    overwrite: bool = False,
    name: str | None = None,
    license: str = "apache-2.0",
    onnx: bool = False,
    int8: bool = False,
    rows: Any = None,
    code: bool = True,
) -> dict[str, Any]:
    """Write `folder` from `run`, and verify it in fresh processes before it gets its name.

    Args:
        run: a folder with config.json and model.safetensors; with `result.json` and `config.yaml` if a run wrote it.
        folder: new, or empty, or an earlier export together with `overwrite`.
        name: the model's name on the card.
        license: identifier of the Hub's list.
        onnx, int8: add ONNX models; and quantized ones, which need them.
        rows: rows of tokens that the accuracy of the quantized models is measured on; None: the golden input.
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

    check_license(license)
    _check_target(run, folder, overwrite)
    if onnx or int8:
        from .onnx_export import require_onnx

        require_onnx()
    record, model = read_record(run), load_strict(run)
    with staged(folder) as stage:
        model.save_pretrained(stage, **({} if code else {"save_code": False}))
        _save_readers(run, stage)
        if record is not None:
            told = {"name": name or folder.name, "license": license, "compared_with": other_records(run, record)}
            _save_record(run, stage, redact(record) | told)
        write_golden(model, stage)
        report = _add_onnx(stage, int8, rows) if onnx or int8 else {}
        write_card(stage, stage, name or folder.name, license)
        write_checksums(stage)
        refuse_secrets(stage)
        prompt = first_words(record, load_tokenizer(stage))
        report["stranger"] = verify_as_stranger(stage, prompt, with_package=not code)
        report["files"] = list_files(stage)
    return report


def _add_onnx(stage: Path, int8: bool, rows: Any) -> dict[str, Any]:
    from .onnx_export import export_onnx

    report = {"onnx": export_onnx(stage, stage)}
    if int8:
        from .quantize import quantize

        report["int8"] = quantize(stage, stage, rows)
    return report


def refuse_secrets(folder: Path) -> None:
    """Raise ExportError, without the secret, if any file holds what looks like a token or a private key."""
    for file, kind in find_secrets(folder):
        raise ExportError(f"'{file}' holds what looks like a secret ({kind}); take it out of the run")


def _save_readers(run: Path, stage: Path) -> None:
    """Tokenizer and feature settings."""
    from transformers import AutoFeatureExtractor

    if any((run / name).is_file() for name in FEATURES):
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
        values = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        (stage / "config.yaml").write_text(yaml.safe_dump(redact(values), sort_keys=False), encoding="utf-8")


# ---- writing the folder -----------------------------------------------------------------------------------------


def _check_target(run: Path, folder: Path, overwrite: bool) -> None:
    if folder.resolve() == run.resolve():
        raise ExportError(f"'{folder}' is the run itself; give another folder for the export")
    if folder.is_file():
        raise ExportError(f"'{folder}' is a file; give a new folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise ExportError(f"'{folder}' is not empty; give a new folder, or --overwrite to replace an earlier export")
    if not (folder / CHECKSUMS).is_file():
        raise ExportError(f"'{folder}' is no earlier export (it has no {CHECKSUMS}); it is not replaced")


@contextmanager
def staged(folder: Path):
    """A new folder beside `folder` that takes its place at the end; after an error nothing has changed."""
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield stage
        stage.chmod(0o755)
        old = stage.with_name(stage.name + "-old")
        if folder.exists():
            folder.rename(old)
        stage.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


__all__ = ["ExportError", "UnsafeFolder", "export"]
