"""A stranger: loads exported folders in a process that cannot import hf_seqmodels, uses them, and saves them again.

    python run_stranger.py FOLDER OUT

FOLDER holds one exported model per subfolder, each with the `probe.safetensors` that its maker left. Writes OUT/<name>
(saved again) and prints one JSON: name → what was found.
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
from safetensors.torch import load_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    pipeline,
)


def largest(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max())


@torch.no_grad()
def examine(folder: Path, out: Path) -> dict:
    """Load, compare with the maker's numbers, use, save again."""
    probe = load_file(folder / "probe.safetensors")
    inputs = {"input_ids": probe["input_ids"], "attention_mask": probe["attention_mask"]}
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    causal = not getattr(config, "bidirectional", False)
    auto = AutoModelForCausalLM if causal else AutoModel
    model = auto.from_pretrained(folder, trust_remote_code=True).eval()
    outputs = model(**inputs)
    found = {
        "class": type(model).__name__,
        "module": type(model).__module__,
        "output_error": largest(outputs.logits if causal else outputs.last_hidden_state, probe["output"]),
    }
    if causal:
        generated = model.generate(
            **inputs, max_new_tokens=5, do_sample=False, return_dict_in_generate=True, output_scores=True
        )
        found["score_error"] = largest(torch.stack(generated.scores, 1), probe["scores"])
        beams = model.generate(
            **inputs, max_new_tokens=5, num_beams=3, return_dict_in_generate=True, output_scores=True, do_sample=False
        )
        found["beam_error"] = largest(beams.sequences_scores, probe["beam_scores"])
        if (folder / "tokenizer.json").exists():
            write = pipeline("text-generation", model=str(folder), trust_remote_code=True)
            found["text"] = write("w5 w6 w7", max_new_tokens=4, do_sample=False)[0]["generated_text"]
    for name, head in (
        ("sequence", AutoModelForSequenceClassification),
        ("token", AutoModelForTokenClassification),
    ):
        classifier, info = head.from_pretrained(folder, trust_remote_code=True, num_labels=4, output_loading_info=True)
        found[name] = {"missing": sorted(info["missing_keys"]), "labels": classifier(**inputs).logits.shape[-1]}
    model.save_pretrained(out)
    return found


if __name__ == "__main__":
    try:
        import hf_seqmodels
    except ModuleNotFoundError:
        hf_seqmodels = None
    assert hf_seqmodels is None, "the package can be imported: this is no stranger"
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    names = sorted(path.name for path in source.iterdir() if path.is_dir())
    print(json.dumps({name: examine(source / name, target / name) for name in names}))
