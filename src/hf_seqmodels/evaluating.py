"""`hf-seqmodels evaluate`: scores of a saved model, ours or transformers', by the code that scores a training run."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .arguments import TASKS, ConfigError, DataArguments, RunArguments, SeqTrainingArguments, check_ranges
from .config import RunConfig, auto_class, one_line
from .data_checks import check_data

DESCRIPTION = """\
Score a model on one split of a data set. A language model gets its loss in nats per token, bits per token and, where
tokens are not characters, perplexity and bits per character; a model of piano rolls its nats per step. A run's folder
is scored on the data that it learned from, as in training, unless told otherwise.
"""
EPILOG = """\
examples:
  hf-seqmodels evaluate runs/lm/lstm
  hf-seqmodels evaluate runs/ptb/lstm --split validation --output scores.json
  hf-seqmodels evaluate openai-community/gpt2 --data ptb_word --block_size 1023
  hf-seqmodels evaluate runs/jsb_chorales/gru --data music_musedata
"""
# What of a run's training decides how it is scored.
_SCORING = ("per_device_eval_batch_size", "carry_state", "bf16", "fp16", "seed", "data_seed", "use_cpu")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit status 0, or 2 with one line for what the user can mend."""
    options = _parser().parse_args(argv)
    from transformers.utils.logging import set_verbosity_error

    set_verbosity_error()
    try:
        record = evaluate(options.model, options.output, **_given(options))
    except (ValueError, ImportError, OSError) as error:
        print(f"hf-seqmodels evaluate: error: {one_line(error)}", file=sys.stderr)
        return 2
    from .loading import counted

    read = record["data"]
    for line in counted(read["skipped"], {read["split"]: read["counts"]} if read["counts"] else {}):
        print(line, file=sys.stderr)
    for name, value in record["scores"].items():
        print(f"{name} {value:.6f}" if isinstance(value, float) else f"{name} {value}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-seqmodels evaluate",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="the folder of a run or of a saved model, or its name on the Hub")
    add("--data", metavar="NAME_OR_PATH", help="a folder, its name in data_dir, or a Hub id; default: the run's own")
    add("--data_dir", help="the folder of data sets, as in training")
    add("--split", help="default: the one of the run's final score, else test")
    add("--column", help="the column that holds the text (text)")
    add("--row_end", choices=("eos", "nothing"), help="what follows each row of text (eos)")
    add("--block_size", type=int, help="tokens predicted per window (128)")
    add("--windows", choices=("shuffled", "streams"), help="windows each on its own, or contiguous streams (shuffled)")
    add("--carry_state", nargs="?", const=True, type=_boolean, help="streams: a window goes on from the last (false)")
    add("--batch_size", type=int, help="windows, or rows of streams, at once (64)")
    add("--output", type=Path, metavar="FILE.json", help="write scores, data and versions; the file must be new")
    return parser


def _boolean(word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{word} is neither true nor false")
    return word.lower() == "true"


def _given(options: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name, value in vars(options).items() if name not in ("model", "output")}


def evaluate(
    name: str,
    output: Path | None = None,
    data: str | None = None,
    split: str | None = None,
    carry_state: bool | None = None,
    batch_size: int | None = None,
    **data_options: Any,
) -> dict[str, Any]:
    """Score a saved model on one split.

    Args:
        name: the folder of a run or of a saved model, or a Hub id.
        output: a new file for the record, as JSON.
        data: a data set's folder, name or Hub id; None needs a run, and means the data that it learned from.
        split: the data set's own name of it; None means the run's test_split, or test.
        carry_state, batch_size: None means as the run did, else False and 64.
        data_options: `data_dir`, `column`, `row_end`, `block_size`, `windows`; None means as for `batch_size`.

    Returns:
        The record: scores, what was scored on what, versions, hardware, seconds.

    Raises:
        ValueError, OSError: the model, the data or an option do not fit, in one line.
    """
    from transformers.utils.logging import disable_progress_bar

    from .generate import check_new_file, load
    from .hub.saved import read_record
    from .loading import load_split
    from .run import build_trainer, cut_streams, score_split
    from .training.provenance import hardware, versions

    if output is not None:
        check_new_file(output)
    disable_progress_bar()
    start = time.perf_counter()
    model, tokenizer = load(name)
    run = recorded_config(Path(name))
    task = task_of_model(model, run)
    wanted = data_arguments(task, run, data, data_options)
    if data_options.get("windows") == "shuffled" and carry_state is None:
        carry_state = False
    training = {"carry_state": carry_state, "per_device_eval_batch_size": batch_size}
    with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        processes = (read_record(Path(name)) or {}).get("world_size", 1) if run else 1
        config = _run_config(task, model, wanted, scoring_arguments(run, training, processes), scratch)
        part = wanted.test_split if split is None else split
        check_fits(model, tokenizer, config)
        loaded = cut_streams(config, load_split(config, part, tokenizer))
        trainer = build_trainer(config, model, loaded, quiet=True)
        scores = score_split(config, trainer, loaded, part)
    record = {
        "model": name,
        "model_type": model.config.model_type,
        "task": task,
        "parameters": model.num_parameters(),
        "scores": scores,
        "data": {"name": data or wanted.path or wanted.dataset, "split": part, "sha256": loaded.hash}
        | {"windows": len(loaded.windows[part]), "counts": loaded.counts.get(part), "skipped": loaded.skipped},
        "options": {key: getattr(wanted, key) for key in ("row_end", "column", "block_size", "windows")}
        | {key: getattr(config.training, key) for key in ("carry_state", "per_device_eval_batch_size", "bf16")},
        "versions": versions(),
        "hardware": hardware(),
        "seconds": round(time.perf_counter() - start, 3),
    }
    if output is not None:
        output.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return record


# ---- what is asked for ------------------------------------------------------------------------------------------


def recorded_config(folder: Path) -> dict[str, Any]:
    """The recipe of a run, from its folder or from what was exported of it; empty for other models."""
    from .hub.saved import read_record
    from .recipes import read_recipe

    if not folder.is_dir():
        return {}
    if (folder / "config.yaml").is_file():
        return read_recipe(folder / "config.yaml")
    return dict((read_record(folder) or {}).get("config", {}))


def task_of_model(model: Any, run: Mapping[str, Any]) -> str:
    """What the model does: as its run says, else by its class.

    Raises:
        ConfigError: no run says it, and it is neither a language model nor one of piano rolls.
    """
    if run.get("task") in TASKS:
        return str(run["task"])
    for task in ("causal-lm", "time-series-prediction"):
        if type(model) in auto_class(task)._model_mapping.values():
            return task
    raise ConfigError(
        f"{type(model).__name__} without the config.yaml of its run can be neither scored as a language model nor as "
        "one of piano rolls; give the folder of a run"
    )


def data_arguments(
    task: str, run: Mapping[str, Any], data: str | None, options: Mapping[str, str | int | None]
) -> DataArguments:
    """What to read and how: the run's options, or those of another data set, under the options given.

    Args:
        task: of the model.
        run: the recipe of its run, if it has one.
        data: another data set than the run's.
        options: those of `DataArguments` that the user gave; None is not given.

    Raises:
        ConfigError: there is neither a run nor a data set, or the run's or the given options do not fit.
    """
    known = {f.name for f in fields(DataArguments)}
    before = {key: value for key, value in (run.get("data") or {}).items() if key in known}
    given = {key: value for key, value in options.items() if value is not None}
    if data is None and not before:
        raise ConfigError("no run says what to score the model on; --data takes a folder, a name or a Hub id")
    if data is None and "data_dir" in given and before.get("path") is None:
        raise ConfigError(f"data_dir={given['data_dir']} is for --data; give both, or leave it out")
    if data is not None:
        dataset = "piano_rolls" if task == "time-series-prediction" else "text"
        kept = ["block_size", "windows", "reset_at_documents"] if dataset == "text" else []
        kept += ["column", "row_end", "data_dir", "test_split"] if before.get("dataset") == dataset else []
        before = {key: value for key, value in before.items() if key in kept}
        before |= {"dataset": dataset, "path": data}
    before |= {"tokenizer": DataArguments.tokenizer, "vocabulary_size": None, "random_lengths": False}
    if given.get("windows") == "shuffled":  # each on its own: what the run did between them is not asked for
        before.pop("reset_at_documents", None)
    return DataArguments(**(before | given | {"streaming": False}))


def scoring_arguments(run: Mapping[str, Any], given: Mapping[str, Any], processes: int = 1) -> dict[str, Any]:
    """The training options that decide scores: the run's, under those given (None is not given).

    One process reads as many rows of streams as all of the run's did.
    """
    before = {key: value for key, value in (run.get("training") or {}).items() if key in _SCORING}
    if processes > 1 and (run.get("data") or {}).get("windows") == "streams":
        rows = "per_device_eval_batch_size"
        before[rows] = before.get(rows, getattr(SeqTrainingArguments, rows)) * processes
    return before | {key: value for key, value in given.items() if value is not None}


def _run_config(task: str, model: Any, data: DataArguments, training: Mapping[str, Any], scratch: str) -> RunConfig:
    carries = bool(training.get("carry_state"))
    check_ranges({"block_size": data.block_size, **training})
    check_data(task, data, carries)
    # A split train is read in as many rows as others are.
    rows = training.get("per_device_eval_batch_size", SeqTrainingArguments.per_device_eval_batch_size)
    arguments = SeqTrainingArguments(
        output_dir=scratch, per_device_train_batch_size=rows,
        report_to="none", eval_strategy="no", save_strategy="no", load_best_model_at_end=False,
        **training,
    )  # fmt: skip
    return RunConfig(RunArguments(task=task, model_type=model.config.model_type), {}, data, arguments, {})


def check_fits(model: Any, tokenizer: Any, config: RunConfig) -> None:
    """What can be known before the data are read; a tokenizer that cannot pad is told how.

    Raises:
        ValueError: no model of piano rolls where these are scored; no tokenizer, or one with other tokens than the
            model; too few positions for a window; or a model that sees the token that it should predict.
    """
    from .generate import kind_of
    from .training.probing import is_causal

    if config.data.dataset == "piano_rolls":
        kind_of(model)  # raises where it is no model of 88 keys
    if config.run.task != "causal-lm":
        return
    if tokenizer is None:
        raise ConfigError("the model has no tokenizer to read text with; save one beside it")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ConfigError("the tokenizer has neither pad_token nor eos_token; save it again with one of them")
    text = model.config.get_text_config()
    if len(tokenizer) > text.vocab_size:
        raise ConfigError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {text.vocab_size}; save the tokenizer that the "
            "model was made for beside it"
        )
    longest = getattr(text, "max_position_embeddings", None)
    window = config.data.block_size + (config.data.windows == "shuffled")
    if longest is not None and getattr(text, "positions", "learned") == "learned" and window > longest:
        raise ConfigError(
            f"block_size={config.data.block_size} makes windows of {window} tokens; the model has {longest} "
            f"positions; --block_size {longest - (config.data.windows == 'shuffled')} is the most"
        )
    if getattr(model, "loss_type", None) is None:
        model.loss_type = "ForCausalLM"  # as in training: what transformers falls back to, with a warning
    if not is_causal(model):
        raise ConfigError(f"{type(model).__name__} sees the token that it should predict; score a causal model")


if __name__ == "__main__":
    sys.exit(main())
