"""Helpers of the export tests: digests, the files an architecture ships, a tokenizer, and strangers' processes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

import hf_seqmodels.models
from hf_seqmodels.models import ARCHITECTURES
from model_table import Case

SOURCE = Path(hf_seqmodels.models.__file__).parent
HERE = Path(__file__).parent

# All that a model of each architecture needs, and nothing else: what a stranger's folder must hold.
_ALL = {"shared_base.py", "shared_cache.py", "shared_configuration.py", "shared_inputs.py", "shared_versions.py"}
_TOKENS = _ALL | {"shared_heads.py", "shared_regularisation.py"}
_STACK = _TOKENS | {
    "shared_configuration_stack.py",
    "shared_crf.py",
    "shared_outputs.py",
    "shared_heads_classification.py",
    "shared_heads_speech.py",
}
_SERIES = {"shared_distributions.py", "shared_heads_series.py", "shared_series.py"}
_RECURRENT = (
    _STACK | _SERIES | {"shared_configuration_cell.py", "shared_configuration_recurrent.py", "shared_encoder.py"}
)
_RECURRENT |= {"shared_recurrence.py", "shared_recurrent_model.py"}
_TRANSFORMER = {
    "shared_attention.py",
    "shared_configuration_transformer.py",
    "shared_lsh_attention.py",
    "shared_sliding_window.py",
}
_TRANSFORMER |= {"shared_token_layout.py", "shared_transformer.py"}
_PATTERNS = {"shared_configuration_patterns.py"}


def _own(*names: str) -> set[str]:
    return {f"{kind}_{name}.py" for kind in ("configuration", "modeling") for name in names}


_CELLS = {"shared_cells.py"} | _own("rnn", "lstm", "gru")
SHIPPED = {
    "seq_rnn": _RECURRENT | _own("rnn"),
    "seq_lstm": _RECURRENT | _own("lstm"),
    "seq_gru": _RECURRENT | _own("gru"),
    "seq_attention_rnn": _RECURRENT | _CELLS | {"shared_attention.py"} | _own("attention_rnn"),
    "seq_attention_rnn_seq2seq": _RECURRENT
    | _CELLS
    | {"shared_attention.py", "shared_heads_seq2seq.py", "shared_seq2seq.py", "shared_seq2seq_recurrent.py"}
    | _own("attention_rnn_seq2seq"),
    "seq_conv_lstm": _ALL | {"shared_frames.py", "shared_recurrence.py"} | _own("conv_lstm"),
    "seq_transformer": _TOKENS | _TRANSFORMER | {"shared_heads_seq2seq.py", "shared_seq2seq.py"} | _own("transformer"),
    "seq_transformer_encoder": _STACK | _TRANSFORMER | _PATTERNS | _own("transformer_encoder"),
    "seq_transformer_decoder": _STACK | _SERIES | _TRANSFORMER | _PATTERNS | _own("transformer_decoder"),
}

PLAIN = [Case(architecture, "plain") for architecture in ARCHITECTURES]
CAUSAL = [case for case in PLAIN if case.main_head == "causal-lm"]
WRITING = [case for case in PLAIN if case.main_head in ("causal-lm", "masked-lm", "seq2seq-lm")]


def tensors_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter, buffer and plain tensor attribute of every module, by name."""
    found = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                found |= {f"{path}.{name}{where}": tensor for where, tensor in _tensors_in(value)}
    return found


def _tensors_in(value: Any) -> list[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        return [("", value)]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    return [(f"[{key}]{where}", tensor) for key, item in items for where, tensor in _tensors_in(item)]


def digest(model: torch.nn.Module) -> dict[str, str]:
    """Name → hash of dtype, shape and bits."""
    return {
        name: hashlib.sha256(
            f"{tensor.dtype}{tuple(tensor.shape)}".encode()
            + tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for name, tensor in tensors_of(model).items()
    }


def assert_ships_source(folder: Path, case: Case) -> None:
    """`folder` holds the case's modelling files, each byte for byte as in the package, and no other code."""
    assert {path.name for path in folder.glob("*.py")} == SHIPPED[case.architecture]
    for name in SHIPPED[case.architecture]:
        assert (folder / name).read_bytes() == (SOURCE / name).read_bytes(), name
    assert not list(folder.glob("pytorch_model*")), "weights are safetensors only"
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[case.architecture]
    stem = architecture.config.__module__.split(".")[-1].removeprefix("configuration_")
    assert config["auto_map"] == {"AutoConfig": f"configuration_{stem}.{architecture.config.__name__}"} | {
        model.auto_model: f"modeling_{stem}.{model.__name__}" for model in architecture.models.values()
    }


def build_word_tokenizer(vocab_size: int = 23) -> PreTrainedTokenizerFast:
    """Words w3 … w22 with the ids 3 … 22, and <pad>, <unk>, </s>."""
    words = ["<pad>", "<unk>", "</s>"] + [f"w{index}" for index in range(3, vocab_size)]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", padding_side="left"
    )


def run_apart(script: str, *arguments: Any, cwd: Path, hide_package: bool = True, **environment: str) -> str:
    """Run `script` of this folder in a fresh process, elsewhere, with a cache of its own; return what it printed.

    With `hide_package` no path leads to hf_seqmodels, and importing it fails even where it is installed.
    """
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if hide_package:
        paths = [path for path in paths if not (Path(path) / "hf_seqmodels").exists()]
    else:
        paths.insert(0, str(SOURCE.parent.parent))
    env = os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HOME": str(cwd / "hf_home"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    done = subprocess.run(
        [sys.executable, str(HERE / script), *map(str, arguments)],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{script} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout
