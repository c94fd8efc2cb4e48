"""`hf-seqmodels export`: the command around [`hub.export.export`]."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .config import one_line

DESCRIPTION = """\
Turn the folder of a run (or anything that save_pretrained wrote) into a repository: weights as safetensors, the
configuration with the whole auto_map, the modelling files, tokenizer, card, plots, golden scores and SHA256SUMS.
It is finished only after a fresh process that does not have this package has loaded it, computed the golden scores,
saved it again and loaded that; until then nothing stands under the name DIR.
"""
EPILOG = """\
examples:
  hf-seqmodels train --config lm/lstm
  hf-seqmodels export runs/lm/lstm exported/lstm
  hf-seqmodels doctor exported/lstm
  hf-seqmodels push exported/lstm user/lstm-pydoc --dry_run

in the folder:
  sha256sum -c SHA256SUMS
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit status 0, 2 for what the user can mend, 1 when the exported folder does not hold up."""
    parser = argparse.ArgumentParser(
        prog="hf-seqmodels export",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of a run, or of a saved model")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the repository is written")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in DIR")
    parser.add_argument("--name", help="what the model is called on its card; default: the name of DIR")
    parser.add_argument("--license", help="of the weights, as the Hub writes it; default: the record's, or apache-2.0")
    parser.add_argument("--onnx", action="store_true", help="add ONNX models: whole sequences, and steps with state")
    parser.add_argument("--int8", action="store_true", help="also ONNX models of 8-bit weights, with their accuracy")
    options = vars(parser.parse_args(argv))
    from transformers.utils.logging import disable_progress_bar

    from .hub.export import export
    from .hub.verify import VerificationError

    disable_progress_bar()
    run, folder = options.pop("run"), options.pop("folder")
    try:
        report = export(run, folder, rows=lambda: windows_for_test(run), **options)
    except (ValueError, ImportError, OSError) as error:
        print(f"hf-seqmodels export: error: {one_line(error)}", file=sys.stderr)
        return 2
    except VerificationError as error:
        print(f"hf-seqmodels export: error: {error}", file=sys.stderr)
        return 1
    _show(folder, report)
    return 0


def _show(folder: Path, report: Mapping[str, Any]) -> None:
    for name in report["files"]:
        print(f"  {Path(folder, name).stat().st_size:>12,}  {name}")
    for name, small in report.get("int8", {}).items():
        bits = small["quality"].get("bits_per_token")
        told = f", bits per token {bits['float32']:.4f} → {bits['int8']:.4f}" if bits else ""
        print(f"{name}: {small['bytes']['int8'] / small['bytes']['float32']:.0%} of the bytes{told}")
    found = report["stranger"]
    print(
        f"in a fresh process without this package: scores differ by {found['max_difference']:.1e}, "
        f"saved again and loaded: {found['saved_again_difference']:.1e}"
    )
    print(f"exported to {folder}; next: hf-seqmodels doctor {folder}")


def windows_for_test(run: Path) -> Any:
    """The test windows of a language model's run; None, with a note, where its very text is not at hand."""
    from .config import parse
    from .hub.saved import read_record
    from .loading import load_data

    record = read_record(run)
    if record is None or record["task"] != "causal-lm" or not (run / "config.yaml").is_file():
        return None
    try:
        with tempfile.TemporaryDirectory() as unused:  # `parse` refuses the folder of a finished run
            config = parse(["--config", str(run / "config.yaml"), "--output_dir", str(Path(unused, "run"))])
            data = load_data(config)
    except ValueError as error:
        reason = one_line(error)
    else:
        if data.hash == record["data"]["sha256"]:
            return data.windows["test"]
        reason = "the text has another sha256"
    print(f"note: int8 is compared on golden inputs, not on the run's test text: {reason}", file=sys.stderr)
    return None
