"""What a run's record says, section by section, as Markdown. What a record does not hold is left out."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..arguments import DataArguments, SeqTrainingArguments
from ..data import SYNTHETIC
from ..evaluation.recorded import same_batches
from ..evaluation.result_tables import number
from ..models import ARCHITECTURES
from .card_data import dataset_of
from .card_seeds import headline, in_brackets, over_seeds, published, seeds_tried, steps_of, told_of_seeds
from .card_text import code, escape, fence, one_line, plain, table
from .card_usage import places

# Score → (in words, digits, unit); in the order of the results' columns.
MEASURES = {
    "nll": ("negative log-likelihood per step (nats)", 3),
    "perplexity": ("perplexity per token", 2),
    "bits_per_character": ("bits per character", 3),
    "bits_per_token": ("bits per token", 3),
    "accuracy": ("accuracy", 4),
    "exact_match": ("exact match", 4),
    "f1": ("F1", 4),
    "mse": ("mean squared error", 5),
    "loss": ("loss (nats)", 4),
}
_PATH = re.compile(r"^(?:[/~\\]|[A-Za-z]:[/\\])")
_HERE = ("output_dir", "logging_dir", "run_name", "local_rank", "resume_from_checkpoint", "hub_token")
Record = Mapping[str, Any]
# Entry of a record → what it is, where it is there.
_NUMBER = (int, float)
SHAPE: dict[str, Any] = {
    **dict.fromkeys(("parameters", "steps", "seconds", "targets", "world_size"), _NUMBER),
    **dict.fromkeys(("best_step", "resumed_at_step"), _NUMBER),
    **dict.fromkeys(("model_type", "task", "name"), str),
    **dict.fromkeys(("config", "data", "metrics", "seeds", "hardware", "versions", "curve", "batch_order"), Mapping),
    **dict.fromkeys(("spread", "failed"), Mapping),
    **dict.fromkeys(("recipe", "command", "seed_rule"), str),
    "runs": list,
    **dict.fromkeys(("measured", "chance", "git", "emissions", "model_config"), Mapping),
    "config.data": Mapping,
    "config.model": Mapping,
    "config.training": Mapping,
    "data.windows": Mapping,
    "data.longest": Mapping,
    "data.out_of_vocabulary": _NUMBER,
    "data.sha256": str,
    "data.example": str,
    "batch_order.digest": str,
    "git.commit": str,
}


def read(record: Record, name: str = "record") -> dict[str, Any]:
    """A record as plain JSON values of the right kinds.

    Raises:
        ValueError: a number is NaN or infinite, or an entry is of another kind than a run writes.
    """
    found = plain(record, name)
    metrics = found.get("metrics")
    splits = [f"metrics.{split}" for split in metrics] if isinstance(metrics, Mapping) else []
    numbers = {"measured", "chance", "data.windows", "data.longest", *splits}
    wanted = SHAPE | dict.fromkeys(splits, Mapping)
    for key, kind in wanted.items():
        value: Any = found
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        items = value.values() if isinstance(value, Mapping) and key in numbers else ()
        if value is not None and not (isinstance(value, kind) and all(isinstance(item, _NUMBER) for item in items)):
            raise ValueError(f"{name}.{key} is not what a run writes there; train again, or mend result.json")
    return found


def run_name(record: Record) -> str:
    """What a run is called in a table: its `name`, or the last part of the folder it was written to."""
    folder = record.get("config", {}).get("training", {}).get("output_dir") or ""
    return one_line(record.get("name") or PurePath(str(folder)).name or record.get("model_type", "model"))


# ---- results ----------------------------------------------------------------------------------------------------


def scores(record: Record) -> list[str]:
    """The measures that a record has, the loss only where there is nothing better, or where it is what counts.

    The measure of a benchmark stands first.
    """
    found = [name for name in MEASURES if any(name in split for split in record.get("metrics", {}).values())]
    counts = headline(record)
    rest = [name for name in found if name not in ("loss", counts)]
    if counts == "bits_per_character" and "bits_per_token" in rest:  # the same number where tokens are characters
        rest.remove("bits_per_token")
    return ([counts] if counts in found else []) + rest or found


def results(name: str, record: Record, others: Sequence[Record]) -> str:
    """The model's row, then those of the same task and data, best first; then what was measured besides."""
    measures, splits = scores(record), list(record.get("metrics", {}))
    if not measures:
        return ""
    head = ["model", "architecture", "parameters", "steps"]
    head += [f"{escape(split)}, {MEASURES[measure][0]}" for split in splits for measure in measures]

    def row(title: str, found: Record) -> list[str]:
        cells = [title, escape(found.get("model_type", "–"))]
        cells += [f"{found['parameters']:,}" if "parameters" in found else "–", steps_of(found)]
        for split in splits:
            values = found.get("metrics", {}).get(split, {})
            told = {
                m: f"{number(values[m], MEASURES[m][1])}{in_brackets(found, split, m, MEASURES[m][1])}"
                for m in values
                if m in measures
            }
            cells += [told.get(m, "–") for m in measures]
        return cells

    beside = sorted(comparable(record, others), key=lambda other: _rank(other, measures[0]))
    rows = [row(f"**{escape(name)}** (this one)", record)]
    rows += [row(escape(run_name(other)), other) for other in beside]
    for measure, value in (record.get("chance") or {}).items():
        if measure in measures:
            label, digits = MEASURES[measure]
            empty = ["–"] * 3
            told = [f"{value:.{digits}f}" if m == measure and s == "test" else "–" for s in splits for m in measures]
            rows.append([f"a guess ({label})", *empty, *told])
    parts = [table(head, rows, words=2), published(record), _explain(record, beside, measures)]
    measured = record.get("measured") or {}
    if measured:
        parts.append(table(["measured", "value"], [(escape(key), f"{value:,.0f}") for key, value in measured.items()]))
    return "\n\n".join(part for part in parts if part)


def comparable(record: Record, others: Sequence[Record]) -> list[Record]:
    """Those of the same task that learned from the same data (sha256), without the record itself."""

    def key(found: Record) -> tuple[Any, Any]:
        return found.get("task"), found.get("data", {}).get("sha256")

    def itself(other: Record) -> bool:
        return {k: v for k, v in other.items() if k != "name"} == {k: v for k, v in record.items() if k != "name"}

    return [other for other in others if key(other) == key(record) and key(record)[1] and not itself(other)]


def _rank(record: Record, measure: str) -> tuple[float, str]:
    value = record.get("metrics", {}).get("test", {}).get(measure, float("inf"))
    return (-value if measure in ("accuracy", "exact_match", "f1") else value), run_name(record)


def _explain(record: Record, beside: Sequence[Record], measures: Sequence[str]) -> str:
    lines = over_seeds(record)
    values = record.get("config", {}).get("data", {})
    block, streams = values.get("block_size"), values.get("windows") == "streams"
    if "bits_per_token" in measures:
        windows = record.get("task") == "causal-lm" and not _is_made(record) and block and not streams
        how = f"; each window of {block} tokens is read without the text before it" if windows else ""
        if streams and record.get("config", {}).get("training", {}).get("carry_state"):
            rows = record["config"]["training"].get("per_device_eval_batch_size", 1) * record.get("world_size", 1)
            parts = f" in {rows} parts side by side, each" if rows > 1 else ""
            how = f"; the text is read{parts} as one, with the state carried from window to window"
        lines.append(f"Bits per token are the mean of −log2 p over all targets of a split{how}.")
    if values.get("test_split") == "validation" and "test" in record.get("metrics", {}):
        chosen = ", which also chose the weights" if record.get("best_step") else ""
        lines.append(f"The data set has no test split of its own: test is validation again{chosen}.")
    if beside and _ordered(record):
        lines.append(_same_batches(record, beside))
    return " ".join(lines)


def _ordered(record: Record) -> bool:
    """Whether the order of its batches is recorded."""
    order = record.get("batch_order") or {}
    return bool(order.get("digest")) and "steps" in order


def _same_batches(record: Record, beside: Sequence[Record]) -> str:
    orders = {str(place): found for place, found in enumerate([record, *beside]) if _ordered(found)}
    names, steps, digest = next(group for group in same_batches(orders) if "0" in group[0])
    count = "All others" if len(names) > len(beside) else f"{len(names) - 1} of the {len(beside)} others"
    least = f", for at least {steps:,} steps" if len(names) > 1 else ""
    return f"{count} were trained on the same batches in the same order{least} (digest {code(digest)})."


def _unit(record: Record) -> str:
    """What rows of the data are."""
    return {"made": "examples", "music": "pieces"}.get(dataset_of(record).kind, "windows")


def _is_made(record: Record) -> bool:
    return record.get("config", {}).get("data", {}).get("dataset") in SYNTHETIC


# ---- data, options, provenance ------------------------------------------------------------------------------------


def data(record: Record) -> str:
    """Name, source, licence, hash and sizes."""
    found, known = dataset_of(record), record.get("data", {})
    lines = [f"- **{escape(found.name)}** ({code(found.identifier)}): {found.source}"]
    lines += [f"- licence: {found.license}"]
    if known.get("sha256"):
        lines.append(f"- sha256 of the contents: {code(known['sha256'])}")
    if known.get("windows"):
        sizes = ", ".join(f"{escape(split)} {count:,}" for split, count in known["windows"].items())
        lines.append(f"- {_unit(record)}: {sizes}")
    left = {split: count for split, count in (known.get("skipped") or {}).items() if count}
    if left:
        lines.append("- left out: " + ", ".join(f"{count:,} of {escape(split)}" for split, count in left.items()))
    for split, count in (known.get("cut") or {}).items():
        lines.append(f"- {count:,} pieces of {escape(split)} were cut into stretches, counted here as pieces")
    return "\n".join(lines)


def options_of(record: Record) -> dict[str, Any]:
    """The run's options without places of the machine that trained, and without a data set that files replace."""
    values = without_paths(record.get("config", {}))
    if values.get("data", {}).get("train_file"):
        values["data"].pop("dataset", None)
    return values


def without_paths(value: Any) -> Any:
    """A path becomes its last part; where the run wrote is left out."""
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items() if key not in _HERE}
    if isinstance(value, str) and _PATH.match(value):
        return PurePath(value.replace("\\", "/")).name
    return [without_paths(item) for item in value] if isinstance(value, list) else value


def changed_options(record: Record) -> str:
    """The data, and the options that differ from our defaults, as YAML; those left out are as by default."""
    values = options_of(record)
    config = CONFIG_MAPPING[record["model_type"]] if record.get("model_type") in CONFIG_MAPPING else None

    def changed(section: str, cls: Any) -> dict[str, Any]:
        defaults = {field.name: field.default for field in dataclasses.fields(cls)} if cls else {}
        given = values.get(section, {})
        # YAML's `no` is False; transformers' options that say "no" take both.
        said = {key: "no" if value is False and defaults.get(key) == "no" else value for key, value in given.items()}
        return {key: value for key, value in said.items() if value != defaults.get(key)}

    always = ("dataset", "tokenizer", "block_size") if dataset_of(record).kind == "text" else ("dataset",)
    data = {key: value for key, value in values.get("data", {}).items() if key in always}
    told = {"model": changed("model", config), "data": data | changed("data", DataArguments)}
    told["training"] = changed("training", SeqTrainingArguments)
    return _yaml({key: value for key, value in told.items() if value})


def whole_configuration(record: Record) -> str:
    """The run's options and the model's configuration, as YAML."""
    run = fence(_yaml(options_of(record)), "yaml")
    model = record.get("model_config")
    return f"{run}\n\n{fence(_yaml(without_paths(model)), 'yaml')}" if model else run


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)
    if "".join(text.split("\n")).isprintable():
        return text
    return yaml.safe_dump(value, sort_keys=False, width=100)  # what cannot be seen is spelt out


def provenance(record: Record, weights_sha256: str | None) -> str:
    """Seeds, steps, time, machine, versions, commit, hashes, CO₂: a line each, for what is recorded."""
    hardware, versions, git = (record.get(key) or {} for key in ("hardware", "versions", "git"))
    lines = []
    lines += told_of_seeds(record)  # of several, one run's steps and seconds would not say much
    several = len(record.get("runs", ())) > 1
    if "steps" in record and not several:
        best = f", the weights are those of step {record['best_step']:,}" if record.get("best_step") else ""
        lines.append(f"optimizer steps: {record['steps']:,}{best}")
    if "seconds" in record and not several:
        processes = record.get("world_size", 1)
        where = f"{processes} process{'es' if processes > 1 else ''}{since(record)}"
        lines.append(f"wall time: {record['seconds']:,.0f} s on {where}")
    if hardware:
        cores = f"{hardware.get('cores')} CPU cores, {hardware.get('torch_threads')} threads of torch"
        parts = [hardware.get("gpu") or cores, *(hardware.get(name) for name in ("processor", "machine", "system"))]
        lines.append("hardware: " + escape(", ".join(str(part) for part in parts if part)))
    if record.get("mixed_precision") not in (None, "no"):
        lines.append(f"mixed precision: {escape(record['mixed_precision'])}")
    if versions:
        lines.append("versions: " + ", ".join(f"{escape(name)} {escape(value)}" for name, value in versions.items()))
    commits = dict.fromkeys(
        f"{code(found['commit'])}, {'with changes that are not committed' if found.get('dirty') else 'clean'}"
        for found in (git, *(run.get("git") or {} for run in record.get("runs", ())))
        if found.get("commit")
    )
    if commits:
        lines.append(f"git commit of hf\\_seqmodels: {'; '.join(commits)}")
    if (record.get("batch_order") or {}).get("digest"):
        lines.append(f"digest of all batches in their order: {code(record['batch_order']['digest'])}")
    if weights_sha256:
        lines.append(f"weights: sha256 {code(weights_sha256)}")
    if record.get("emissions"):
        lines.append(_emissions(record["emissions"]) + since(record))
    return "\n".join(f"- {line}" for line in lines)


def since(record: Record | None) -> str:
    """What time, targets and CO₂ of a resumed run count; empty for others."""
    step = (record or {}).get("resumed_at_step")
    return f", since step {step:,}, where the run was resumed" if step else ""


def _emissions(found: Record) -> str:
    return (
        f"CO₂: {found['co2_kg'] * 1000:.3g} g for {found['energy_kwh'] * 1000:.3g} Wh with the electricity of "
        f"{escape(found['country'])}, estimated by codecarbon {escape(found['codecarbon'])} without a network"
    )


# ---- limits -----------------------------------------------------------------------------------------------------


def limits(record: Record | None, config: Any) -> str:
    """What the model was never shown, with the numbers that are known."""
    longest, ours = places(config), getattr(config, "model_type", None) in ARCHITECTURES
    told = "It cannot read more than {:,} positions." if ours else "It was made for up to {:,} positions."
    hard = [told.format(longest)] if longest else []
    if record is None:
        lines = ["What it learned from, and how well, is not recorded here: measure it before you rely on it.", *hard]
        return "\n".join(f"- {line}" for line in lines)
    lines = [_knows(record), _context(record), *hard]
    known = record.get("data", {})
    if "out_of_vocabulary" in known:
        share = known["out_of_vocabulary"]
        own = "; those that stand in the text itself are among them" if share else ""
        lines.append(f"Out of vocabulary: {share:.2%} of the test text's tokens are the unknown token{own}.")
    seed = record.get("seeds", {}).get("seed")
    if isinstance(seed, list):
        lines.append(seeds_tried(seed))
    elif seed is not None:
        lines.append(f"One seed ({seed}) was trained: how far other seeds would differ was not measured.")
    windows = known.get("windows", {})
    if windows.get("test"):
        lines.append(
            f"Its scores come from {windows['test']:,} test {_unit(record)} of the same source, and from no other."
        )
    return "\n".join(f"- {line}" for line in lines if line)


def _knows(record: Record) -> str:
    found = dataset_of(record)
    count = f"{record['targets']:,} training targets" if "targets" in record else "its training targets"
    if since(record):
        count += f" ({since(record)[2:]})"
    if _is_made(record):
        return f"It saw {count} of a task made in code; the scores say nothing about real data."
    if found.language:
        return f"It saw {count} of {found.name}, in English, and knows nothing else; what it writes is no information."
    repeat = "those pieces note by note" if found.kind == "music" else "that text word for word"
    return f"It saw {count} of {escape(found.name)} and knows nothing else; it may repeat {repeat}."


def _context(record: Record) -> str:
    longest, config = record.get("data", {}).get("longest"), record.get("config", {})
    if longest:
        told = ", ".join(f"{count:,} in {escape(split)}" for split, count in longest.items())
        if config.get("training", {}).get("carry_state"):
            return f"Longest windows, in tokens: {told}. Each goes on from the state in which the one before it ended."
        return f"Longest context tried, in tokens or frames: {told}. Nothing longer was measured."
    values = config.get("data", {})
    if values.get("block_size") and not _is_made(record):
        return f"Longest context tried: windows of {values['block_size']:,} predictions. Nothing longer was measured."
    return ""


def citations(keys: Sequence[str], package_version: str | None) -> str:
    """BibTeX of the papers and of this package."""
    entries = Path(__file__).with_name("citations.bib").read_text(encoding="utf-8").strip().split("\n\n")
    found = {entry.partition("{")[2].partition(",")[0]: entry for entry in entries}
    version = f"  version = {{{one_line(package_version)}}},\n" if package_version else ""
    title = "{hf_seqmodels}: recurrent networks and Transformers as Hugging Face models"
    package = f"@software{{hf_seqmodels,\n  title   = {{{title}}},\n{version}  license = {{Apache-2.0}},\n}}"
    return fence("\n\n".join([*(found[key] for key in keys), package]), "bibtex")
