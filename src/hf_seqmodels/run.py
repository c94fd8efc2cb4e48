"""One run, from a checked configuration to a folder: data → tokenizer → model → training → evaluation → result."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
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
from .data import SYNTHETIC, out_of_vocabulary_share
from .loading import RunData, load_data
from .tasks import task_of
from .training import PushFailed, SeqTrainer, TrainingDiverged
from .training.provenance import Emissions, git_state

# What of an evaluation is a score; the rest is about speed.
_NOT_SCORES = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
_SHOWN = ("accuracy", "exact_match", "f1", "mse")
LAST_PUSH = "End of training"
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
    emissions, git = Emissions(config.run.emissions_country), git_state()
    data = data or load_data(config)
    model = build_model(config, data)
    trainer = build_trainer(config, model, data, quiet)
    start = time.perf_counter()
    prepare_output_dir(config, trainer)
    with emissions:
        push_failed = train(config, trainer)
        metrics = score(config, trainer, data)
    record = make_record(config, trainer, data, metrics, seconds=time.perf_counter() - start)
    record |= {"git": git} | ({"emissions": emissions.record} if emissions.record else {})
    save(trainer, record)
    if config.training.push_to_hub:
        publish(trainer)
    if push_failed is not None:
        raise push_failed
    return record


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
    columns = [name for name in ("input_ids", "labels") if name in data.windows["train"].column_names]
    if longest is None or data.texts is not None or getattr(model_config, "positions", "learned") != "learned":
        return
    rows = (row[name] for split in data.windows.values() for row in split for name in columns)
    lengths = (len(row) for row in rows if isinstance(row, list | np.ndarray))
    train, features = data.windows["train"], data.options.get("num_features")
    needed = longest_row(train, features) if "input_features" in train.column_names else max(lengths, default=0)
    if needed > longest:
        raise ConfigError(f"rows have up to {needed} tokens and the model {longest} positions; lower length")


@torch.no_grad()
def is_causal(model: PreTrainedModel) -> bool:
    """Whether scores do not depend on later tokens: an encoder like BERT's would learn to copy its input."""
    device, training = model.device, model.training
    ids = torch.tensor([[0, 1, 2, 0], [0, 1, 2, 1]], device=device) % model.config.get_text_config().vocab_size
    one, other = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    model.train(training)
    difference = (one - other).abs()
    return bool(difference[:-1].max() <= 5e-5 * difference[-1].max())  # the rest is rounding


def build_trainer(config: RunConfig, model: PreTrainedModel, data: RunData, quiet: bool) -> SeqTrainer:
    """The trainer over the data's windows, with the batches and scores of the task; it logs to `log.jsonl`.

    Raises:
        ConfigError: an option needs what is not there (a logger's package, several processes, the Hub, …).
    """
    task = task_of(config)
    if task.labels != "labels":
        config.training.label_names = [task.labels]
        config.training.remove_unused_columns = False  # the collator makes the model's inputs from other columns
    try:
        return SeqTrainer(
            model=model,
            args=config.training,
            train_dataset=data.windows["train"],
            eval_dataset=data.windows["validation"],
            data_collator=task.collator(data.tokenizer, model),
            # Text has a loss for every token and no right answer: bits per token say all.
            compute_metrics=None if data.texts is not None else task.scores,
            preprocess_logits_for_metrics=task.kept,
            processing_class=data.tokenizer,
            log_file=Path(str(config.training.output_dir), "log.jsonl"),
            quiet=quiet,
        )
    except (ValueError, ImportError, RuntimeError, OSError) as error:
        raise ConfigError(one_line(error)) from None


def train(config: RunConfig, trainer: SeqTrainer) -> PushFailed | None:
    """Train; the failure of a push on the way is returned, since there is a run to finish first."""
    try:
        trainer.train(resume_from_checkpoint=config.training.resume_from_checkpoint or config.run.resume or None)
    except PushFailed as error:
        return error
    return None


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
    """Loss and the task's scores on validation and test, of the model as it is now.

    Language models: loss (nats per token), bits per token and token count.
    """
    trainer.remove_callback(EarlyStoppingCallback)  # training is over, these evaluations decide nothing
    generated = task_of(config).generated
    metrics = {}
    for split in ("validation", "test"):
        found = trainer.evaluate(data.windows[split], metric_key_prefix=split)
        named = {name.removeprefix(f"{split}_"): value for name, value in found.items() if name.startswith(split)}
        metrics[split] = {name: value for name, value in named.items() if name not in _NOT_SCORES}
        if generated is not None:
            metrics[split] |= generated(trainer, data.windows[split])
    return metrics


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
        "versions": {
            name: version(name) for name in ("hf_seqmodels", "torch", "transformers", "accelerate", "datasets")
        }
        | {"python": platform.python_version()},
        "hardware": hardware(),
    }


def describe_data(config: RunConfig, data: RunData) -> dict[str, Any]:
    """Hash, sizes, the longest row of each split, what the tokenizer does not know, and an example of the input.

    The example is of public and of made data alone: a user's text stays where it is.
    """
    features = data.options.get("num_features")
    found: dict[str, Any] = {
        "sha256": data.hash,
        "windows": {split: len(rows) for split, rows in data.windows.items()},
        "longest": {split: longest_row(rows, features) for split, rows in data.windows.items()},
    }
    if data.tokenizer is None:
        return found
    if data.texts is not None:
        found["out_of_vocabulary"] = out_of_vocabulary_share(data.texts["test"], data.tokenizer)
    if config.data.dataset in SYNTHETIC or config.data.train_file is None:
        ids = list(map(int, data.windows["test"][0]["input_ids"]))
        ids = ids[: len(ids) // 2] if config.run.task == "causal-lm" else ids  # the rest is for the model to say
        found["example"] = data.tokenizer.decode(ids[:EXAMPLE])
    return found


def longest_row(rows: Dataset, num_features: int | None = None) -> int:
    """Tokens, frames, or steps (of `num_features` numbers each) of the longest row."""
    if "shape" in rows.column_names:
        return max(int(shape[0]) for shape in rows["shape"])
    if "input_features" in rows.column_names:  # flat, and all rows are equally long
        return len(rows[0]["input_features"]) // (num_features or 1)
    return max(len(ids) for ids in rows["input_ids"])


def hardware() -> dict[str, Any]:
    """Machine, cores, threads and GPU (None without one)."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def save(trainer: SeqTrainer, record: dict[str, Any]) -> None:
    """Model and tokenizer, then `result.json`: a folder with a result is complete."""
    trainer.save_model(_internal_call=True)  # or it would be pushed without the result
    if trainer.is_world_process_zero():
        file = Path(str(trainer.args.output_dir), "result.json")
        unfinished = file.with_suffix(".tmp")
        unfinished.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        unfinished.replace(file)


def publish(trainer: SeqTrainer) -> None:
    """Push the finished run as `hf-seqmodels export` makes it, the way `hf-seqmodels push` does it.

    That is: with card and checksums, loaded by a stranger first, one commit on top of the one that was the last, with
    patience, and every file compared with what arrived.

    Raises:
        PushFailed: it did not hold up, and nothing was sent; or the Hub did not take it, or has something else.
    """
    if not trainer.is_world_process_zero():
        return
    from .hub.export import export
    from .hub.publish import forget, push
    from .hub.publish_errors import PushFailed as HubFailed
    from .hub.verify import VerificationError

    args, run, name = trainer.args, Path(str(trainer.args.output_dir)), str(trainer.hub_model_id)
    branch = args.hub_revision or "main"
    with TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch, name.rpartition("/")[2])
        try:
            export(run, folder)
        except (ValueError, OSError, VerificationError) as error:
            raise PushFailed(f"nothing was pushed: '{run}' cannot be exported: {one_line(error)}") from None
        if branch.startswith("refs/"):  # of a pull request, which `push` does not write to
            trainer.push_folder(folder, LAST_PUSH)
            return
        trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
        try:
            push(
                folder,
                name,
                public=args.hub_private_repo is not True,
                branch=branch,
                message=LAST_PUSH,
                token=args.hub_token,
                say=lambda line: print(f"push: {line}", file=sys.stderr),
            )
        except (HubFailed, ValueError, OSError) as error:
            forget(name)  # the folder to go on with is gone; `export` and `push` make a new one
            raise PushFailed(trainer.what_failed(LAST_PUSH, error)) from None


def in_words(found: Mapping[str, float]) -> str:
    """The scores of one split in a line."""
    scores = [f"{name.replace('_', ' ')} {value:.4f}" for name, value in found.items() if name in _SHOWN]
    if "bits_per_token" in found:
        perplexity = math.exp(min(found["loss"], 700.0))
        scores.insert(0, f"{found['bits_per_token']:.4f} bits per token, perplexity {perplexity:.3f}")
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
