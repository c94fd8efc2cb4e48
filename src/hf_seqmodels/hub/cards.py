"""`hf-seqmodels card` and `make cards`: cards from records."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import one_line
from ..writing import write_whole
from .files import CHECKSUMS, check_checksums, weights_hash, write_checksums

WITHOUT_TOKENIZER = ("piano_rolls", "adding", "moving_squares")  # they are numbers as they are
PICTURES = ("loss_curve.png", "attention_map.png", "gradient_flow.png")

DESCRIPTION = """\
Write model cards from what runs recorded; nothing is typed in.
SOURCE is the folder of a run or of an exported model (its README.md and pictures are written), or a folder of results
(results/<task>/*.json; one card is written for each). The same records give the same bytes.
"""
EPILOG = """\
examples:
  hf-seqmodels card runs/lm/lstm                 README.md, into the run's folder
  hf-seqmodels card runs/lm/lstm /tmp/card       the same, elsewhere
  hf-seqmodels card results model_cards          what `make cards` does
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command: exit status 0, 2 for what the user can mend, 1 when a card breaks a rule of the Hub."""
    parser = argparse.ArgumentParser(
        prog="hf-seqmodels card",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a run's folder, or a folder of results")
    parser.add_argument("target", type=Path, nargs="?", metavar="TARGET", help="where to write (default: SOURCE)")
    parser.add_argument("--name", help="of the model, for one card; default: the folder's")
    parser.add_argument("--license", help="of the weights, as the Hub writes it; default: the record's, or apache-2.0")
    arguments = parser.parse_args(argv)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        problems = write(arguments.source, arguments.target, arguments.name, arguments.license)
    except (ValueError, OSError) as error:
        print(f"hf-seqmodels card: error: {one_line(error)}", file=sys.stderr)
        return 2
    for file, problem in problems:
        print(f"hf-seqmodels card: error: {file}: {problem}", file=sys.stderr)
    return 1 if problems else 0


def write(source: Path, target: Path | None, name: str | None, license: str | None) -> list[tuple[str, str]]:
    """One card for a model's folder, or one for each record in a folder of results; what is wrong with them.

    Raises:
        ValueError: SOURCE is neither, or a record is none.
    """
    if (source / "config.json").is_file():
        write_one(source, target or source, name, license)
        return []
    if not sorted(source.glob("*/*.json")):
        raise ValueError(
            f"'{source}' is neither a model's folder (no config.json) nor one of results (no <task>/*.json); "
            "name runs/lm/lstm, or results"
        )
    if target is None:
        raise ValueError("a folder of results needs a TARGET for the cards; name one, as model_cards")
    return write_all(source, target, license or "apache-2.0")


def write_one(source: Path, target: Path, name: str | None = None, license: str | None = None) -> None:
    """The card and the pictures of a saved model, in `target`; in an exported folder its checksums follow.

    Raises:
        ValueError: another file of the folder is not what SHA256SUMS says: new sums would hide that.
    """
    sealed = target.resolve() == source.resolve() and (source / CHECKSUMS).is_file()
    if sealed:
        damaged = [line for line in check_checksums(source) if not line.startswith(("README.md", *PICTURES))]
        if damaged:
            raise ValueError(f"'{source}' is not as it was exported: {damaged[0]}; export the run again")
    write_card(source, target, name, license)
    if sealed:
        write_checksums(source)
    print(f"wrote {target / 'README.md'}")


def write_card(source: Path, target: Path, name: str | None = None, license: str | None = None) -> None:
    """README.md and its pictures in `target`, from what lies in `source` alone.

    Args:
        source: the folder of a run or of a saved model.
        name, license: of the model; None takes what the record says, else the folder's name and apache-2.0.

    Raises:
        ValueError: no finished model, an unknown licence, or a card that breaks a rule of the Hub.
    """
    from .card import build_card, check_card, check_license, write_plots
    from .saved import first_words, load_strict, load_tokenizer, other_records, read_record

    record = read_record(source)
    license = license or (record or {}).get("license") or "apache-2.0"
    check_license(license)
    model, tokenizer = load_strict(source), load_tokenizer(source)
    target.mkdir(parents=True, exist_ok=True)
    card = build_card(
        name or (record or {}).get("name") or source.resolve().name,
        record,
        model,
        prompt=first_words(record, tokenizer) or None,
        others=other_records(source, record),
        license=license,
        weights_sha256=weights_hash(source),
        has_code="auto_map" in json.loads((source / "config.json").read_text(encoding="utf-8")),
        has_tokenizer=tokenizer is not None,
        plots=write_plots(target, record, model, tokenizer),
    )
    for problem in check_card(str(card)):
        raise ValueError(f"the card of '{source}' would not be valid: {problem}")
    write_whole(target / "README.md", str(card))


def write_all(results: Path, target: Path, license: str = "apache-2.0") -> list[tuple[str, str]]:
    """A card for each result, beside those of the same task; (file, problem) of those that are not valid.

    Records in `results/lm` are `<recipe>.md`, results of benchmarks `<task>-<recipe>.md`. The weights of these runs
    are not in the checkout: the snippet loads them from where the run wrote them, and the card says how to make them.

    Raises:
        ValueError: a file is no result, or the licence is unknown to the Hub.
    """
    from .card import build_card, check_card, check_license, write_plots

    check_license(license)
    found = _recorded(results)
    problems = []
    for stem, entry in found.items():
        others = [
            {**other.record, "name": other.name}
            for other in found.values()
            if other is not entry and other.recipe.split("/")[0] == entry.recipe.split("/")[0]
        ]
        pictures = write_plots(target / stem, entry.record, None)
        card = build_card(
            entry.title,
            entry.record,
            skeleton(entry.record),
            others=others,
            license=license,
            plots=[f"{stem}/{picture}" for picture in pictures],
            folder=entry.folder,
            made_by=entry.made_by,
            has_tokenizer=entry.record["config"]["data"]["dataset"] not in WITHOUT_TOKENIZER,
        )
        write_whole(target / f"{stem}.md", str(card))
        problems += [(f"{stem}.md", problem) for problem in check_card(str(card))]
    for stale in sorted(set(target.glob("*.md")) - {target / f"{stem}.md" for stem in found}):
        print(f"note: {stale} has no record in {results}; delete it if the result is gone", file=sys.stderr)
    print(f"wrote {len(found)} cards into {target}")
    return problems


@dataclass(frozen=True)
class Recorded:
    """A result, as a card needs it: the recipe, the model's title and folder, and the command that makes it."""

    recipe: str
    record: Mapping[str, Any]
    title: str
    folder: str
    made_by: str

    @property
    def name(self) -> str:
        """In the tables of others."""
        return self.recipe.split("/")[1]


def _recorded(results: Path) -> dict[str, Recorded]:
    """The card's name → what it is made from, for all results of which a seed has finished.

    Raises:
        ValueError: a file is no result.
    """
    from ..evaluation.recorded import as_record, read_results

    found = {}
    for file in sorted((results / "lm").glob("*.json")):
        stem, record = file.stem, _read(file)
        title = f"{stem}-pydoc" if record["config"]["data"].get("dataset") == "pydoc_topics" else stem
        command = f"hf-seqmodels train --config lm/{stem} --output_dir runs/lm/{stem}"
        found[stem] = Recorded(f"lm/{stem}", record, title, f"runs/lm/{stem}", command)
    for recipe, result in read_results(results).items():
        if recipe.startswith("lm/") or not result["runs"]:
            continue
        stem = recipe.replace("/", "-")
        folder = f"runs/results/{recipe}/seed-{result['runs'][0]['seed']}"
        found[stem] = Recorded(recipe, as_record(result), stem, folder, result["command"])
    return found


def skeleton(record: Mapping[str, Any]) -> Any:
    """The record's model without memory for its weights; None where the record does not hold its configuration."""
    import torch
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from ..config import auto_class

    values = record.get("model_config")
    if values is None:
        return None
    config = CONFIG_MAPPING[record["model_type"]].from_dict(dict(values))
    with torch.device("meta"):
        return auto_class(record["task"]).from_config(config)


def _read(file: Path) -> dict[str, Any]:
    """A record.

    Raises:
        ValueError: the file is not JSON, or no record.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{file}' is no JSON ({one_line(error)}); `make results` writes it anew") from None
    if not isinstance(record, dict) or not {"task", "model_type", "metrics", "config"} <= record.keys():
        raise ValueError(f"'{file}' is no record of a run; `make results` writes them")
    return record


if __name__ == "__main__":
    sys.exit(main())
