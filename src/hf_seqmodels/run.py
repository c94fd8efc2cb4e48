"""One run, from a checked configuration to a folder: data → tokenizer → model → training → evaluation → result."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    EarlyStoppingCallback,
    PreTrainedConfig,
    PreTrainedModel,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

from .arguments import ConfigError
from .config import RESULTS, RunConfig, auto_class, one_line, parse
from .data import SYNTHETIC, StreamDataset
from .loading import RunData, counted, load_data
from .publishing import publish
from .scores import text_scores
from .tasks import task_of
from .training import PushFailed, SeqTrainer, TrainingDiverged
from .training.micro_batch import train_fitting
from .training.probing import LossKind, is_causal, loss_kind
from .training.provenance import Emissions, git_state, hardware, versions
from .training.resume import newest_checkpoint
from .training.stateful import CarriedState

# What of an evaluation is a score; the rest is about speed.
_NOT_SCORES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
_SHOWN = ("nll", "accuracy", "exact_match", "f1", "mse")
EXAMPLE = 128  # tokens of a record's example, at most


def run(config: RunConfig, data: RunData | None = None, quiet: bool = False) -> dict[str, Any]:
    """Train, evaluate and save one model.

    Args:
        config: from [`parse`].
        data: from [`load_data`]; None loads it.
        quiet: no progress bar, no printed lines.

    Returns:
        The run's record, which is also written to `result.json` in `config.training.output_dir`.

    Raises:
        ConfigError: the data or the machine do not fit the configuration, or CO₂ cannot be estimated.
        TrainingDiverged: the loss is not finite.
        PushFailed: the Hub did not take a push; the run is finished and saved all the same.
    """
    if config.training.carry_state:
        with torch.device("meta"):  # has it a state to carry? Asked before the data are read
            CarriedState(auto_class(config.run.task).from_config(config.model_config()))
    emissions, git = Emissions(config.run.emissions_country), git_state()
    data = cut_streams(config, data or load_data(config))
    start = time.perf_counter()
    with emissions:
        trainer, push_failed = train(config, data, quiet)
        metrics = score(config, trainer, data)
    record = make_record(config, trainer, data, metrics, seconds=time.perf_counter() - start)
    record |= {"git": git} | ({"emissions": emissions.record} if emissions.record else {})
    save(trainer, record)
    if config.training.push_to_hub:
        publish(trainer)
    if push_failed is not None:
        raise push_failed
    return record


def cut_streams(config: RunConfig, data: RunData) -> RunData:
    """The data with windows of streams, one row for each sequence that a step reads (`windows=streams`).

    Raises:
        ConfigError: a split is too short for so many rows.
    """
    if config.data.windows != "streams" or data.windows:
        return data
    args, windows = config.training, {}
    seed = args.seed if args.data_seed is None else args.data_seed
    for split, stream in (data.streams or {}).items():
        train = split == "train"
        one = args.per_device_train_batch_size * args.gradient_accumulation_steps
        rows = (one if train else args.per_device_eval_batch_size) * args.world_size
        documents = (data.documents or {}).get(split) if config.data.reset_at_documents else None
        lengths: dict[str, Any] = {
            "block_size": config.data.block_size,
            "random_lengths": config.data.random_lengths and train,
        }
        try:
            eos = None if data.tokenizer is None else data.tokenizer.eos_token_id
            windows[split] = StreamDataset(stream, rows, **lengths, seed=seed, documents=documents, start_id=eos)
        except ValueError as error:
            raise ConfigError(f"{split}: {one_line(error)}") from None
    return replace(data, windows=windows)


def build_model(config: RunConfig, data: RunData) -> PreTrainedModel:
    """A new model with the tokenizer's vocabulary and the data's classes; its weights depend on `seed` alone.

    Raises:
        ConfigError: the model has fewer positions than the longest row, or sees the token that it should predict.
    """
    set_seed(config.training.seed)
    model_config = config.model_config(**decided_by_data(data))
    check_positions(model_config, data)
    model = auto_class(config.run.task).from_config(model_config)
    causal = config.run.task == "causal-lm"
    if causal and getattr(model, "loss_type", None) is None:
        model.loss_type = "ForCausalLM"  # what transformers falls back to for class names like GPT-2's, with a warning
    if causal and not is_causal(model):
        hint = " --is_decoder true" if getattr(model.config, "is_decoder", None) is False else " another --model_type"
        raise ConfigError(f"model_type={config.run.model_type} sees the token that it should predict; use{hint}")
    return model


def decided_by_data(data: RunData) -> dict[str, Any]:
    """Options of the model's configuration that nobody has to write down."""
    tokenizer = data.tokenizer
    if tokenizer is None:
        return data.options
    tokens = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return {"vocab_size": len(tokenizer), **tokens, **data.options}


def check_positions(model_config: PreTrainedConfig, data: RunData) -> None:
    """Raise ConfigError if a row is longer than a model with learned positions can read."""
    longest = getattr(model_config, "max_position_embeddings", None)
    if longest is None or getattr(model_config, "positions", "learned") != "learned":
        return
    needed = max((rows.longest for rows in data.windows.values() if isinstance(rows, StreamDataset)), default=0)
    if needed > longest:  # of random lengths: `parse` has seen the others
        raise ConfigError(
            f"random_lengths makes windows of up to {needed} tokens and the model has {longest} positions; lower "
            "block_size, or leave random_lengths out"
        )
    if needed or data.texts is not None:
        return
    columns = [name for name in ("input_ids", "labels") if name in data.windows["train"].column_names]
    rows = (row[name] for split in data.windows.values() for row in split for name in columns)
    lengths = (len(row) for row in rows if isinstance(row, list | np.ndarray))
    train, features = data.windows["train"], data.options.get("num_features")
    needed = longest_row(train, features) if "input_features" in train.column_names else max(lengths, default=0)
    if needed > longest:
        raise ConfigError(f"rows have up to {needed} tokens and the model {longest} positions; lower length")


def build_trainer(config: RunConfig, model: PreTrainedModel, data: RunData, quiet: bool) -> SeqTrainer:
    """The trainer over the data's windows, with the batches and scores of the task; it logs to `log.jsonl`.

    Data without the splits train and validation are for `score_split` alone.

    Raises:
        ConfigError: an option needs what is not there (a logger's package, several processes, the Hub, …).
    """
    task = task_of(config)
    if config.data.windows == "streams":
        config.training.remove_unused_columns = False  # `starts` is for the trainer, not for the model
    if task.labels != "labels":
        config.training.label_names = [task.labels]
        config.training.remove_unused_columns = False  # the collator makes the model's inputs from other columns
    try:
        trainer = SeqTrainer(
            model=model,
            args=config.training,
            train_dataset=data.windows.get("train"),
            eval_dataset=data.windows.get("validation"),
            data_collator=task.collator(data.tokenizer, model),
            # Text has a loss for every token and no right answer: bits per token say all.
            compute_metrics=None if data.texts is not None else task.scores,
            preprocess_logits_for_metrics=task.kept,
            processing_class=data.tokenizer,
            log_file=Path(str(config.training.output_dir), "log.jsonl"),
            quiet=quiet,
            rescale_to=config.data.block_size if config.data.random_lengths else None,
        )
    except (ValueError, ImportError, RuntimeError, OSError) as error:
        raise ConfigError(one_line(error)) from None
    if type(model).__module__.startswith("transformers.") and task.labels == "labels":
        check_loss(trainer, data, of_text=config.run.task == "causal-lm")
    return trainer


def check_loss(trainer: SeqTrainer, data: RunData, of_text: bool) -> None:
    """Tell the trainer what the loss of a model from elsewhere is.

    Raises:
        ConfigError: a language model whose loss is not that of the next token.
    """
    rows: Any = next((split for split in data.windows.values() if isinstance(split, Sized) and len(split)), None)
    if rows is None:
        return
    with torch.random.fork_rng():
        batch = trainer.data_collator([rows[place] for place in range(min(4, len(rows)))])
    kind = loss_kind(trainer.model, batch, trainer.shifts_labels, trainer.model_accepts_loss_kwargs)
    if kind is LossKind.OTHER and of_text:
        raise ConfigError(
            f"{type(trainer.model).__name__} has a loss of its own that is not the cross-entropy of the next token; "
            "give another model"
        )
    trainer.set_loss_kind(kind)


def train(config: RunConfig, data: RunData, quiet: bool) -> tuple[SeqTrainer, PushFailed | None]:
    """Model, trainer and folder, then training; the failure of a push on the way is returned, since there is a run to
    finish first."""
    args, failed = config.training, []
    newest = newest_checkpoint(str(args.output_dir)) if config.run.resume else None
    checkpoint = args.resume_from_checkpoint or newest

    def build() -> SeqTrainer:
        return build_trainer(config, build_model(config, data), data, quiet)

    def once(trainer: SeqTrainer) -> None:
        try:
            trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or config.run.resume or None)
        except PushFailed as error:
            failed.append(error)

    def prepare(trainer: SeqTrainer) -> None:
        prepare_output_dir(config, trainer)
        if trainer.is_world_process_zero() and not quiet:
            tell(data)

    return train_fitting(args, build, once, prepare, checkpoint, quiet), failed[0] if failed else None


def tell(data: RunData) -> None:
    """Print what was counted in the data, and what was left out."""
    for line in counted(data.skipped, data.counts, data.cut):
        print(line)


def prepare_output_dir(config: RunConfig, trainer: SeqTrainer) -> None:
    """Clear an earlier run (`--overwrite`) and write `config.yaml`; the first process alone."""
    if not trainer.is_world_process_zero():
        return
    folder = Path(str(config.training.output_dir))
    folder.mkdir(parents=True, exist_ok=True)
    if config.run.overwrite:
        for name in RESULTS:
            (folder / name).unlink(missing_ok=True)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")


def score(config: RunConfig, trainer: SeqTrainer, data: RunData) -> dict[str, dict[str, float]]:
    """Loss and the task's scores on validation and test, of the model as it is now."""
    trainer.remove_callback(EarlyStoppingCallback)  # training is over, these evaluations decide nothing
    return {split: score_split(config, trainer, data, split) for split in ("validation", "test")}


def score_split(config: RunConfig, trainer: SeqTrainer, data: RunData, split: str) -> dict[str, float]:
    """Loss and the task's scores on a split, of the trainer's model.

    Language models: loss (nats per token), bits per token, token count, and what `text_scores` adds.
    """
    generated = task_of(config).generated
    found = trainer.evaluate(data.windows[split], metric_key_prefix=split)
    named = {name.removeprefix(f"{split}_"): value for name, value in found.items() if name.startswith(split)}
    scores = {name: value for name, value in named.items() if name not in _NOT_SCORES}
    if split in data.counts:
        scores |= text_scores(scores, data.counts[split])
    if generated is not None:
        scores |= generated(trainer, data.windows[split])
    return scores


def make_record(
    config: RunConfig, trainer: SeqTrainer, data: RunData, metrics: dict[str, dict[str, float]], seconds: float
) -> dict[str, Any]:
    """Everything needed to understand the run later, as JSON values."""
    history = trainer.state.log_history
    best = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    return {
        "model_type": config.run.model_type,
        "task": config.run.task,
        "parameters": trainer.model.num_parameters(),
        "metrics": metrics,
        "steps": trainer.state.global_step,
        "best_step": best,
        "curve": {
            "train": [[entry["step"], entry["loss"]] for entry in history if "loss" in entry],
            "validation": [[entry["step"], entry["eval_loss"]] for entry in history if "eval_loss" in entry],
        },
        "seconds": round(seconds, 3),
        **trainer.record(),
        "data": describe_data(config, data),
        **({"chance": data.chance} if data.chance else {}),
        "seeds": {"seed": config.training.seed, "data_seed": config.training.data_seed},
        "config": config.values,
        "model_config": json.loads(trainer.model.config.to_json_string()),
        "versions": versions(),
        "hardware": hardware(),
    }


def describe_data(config: RunConfig, data: RunData) -> dict[str, Any]:
    """Hash, sizes, counts, the longest row of each split, what the tokenizer does not know, an example of the input.

    The example is of public and of made data alone: a user's text stays where it is.
    """
    features = data.options.get("num_features")
    known = {split: rows for split, rows in data.windows.items() if isinstance(rows, Sized)}
    found: dict[str, Any] = {
        "sha256": data.hash,
        "windows": {split: len(rows) for split, rows in known.items()},
        "longest": {split: longest_row(rows, features) for split, rows in known.items()},
    } | {name: value for name, value in (("skipped", data.skipped), ("cut", data.cut)) if value}
    if known.keys() != data.windows.keys():  # read as they come: neither counted nor part of the hash
        found["streamed"] = sorted(data.windows.keys() - known.keys())
    if data.tokenizer is None:
        return found
    if data.counts:
        found |= {"counts": data.counts}
        found["out_of_vocabulary"] = data.counts["test"]["unknown_tokens"] / data.counts["test"]["tokens"]
    if config.data.dataset in SYNTHETIC or (config.data.dataset == "pydoc_topics" and config.data.train_file is None):
        ids = list(map(int, data.windows["test"][0]["input_ids"]))
        ids = ids[: len(ids) // 2] if config.run.task == "causal-lm" else ids  # the rest is for the model to say
        found["example"] = data.tokenizer.decode(ids[:EXAMPLE])
    return found


def longest_row(rows: Dataset, num_features: int | None = None) -> int:
    """Tokens, frames, or steps (of `num_features` numbers each) of the longest row."""
    if isinstance(rows, StreamDataset):
        return rows.longest
    if "shape" in rows.column_names:
        return max(int(shape[0]) for shape in rows["shape"])
    if "input_features" in rows.column_names:  # flat, and all rows are equally long
        return len(rows[0]["input_features"]) // (num_features or 1)
    if "pitches" in rows.column_names:
        return max(len(steps) for steps in rows["pitches"])
    return max(len(ids) for ids in rows["input_ids"])


def save(trainer: SeqTrainer, record: dict[str, Any]) -> None:
    """Model and tokenizer, then `result.json`: a folder with a result is complete."""
    trainer.save_model(_internal_call=True)  # or it would be pushed without the result
    if trainer.is_world_process_zero():
        file = Path(str(trainer.args.output_dir), "result.json")
        unfinished = file.with_suffix(".tmp")
        unfinished.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        unfinished.replace(file)


def in_words(found: Mapping[str, float]) -> str:
    """The scores of one split in a line."""
    scores = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in found.items() if name in _SHOWN]
    if "bits_per_token" in found:
        perplexity = math.exp(min(found["loss"], 700.0))
        scores.insert(0, f"{found['bits_per_token']:.4f} bits per token, perplexity {perplexity:.3f}")
    if "bits_per_character" in found:
        scores.insert(1, f"{found['bits_per_character']:.4f} bits per character")
    return ", ".join(scores)


def main(argv: Sequence[str] | None = None, prog: str = "train.py") -> int:
    """The program: exit status 0, 2 for what the user can mend, 1 for a run that diverged or a push that failed,
    130 after Ctrl-C.

    Each but 0 with one line on stderr.
    """
    disable_progress_bar()  # one for each file saved, across the bar of the training
    try:
        config = parse(sys.argv[1:] if argv is None else argv, prog)
        record = run(config)
    except (ConfigError, TrainingDiverged, PushFailed) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print(f"{prog}: interrupted; --resume goes on from the last checkpoint, if there is one", file=sys.stderr)
        return 130
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    if os.environ.get("RANK", "0") == "0":
        for split, found in record["metrics"].items():
            print(f"{split}: {in_words(found)}")
        print(f"{record['parameters']:,} parameters, {record['steps']} steps, {record['seconds']:.0f} s")
        print(f"saved in {config.training.output_dir}")
    return 0
