"""`hf-seqmodels export`: from a finished run to a folder that a stranger can load, understand and verify."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ..config import one_line
from .files import UnsafeFolder, check_safetensors, find_secrets, list_files, read_json, write_checksums

NOT_TOLD = ("hub_token", "push_to_hub_token", "token", "api_key", "password")  # options whose values stay here
PATHS = ("output_dir", "logging_dir", "resume_from_checkpoint", "train_file", "validation_file", "test_file", "config")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
FEATURES = ("preprocessor_config.json", "processor_config.json", "feature_extractor_config.json")

# What the card shows of other runs.
COMPARED = ("model_type", "task", "parameters", "steps", "metrics", "batch_order", "world_size", "data")

DESCRIPTION = """\
Turn the folder of a run (or anything that save_pretrained wrote) into a repository: weights as safetensors, the
configuration with the whole auto_map, the modelling files, tokenizer, card, plots, golden scores and SHA256SUMS.
It is finished only after a fresh process that does not have this package has loaded it, computed the golden scores,
saved it again and loaded that; until then nothing stands under the name DIR.
"""
EPILOG = """\
examples:
  hf-seqmodels train --config lm/lstm
  hf-seqmodels export runs/lm/lstm exported/lstm
  hf-seqmodels doctor exported/lstm
  hf-seqmodels push exported/lstm user/lstm-pydoc --dry_run

in the folder:
  sha256sum -c SHA256SUMS
"""


class ExportError(ValueError):
    """Something that cannot be exported: one line with the value, the rule and the way out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit status 0, 2 for what the user can mend, 1 when the exported folder does not hold up."""
    parser = argparse.ArgumentParser(
        prog="hf-seqmodels export",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, or of a saved model")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the repository is written")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in DIR")
    parser.add_argument("--name", help="what the model is called on its card; default: the name of DIR")
    parser.add_argument("--license", default="apache-2.0", help="of the weights, as the Hub writes it (%(default)s)")
    parser.add_argument("--onnx", action="store_true", help="add ONNX models: whole sequences, and steps with state")
    parser.add_argument("--int8", action="store_true", help="with --onnx, also quantized to 8 bits")
    options = vars(parser.parse_args(argv))
    from transformers.utils.logging import disable_progress_bar

    from .verify import VerificationError

    disable_progress_bar()
    try:
        report = export(options.pop("run"), folder := options.pop("folder"), **options)
    except (ValueError, ImportError, OSError) as error:
        print(f"hf-seqmodels export: error: {one_line(error)}", file=sys.stderr)
        return 2
    except VerificationError as error:
        print(f"hf-seqmodels export: error: {error}", file=sys.stderr)
        return 1
    _show(folder, report)
    return 0


def _show(folder: Path, report: Mapping[str, Any]) -> None:
    for name in report["files"]:
        print(f"  {Path(folder, name).stat().st_size:>12,}  {name}")
    found = report["stranger"]
    print(
        f"in a fresh process without this package: scores differ by {found['max_difference']:.1e}, "
        f"saved again and loaded: {found['saved_again_difference']:.1e}"
    )
    print(f"exported to {folder}; next: hf-seqmodels doctor {folder}")


def export(
    run: Path,
    folder: Path,
    *,
    overwrite: bool = False,
    name: str | None = None,
    license: str = "apache-2.0",
    onnx: bool = False,
    int8: bool = False,
    code: bool = True,
) -> dict[str, Any]:
    """Write `folder` from `run`, and verify it in fresh processes before it gets its name.

    Args:
        run: a folder with config.json and model.safetensors; with `result.json` and `config.yaml` if a run wrote it.
        folder: new, or empty, or an earlier export together with `overwrite`.
        name: the model's name on the card.
        license: identifier of the Hub's list.
        onnx, int8: add ONNX models, and quantized ones.
        code: ship the modelling files. Without them the folder needs this package.

    Returns:
        `files` (names), `stranger` (what the fresh process found), and `onnx`, `int8` where asked for.

    Raises:
        ExportError, UnsafeFolder: the run or the target are not fit; nothing was written.
        VerificationError: a stranger does not get the same; nothing was written.
    """
    from .card import check_license

    check_license(license)
    _check_target(folder, overwrite)
    if int8 and not onnx:
        raise ExportError("int8 quantizes the ONNX models; say --onnx too")
    if onnx:
        from .onnx_export import require_onnx

        require_onnx()
    record = read_record(run)
    model = load_strict(run)
    with staged(folder) as stage:
        if code:
            model.save_pretrained(stage)
        else:
            model.save_pretrained(stage, save_code=False)
        tokenizer = _save_readers(run, stage)
        if record is not None:
            record = redact(record) | {"name": name or folder.name, "compared_with": other_records(run, record)}
            _save_record(run, stage, record)
        report = finish(stage, model, record, tokenizer, name or folder.name, license, code, onnx, int8)
    return report


def finish(
    stage: Path,
    model: Any,
    record: dict[str, Any] | None,
    tokenizer: Any,
    name: str,
    license: str,
    code: bool,
    onnx: bool,
    int8: bool,
) -> dict[str, Any]:
    """Golden scores, ONNX, card and checksums into the staged folder; then the strangers."""
    from .golden import write_golden
    from .verify import verify_as_stranger

    report: dict[str, Any] = {}
    write_golden(model, stage)
    if onnx:
        from .onnx_export import export_onnx

        report["onnx"] = export_onnx(stage, stage)
    if int8:
        from .quantize import quantize

        report["int8"] = quantize(stage, stage)
    write_card(stage, model, record, tokenizer, others=other_records(stage, record), name=name, license=license)
    write_checksums(stage)
    secrets = find_secrets(stage)
    if secrets:
        file, kind = secrets[0]
        raise ExportError(f"'{file}' holds what looks like a secret ({kind}); take it out of the run")
    prompt = first_words(record, tokenizer)
    report["stranger"] = verify_as_stranger(stage, prompt, with_package=not code)
    report["files"] = list_files(stage)
    return report


def write_card(
    folder: Path,
    model: Any,
    record: Mapping[str, Any] | None,
    tokenizer: Any,
    *,
    name: str,
    others: Sequence[Mapping[str, Any]] = (),
    license: str = "apache-2.0",
) -> None:
    """README.md and its pictures in `folder`, from the run's record and the model alone.

    Raises:
        ExportError: the card breaks a rule of the Hub.
    """
    from .card import build_card, check_card, write_plots
    from .files import weights_hash

    card = build_card(
        name,
        record,
        model,
        prompt=first_words(record, tokenizer) or None,
        others=others,
        license=license,
        weights_sha256=weights_hash(folder),
        has_code="auto_map" in json.loads((folder / "config.json").read_text(encoding="utf-8")),
        plots=write_plots(folder, record, model, tokenizer),
    )
    problems = check_card(str(card))
    if problems:
        raise ExportError(f"the card would not be valid: {problems[0]}")
    card.save(folder / "README.md")


def first_words(record: Mapping[str, Any] | None, tokenizer: Any) -> str:
    """A prompt for a language model that a run made; empty for others."""
    if tokenizer is None or record is None or record.get("task") != "causal-lm":
        return ""
    if record["config"]["data"].get("dataset") == "pydoc_topics" and not record["config"]["data"].get("train_file"):
        return "The import statement "
    return tokenizer.decode([tokenizer.vocab_size // 2])


# ---- reading the run --------------------------------------------------------------------------------------------


def read_record(run: Path) -> dict[str, Any] | None:
    """The run's `result.json`; None for a saved model that no run of ours made.

    Raises:
        ExportError: there is no such folder, it holds no checkpoint, or an unfinished run.
    """
    if not run.is_dir():
        raise ExportError(f"'{run}' is no folder; give the folder of a run, as runs/lm/lstm")
    if not (run / "config.json").is_file():
        unfinished = (run / "config.yaml").is_file() or any(run.glob("checkpoint-*"))
        hint = "the run is not finished; train with --resume" if unfinished else "save_pretrained writes one"
        raise ExportError(f"'{run}' is no checkpoint: it has no config.json; {hint}")
    if not (run / "result.json").is_file():
        return None
    record = read_json(run / "result.json")
    if not isinstance(record, dict) or not {"task", "metrics", "config"} <= record.keys():
        raise ExportError(f"'{run / 'result.json'}' is no record of a run; train again, or delete it")
    return record


def other_records(run: Path, record: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The records of the runs beside this one that learned the same task from the same data.

    An exported folder carries them in its own record (`compared_with`), since its neighbours are others.
    """
    if record is None:
        return []
    if "compared_with" in record:
        return list(record["compared_with"])
    found = []
    for file in sorted(run.resolve().parent.glob("[!.]*/result.json")):
        if file.parent == run.resolve():
            continue
        try:
            other = read_record(file.parent)
        except ValueError:  # an unfinished neighbour is no reason to stop
            continue
        if other is not None and _learned(other) == _learned(record) and other["config"] != record["config"]:
            found.append({key: redact(other[key]) for key in COMPARED if key in other} | {"name": file.parent.name})
    return found


def _learned(record: Mapping[str, Any]) -> tuple[str, str]:
    return record["task"], record["data"]["sha256"]


def load_strict(folder: Path) -> Any:
    """The saved model in its own class; nothing may be missing, left over, or of another shape.

    Raises:
        ExportError: no weights as safetensors, an unknown class, or tensors that do not fit the configuration.
    """
    import transformers

    from ..models import ARCHITECTURES

    shards = sorted(folder.glob("model*.safetensors"))
    if not shards:
        raise ExportError(f"'{folder}' has no model.safetensors; save the model with save_pretrained")
    for shard in shards:
        check_safetensors(shard)
    config = read_json(folder / "config.json")
    names = config.get("architectures") or [] if isinstance(config, dict) else []
    ours = {cls.__name__: cls for entry in ARCHITECTURES.values() for cls in entry.models.values()}
    cls = ours.get(names[0], getattr(transformers, names[0], None)) if names else None
    if cls is None:
        raise ExportError(
            f"architectures={names} in '{folder / 'config.json'}' names no class of this package or of transformers; "
            "save the model with its own save_pretrained"
        )
    model, info = cls.from_pretrained(folder, output_loading_info=True, use_safetensors=True)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            raise ExportError(f"'{folder}' has {kind.replace('_', ' ')}, the first is {sorted(info[kind])[0]}")
    return model.eval()


def _save_readers(run: Path, stage: Path) -> Any:
    """Tokenizer and feature settings; returns the tokenizer, None without one."""
    from transformers import AutoFeatureExtractor, AutoTokenizer

    if any((run / name).is_file() for name in FEATURES):
        AutoFeatureExtractor.from_pretrained(run).save_pretrained(stage)
    if not any((run / name).is_file() for name in TOKENIZERS):
        return None
    tokenizer = AutoTokenizer.from_pretrained(run)
    tokenizer.save_pretrained(stage)
    return tokenizer


def redact(values: Any) -> Any:
    """Options without tokens and without paths of this machine; what lies in a path is named by its last part."""
    if isinstance(values, Mapping):
        return {
            key: Path(value).name if key in PATHS and isinstance(value, str) and "/" in value else redact(value)
            for key, value in values.items()
            if key not in NOT_TOLD
        }
    return [redact(value) for value in values] if isinstance(values, list) else values


def _save_record(run: Path, stage: Path, record: Mapping[str, Any]) -> None:
    """result.json (redacted already), config.yaml and training_args.json."""
    (stage / "result.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    arguments = record["config"].get("training", {})
    (stage / "training_args.json").write_text(json.dumps(arguments, indent=2) + "\n", encoding="utf-8")
    if (run / "config.yaml").is_file():
        values = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        (stage / "config.yaml").write_text(yaml.safe_dump(redact(values), sort_keys=False), encoding="utf-8")


# ---- writing the folder -----------------------------------------------------------------------------------------


def _check_target(folder: Path, overwrite: bool) -> None:
    if folder.is_file():
        raise ExportError(f"'{folder}' is a file; give a new folder")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not overwrite:
        raise ExportError(f"'{folder}' is not empty; give a new folder, or --overwrite to replace an earlier export")
    if not (folder / "config.json").is_file():
        raise ExportError(f"'{folder}' is no earlier export (it has no config.json); it is not replaced")


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


__all__ = ["ExportError", "UnsafeFolder", "export", "main"]
