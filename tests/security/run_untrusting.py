"""Run apart: load FOLDER without this package, first without trust, then with it; tells what was said and run.

    python -I run_untrusting.py FOLDER CANARIES

The code in FOLDER leaves files in CANARIES when it is run. Prints one JSON object.
"""

import json
import os
import sys


class _Absent:
    """An import finder for which this package does not exist, whatever is installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] == "hf_seqmodels":
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)


def main(folder: str, canaries: str) -> None:
    sys.meta_path.insert(0, _Absent())
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, pipeline

    loaders = {
        "AutoConfig": AutoConfig.from_pretrained,
        "AutoModel": AutoModel.from_pretrained,
        "AutoModelForCausalLM": AutoModelForCausalLM.from_pretrained,
        "pipeline": lambda folder, **trust: pipeline("text-generation", model=folder, **trust),
    }
    refusals = {}
    for name, load in loaders.items():
        for given, trust in (("not said", {}), ("False", {"trust_remote_code": False})):
            try:
                load(folder, **trust)
                refusals[f"{name} {given}"] = "loaded"
            except ValueError as error:
                refusals[f"{name} {given}"] = str(error)
    run_without_trust = sorted(os.listdir(canaries))
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    answer = {
        "refusals": refusals,
        "run_without_trust": run_without_trust,
        "run_with_trust": sorted(os.listdir(canaries)),
        "loaded": type(model).__module__.split(".")[0],
    }
    print("\n" + json.dumps(answer))  # questions of transformers stand on the line before


if __name__ == "__main__":
    main(*sys.argv[1:])
