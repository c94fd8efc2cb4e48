"""The main job: five architectures, the same text, the same batches, the same number of parameters, one table."""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM

from .arguments import ConfigError
from .config import parse
from .data import out_of_vocabulary_share, token_stream
from .evaluation.generation import generation_speed, state_bytes
from .evaluation.ngram import InterpolatedNGram
from .evaluation.plots import plot_loss_curves
from .evaluation.tables import COLUMNS, format_table
from .hub.card import build_card
from .hub.golden import write_golden
from .hub.verify import VerificationError, verify_as_stranger
from .loading import RunData, load_data
from .run import run

MODELS = ("rnn", "lstm", "gru", "attention_rnn", "transformer_decoder")
MUST_BEAT_TRIGRAM = ("lstm", "gru", "attention_rnn", "transformer_decoder")
PARAMETERS, TOLERANCE = 200_000, 0.02
CONTEXT = 1_000  # characters read before the state is weighed
PROMPT = "The import statement "


class DemoError(RuntimeError):
    """The demo ran and its result is not what it promises."""


def main(argv: Sequence[str] | None = None) -> int:
    """`hf-seqmodels demo`: exit status 0; 1 when a promise does not hold; 2 for what the user can mend."""
    parser = argparse.ArgumentParser(prog="hf-seqmodels demo", description=__doc__)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/demo"), help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo in the output directory")
    parser.add_argument("--max_steps", type=int, help="stop each training early (the trigram may then win)")
    arguments = parser.parse_args(argv)
    try:
        run_demo(arguments.output_dir, arguments.overwrite, arguments.max_steps)
    except (ConfigError, DemoError, VerificationError) as error:
        print(f"hf-seqmodels demo: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def run_demo(output: Path, overwrite: bool = False, max_steps: int | None = None) -> dict[str, Any]:
    """Train, measure, save, verify and compare; returns what `demo.json` holds.

    Raises:
        ConfigError: the output directory holds an earlier demo and `overwrite` is False.
        DemoError: unequal batches or sizes, or a model that must beat the trigram and does not.
        VerificationError: a saved model does not work in a fresh process.
    """
    start = time.perf_counter()
    options = ["--overwrite"] if overwrite else []
    options += ["--max_steps", str(max_steps)] if max_steps else []
    configs = {
        name: parse(["--config", f"lm/{name}", "--output_dir", str(output / name), *options]) for name in MODELS
    }
    data = load_data(configs["lstm"])
    records = {}
    for number, name in enumerate(MODELS, start=1):
        print(f"[{number}/{len(MODELS)}] training {name}", flush=True)
        records[name] = run(configs[name], data)
        check_size(name, records[name]["parameters"])
    check_same_batches(records)
    for name, record in records.items():
        measure(output / name, record, data)
        write_card(output / name, name, record)
    strangers = verify_all(output)
    result = {
        "rows": rows(records, baselines(data)),
        "batch_order": next(iter(records.values()))["batch_order"],
        "strangers": strangers,
        "seconds": round(time.perf_counter() - start, 1),
        "hardware": records["lstm"]["hardware"],
        "versions": records["lstm"]["versions"],
    }
    report(output, result, records)
    check_trigram(result["rows"])
    return result


def check_size(name: str, parameters: int) -> None:
    """Equal budget: 200,000 parameters, embeddings included, within 2 %."""
    if abs(parameters - PARAMETERS) > TOLERANCE * PARAMETERS:
        raise DemoError(f"{name} has {parameters:,} parameters, not {PARAMETERS:,} ±{TOLERANCE:.0%}: mend its recipe")


def check_same_batches(records: dict[str, dict[str, Any]]) -> None:
    """The digest over all batches in their order is one and the same for all models."""
    digests = {name: record["batch_order"]["digest"] for name, record in records.items()}
    if len(set(digests.values())) > 1:
        raise DemoError(f"the models did not see the same batches in the same order: {digests}")


def measure(folder: Path, record: dict[str, Any], data: RunData) -> None:
    """Add generation speed, state size and out-of-vocabulary share of the saved model to its record."""
    assert data.texts is not None and data.tokenizer is not None  # a language model's data have both
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = data.tokenizer(PROMPT, return_tensors="pt").input_ids
    record["measured"] = {
        "characters per second in training": record["targets_per_second"],
        "characters per second in generation (one text, greedy)": generation_speed(model, prompt),
        f"state in bytes after {CONTEXT:,} characters": state_bytes(model, CONTEXT),
    }
    record["data"]["out_of_vocabulary"] = out_of_vocabulary_share(data.texts["test"], data.tokenizer)
    (folder / "result.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_card(folder: Path, name: str, record: dict[str, Any]) -> None:
    """README.md from the record."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    write_golden(model, folder)
    build_card(f"{name}-pydoc", record, model, prompt=PROMPT).save(folder / "README.md")


def verify_all(output: Path) -> dict[str, dict[str, Any]]:
    """Each folder in a fresh process without this package: the same logits, and a line of text."""

    def verify(name: str) -> dict[str, Any]:
        return verify_as_stranger(output / name, PROMPT)

    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(zip(MODELS, pool.map(verify, MODELS), strict=True))


def baselines(data: RunData) -> dict[str, dict[str, float]]:
    """Bits per character of an interpolated character trigram and 5-gram fitted on the same text."""
    assert data.texts is not None and data.tokenizer is not None  # a language model's data have both
    streams = {split: token_stream(texts, data.tokenizer) for split, texts in data.texts.items()}
    scores = {}
    for name, order in (("trigram", 3), ("5-gram", 5)):
        ngram = InterpolatedNGram(order, len(data.tokenizer)).fit(streams["train"])
        scores[name] = {split: float(ngram.bits_per_token(streams[split])) for split in ("validation", "test")}
    return scores


def rows(records: dict[str, dict[str, Any]], ngrams: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """The table's rows; an n-gram has bits only."""
    table = []
    for name, record in records.items():
        training, generation, state = record["measured"].values()
        table.append(
            {
                "model": name,
                "parameters": record["parameters"],
                "validation_bits": record["metrics"]["validation"]["bits_per_token"],
                "test_bits": record["metrics"]["test"]["bits_per_token"],
                "training_speed": training,
                "generation_speed": generation,
                "state_bytes": state,
            }
        )
    for name, bits in ngrams.items():
        empty = dict.fromkeys(COLUMNS)
        table.append(empty | {"model": name, "validation_bits": bits["validation"], "test_bits": bits["test"]})
    return table


def report(output: Path, result: dict[str, Any], records: dict[str, dict[str, Any]]) -> None:
    """Print the table and the generated lines; write demo.json, demo.csv, demo.md and loss_curves.png."""
    table = format_table(result["rows"])
    (output / "demo.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    (output / "demo.md").write_text(table + "\n", encoding="utf-8")
    with (output / "demo.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(COLUMNS))
        writer.writeheader()
        writer.writerows(result["rows"])
    yardsticks = {row["model"]: row["validation_bits"] for row in result["rows"] if row["parameters"] is None}
    plot_loss_curves(records, yardsticks, output / "loss_curves.png")
    print(f"\n{table}\n")
    print(f"same batches in the same order: digest {result['batch_order']['digest'][:16]}")
    for name, answer in result["strangers"].items():
        text = " ".join(answer["generated"].split())
        print(f"{name} in a fresh process (logits differ by {answer['max_difference']:.0e}): {text}")
    files = "demo.json, demo.csv, demo.md, loss_curves.png, and a folder for each model"
    print(f"{result['seconds']:.0f} s; written to {output}: {files}")


def check_trigram(table: list[dict[str, Any]]) -> None:
    """Every gated, attention and Transformer model must beat the trigram on validation."""
    bits = {row["model"]: row["validation_bits"] for row in table}
    lost = [name for name in MUST_BEAT_TRIGRAM if not bits[name] < bits["trigram"]]
    if lost:
        raise DemoError(f"{', '.join(lost)} did not beat the trigram's {bits['trigram']:.3f} bits per character")
