"""A model card generated from a run's record: every number in it was measured by the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from ..models import ARCHITECTURES
from . import card_sections as sections
from .card_check import check_card
from .card_lists import check_license
from .card_plots import PLOTS, write_plots
from .card_text import code, escape, fence, one_line
from .card_usage import PIPELINE_TAGS, head_of, usage

__all__ = ["build_card", "check_card", "check_license", "write_plots"]

TEMPLATE = Path(__file__).with_name("card_template.md")
# model_type → what it is, and its papers in `citations.bib`.
KINDS = {
    "seq_rnn": ("A simple recurrent network (Elman 1990)", ["elman1990finding"]),
    "seq_lstm": ("A long short-term memory network (Hochreiter & Schmidhuber 1997)", ["hochreiter1997long"]),
    "seq_gru": ("A gated recurrent unit network (Cho 2014)", ["cho2014learning"]),
    "seq_attention_rnn": (
        "A recurrent network that attends over its own past (Daniluk 2017)",
        ["daniluk2017frustratingly"],
    ),
    "seq_attention_rnn_seq2seq": (
        "A recurrent encoder–decoder with attention (Bahdanau 2014, Luong 2015)",
        ["bahdanau2015neural", "luong2015effective"],
    ),
    "seq_transformer": ("A Transformer encoder–decoder (Vaswani 2017)", ["vaswani2017attention"]),
    "seq_transformer_encoder": ("A Transformer encoder (Vaswani 2017)", ["vaswani2017attention"]),
    "seq_transformer_decoder": ("A Transformer decoder (Vaswani 2017)", ["vaswani2017attention"]),
    "seq_conv_lstm": ("A convolutional LSTM (Shi 2015)", ["shi2015convolutional"]),
}
# Option of a configuration, its value, and the paper that it comes from.
VARIANTS = (
    ("peephole", True, "gers2000recurrent"),
    ("score", "none", "sutskever2014sequence"),
    ("attention_pattern", "sliding_window", "beltagy2020longformer"),
    ("attention_pattern", "lsh", "kitaev2020reformer"),
)
TRAINED = {
    "causal-lm": "trained as a language model",
    "masked-lm": "trained to fill in masked tokens",
    "seq2seq-lm": "trained to write one sequence from another",
    "sequence-classification": "trained to put sequences into classes",
    "token-classification": "trained to label tokens",
    "time-series-prediction": "trained to foresee a series",
}


def build_card(
    name: str,
    record: Mapping[str, Any] | None,
    model: PreTrainedModel | None,
    *,
    prompt: str | None = None,
    others: Sequence[Mapping[str, Any]] = (),
    license: str = "apache-2.0",
    weights_sha256: str | None = None,
    has_code: bool = True,
    has_tokenizer: bool = True,
    plots: Sequence[str] = (),
    folder: str = ".",
    made_by: str | None = None,
) -> ModelCard:
    """The card of a model, from its run's record. What is not recorded is left out; the same input, the same bytes.

    Args:
        name: what the model is called.
        record: the run's record (`result.json`); None where no run of this package made the model.
        model: for the architecture string and the configuration; None leaves out what only they tell.
        prompt: the text of the usage snippet; None takes the record's example.
        others: records of other runs; those of the same task and data stand beside this one. Their `name`, if they
            have one, is shown.
        license: of the weights, an identifier of the Hub's list.
        weights_sha256: of the weights' file.
        has_code: the folder holds the modelling files.
        has_tokenizer: the folder holds a tokenizer.
        plots: pictures beside the card, from [`write_plots`].
        folder: where the usage snippet finds the model, seen from where it runs.
        made_by: the command that makes that folder, where the weights do not lie beside the card.

    Raises:
        ValueError: a number in a record is NaN or infinite, a record is none, or the licence is unknown to the Hub.
    """
    check_license(license)
    name = one_line(name) or "model"
    record = None if record is None else sections.read(record)
    others = [sections.read(other, f"others[{place}]") for place, other in enumerate(others)]
    head = head_of(model) if model is not None else str((record or {}).get("task", "causal-lm"))
    config = model.config if model is not None else None
    if prompt is None:
        prompt = ((record or {}).get("data") or {}).get("example")
    found = {} if record is None else _from_record(name, record, others, weights_sha256)
    if record is None and weights_sha256:
        found["provenance"] = f"- weights: sha256 {code(weights_sha256)}"
    model_type = str(getattr(config, "model_type", None) or (record or {}).get("model_type", ""))
    snippet = usage(head, model_type, config, prompt, has_code=has_code, has_tokenizer=has_tokenizer, folder=folder)
    return ModelCard.from_template(
        _metadata(name, record, head, model_type, license),
        template_path=str(TEMPLATE),
        name=escape(name),
        summary=_summary(record, model, model_type),
        architecture=fence(str(model)) if model is not None else "",
        usage=fence(snippet, "python"),
        trust=_trust(snippet),
        made_by=fence(made_by, "bash") if made_by else "",
        plots=[(PLOTS[PurePosixPath(plot).stem], _link(plot)) for plot in plots],
        limits=sections.limits(record, config),
        citation=sections.citations(_papers(model_type, config, record), _versions(record).get("hf_seqmodels")),
        **found,
    )


def _from_record(
    name: str, record: Mapping[str, Any], others: Sequence[Mapping[str, Any]], weights_sha256: str | None
) -> dict[str, str]:
    """The sections that a record alone fills."""
    return {
        "results": sections.results(name, record, others),
        "data": sections.data(record),
        "options": fence(sections.changed_options(record), "yaml"),
        "configuration": sections.whole_configuration(record),
        "provenance": sections.provenance(record, weights_sha256),
    }


def _metadata(name: str, record: Mapping[str, Any] | None, head: str, model_type: str, license: str) -> ModelCardData:
    """What the Hub reads."""
    fields: dict[str, Any] = {}
    emissions = (record or {}).get("emissions")
    if emissions:
        fields["co2_eq_emissions"] = {
            "emissions": emissions["co2_kg"] * 1000,
            "source": f"codecarbon {one_line(emissions['codecarbon'])}{sections.since(record)}",
            "training_type": "pre-training",
            "geographical_location": one_line(emissions["country"]),
        }
    return ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag=PIPELINE_TAGS[head],
        language=sections.dataset_of(record).language if record else None,
        license=license,
        tags=["hf_seqmodels", *([one_line(model_type)] if model_type else [])],
        eval_results=_eval_results(record, head) if record else None,
        **fields,
    )


def _eval_results(record: Mapping[str, Any], head: str) -> list[EvalResult] | None:
    """The scores as the Hub's model-index: validation scores never under the name of a test."""
    dataset = sections.dataset_of(record)
    again = record.get("config", {}).get("data", {}).get("test_split") == "validation"
    return [
        EvalResult(
            task_type=PIPELINE_TAGS[head],
            dataset_type=dataset.identifier,
            dataset_name=dataset.name,
            dataset_split=one_line(split),
            metric_type=measure,
            metric_name=f"{sections.MEASURES[measure][0]} ({one_line(split)})",
            metric_value=float(values[measure]),
        )
        for split, values in record.get("metrics", {}).items()
        for measure in sections.scores(record)
        if measure in values and not (again and split == "test")
    ] or None


def _summary(record: Mapping[str, Any] | None, model: PreTrainedModel | None, model_type: str) -> str:
    kind = KINDS[model_type][0] if model_type in KINDS else f"A {escape(model_type)} model of transformers"
    count = model.num_parameters() if model is not None else (record or {}).get("parameters")
    sized = f"{kind} with {count:,} parameters" if count else kind
    if record is None:
        return f"{sized}. It comes without the record of a training run, so this card has no results."
    regression = (record.get("model_config") or {}).get("problem_type") == "regression"
    trained = "trained to name a number" if regression else TRAINED.get(str(record.get("task")), "trained")
    return f"{sized}, {trained} on {escape(sections.dataset_of(record).name)}."


def _trust(snippet: str) -> str:
    if "trust_remote_code=True" in snippet:
        return (
            "`trust_remote_code=True` runs the modelling files in this folder; read them first. With the package\n"
            "`hf_seqmodels` installed, `import hf_seqmodels` replaces it."
        )
    if "import hf_seqmodels" in snippet:
        return "The modelling code is not in this folder: install the package `hf_seqmodels`."
    return ""


def _papers(model_type: str, config: Any, record: Mapping[str, Any] | None) -> list[str]:
    """Keys of `citations.bib` for an architecture and its options."""
    options = (record or {}).get("config", {}).get("model", {})
    papers = KINDS[model_type][1] if model_type in ARCHITECTURES else ["wolf2020transformers"]
    return papers + [
        paper
        for option, value, paper in VARIANTS
        if model_type in ARCHITECTURES and getattr(config, option, options.get(option)) == value
    ]


def _versions(record: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return (record or {}).get("versions") or {}


def _link(plot: str) -> str:
    """A relative path as a link that Markdown cannot misread."""
    from urllib.parse import quote

    return quote(PurePosixPath(plot).as_posix())
