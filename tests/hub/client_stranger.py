"""A stranger's process: loads repositories of the Hub without the package hf_seqmodels, and compares.

    python client_stranger.py JOBS.json

A job is `{"repo", "revision" (or null), "folder"}`; the folder holds model.safetensors and, if the outputs are to be
compared, probe.safetensors, as the maker left them. Prints one JSON: "repo@revision" → what was found.
"""

from __future__ import annotations

import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path


class Absent(MetaPathFinder):
    """The package is not there, even if it is installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hf_seqmodels":
            raise ModuleNotFoundError(f"No module named '{name}' (hidden)", name=name)


sys.meta_path.insert(0, Absent())

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


@torch.no_grad()
def load(repo: str, revision: str | None, folder: str) -> dict:
    """Load with the class that was saved; are its tensors those of the folder, bit for bit?"""
    where = {"trust_remote_code": True, "revision": revision or "main"}
    config = transformers.AutoConfig.from_pretrained(repo, **where)
    (saved_class,) = config.architectures
    auto = next(name for name, value in config.auto_map.items() if value.endswith(f".{saved_class}"))
    model = getattr(transformers, auto).from_pretrained(repo, **where).eval()
    tensors, expected = model.state_dict(), load_file(Path(folder, "model.safetensors"))
    found = {
        "class": type(model).__name__,
        "module": type(model).__module__.partition(".")[0],
        "different": [name for name, value in expected.items() if not torch.equal(tensors[name], value)],
    }
    probe = Path(folder, "probe.safetensors")
    if probe.exists():
        kept = load_file(probe)
        inputs = {name.removeprefix("input."): value for name, value in kept.items() if name.startswith("input.")}
        outputs = model(**inputs)
        output = next(outputs[name] for name in ("logits", "prediction_outputs") if name in outputs)
        found["largest error"] = float((output - kept["output"]).abs().max())
    if "tokenizer_config.json" in [file.rpartition("/")[2] for file in list_files(repo, revision)]:
        found["tokens"] = transformers.AutoTokenizer.from_pretrained(repo, **where)("w5 w6").input_ids
    return found


def list_files(repo: str, revision: str | None) -> list[str]:
    from huggingface_hub import HfApi

    return HfApi().list_repo_files(repo, revision=revision)


def try_to_load(job: dict) -> dict:
    try:
        return load(**job)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


if __name__ == "__main__":
    try:
        import hf_seqmodels
    except ModuleNotFoundError:
        hf_seqmodels = None
    assert hf_seqmodels is None, "the package can be imported: this is no stranger"
    jobs = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps({f"{job['repo']}@{job['revision'] or 'main'}": try_to_load(job) for job in jobs}))
