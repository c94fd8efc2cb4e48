"""`hf-seqmodels COMMAND`. Commands import what they need when they run, so that help is quick."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

# Command → (module: its `main`, what it does).
COMMANDS = {
    "train": (".run", "train one model from a YAML recipe and the command line"),
    "demo": (".demo", "train the five architectures on the same text and compare them"),
    "evaluate": (".evaluating", "scores of any saved model on any data set, by the code that scores runs"),
    "generate": (".generate", "a trained model writes text, or music as a MIDI file"),
    "import": (".convert.cli", "weights of torch.nn, Keras or transformers into a model of this package"),
    "export": (".exporting", "a finished run as a folder that works anywhere, with card and checksums"),
    "doctor": (".hub.doctor", "examine any checkpoint of transformers: one line and one number for each check"),
    "card": (".hub.cards", "write a model card from a run's record"),
    "push": (".hub.publish", "publish an exported folder on the Hub"),
    "app": (".inference.app", "a web page: one prompt, all architectures side by side"),
    "list": (".listing", "show architectures, recipes and the models of the zoo"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; everything after its name belongs to the command. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="hf-seqmodels",
        usage="hf-seqmodels COMMAND [options]",
        epilog="\n".join(f"  {name:8}{what}" for name, (_, what) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, help="`hf-seqmodels COMMAND --help` says more")
    arguments = list(sys.argv[1:] if argv is None else argv)
    command, rest = parser.parse_args(arguments[:1]).command, arguments[1:]
    run = importlib.import_module(COMMANDS[command][0], __package__).main
    return run(rest, prog="hf-seqmodels train") if command == "train" else run(rest)


if __name__ == "__main__":
    sys.exit(main())
