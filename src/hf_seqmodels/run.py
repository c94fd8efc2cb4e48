"""One run, from a checked configuration to a folder: data → tokenizer → model → training → evaluation → result."""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

from .arguments import ConfigError
from .config import RESULTS, RunConfig, one_line, parse
from .data import (
    CausalLMCollator,
    build_character_tokenizer,
    content_hash,
    load_pydoc_topics,
    load_text_files,
    token_stream,
    window_dataset,
)
from .training import SeqTrainer, TrainingDiverged


@dataclass(frozen=True)
class LanguageData:
    """What a language model learns from; load it once and give it to several runs.

    Attributes:
        texts: splits train, validation and test, with the columns topic and text.
        tokenizer: reads the text.
        windows: the same splits as rows of input_ids and labels.
        hash: sha256 of the contents of `texts`.
    """

    texts: DatasetDict
    tokenizer: PreTrainedTokenizerBase
    windows: dict[str, Dataset]
    hash: str


def run(config: RunConfig, data: LanguageData | None = None, quiet: bool = False) -> dict[str, Any]:
    """Train, evaluate and save one model.

    Args:
        config: from [`parse`].
        data: from [`load_data`]; None loads it.
        quiet: no progress bar, no printed lines.

    Returns:
        The run's record, which is also written to `result.json` in `config.training.output_dir`.

    Raises:
        ConfigError: the data or the machine do not fit the configuration.
        TrainingDiverged: the loss is not finite.
    """
    data = data or load_data(config)
    model = build_model(config, data.tokenizer)
    trainer = build_trainer(config, model, data, quiet)
    start = time.perf_counter()
    prepare_output_dir(config, trainer)
    trainer.train(resume_from_checkpoint=config.training.resume_from_checkpoint or config.run.resume or None)
    metrics = score(trainer, data)
    record = make_record(config, trainer, data, metrics, seconds=time.perf_counter() - start)
    save(trainer, record)
    return record


def load_data(config: RunConfig) -> LanguageData:
    """Texts, tokenizer (from the training texts only) and windows of `block_size` predictions.

    Raises:
        ConfigError: a file cannot be read, a split is empty, or the tokenizer does not exist.
    """
    wanted = config.data
    try:
        if wanted.train_file is None:
            texts = load_pydoc_topics()
        else:
            texts = load_text_files(wanted.train_file, str(wanted.validation_file), str(wanted.test_file))
        tokenizer = load_tokenizer(wanted.tokenizer, texts["train"]["text"])
        windows = {
            split: window_dataset(token_stream(dataset, tokenizer), wanted.block_size)
            for split, dataset in texts.items()
        }
    except (ValueError, OSError) as error:
        raise ConfigError(one_line(error)) from None
    return LanguageData(texts, tokenizer, windows, content_hash(texts))


def load_tokenizer(name: str, texts: Sequence[str]) -> PreTrainedTokenizerBase:
    """The character tokenizer of `texts`, or the tokenizer in a folder or on the Hub; it can pad."""
    if name == "characters":
        return build_character_tokenizer(texts)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # each kind of tokenizer has errors of its own
        rule = "it must be 'characters', the folder of a saved tokenizer or a name on the Hub"
        raise ConfigError(f"tokenizer '{name}' cannot be loaded: {rule} ({one_line(error)})") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def build_model(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A new model with the tokenizer's vocabulary; its weights depend on `seed` alone.

    Raises:
        ConfigError: the model sees the token that it should predict.
    """
    set_seed(config.training.seed)
    model_config = config.model_config(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = AutoModelForCausalLM.from_config(model_config)
    if getattr(model, "loss_type", None) is None:
        model.loss_type = "ForCausalLM"  # what transformers falls back to for class names like GPT-2's, with a warning
    if not is_causal(model):
        hint = " --is_decoder true" if getattr(model.config, "is_decoder", None) is False else " another --model_type"
        raise ConfigError(f"model_type={config.run.model_type} sees the token that it should predict; use{hint}")
    return model


@torch.no_grad()
def is_causal(model: PreTrainedModel) -> bool:
    """Whether scores do not depend on later tokens: an encoder like BERT's would learn to copy its input."""
    device, training = model.device, model.training
    ids = torch.tensor([[0, 1, 2, 0], [0, 1, 2, 1]], device=device) % model.config.get_text_config().vocab_size
    one, other = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    model.train(training)
    difference = (one - other).abs()
    return bool(difference[:-1].max() <= 5e-5 * difference[-1].max())  # the rest is rounding


def build_trainer(config: RunConfig, model: PreTrainedModel, data: LanguageData, quiet: bool) -> SeqTrainer:
    """The trainer over the data's windows; it logs to `log.jsonl`.

    Raises:
        ConfigError: an option needs what is not there (a logger's package, several processes, the Hub, …).
    """
    try:
        return SeqTrainer(
            model=model,
            args=config.training,
            train_dataset=data.windows["train"],
            eval_dataset=data.windows["validation"],
            data_collator=CausalLMCollator(data.tokenizer.pad_token_id, len(data.tokenizer)),
            processing_class=data.tokenizer,
            log_file=Path(str(config.training.output_dir), "log.jsonl"),
            quiet=quiet,
        )
    except (ValueError, ImportError, RuntimeError, OSError) as error:
        raise ConfigError(one_line(error)) from None


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


def score(trainer: SeqTrainer, data: LanguageData) -> dict[str, dict[str, float]]:
    """Loss (nats per token), bits per token and token count on validation and test, of the model as it is now."""
    trainer.remove_callback(EarlyStoppingCallback)  # training is over, these evaluations decide nothing
    metrics = {}
    for split in ("validation", "test"):
        found = trainer.evaluate(data.windows[split], metric_key_prefix=split)
        metrics[split] = {name: found[f"{split}_{name}"] for name in ("loss", "bits_per_token", "tokens")}
    return metrics


def make_record(
    config: RunConfig, trainer: SeqTrainer, data: LanguageData, metrics: dict[str, dict[str, float]], seconds: float
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
        "data": {"sha256": data.hash, "windows": {split: len(rows) for split, rows in data.windows.items()}},
        "seeds": {"seed": config.training.seed, "data_seed": config.training.data_seed},
        "config": config.values,
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate", "datasets")}
        | {"python": platform.python_version()},
        "hardware": hardware(),
    }


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
    trainer.save_model()
    if trainer.is_world_process_zero():
        file = Path(str(trainer.args.output_dir), "result.json")
        unfinished = file.with_suffix(".tmp")
        unfinished.write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        unfinished.replace(file)


def main(argv: Sequence[str] | None = None, prog: str = "train.py") -> int:
    """The program: exit status 0, 2 for what the user can mend, 1 for a run that diverged, 130 after Ctrl-C.

    Each but 0 with one line on stderr.
    """
    disable_progress_bar()  # one for each file saved, across the bar of the training
    try:
        config = parse(sys.argv[1:] if argv is None else argv, prog)
        record = run(config)
    except (ConfigError, TrainingDiverged) as error:
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
            perplexity = math.exp(min(found["loss"], 700.0))
            print(f"{split}: {found['bits_per_token']:.4f} bits per token, perplexity {perplexity:.3f}")
        print(f"{record['parameters']:,} parameters, {record['steps']} steps, {record['seconds']:.0f} s")
        print(f"saved in {config.training.output_dir}")
    return 0
