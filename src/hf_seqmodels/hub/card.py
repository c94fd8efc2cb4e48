"""A model card generated from a run's record: every number in it was measured by the run."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel, TrainingArguments

TEMPLATE = Path(__file__).with_name("card_template.md")
SUMMARIES = {
    "seq_rnn": "A simple recurrent network (Elman 1990)",
    "seq_lstm": "A long short-term memory network (Hochreiter & Schmidhuber 1997)",
    "seq_gru": "A gated recurrent unit network (Cho 2014)",
    "seq_attention_rnn": "A recurrent network that attends over its own past (Daniluk 2017)",
    "seq_transformer_decoder": "A Transformer decoder (Vaswani 2017)",
}
DATASETS = {"pydoc_topics": ("the help topics of Python's pydoc", "en")}


def build_card(name: str, record: Mapping[str, Any], model: PreTrainedModel, prompt: str) -> ModelCard:
    """The card of a causal language model.

    Args:
        name: what the model is called.
        record: the run's record (`result.json`); `measured`, if there, adds rows to the table of numbers.
        model: for the architecture string.
        prompt: the start of the text in the usage snippet.

    Raises:
        ValueError: a number in the record is NaN or infinite.
    """
    values = record["config"]
    source = values["data"]["dataset"]
    if values["data"].get("train_file"):  # it replaces the named text
        source = Path(values["data"]["train_file"]).name
    dataset, language = DATASETS.get(source, (source, None))
    data = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="text-generation",
        language=language,
        license="apache-2.0",
        tags=["hf_seqmodels", record["model_type"]],
        eval_results=_eval_results(record, source, dataset),
    )
    kind = SUMMARIES.get(record["model_type"], f"A {record['model_type']} model of transformers")
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name,
        summary=f"{kind} with {record['parameters']:,} parameters, trained as a language model on {dataset}.",
        architecture=str(model),
        numbers="\n".join(f"| {label} | {value} |" for label, value in _numbers(record)),
        block_size=values["data"]["block_size"],
        digest=record["batch_order"]["digest"][:16],
        prompt=json.dumps(prompt),
        training=_training(record),
        options=yaml.safe_dump(_changed_options(values, model), sort_keys=False).strip(),
        train_targets=f"{record['targets']:,}",
        out_of_vocabulary=f"{record['data'].get('out_of_vocabulary', 0.0):.2%}",
    )


def _eval_results(record: Mapping[str, Any], source: str, dataset: str) -> list[EvalResult]:
    """The scores as the Hub's model-index."""
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=source,
            dataset_name=dataset,
            dataset_split=split,
            metric_type="bits_per_token",
            metric_name=f"bits per token ({split})",
            metric_value=_finite(metrics["bits_per_token"]),
        )
        for split, metrics in record["metrics"].items()
    ]


def _numbers(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("parameters", f"{record['parameters']:,}")]
    rows += [
        (f"{split}, bits per token", f"{_finite(metrics['bits_per_token']):.3f}")
        for split, metrics in record["metrics"].items()
    ]
    return rows + [(label, f"{_finite(value):,.0f}") for label, value in record.get("measured", {}).items()]


def _training(record: Mapping[str, Any]) -> str:
    hardware, versions = record["hardware"], record["versions"]
    seeds = ", ".join(f"{name} {value}" for name, value in record["seeds"].items())
    return (
        f"{record['steps']:,} steps in {record['seconds']:.0f} s on {record['world_size']} process(es) "
        f"({hardware['gpu'] or str(hardware['cores']) + ' CPU cores'}); {seeds}; "
        f"torch {versions['torch']}, transformers {versions['transformers']}. "
        f"Text: sha256 `{record['data']['sha256'][:16]}`."
    )


def _changed_options(values: Mapping[str, Any], model: PreTrainedModel) -> dict[str, dict[str, Any]]:
    """The recipe's options that differ from the defaults of the model's configuration and of transformers' Trainer."""

    def changed(section: str, cls: Any) -> dict[str, Any]:
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        return {key: value for key, value in values[section].items() if value != defaults.get(key)}

    training = changed("training", TrainingArguments)
    training.pop("output_dir", None)
    return {"model": changed("model", type(model.config)), "data": dict(values["data"]), "training": training}


def _finite(value: float) -> float:
    """A Python float that a card may show."""
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"a card shows measured numbers, and {value} is none: evaluate the model again")
    return value
