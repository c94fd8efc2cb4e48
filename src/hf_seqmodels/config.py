"""From a YAML recipe and the command line to one checked `RunConfig`, before anything is loaded.

A recipe has the keys `task` and `model_type` and the sections `model`, `data` and `training`. It is turned into
command-line tokens that stand ahead of the real command line, so that types, choices and misspelt keys are checked
once, in one place, and the command line wins.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .arguments import TASKS, ConfigError, DataArguments, RunArguments, SeqTrainingArguments, check_ranges
from .data_checks import check_data, check_streaming
from .options import OptionParser, help_text, model_arguments
from .recipes import SECTIONS, did_you_mean, find_config, one_line, read_recipe

_TOP_LEVEL = ("task", "model_type")
# What a finished or interrupted run leaves in its output directory.
RESULTS = ("result.json", "log.jsonl", "config.yaml", "model.safetensors")
# Options of where data lie, which may be elsewhere when a run is resumed.
_PLACES = ("path", "data_dir", "train_file", "validation_file", "test_file", "test_split")
# Never written down.
_SECRET = ("hub_token",)
# Options of transformers that would break what a run promises: the value that stands, and why.
_FIXED = {
    "dataloader_drop_last": (False, "every target counts once in an epoch"),
    "average_tokens_across_devices": (True, "the loss is the mean over the targets of all processes"),
    "metric_for_best_model": (None, "the checkpoint with the lowest loss is kept"),
    "greater_is_better": (None, "the checkpoint with the lowest loss is kept"),
    "label_names": (None, "the targets stand in `labels`"),
    "auto_find_batch_size": (
        False,
        "it changes the effective batch and goes on from changed weights, --auto_micro_batch true does neither",
    ),
}


@dataclass(frozen=True)
class RunConfig:
    """One run, fully decided.

    Attributes:
        run: task, model type, overwrite, resume.
        model: options for the model's configuration class, without what the tokenizer decides.
        data: what to learn from.
        training: [`SeqTrainingArguments`]; `training.output_dir` receives everything the run writes.
        values: the same four as plain values, by section; `to_yaml` writes them.
    """

    run: RunArguments
    model: dict[str, Any]
    data: DataArguments
    training: SeqTrainingArguments
    values: dict[str, Any]

    def model_config(self, **from_data: Any) -> PreTrainedConfig:
        """The model's configuration; what the tokenizer and the data decide (`vocab_size`, …) is given here.

        Raises:
            ConfigError: the configuration class refuses a value.
        """
        return _model_config(str(self.run.model_type), {**self.model, **from_data})

    def to_yaml(self) -> str:
        """The whole run as a recipe: `--config` with this file repeats it."""
        return yaml.safe_dump(self.values, sort_keys=False, allow_unicode=True)


def parse(argv: Sequence[str], prog: str = "train.py") -> RunConfig:
    """Read the recipe that `--config` names, then the command line over it; check everything.

    Args:
        argv: the command line without the program's name.
        prog: how the help calls the program.

    Raises:
        ConfigError: unknown key, wrong type, value out of range, missing file, results in the way.
        SystemExit: after `--help` or `--help-all`.
    """
    first = OptionParser.first_look(argv)
    path = find_config(first.config) if first.config else None
    recipe = read_recipe(path) if path else {}
    model_type = first.model_type or recipe.get("model_type")
    if model_type is not None:
        _check_model_type(str(model_type), str(first.task or recipe.get("task") or RunArguments.task))
    if first.help or first.help_all:
        print(help_text(prog, model_type, everything=first.help_all))
        raise SystemExit(0)
    if model_type is None:
        for key in recipe:
            if key not in (*_TOP_LEVEL, *SECTIONS):
                raise ConfigError(f"{path}: {_misplaced(key, 'the top level', {}, [*_TOP_LEVEL, *SECTIONS])}")
        raise ConfigError("no model is named; choose a recipe (--config lm/lstm) or an architecture (--model_type)")

    groups = {"run": RunArguments, "model": model_arguments(model_type), "data": DataArguments}
    groups["training"] = SeqTrainingArguments
    parser = OptionParser(list(groups.values()))
    tokens: list[str] = []
    if path is not None:
        try:
            tokens = _tokens(recipe, groups, drop_model=model_type != recipe.get("model_type", model_type))
            check_ranges(parser.values(tokens))
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    values = parser.values([*tokens, *argv])
    check_ranges(values)
    sections = {name: {f.name: values[f.name] for f in fields(group) if f.init} for name, group in groups.items()}
    sections["run"]["model_type"] = model_type
    return _checked(sections, first.config)


def _checked(sections: dict[str, dict[str, Any]], config_name: str | None) -> RunConfig:
    """Everything that can be known without loading data: files, sizes that fit together, a free output directory."""
    run, data = RunArguments(**sections["run"]), DataArguments(**sections["data"])
    model = {name: value for name, value in sections["model"].items() if value is not None}
    training = sections["training"]
    training["output_dir"] = training["output_dir"] or _default_output_dir(config_name, str(run.model_type))
    check_data(run.task, data, bool(training["carry_state"]))
    check_streaming(data, training)
    _check_model(run, model, data)
    _check_fixed(training)
    values: dict[str, Any] = {name: sections["run"][name] for name in _TOP_LEVEL}
    values |= {name: _plain(sections[name]) for name in SECTIONS}
    try:
        _check_output_dir(Path(training["output_dir"]), run, values)
    except OSError as error:
        raise ConfigError(f"output_dir: {one_line(error)}; name a directory that you can write to") from None
    try:
        arguments = SeqTrainingArguments(**training)
    except (ValueError, ImportError, TypeError, OSError) as error:
        raise ConfigError(one_line(error)) from None
    if arguments.early_stopping_patience is not None and not arguments.load_best_model_at_end:
        raise ConfigError("early_stopping_patience needs load_best_model_at_end=true, to know the best checkpoint")
    return RunConfig(run, model, data, arguments, values)


# ---- recipes ----------------------------------------------------------------------------------------------------


def _tokens(recipe: Mapping[str, Any], groups: Mapping[str, type], drop_model: bool) -> list[str]:
    """The recipe as command-line tokens.

    Args:
        recipe: what the YAML file holds.
        groups: section → dataclass with its options.
        drop_model: the command line chose another architecture, so the `model` section does not apply.
    """
    options = {name: {f.name: f for f in fields(group) if f.init} for name, group in groups.items()}
    tokens = []
    for key, value in recipe.items():
        if key in _TOP_LEVEL:
            tokens.append(f"--{key}={value}")
        elif key not in SECTIONS:
            raise ConfigError(_misplaced(key, "the top level", options, [*_TOP_LEVEL, *SECTIONS]))
        elif value is not None and not isinstance(value, dict):
            raise ConfigError(f"section '{key}' must hold `option: value` lines, not {value!r}")
        elif key != "model" or not drop_model:
            for name, setting in (value or {}).items():
                if name not in options[key]:
                    raise ConfigError(_misplaced(name, f"section '{key}'", options, list(options[key])))
                tokens += _option_tokens(name, setting, field=options[key][name])
    return tokens


def _option_tokens(name: str, value: Any, field: Field) -> list[str]:
    default = field.default
    if value is None:
        if default is not None:
            raise ConfigError(f"{name} has no value; write one, or leave {name} out to get {default!r}")
        return []
    if isinstance(value, list):
        if "list" not in str(field.type):
            raise ConfigError(f"{name}={value} is a list; write one value")
        return [f"--{name}", *map(str, value)]
    if isinstance(value, dict):
        return [f"--{name}={json.dumps(value)}"]
    if isinstance(value, bool):  # YAML reads a bare `no` as false, also where "no" is one of the choices
        words = ("no", "yes") if isinstance(default, str) else ("false", "true")
        return [f"--{name}={words[value]}"]
    return [f"--{name}={value}"]


def _misplaced(name: Any, place: str, options: Mapping[str, Mapping[str, Any]], known: list[str]) -> str:
    for section in SECTIONS:
        if name in options.get(section, {}):
            return f"'{name}' does not belong in {place}; move it to section '{section}'"
    return f"unknown key '{name}' in {place}{did_you_mean(str(name), known) or '; --help shows the options'}"


# ---- checks that need no data -----------------------------------------------------------------------------------


def auto_class(task: str) -> Any:
    """The Auto class of transformers that builds the models of a task.

    Raises:
        ConfigError: no such task.
    """
    if task not in TASKS:
        raise ConfigError(f"task='{task}' is not a choice{did_you_mean(task, TASKS)}; use one of {', '.join(TASKS)}")
    return getattr(transformers, TASKS[task])


def _check_model_type(model_type: str, task: str) -> None:
    mapping = auto_class(task)._model_mapping
    if model_type not in CONFIG_MAPPING:
        known = [name for name in CONFIG_MAPPING if CONFIG_MAPPING[name] in mapping]
        ours = [name for name in known if name == f"seq_{model_type.lower()}"]  # "lstm" is nearer to "xlstm"
        hint = did_you_mean(model_type, ours or known) or "; ours start with seq_, see `hf-seqmodels list`"
        raise ConfigError(f"there is no architecture '{model_type}'{hint}")
    if CONFIG_MAPPING[model_type] not in mapping:
        missing = "causal language model" if task == "causal-lm" else f"model for {task}"
        has = [name for name in TASKS if CONFIG_MAPPING[model_type] in auto_class(name)._model_mapping]
        way_out = (
            f"choose --task {' or '.join(has)}, or another --model_type" if has else "choose another --model_type"
        )
        raise ConfigError(f"architecture '{model_type}' has no {missing}; {way_out}")


def _model_config(model_type: str, options: Mapping[str, Any]) -> PreTrainedConfig:
    try:
        return CONFIG_MAPPING[model_type](**options)
    except Exception as error:  # every configuration class has errors of its own
        raise ConfigError(one_line(error)) from None


def _check_model(run: RunArguments, options: Mapping[str, Any], data: DataArguments) -> None:
    """Build the model without memory for its weights: what it refuses is refused now and not after the data."""
    model_type, block_size = str(run.model_type), data.block_size
    for name, value in options.items():
        is_size = name.endswith(("_size", "_dim")) or name.startswith(("num_", "n_"))
        chosen = value != getattr(CONFIG_MAPPING[model_type], name, None)
        if is_size and chosen and type(value) is int and value < 1:
            raise ConfigError(f"{name}={value} is out of range; {name} must be at least 1")
    tokenizer = {"vocab_size": 16, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 2}
    config = _model_config(model_type, {**options, **tokenizer})
    longest = getattr(config, "max_position_embeddings", None)
    option = (config.attribute_map or {}).get("max_position_embeddings", "max_position_embeddings")
    text = data.dataset in ("pydoc_topics", "text")  # the length of made examples is known when they are made
    learned = getattr(config, "positions", "learned") == "learned"
    window = block_size + (data.windows == "shuffled")  # windows of streams have their last target outside
    if text and learned and longest is not None and window > longest:
        raise ConfigError(
            f"block_size={block_size} makes windows of {window} tokens; the model has {longest} positions; "
            f"lower block_size or raise {option}"
        )
    try:
        with torch.device("meta"):
            auto_class(run.task).from_config(config)
    except Exception as error:  # whatever the model class raises is about these options
        raise ConfigError(f"{model_type}: {one_line(error)}") from None


def _check_fixed(training: Mapping[str, Any]) -> None:
    """Options that transformers has and a run cannot honour, and two that must fit together."""
    for name, (value, why) in _FIXED.items():
        if training[name] != value:
            raise ConfigError(f"{name}={training[name]} is not supported: {why}; leave {name} out")
    evaluate, save = (str(training[f"{name}_strategy"]) for name in ("eval", "save"))
    if training["load_best_model_at_end"] and save not in ("best", evaluate):
        raise ConfigError(
            f"eval_strategy={evaluate} and save_strategy={save} differ, and the best checkpoint is known only where "
            "both happen; give both the same value, or --load_best_model_at_end false"
        )
    checkpoint = training["resume_from_checkpoint"]
    if checkpoint is not None and not Path(checkpoint, "trainer_state.json").is_file():
        raise ConfigError(f"resume_from_checkpoint '{checkpoint}' is not a checkpoint; --resume takes the newest one")


def _check_output_dir(folder: Path, run: RunArguments, values: Mapping[str, Any]) -> None:
    """Only the first process looks: it may have begun to write when the others come to this line."""
    if os.environ.get("RANK", "0") != "0":
        return
    if run.overwrite and run.resume:
        raise ConfigError("--overwrite deletes what --resume goes on from; give one of them")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"output_dir '{folder}' is a file; name a directory")
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not (existing.is_dir() and os.access(existing, os.R_OK | os.W_OK | os.X_OK)):
        raise ConfigError(f"output_dir '{folder}' cannot be written: '{existing}' is not a directory open to you")
    found = sorted(name for name in RESULTS if (folder / name).exists()) + sorted(
        path.name for path in folder.glob("checkpoint-*")
    )
    if run.resume and not any(name.startswith("checkpoint-") for name in found):
        raise ConfigError(f"output_dir '{folder}' has no checkpoint to resume from; leave --resume out")
    if found and not (run.overwrite or run.resume):
        raise ConfigError(
            f"output_dir '{folder}' holds results ({', '.join(found)}); "
            "choose another --output_dir, or --overwrite, or --resume"
        )
    if run.resume and (folder / "config.yaml").is_file():
        before = read_recipe(folder / "config.yaml")
        for name in ("model_type", "model"):
            if before.get(name) != values[name]:
                raise ConfigError(
                    f"--resume: the run in '{folder}' has {name}={before.get(name)} and not {values[name]}; "
                    "resume with the same model, or choose another --output_dir"
                )
        _check_same_data(folder, before.get("data") or {}, values["data"])
        _check_same_order(folder, before, values)


def _check_same_data(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """A checkpoint says how many batches were learned from: in other windows these are other places of the text."""
    for option in fields(DataArguments):
        was, is_now = (values.get(option.name, option.default) for values in (before, now))
        if was != is_now and option.name not in _PLACES:
            raise ConfigError(
                f"--resume: the run in '{folder}' has {option.name}={was} and not {is_now}; "
                "resume with the same data, or choose another --output_dir"
            )


def _check_same_order(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Batches are skipped by their number: of another order, or of streams cut into other rows, they hold other text.

    Rows may be divided into micro-batches otherwise, as `auto_micro_batch` does.
    """
    was, is_now = ({**(values.get("training") or {})} for values in (before, now))
    seeds = [values.get("data_seed", SeqTrainingArguments.data_seed) for values in (was, is_now)]
    if seeds[0] != seeds[1]:
        raise ConfigError(
            f"--resume: the run in '{folder}' has data_seed={seeds[0]} and not {seeds[1]}; resume with the same order"
        )
    names = ("per_device_train_batch_size", "gradient_accumulation_steps")
    rows = [
        math.prod(values.get(name, getattr(SeqTrainingArguments, name)) for name in names) for values in (was, is_now)
    ]
    if now["data"].get("windows") == "streams" and rows[0] != rows[1]:
        raise ConfigError(
            f"--resume: the run in '{folder}' reads its streams in {rows[0]} rows (per_device_train_batch_size × "
            f"gradient_accumulation_steps) and not {rows[1]}; resume with as many"
        )


def _default_output_dir(config_name: str | None, model_type: str) -> str:
    if config_name is None:
        return str(Path("runs") / model_type)
    parts = Path(config_name).with_suffix("").parts
    if "configs" in parts:
        parts = parts[parts.index("configs") + 1 :]
    return str(Path("runs", *(parts if not Path(*parts).is_absolute() else parts[-1:])))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as YAML can hold them and `parse` reads them back: no enum, no None, no secret."""
    return {
        name: value.value if isinstance(value, Enum) else value
        for name, value in values.items()
        if value not in (None, [], "") and name not in _SECRET
    }
