"""The zoo: small trained models that come with the checkout, so that loading one is one line.

    python -m hf_seqmodels.zoo zoo              (`make zoo`)

trains every entry of `ZOO` whose data are at hand, measures it as the demo does, and writes `zoo/<name>`: weights,
tokenizer, card, plots, golden scores and checksums, all but the modelling files. These are in the package already;
`hf-seqmodels export zoo/<name> DIR` adds them for people without it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .arguments import ConfigError
from .config import parse
from .demo import measure
from .hub.export import export
from .hub.files import list_files
from .loading import RunData, load_data
from .run import run

MOST_BYTES = 1_000_000  # of one entry


@dataclass(frozen=True)
class Entry:
    """A model of the zoo.

    Attributes:
        recipe: by name, as for `hf-seqmodels train --config`.
        options: what differs from the recipe.
    """

    recipe: str
    options: tuple[str, ...] = ()


# Three times as long as in the demo, against dropout; the checkpoint with the best validation loss is kept.
_LONGER = ("--num_train_epochs", "16")
_RECURRENT = (*_LONGER, "--input_dropout", "0.1", "--output_dropout", "0.2")
ZOO = {
    "rnn-pydoc": Entry("lm/rnn", _RECURRENT),
    "lstm-pydoc": Entry("lm/lstm", _RECURRENT),
    "gru-pydoc": Entry("lm/gru", (*_RECURRENT, "--learning_rate", "3e-3")),  # at 1e-2 it diverges in a longer run
    "attention-rnn-pydoc": Entry("lm/attention_rnn", _RECURRENT),
    "transformer-decoder-pydoc": Entry("lm/transformer_decoder", (*_LONGER, "--dropout", "0.1")),
    "rnn-jsb": Entry("jsb_chorales/rnn"),
    "lstm-jsb": Entry("jsb_chorales/lstm"),
    "gru-jsb": Entry("jsb_chorales/gru"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure and export the entries."""
    parser = argparse.ArgumentParser(prog="python -m hf_seqmodels.zoo", description="Train and export the zoo.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("zoo"), help="default: %(default)s")
    parser.add_argument("--runs", type=Path, default=Path("runs/zoo"), help="where training goes on (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=ZOO, default=list(ZOO), help="these entries")
    parser.add_argument("--export_only", action="store_true", help="use finished runs; write the folders anew")
    arguments = parser.parse_args(argv)
    names = arguments.only if arguments.export_only else train(arguments.only, arguments.runs)
    for name in names:  # after all are trained: each card shows the others
        folder = arguments.folder / name
        export(arguments.runs / name, folder, overwrite=True, name=name, code=False)
        size = sum((folder / file).stat().st_size for file in list_files(folder))
        print(f"{name}: {size:,} bytes in {folder}")
        if size > MOST_BYTES:
            print(f"error: {name} has more than the {MOST_BYTES:,} bytes allowed", file=sys.stderr)
            return 1
    return 0


def train(names: Iterable[str], runs: Path) -> list[str]:
    """One run for each entry, with the demo's measurements in its record; data that two of them share load once.

    Returns:
        The entries that were trained: all but those whose data are not here, which stay as they are.
    """
    loaded: dict[tuple[tuple[str, Any], ...], RunData] = {}
    trained = []
    for name in names:
        entry = ZOO[name]
        config = parse(["--config", entry.recipe, "--output_dir", str(runs / name), "--overwrite", *entry.options])
        key = tuple(sorted(config.values["data"].items()))
        try:
            data = loaded[key] = loaded.get(key) or load_data(config)
        except ConfigError as error:
            if config.data.path is None:
                raise
            print(f"{name} stays as it is: {error}", file=sys.stderr, flush=True)
            continue
        print(f"training {name}", flush=True)
        record = run(config, data)
        if config.run.task == "causal-lm":
            measure(runs / name, record, data)
        trained.append(name)
    return trained


if __name__ == "__main__":
    sys.exit(main())
