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
import transformers  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


def largest(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max())


GENERATION = {"max_new_tokens": 5, "do_sample": False, "return_dict_in_generate": True, "output_scores": True}


def read_probe(folder: Path) -> tuple[dict, dict]:
    """The maker's inputs, and what the model made of them."""
    probe = load_file(folder / "probe.safetensors")
    inputs = {name.removeprefix("input."): value for name, value in probe.items() if name.startswith("input.")}
    return inputs, {name: value for name, value in probe.items() if not name.startswith("input.")}


@torch.no_grad()
def examine(folder: Path, out: Path) -> dict:
    """Load, compare with the maker's numbers, use, save again."""
    inputs, expected = read_probe(folder)
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    (saved_class,) = config.architectures
    auto = next(name for name, where in config.auto_map.items() if where.endswith(f".{saved_class}"))
    model = getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True).eval()
    outputs = model(**inputs)
    found = {
        "class": type(model).__name__,
        "module": type(model).__module__,
        "output_error": largest(outputs["logits" if "logits" in outputs else "last_hidden_state"], expected["output"]),
    }
    if "scores" in expected:
        prompt = {name: value for name, value in inputs.items() if not name.startswith("decoder_")}
        generated = model.generate(**prompt, **GENERATION)
        found["score_error"] = largest(torch.stack(generated.scores, 1), expected["scores"])
        beams = model.generate(**prompt, **GENERATION, num_beams=3)
        found["beam_error"] = largest(beams.sequences_scores, expected["beam_scores"])
    if auto == "AutoModelForCausalLM" and (folder / "tokenizer.json").exists():
        write = transformers.pipeline("text-generation", model=str(folder), trust_remote_code=True)
        found["text"] = write("w5 w6 w7", max_new_tokens=4, do_sample=False)[0]["generated_text"]
    for name in ("AutoModelForSequenceClassification", "AutoModelForTokenClassification"):
        if name in config.auto_map:
            load = getattr(transformers, name).from_pretrained
            classifier, info = load(folder, trust_remote_code=True, num_labels=4, output_loading_info=True)
            labels = classifier(**inputs).logits.shape[-1]
            found[name] = {"missing": sorted(info["missing_keys"]), "labels": labels}
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
