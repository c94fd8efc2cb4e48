"""Everything a run can be told, with its default and its allowed range.

Three groups, one dataclass each; the fourth group, the model's own options, comes from the model's configuration class
(see `config.py`). A YAML file and the command line fill the same fields.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy, IntervalStrategy

# Task → the Auto class of transformers that builds its models. Batches and scores: `tasks.TASKS`.
TASKS = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "seq2seq-lm": "AutoModelForSeq2SeqLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "time-series-prediction": "AutoModelForTimeSeriesPrediction",
}
# Data set → the task it teaches. The first three are read; the others are made in code (`data.SYNTHETIC`).
DATASETS = {
    "pydoc_topics": "causal-lm",
    "text": "causal-lm",
    "piano_rolls": "time-series-prediction",
    "selective_copy": "causal-lm",
    "next_token": "causal-lm",
    "cloze": "masked-lm",
    "reverse": "seq2seq-lm",
    "prefixed": "seq2seq-lm",
    "parity": "sequence-classification",
    "recall": "token-classification",
    "lookahead_tags": "token-classification",
    "bracketed_tags": "token-classification",
    "nested_brackets": "token-classification",
    "spike_timing": "token-classification",
    "copy_memory": "token-classification",
    "moving_squares": "time-series-prediction",
    "adding": "sequence-classification",
}
READ = ("pydoc_topics", "text", "piano_rolls")


OPTIMIZERS = ("adamw_torch_fused", "adamw_torch", "sgd", "rmsprop", "nt_asgd")


class ConfigError(ValueError):
    """Something the user wrote cannot be run: one line that names the value, the rule and the way out."""


@dataclass
class RunArguments:
    """What is run."""

    config: str | None = field(
        default=None, metadata={"help": "A recipe by name (`hf-seqmodels list`) or a YAML file."}
    )
    task: str = field(
        default="causal-lm",
        metadata={"help": "What the model learns.", "choices": [*TASKS]},
    )
    model_type: str | None = field(default=None, metadata={"help": "seq_lstm, …, or one of transformers, as gpt2."})
    overwrite: bool = field(default=False, metadata={"help": "Delete an earlier run's results in output_dir first."})
    resume: bool = field(default=False, metadata={"help": "Go on from the newest checkpoint in output_dir."})
    emissions_country: str | None = field(
        default=None,
        metadata={"help": "Estimate CO2 with this country's electricity (DEU, USA, ...); needs the extra co2."},
    )


@dataclass
class DataArguments:
    """What the model learns from. Text files are read as UTF-8."""

    dataset: str = field(
        default="pydoc_topics",
        metadata={
            "help": "text or piano_rolls of path, or one made in code.",
            "choices": [*DATASETS],
        },
    )
    path: str | None = field(
        default=None,
        metadata={"help": "A folder, its name in data_dir, or a Hub id user/name."},
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder of data sets; $HF_SEQMODELS_DATA, data or ../shared/data if left out."}
    )
    column: str = field(default="text", metadata={"help": "The column of dataset=text that holds the text."})
    test_split: str = field(default="test", metadata={"help": "The split for the final score."})
    row_end: Literal["eos", "nothing"] = field(
        default="eos", metadata={"help": "What follows each row of text: the end token, or nothing (rows are lines)."}
    )
    streaming: bool = field(default=False, metadata={"help": "Read the training split as it comes, never as a whole."})
    train_file: str | None = field(default=None, metadata={"help": "A text file to learn from."})
    validation_file: str | None = field(default=None, metadata={"help": "A text file that chooses the checkpoint."})
    test_file: str | None = field(default=None, metadata={"help": "A text file for the final score."})
    tokenizer: str = field(
        default="characters",
        metadata={"help": "characters, bytes, words, bpe, or one to load."},
    )
    vocabulary_size: int | None = field(
        default=None, metadata={"help": "Most tokens of tokenizer=words (all if left out) or bpe (8192)."}
    )
    block_size: int = field(default=128, metadata={"help": "Tokens predicted per window."})
    windows: Literal["shuffled", "streams"] = field(
        default="shuffled",
        metadata={"help": "In random order, or as one stream per row."},
    )
    random_lengths: bool = field(
        default=False, metadata={"help": "Windows of streams of random length around block_size (AWD-LSTM)."}
    )
    reset_at_documents: bool = field(
        default=False, metadata={"help": "Streams begin anew with each row of the data; none runs through."}
    )
    length: int | None = field(
        default=None, metadata={"help": "Of made examples; of the parts piano_rolls are cut into."}
    )
    num_examples: int | None = field(default=None, metadata={"help": "Made examples to train on; 10000 if left out."})
    examples_seed: int | None = field(default=None, metadata={"help": "Seed of the made examples; 0 if left out."})


@dataclass
class SeqTrainingArguments(TrainingArguments):
    """[`transformers.TrainingArguments`] with defaults for small sequence models, and options of its own.

    Every option of transformers is accepted. The schedule is a warm-up followed by what `lr_scheduler_type` says.
    `warmup_steps` below 1 is a share of all steps.
    """

    learning_rate: float = field(default=2e-3, metadata={"help": "Peak learning rate."})
    optim: Literal["adamw_torch_fused", "adamw_torch", "sgd", "rmsprop", "nt_asgd"] = field(
        default="adamw_torch_fused",
        metadata={"help": "nt_asgd: SGD, averaged once it stalls."},
    )
    momentum: float = field(default=0.0, metadata={"help": "Of sgd and rmsprop."})
    rmsprop_alpha: float = field(default=0.99, metadata={"help": "Decay of rmsprop's mean of squares."})
    non_monotone_interval: int = field(
        default=5, metadata={"help": "nt_asgd averages once no evaluation of the last so many was better than before."}
    )
    lr_scheduler_type: Literal["cosine", "linear", "constant", "epoch_decay", "plateau"] = field(
        default="cosine", metadata={"help": "What the learning rate does after the warm-up."}
    )
    decay_factor: float = field(
        default=0.5, metadata={"help": "epoch_decay and plateau multiply the learning rate by it."}
    )
    decay_after: float = field(default=4.0, metadata={"help": "Epochs before epoch_decay begins, then once an epoch."})
    decay_patience: int = field(
        default=0, metadata={"help": "Evaluations without a better loss that plateau waits before it decays."}
    )
    carry_state: bool = field(default=False, metadata={"help": "Windows of a stream start in the last one's state."})
    auto_micro_batch: bool = field(
        default=False,
        metadata={"help": "Out of memory: halve the micro-batch, accumulate twice, start anew."},
    )
    max_minutes: float | None = field(
        default=None, metadata={"help": "Stop after so many, those before a resume included."}
    )
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up in steps; below 1, as a share of all steps."})
    weight_decay: float = field(default=0.01, metadata={"help": "AdamW: of matrices; else L2 of all weights."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Longest gradient (L2); 0 turns clipping off."})
    num_train_epochs: float = field(default=3.0, metadata={"help": "Passes over the training data."})
    max_steps: int = field(default=-1, metadata={"help": "Optimizer steps, in place of num_train_epochs."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Sequences per process and micro-step."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Sequences per process in evaluation."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Micro-steps per optimizer step."})
    eval_strategy: Literal["no", "steps", "epoch"] = field(
        default="epoch", metadata={"help": "When to evaluate; with steps, every eval_steps."}
    )
    save_strategy: Literal["no", "steps", "epoch", "best"] = field(
        default="epoch", metadata={"help": "When to save; with steps, every save_steps."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept; the best one always is."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the checkpoint with the best loss."})
    logging_steps: float = field(default=50, metadata={"help": "Steps between two lines of the log."})
    logging_first_step: bool = field(default=True, metadata={"help": "Log the first step too."})
    seed: int = field(default=42, metadata={"help": "Seed of initial weights and dropout."})
    data_seed: int | None = field(default=0, metadata={"help": "Seed of the batch order, the same for every model."})
    # A NaN must be seen, not replaced by the mean of earlier losses; the trainer stops on it.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Not used: a loss of NaN stops the run."})
    # Every parameter gets a gradient, so DDP need not search for idle ones in each step.
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Let DDP look for idle ones."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without a better loss."}
    )
    early_stopping_threshold: float = field(default=0.0, metadata={"help": "How much lower counts as better."})
    hub_private_repo: bool | None = field(
        default=True, metadata={"help": "A repository made by push_to_hub is private."}
    )
    expect_processes: int | None = field(
        default=None, metadata={"help": "Stop unless training really runs on so many processes."}
    )

    allow_ddp: bool = field(
        default=False, metadata={"help": "Go on with DDP where FSDP was asked for and cannot be had (CPUs)."}
    )

    def __post_init__(self) -> None:
        if not torch.accelerator.is_available():
            self.use_cpu = True  # unless told so, accelerate makes one process of each that torchrun starts on a CPU
        optim = str(getattr(self.optim, "value", self.optim))
        if optim not in OPTIMIZERS:
            raise ValueError(f"optim={optim} is not supported; use one of {', '.join(OPTIMIZERS)}")
        schedule = str(getattr(self.lr_scheduler_type, "value", self.lr_scheduler_type))
        # transformers knows neither nt_asgd nor two of the schedules; `build_optimizer` and `build_scheduler` do.
        self.optim = "sgd" if optim == "nt_asgd" else optim  # type: ignore[assignment]
        self.lr_scheduler_type = "constant" if schedule in ("epoch_decay", "plateau") else schedule  # type: ignore[assignment]
        super().__post_init__()
        self.optim, self.lr_scheduler_type = optim, schedule  # type: ignore[assignment]
        shape = self.lr_scheduler_kwargs
        if shape and not (
            isinstance(shape, dict)
            and list(shape) == ["num_cycles"]
            and type(shape["num_cycles"]) in (int, float)
            and self.lr_scheduler_type == "cosine"
        ):
            raise ValueError(f"lr_scheduler_kwargs={shape} is not supported; the cosine alone has one, num_cycles")
        check_optimizing(self)
        if self.carry_state and self.activation_checkpointing:
            raise ConfigError("carry_state and activation_checkpointing exclude each other; leave one of them out")
        check_pushing(self)


# Option → the option that must have one of the values, or it would have no effect.
_ONLY_WITH = {
    "momentum": ("optim", ("sgd", "rmsprop")),
    "rmsprop_alpha": ("optim", ("rmsprop",)),
    "non_monotone_interval": ("optim", ("nt_asgd",)),
    "adam_beta1": ("optim", ("adamw_torch_fused", "adamw_torch")),
    "adam_beta2": ("optim", ("adamw_torch_fused", "adamw_torch")),
    "adam_epsilon": ("optim", ("adamw_torch_fused", "adamw_torch")),
    "decay_factor": ("lr_scheduler_type", ("epoch_decay", "plateau")),
    "decay_after": ("lr_scheduler_type", ("epoch_decay",)),
    "decay_patience": ("lr_scheduler_type", ("plateau",)),
}


def check_optimizing(args: SeqTrainingArguments) -> None:
    """Raise ConfigError for an option that the optimizer or schedule does not have, or evaluations that it lacks."""
    for name, (owner, values) in _ONLY_WITH.items():
        value, chosen = getattr(args, name), getattr(args, owner)
        if chosen not in values and value != SeqTrainingArguments.__dataclass_fields__[name].default:
            way_out = f"leave {name} out, or choose {owner} {' or '.join(values)}"
            raise ConfigError(f"{name}={value} does not apply to {owner}={chosen}; {way_out}")
    for name, follower in (("optim", "nt_asgd"), ("lr_scheduler_type", "plateau")):
        if getattr(args, name) == follower and IntervalStrategy(args.eval_strategy) == IntervalStrategy.NO:
            raise ConfigError(f"{name}={follower} follows the evaluations, and eval_strategy=no has none; use epoch")


def check_pushing(args: TrainingArguments) -> None:
    """What of a push can be known before anything starts.

    `hub_strategy` may be end or every_save. The other two of transformers send whole checkpoints, to resume from: with
    optimizer.pt, rng_state.pth and training_args.bin, which are pickles, and the last one holds `hub_token`.

    Raises:
        ConfigError: one of those two, a name that no repository can have, or no token.
    """
    if not args.push_to_hub:
        return
    strategy = HubStrategy(args.hub_strategy).value
    if strategy not in ("end", "every_save"):
        raise ConfigError(
            f"hub_strategy={strategy} would upload the optimizer's state, a pickle; use every_save or end, and resume "
            "from the checkpoints in output_dir"
        )
    try:
        validate_repo_id(args.hub_model_id or Path(str(args.output_dir)).absolute().name)
    except HFValidationError as error:
        raise ConfigError(f"hub_model_id: {' '.join(str(error).split())}; write it as user/name") from None
    if not (args.hub_token or get_token()):
        raise ConfigError("push_to_hub needs a token: log in with `hf auth login`, or set HF_TOKEN; or leave it out")


_AT_LEAST_0 = (lambda value: value >= 0, "at least 0")
_AT_LEAST_1 = (lambda value: value >= 1, "at least 1")
_ABOVE_0 = (lambda value: value > 0, "above 0")
_SEED = (lambda value: 0 <= value < 2**32, "at least 0 and below 2**32")
_PROBABILITY = (lambda value: 0 <= value < 1, "at least 0 and below 1")

RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "block_size": (lambda value: value >= 2, "at least 2"),
    "vocabulary_size": (lambda value: value >= 10, "at least 10"),
    "length": _AT_LEAST_1,
    "num_examples": (lambda value: value >= 10, "at least 10"),
    "examples_seed": _SEED,
    "learning_rate": _ABOVE_0,
    "weight_decay": _AT_LEAST_0,
    "warmup_steps": _AT_LEAST_0,
    "max_grad_norm": _AT_LEAST_0,
    "num_train_epochs": _ABOVE_0,
    "max_steps": (lambda value: value == -1 or value >= 1, "at least 1, or -1 to use num_train_epochs"),
    "per_device_train_batch_size": _AT_LEAST_1,
    "per_device_eval_batch_size": _AT_LEAST_1,
    "gradient_accumulation_steps": _AT_LEAST_1,
    "adam_beta1": _PROBABILITY,
    "adam_beta2": _PROBABILITY,
    "adam_epsilon": _ABOVE_0,
    # transformers smooths the labels of its own model classes only; for others it forgets the shift by one token.
    "label_smoothing_factor": (lambda value: value == 0, "0 (label smoothing is not supported)"),
    "logging_steps": _ABOVE_0,
    "eval_steps": _ABOVE_0,
    "save_steps": _ABOVE_0,
    "save_total_limit": _AT_LEAST_1,
    "dataloader_num_workers": _AT_LEAST_0,
    "eval_accumulation_steps": _AT_LEAST_1,
    "seed": _SEED,
    "data_seed": _SEED,
    "early_stopping_patience": _AT_LEAST_1,
    "early_stopping_threshold": _AT_LEAST_0,
    "expect_processes": _AT_LEAST_1,
    "momentum": _PROBABILITY,
    "rmsprop_alpha": _PROBABILITY,
    "non_monotone_interval": _AT_LEAST_1,
    "decay_factor": (lambda value: 0 < value < 1, "above 0 and below 1"),
    "decay_after": _AT_LEAST_0,
    "decay_patience": _AT_LEAST_0,
    "max_minutes": _ABOVE_0,
}


def check_ranges(values: Mapping[str, Any]) -> None:
    """Raise ConfigError for the first number in `values` that is NaN, infinite or outside its range."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        if not math.isfinite(value):
            raise ConfigError(f"{name}={value} is not a finite number; write a number or leave {name} out")
        holds, rule = RANGES.get(name, (None, ""))
        if holds is not None and not holds(value):
            raise ConfigError(f"{name}={value} is out of range; {name} must be {rule}")
