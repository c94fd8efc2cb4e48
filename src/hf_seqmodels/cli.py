"""`hf-seqmodels train | demo | import | list`. Commands import what they need when they run, so that help is quick."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

COMMANDS = {
    "train": "train one model from a YAML recipe and the command line",
    "demo": "train the five architectures on the same text and compare them",
    "import": "weights of torch.nn, Keras or transformers into a model of this package",
    "list": "show architectures and recipes",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; everything after its name belongs to the command. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="hf-seqmodels",
        usage="hf-seqmodels COMMAND [options]",
        epilog="\n".join(f"  {name:8}{what}" for name, what in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, help="`hf-seqmodels COMMAND --help` says more")
    arguments = list(sys.argv[1:] if argv is None else argv)
    command, rest = parser.parse_args(arguments[:1]).command, arguments[1:]
    if command == "train":
        from .run import main as train

        return train(rest, prog="hf-seqmodels train")
    if command == "demo":
        from .demo import main as demo

        return demo(rest)
    if command == "import":
        from .convert.cli import main as import_weights

        return import_weights(rest)
    return list_all()


def list_all() -> int:
    """Print every architecture with its variants and heads, and every recipe with the first line of its header."""
    from .models import ARCHITECTURES
    from .recipes import list_configs

    width = max(map(len, [*ARCHITECTURES, *list_configs()])) + 2
    print("architectures (--model_type):")
    for name, architecture in ARCHITECTURES.items():
        print(f"  {name:{width}}{', '.join(architecture.variants)}")
        print(f"  {'':{width}}heads: {', '.join(architecture.models)}")
    print("recipes (--config):")
    for name, path in list_configs().items():
        header = path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("#").strip()
        print(f"  {name:{width}}{header}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
