"""The command line: one parser over four groups of options, and a help that fits a screen."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import re
import shutil
from collections.abc import Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from transformers import HfArgumentParser, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .arguments import ConfigError, DataArguments, RunArguments, SeqTrainingArguments

# The tokenizer decides these; the runtime decides the last.
_NOT_OPTIONS = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "use_cache")
# transformers' own training options that a first-time reader needs, beside those we redefine, in fewer words.
_COMMON = {
    "output_dir": "Receives all a run writes; runs/<recipe> if left out.",
    "bf16": "Mixed precision with bfloat16.",
    "eval_steps": "Steps between evaluations; logging_steps if left out.",
    "save_steps": "Steps between checkpoints.",
    "report_to": "A logger beside log.jsonl: tensorboard, trackio, ...",
    "use_cpu": "Leave the GPU alone.",
}
# Ours that can wait for --help-all.
_RARE = (
    "logging_nan_inf_filter",
    "ddp_find_unused_parameters",
    "logging_first_step",
    "early_stopping_threshold",
    "examples_seed",
    "emissions_country",
    "hub_private_repo",
    "momentum",
    "rmsprop_alpha",
    "non_monotone_interval",
    "decay_factor",
    "decay_after",
    "decay_patience",
    "auto_micro_batch",
    "allow_ddp",
    "data_dir",
    "column",
    "row_end",
    "test_split",
    "streaming",
    "random_lengths",
    "reset_at_documents",
    "vocabulary_size",
    "expect_processes",
)


def model_arguments(model_type: str) -> type:
    """A dataclass with one field for each scalar option of the model's configuration class."""
    config_class = CONFIG_MAPPING[model_type]
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)} | set(_NOT_OPTIONS)
    described = _descriptions(config_class)
    options = []
    for field in dataclasses.fields(config_class):
        kind = _scalar(field.type)
        if field.name in inherited or kind is None or field.default is dataclasses.MISSING:
            continue
        hint = kind if field.default is not None else kind | None
        metadata = {"help": described.get(field.name, "")}
        options.append((field.name, hint, dataclasses.field(default=field.default, metadata=metadata)))
    return dataclasses.make_dataclass("ModelArguments", options)


def _scalar(annotation: Any) -> Any:
    """The one type that a command-line value of this annotation is read as; None if it is not a scalar."""
    alternatives = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    for alternative in alternatives:
        if get_origin(alternative) is Literal:
            return alternative
    return next((kind for kind in (bool, float, int, str) if kind in alternatives), None)


def _descriptions(config_class: type) -> dict[str, str]:
    """Option → description, from the `Args:` of the class's docstring and its parents'."""
    found: dict[str, str] = {}
    for cls in config_class.__mro__:
        for name, text in re.findall(r"^    (\w+)(?: \(.*?\))?:\s*((?:.+\n?)(?:^        .*\n?)*)", _args(cls), re.M):
            found.setdefault(name, " ".join(text.split()).replace("%", "%%").replace("`", ""))
    return found


def _args(cls: type) -> str:
    doc = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    return doc.partition("Args:\n")[2].partition("\n\n")[0]


class OptionParser(HfArgumentParser):
    """HfArgumentParser whose errors are one line and name the nearest option."""

    def __init__(self, groups: Sequence[Any], **kwargs: Any):
        super().__init__(list(groups), allow_abbrev=False, add_help=False, **kwargs)

    @staticmethod
    def first_look(argv: Sequence[str]) -> argparse.Namespace:
        """The options that decide what the other options are: config, task, model_type, help, help_all."""
        parser = _FirstLook(add_help=False, allow_abbrev=False)
        parser.add_argument("--config")
        parser.add_argument("--task")
        parser.add_argument("--model_type", "--model-type")
        parser.add_argument("-h", "--help", action="store_true")
        parser.add_argument("--help-all", "--help_all", action="store_true")
        return parser.parse_known_args(list(argv))[0]

    def values(self, tokens: Sequence[str]) -> dict[str, Any]:
        """Option → value; raises ConfigError for what is unknown or of the wrong type."""
        namespace, rest = self.parse_known_args(list(tokens))
        if rest:
            unknown = next((token for token in rest if token.startswith("-")), None)
            if unknown is None:
                raise ConfigError(f"'{rest[0]}' stands alone; options are written --name value")
            name = unknown.partition("=")[0].lstrip("-").replace("-", "_")
            known = [action.dest for action in self._actions]
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f": did you mean '{near[0]}'?" if near else "; --help shows the options"
            raise ConfigError(f"unknown option '{name}'{hint}")
        return vars(namespace)

    def error(self, message: str) -> Any:
        """argparse's message without usage text, as a ConfigError."""
        name = match[1] if (match := re.match(r"argument --(\w+)", message)) else None
        told = message.partition(": ")[2] if name else message
        if wrong := re.match(r"invalid (\w+) value: (.*)", told):
            kind = {"int": "a whole number", "float": "a number"}.get(wrong[1], f"a {wrong[1]}")
            raise ConfigError(f"{name}={wrong[2]} is not {kind}; write {name} as {kind}")
        if wrong := re.match(r"invalid choice: (.*) \(choose from (.*)\)", told):
            raise ConfigError(f"{name}={wrong[1]} is not a choice; use one of {wrong[2]}")
        raise ConfigError(f"{name}: {told}" if name else told)


class _FirstLook(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ConfigError(message)


class _ShortNames(argparse.HelpFormatter):
    """`--learning_rate FLOAT` once, not with every dashed twin; a line for an option where 100 columns allow it."""

    def __init__(self, prog: str):
        super().__init__(
            prog, max_help_position=40, width=max(80, min(shutil.get_terminal_size((100, 0)).columns, 100))
        )

    def _format_action_invocation(self, action: argparse.Action) -> str:
        name = next((option for option in action.option_strings if option.startswith("--")), "")
        if action.choices is not None and 1 < len(list(action.choices)) < 6:  # more stand in the help text
            return f"{name} {{{','.join(map(str, action.choices))}}}"
        kind = getattr(action.type, "__name__", "")
        return f"{name} {kind.upper()}" if kind in ("int", "float", "str") else name

    def _get_help_string(self, action: argparse.Action) -> str:
        text = " ".join((action.help or "").split())
        plain = action.default is False or action.default in (None, "", argparse.SUPPRESS)
        return text if plain else f"{text} [%(default)s]"


def help_text(prog: str, model_type: str | None, everything: bool) -> str:
    """What `--help` prints: run, data and model options, and the training options one needs first.

    Args:
        prog: how the program is called.
        model_type: whose options to show; None shows how to choose.
        everything: show every option of transformers.TrainingArguments too.
    """
    groups: list[tuple[str, type]] = [("run", RunArguments), ("data", DataArguments)]
    if model_type is not None:
        groups.append((f"model ({model_type})", model_arguments(model_type)))
    groups.append(("training", SeqTrainingArguments))
    for title, group in groups:
        group._argument_group_name = title  # type: ignore[attr-defined]  # read by HfArgumentParser
    try:
        parser = OptionParser([group for _, group in groups], prog=prog, formatter_class=_ShortNames)
    finally:
        for _, group in groups:
            del group._argument_group_name  # type: ignore[attr-defined]
    parser.usage = f"{prog} --config lm/lstm [--option value ...]"
    parser.description = (
        "Trains one model. A YAML recipe gives the options, the command line wins; "
        "`hf-seqmodels list` shows the recipes."
    )
    if not everything:
        _hide_rare(parser)
    notes = [] if model_type else ["--model_type or --config shows the model's options too."]
    notes += [] if everything else ["All options of transformers.TrainingArguments work as well: --help-all."]
    parser.epilog = " ".join(notes)
    return parser.format_help()


def _hide_rare(parser: argparse.ArgumentParser) -> None:
    own = (set(inspect.get_annotations(SeqTrainingArguments)) | set(_COMMON)) - set(_RARE)
    rare = {field.name for field in dataclasses.fields(SeqTrainingArguments)} - own | set(_RARE)
    for action in parser._actions:
        if action.dest in rare or any(option.startswith("--no_") for option in action.option_strings):
            action.help = argparse.SUPPRESS
        elif action.dest in _COMMON:
            action.help = _COMMON[action.dest]
