"""`hf-seqmodels import`: weights from elsewhere into a folder that AutoModel loads."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers.utils.logging import disable_progress_bar

from ..config import one_line
from .report import ImportReport

# Source → "file of this folder: function". The function takes the path and, by keyword, those options below that mean
# something to it, and returns (model, report). Imported only when it is used.
SOURCES = {
    "torch.nn": "torch_nn:import_file",
    "keras": "keras:from_keras",
    "transformers": "transformers_models:import_folder",
    "torch.nn.Transformer": "torch_transformer:import_file",
}

DESCRIPTION = """\
Turn weights from elsewhere into a model of this package, and prove it: both models run on the same random input, and
the largest difference of their outputs, relative to the largest output where that is above 1, is printed and written
to import_report.json. Above 1e-5, or when a tensor is missing, unexpected or of the wrong shape, nothing is written
and the tensor is named.

sources:
  torch.nn         the state dict of an nn.RNN, LSTM or GRU; alone, or as a part of a small model with an
                   nn.Embedding before it and an nn.Linear behind it (a language model or a tagger)
  keras            SimpleRNN, LSTM, GRU, also Bidirectional and stacked: .keras, .h5, .weights.h5 (needs keras, h5py)
  transformers     the folder of a checkpoint of GPT-2, BERT or T5 (GPT2LMHeadModel, BertForMaskedLM, …), as
                   config.json says
  torch.nn.Transformer  its state dict, with --num_heads and whatever was not the default
"""

EPILOG = """\
examples:
  hf-seqmodels import --from torch.nn lstm.safetensors imported/lstm
  hf-seqmodels import --from torch.nn --torch_load --embedding tokens --decoder out model.pt imported/lm
  hf-seqmodels import --from keras gru.keras imported/gru
  hf-seqmodels import --from transformers gpt2/ imported/gpt2
  hf-seqmodels import --from torch.nn.Transformer --num_heads 8 --norm_first model.safetensors imported/transformer

then, in Python:
  import hf_seqmodels
  from transformers import AutoModel
  model = AutoModel.from_pretrained("imported/lstm")
  model(input_features=x)      # x: (batch, time, features)
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit status 0, or 2 with one line for what the user can mend."""
    options = vars(_parser().parse_args(argv))
    disable_progress_bar()
    source, path, folder = options.pop("source"), options.pop("path"), options.pop("folder")
    try:
        report = import_weights(source, path, folder, **options)
    except (ValueError, ImportError, OSError) as error:
        print(f"hf-seqmodels import: error: {one_line(error)}", file=sys.stderr)
        return 2
    print(report)
    print(f"written to {folder}")
    return 0


def import_weights(source: str, path: str | Path, folder: str | Path, **options: Any) -> ImportReport:
    """Import, compare, and save.

    Args:
        source: a key of `SOURCES`.
        path: where the weights are.
        folder: where the model, its code and `import_report.json` go; new or empty.
        options: of the source's function.

    Raises:
        ValueError: the folder holds something, an option means nothing to this source, or the weights do not fit.
            Nothing has been written then.
        ImportError: the source needs a library that is not installed.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: name a new folder for the imported model")
    module, function_name = SOURCES[source].split(":")
    function = getattr(importlib.import_module(f".{module}", __package__), function_name)
    known = _options_of(function)
    for name in options:
        if name not in known:
            rule = f"it takes {', '.join(f'--{option}' for option in known) or 'no options'}"
            raise ValueError(f"--{name} means nothing to --from {source}: {rule}")
    model, report = function(path, **options)
    model.save_pretrained(folder)
    text = json.dumps(asdict(report), indent=2, ensure_ascii=False)
    (folder / "import_report.json").write_text(text + "\n", encoding="utf-8")
    return report


def _options_of(function: Any) -> list[str]:
    """The options that a source's function names."""
    kinds = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in kinds if parameter.kind is parameter.KEYWORD_ONLY]


def _parser() -> argparse.ArgumentParser:
    """Options that are not given stay out of the result, so that the functions' own defaults hold."""
    parser = argparse.ArgumentParser(
        prog="hf-seqmodels import",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--from", dest="source", choices=SOURCES, required=True, help="what the weights come from")
    parser.add_argument("path", metavar="SOURCE", type=Path, help="a file with the weights, or its folder")
    parser.add_argument("folder", metavar="DIR", type=Path, help="where the model goes: a new or empty folder")
    parser.add_argument(
        "--torch_load",
        action="store_true",
        help="also read .pt, .pth and .bin, which are pickles, with torch.load(weights_only=True); "
        "without this flag only .safetensors are opened",
    )
    group = parser.add_argument_group("torch.nn, keras")
    group.add_argument("--prefix", help="name of the recurrent layers in a whole model (rnn); alone: read only these")
    group.add_argument("--embedding", help="name of the nn.Embedding before them (embedding, encoder are found)")
    group.add_argument("--decoder", help="name of the nn.Linear behind them (decoder, linear, fc are found)")
    group.add_argument(
        "--nonlinearity",
        choices=("tanh", "relu"),
        help="of a plain RNN whose file does not tell (a state dict, a .weights.h5); default: tanh",
    )
    group = parser.add_argument_group("torch.nn.Transformer")
    group.add_argument("--num_heads", type=int, help="its nhead, which a state dict does not tell")
    group.add_argument("--norm_first", action="store_true", help="its norms stand before the sub-layers")
    group.add_argument("--activation", choices=("relu", "gelu"), help="of its feed-forward layers; default: relu")
    group.add_argument("--norm_eps", type=float, help="its layer_norm_eps; default: 1e-5")
    return parser


if __name__ == "__main__":
    sys.exit(main())
