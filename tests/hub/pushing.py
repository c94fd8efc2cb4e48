"""A process with the real client that runs `hf-seqmodels push` as often as a test asks, and what it is asked.

Starting Python with transformers takes seconds, and a push milliseconds: so one process runs many. Its HF_ENDPOINT is
set before anything is imported; it reaches the loopback hub and no other machine.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hf_seqmodels.hub.files import write_checksums
from loopback_hub.hub_process import WRITER, LoopbackHub


@dataclass(frozen=True)
class Pushed:
    """How one command ended."""

    status: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line that says what was wrong."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("hf-seqmodels push: error: ")]
        assert len(lines) == 1, self.stderr
        return lines[0].removeprefix("hf-seqmodels push: error: ")


class Pusher:
    """Runs commands in one process; a context manager."""

    def __init__(self, hub: LoopbackHub):
        self.hub = hub
        self.home = hub.root / "clients" / "pusher" / "huggingface"
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("client_push.py").resolve())],
            env=hub.environment(home="pusher"),
            cwd=hub.root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Pusher:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)
        assert self.hub.left_loopback() == []

    def interrupt(self) -> None:
        """Ctrl-C, to be pressed while a command runs."""
        self._process.send_signal(signal.SIGINT)

    def __call__(self, *arguments: object, token: str | None = WRITER, env: Mapping[str, str] | None = None) -> Pushed:
        """Run `hf-seqmodels push` with these arguments; without a token it is logged in nowhere."""
        wanted = {"HF_TOKEN": token, **(env or {})}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"arguments": list(map(str, arguments)), "env": wanted}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the client died with status {self._process.wait(10)}"
        return Pushed(**json.loads(answer))


CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags:
- hf_seqmodels
---
# gru

A small model for tests.
"""


def write_checkpoint(folder: Path, value: float = 0.0) -> Path:
    """A small GRU with code, tokenizer, card and checksums, and two files that do not simply go: ONNX, a log."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    from hf_seqmodels import GRUConfig, GRUForCausalLM

    torch.manual_seed(0)
    model = GRUForCausalLM(GRUConfig(vocab_size=16, hidden_size=8, num_hidden_layers=1))
    with torch.no_grad():
        next(model.parameters()).add_(value)
    model.save_pretrained(folder)
    words = {f"w{index}": index for index in range(16)}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0"))).save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    (folder / "result.json").write_text(json.dumps({"config": {"data": {"dataset": "pydoc_topics"}}}))
    (folder / "model.onnx").write_bytes(b"\0onnx")
    (folder / "train.log").write_text("step 1\n")
    write_checksums(folder)
    return folder
