"""`hf-seqmodels app`: a web page where models continue one prompt side by side, on this machine or as a Space."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import ipaddress
import shutil
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

DESCRIPTION = """\
A web page where language models continue one prompt side by side: what each writes, how fast, how many bits a
character of the prompt costs it, how much state it carries, and where its attention looks. It needs gradio
(pip install 'hf_seqmodels[demo]'), is served to this machine only, and asks nothing of any other.
"""

EPILOG = """\
examples:
  hf-seqmodels app                            the models named in $MODELS, else those in zoo/
  hf-seqmodels app runs/lstm user/gru         a trained model beside one from the Hub, in this order
  hf-seqmodels app --space my-space user/lstm user/gru
                                              the same page as a Space, ready to be pushed
"""

SPACE_CARD = """\
---
title: Sequence models side by side
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
license: apache-2.0
{models}---

# Sequence models side by side

One prompt, continued by several language models: what each writes, how fast, how many bits a character of the prompt
costs it, how much state it carries, and where its attention looks.

Settings of the Space (variables):

- `MODELS`: names on the Hub with commas between them; without it, the lines of `models.txt`, or the folders in `zoo/`.
- `TRUST_REMOTE_CODE`: `1` lets the models' own code run. Read it first; models that transformers knows need none.
"""

REQUIREMENTS = "torch>=2.11\ntransformers>=5.17\nsafetensors>=0.8\n"  # gradio comes with the Space


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page until Ctrl-C, or write a Space: exit status 0, or 2 with one line for what the user can mend."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.space:
            write_space(arguments.space, arguments.models)
            print(f"written to {arguments.space}: make a Space on the Hub and push this folder to it")
            return 0
        if importlib.util.find_spec("gradio") is None:  # before torch is loaded
            raise ImportError("the page is made with gradio, which is missing: pip install 'hf_seqmodels[demo]'")
        if not _is_loopback(arguments.host):
            who = f"everybody who reaches {arguments.host} can use the page, without a password"
            print(f"hf-seqmodels app: warning: {who}; leave --host out to keep it to this machine", file=sys.stderr)
        check_port(arguments.host, arguments.port)
        for name in arguments.models:
            check_inside(Path(name))
        from .page import serve

        serve(arguments.models, arguments.host, arguments.port, arguments.trust_remote_code)
    except (ValueError, ImportError, OSError) as error:
        print(f"hf-seqmodels app: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_port(host: str, port: int) -> None:
    """Raise ValueError unless the page can be served there: said before minutes go into loading."""
    if not 1 <= port <= 65535:
        raise ValueError(f"--port {port} is out of range: it must be 1 to 65535")
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        rule = f"the page cannot be served there ({error.strerror}); give another --port or --host"
        raise ValueError(f"{host}:{port}: {rule}") from None


def check_inside(folder: Path) -> None:
    """Raise UnsafeFolder, a ValueError, if files of a local checkpoint name weights outside its folder.

    Checkpoints of a run may lie beside the model, so pickles are not looked for: none is ever opened.
    """
    from ..hub.files import check_index, read_json

    for path in (folder / "config.json", *folder.glob("*.index.json")):
        if path.is_file():
            check_index(folder, path.name, read_json(path))


def write_space(folder: Path, models: Sequence[str]) -> None:
    """A new folder with all that a Space needs: app.py (`page.py` as it is), requirements.txt, README.md, models.txt.

    Args:
        models: names on the Hub; none leaves models.txt out.

    Raises:
        ValueError: the folder holds something, or a name is none of the Hub's. Nothing has been written then.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ValueError(f"{folder} is not empty: name a new folder for the Space")
    for name in models:
        try:
            validate_repo_id(name)
        except HFValidationError:
            name += "/"  # not a name
        if name.count("/") != 1 or Path(name).exists():
            rule = "a Space loads its models from the Hub (user/name): push it first, and give that name"
            raise ValueError(f"'{name.removesuffix('/')}' is no name on the Hub: {rule}")
    listed = "models:\n" + "".join(f"- {name}\n" for name in models) if models else ""
    card = SPACE_CARD.format(gradio=_gradio_version(), models=listed)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as staging:
        space = Path(staging, "space")
        space.mkdir()
        shutil.copyfile(Path(__file__).with_name("page.py"), space / "app.py")
        (space / "requirements.txt").write_text(REQUIREMENTS, encoding="utf-8")
        (space / "README.md").write_text(card, encoding="utf-8")
        if models:
            (space / "models.txt").write_text("\n".join(models) + "\n", encoding="utf-8")
        space.replace(folder)


def _gradio_version() -> str:
    """The installed version, which the page was seen with; else the first that has what it uses."""
    try:
        return importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        return "6.31.0"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-seqmodels app",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="folder of a saved language model, or its Hub name")
    parser.add_argument("--port", type=int, default=7860, help="default: %(default)s")
    parser.add_argument("--host", default="127.0.0.1", help="default: %(default)s, this machine only")
    parser.add_argument(
        "--trust_remote_code",
        action="store_true",
        help="run the code that a model brings along: only after reading it; models of this package need none",
    )
    parser.add_argument("--space", type=Path, metavar="DIR", help="write a Space into a new folder, and serve nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
