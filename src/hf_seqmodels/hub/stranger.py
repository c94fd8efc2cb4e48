"""A stranger loads a saved model: run as a script in a process that cannot import hf_seqmodels.

    python -I stranger.py FOLDER SAVED_AGAIN PROMPT [with_package]

FOLDER holds a `golden.safetensors` (an input, the scores expected for it, the Auto class). The model is loaded and
compared, asked for a line of text where it writes from a PROMPT that is not empty, saved into SAVED_AGAIN, and loaded
from there once more. Prints one JSON object: `max_difference`, `saved_again_difference` (scores), `saved_again_equal`
(all tensors, bit by bit), `generated` (or null), `dtype` of the model, `largest` of the expected scores,
`imported_package`.
"""

import json
import sys
from pathlib import Path

OUTPUTS = ("logits", "start_logits", "params", "prediction_outputs", "last_hidden_state")  # as golden.py has them


class _Absent:
    """An import finder for which this package does not exist, whatever is installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] == "hf_seqmodels":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def scores_of(outputs):
    """The scores in a model's outputs, as golden.py picks them."""
    import torch

    name = next(name for name in OUTPUTS if outputs.get(name) is not None)
    found = outputs[name]
    if name == "start_logits":
        return torch.stack([found, outputs["end_logits"]], -1).float()
    if isinstance(found, (tuple, list)):
        found = torch.cat([part.flatten(2) for part in found], -1)
    return found.float()


def write_text(model, folder: str, prompt: str):
    """A line from the text-generation pipeline, drawn with a fixed seed; None where no position is left for it."""
    from transformers import AutoTokenizer, pipeline, set_seed

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None) or 10**6
    length = min(80, positions - len(tokenizer(prompt)["input_ids"]))
    if length < 1:
        return None
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    set_seed(0)
    return generate(prompt, max_new_tokens=length, do_sample=True, temperature=0.7)[0]["generated_text"]


def main(folder: str, saved_again: str, prompt: str, with_package: str = "") -> None:
    """Load, compare, write, save, load again, compare, print."""
    if with_package:
        import hf_seqmodels  # noqa: F401
    else:
        sys.meta_path.insert(0, _Absent())
    import torch
    import transformers
    from safetensors import safe_open
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with safe_open(Path(folder, "golden.safetensors"), framework="pt") as file:
        auto = file.metadata()["auto"]
        golden = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    expected = golden.pop("scores")
    inputs = {name.removeprefix("input."): value for name, value in golden.items()}

    def load(where: str):
        model = getattr(transformers, auto).from_pretrained(where, trust_remote_code=not with_package)
        model = model.eval()
        with torch.no_grad():
            given = {
                name: value.to(model.dtype) if value.is_floating_point() else value for name, value in inputs.items()
            }
            return model, (scores_of(model(**given)) - expected).abs().max().item()

    model, difference = load(folder)
    generated = write_text(model, folder, prompt) if prompt and auto == "AutoModelForCausalLM" else None
    model.save_pretrained(saved_again)
    again, difference_again = load(saved_again)
    first, second = model.state_dict(), again.state_dict()
    equal = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    answer = {
        "max_difference": difference,
        "saved_again_difference": difference_again,
        "saved_again_equal": equal,
        "generated": generated,
        "dtype": str(model.dtype).removeprefix("torch."),
        "largest": expected.abs().max().item(),
        "imported_package": "hf_seqmodels" in sys.modules,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
