"""The package and two exported copies of it in one process: each must generate what its uncached forward pass gives.

    python run_three_copies.py FOLDER

FOLDER holds one exported model per subfolder. Prints one JSON: name → largest error of each of the three.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.dynamic_module_utils import get_class_from_dynamic_module

import hf_seqmodels  # noqa: F401


@torch.no_grad()
def generation_error(model: torch.nn.Module, beams: int) -> float:
    """Scores while generating against the scores of one uncached pass over what was generated."""
    torch.manual_seed(0)
    ids = torch.randint(3, 23, (2, 4))
    out = model.generate(
        ids,
        max_new_tokens=5,
        min_new_tokens=5,
        num_beams=beams,
        do_sample=False,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
    )
    logits = torch.stack(out.logits, 1)
    if beams > 1:
        assert torch.isfinite(logits).all()
        texts = out.sequences
        again = model(texts[:, :-1], use_cache=False).logits[:, 3:].log_softmax(-1)
        total = again.gather(-1, texts[:, 4:, None]).sum((1, 2)) / 5
        return float((total - out.sequences_scores).abs().max())
    return float((model(out.sequences[:, :-1], use_cache=False).logits[:, 3:] - logits).abs().max())


def load_copy(folder: Path) -> torch.nn.Module:
    """The exported class itself; the Auto classes would take the package's."""
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    return get_class_from_dynamic_module(auto_map["AutoModelForCausalLM"], folder).from_pretrained(folder).eval()


def examine(folder: Path) -> dict:
    second = folder.with_name(folder.name + "_second")
    shutil.copytree(folder, second)
    models = {
        "first copy": load_copy(folder),
        "package": AutoModelForCausalLM.from_pretrained(folder).eval(),
        "second copy": load_copy(second),
    }
    modules = {type(model).__module__ for model in models.values()}
    assert len(modules) == 3, modules
    return {name: [generation_error(model, beams) for beams in (1, 3)] for name, model in models.items()}


if __name__ == "__main__":
    folders = sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir())
    found = {folder.name: examine(folder) for folder in folders}
    print(json.dumps(found))
