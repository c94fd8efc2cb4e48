"""A stranger loads a saved causal language model: run as a script in a process that cannot import hf_seqmodels.

    python -I stranger.py FOLDER GOLDEN PROMPT

GOLDEN is a safetensors file with `input_ids` (1, T) and the `logits` (1, T, V) expected for them. Prints one JSON
object: `max_difference`, `generated` (from the text-generation pipeline), `imported_package` (must be false).
"""

import json
import sys


class _Absent:
    """An import finder for which this package does not exist, whatever is installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] == "hf_seqmodels":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def main(folder: str, golden: str, prompt: str) -> None:
    """Load, compare, generate, print."""
    sys.meta_path.insert(0, _Absent())
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline, set_seed
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    expected = load_file(golden)
    logits = model(expected["input_ids"]).logits
    generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
    set_seed(0)
    text = generate(prompt, max_new_tokens=80, do_sample=True, temperature=0.7)[0]["generated_text"]
    answer = {
        "max_difference": (logits - expected["logits"]).abs().max().item(),
        "generated": text,
        "imported_package": "hf_seqmodels" in sys.modules,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
