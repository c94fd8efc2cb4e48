"""A client's process: what transformers itself pushes, and runs that go on from a checkpoint on the Hub.

    python client_stock.py OUT

Sends one model of each architecture to user/NAME (and another state of the last one to the branch dev and as a pull
request) and leaves it in OUT/NAME and OUT/NAME-dev with what it makes of an input. Then the stock Trainer makes four
of six steps with each strategy and pushes to user/stock-STRATEGY; the Hub's newest checkpoint, loaded into an empty
cache, is taken to its end in OUT/resumed-STRATEGY. OUT/whole is the whole run, for comparison. Prints one JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from export.exporting import PLAIN, build_word_tokenizer
from hf_seqmodels.models import ARCHITECTURES
from model_table import build, make_inputs, perturb

STEPS, STOP = 6, 4
STRATEGIES = ("end", "every_save", "checkpoint", "all_checkpoints")
ROWS = Dataset.from_dict({"input_ids": [[3 + row % 5, 4, 5, 6] for row in range(24)], "labels": [[3, 4, 5, 6]] * 24})


@torch.no_grad()
def keep(model: torch.nn.Module, inputs: dict[str, torch.Tensor], folder: Path) -> None:
    model.save_pretrained(folder)
    probe = {f"input.{name}": value.contiguous() for name, value in inputs.items()}
    outputs = model.eval()(**inputs)
    output = next(outputs[name] for name in ("logits", "prediction_outputs") if name in outputs)
    save_file(probe | {"output": output.contiguous()}, folder / "probe.safetensors")


def push_models(out: Path) -> dict:
    found = {}
    for case in PLAIN:
        name = case.architecture
        model, inputs = build(case, case.main_head), make_inputs(case, case.main_head, 2, 6)
        keep(model, inputs, out / name)
        first = model.push_to_hub(f"user/{name}", private=True)
        again = model.push_to_hub(f"user/{name}")
        found[name] = {"again": first.oid == again.oid, "reads_tokens": case.reads_tokens}
        if case.reads_tokens:
            build_word_tokenizer().push_to_hub(f"user/{name}")
    perturb(model)
    keep(model, inputs, out / f"{name}-dev")
    model.push_to_hub(f"user/{name}", revision="dev")
    pull = model.push_to_hub(f"user/{name}", create_pr=True)
    return found | {"pull request": [name, pull.pr_revision]}


class Stop(TrainerCallback):
    """Ends the run early, as a power cut would, but after the save."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = control.should_training_stop or state.global_step >= STOP


def build_trainer(folder: Path, stop: bool, **options) -> Trainer:
    set_seed(0)
    gru = ARCHITECTURES["seq_gru"]
    model = gru.models["causal-lm"](gru.config(vocab_size=23, hidden_size=8))
    common = {"max_steps": STEPS, "save_steps": 2, "per_device_train_batch_size": 2, "report_to": "none"}
    arguments = TrainingArguments(str(folder), **common, use_cpu=True, disable_tqdm=True, **options)
    return Trainer(model, arguments, train_dataset=ROWS, callbacks=[Stop()] if stop else [])


def push_run(out: Path, strategy: str) -> None:
    options = {"push_to_hub": True, "hub_strategy": strategy, "hub_model_id": f"user/stock-{strategy}"}
    trainer = build_trainer(out / f"pushed-{strategy}", True, **options, hub_private_repo=True, hub_always_push=True)
    trainer.train()
    trainer.push_to_hub()
    trainer.model.save_pretrained(out / f"stock-{strategy}")


def resume_run(out: Path, strategy: str) -> int:
    folder = Path(snapshot_download(f"user/stock-{strategy}", cache_dir=out / "empty-cache"))
    checkpoint = folder / ("last-checkpoint" if strategy == "checkpoint" else f"checkpoint-{STOP}")
    trainer = build_trainer(out / f"resumed-{strategy}", False)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    trainer.model.save_pretrained(out / f"resumed-{strategy}")
    return trainer.state.global_step


def main(out: Path) -> dict:
    for strategy in STRATEGIES:
        push_run(out, strategy)
    whole = build_trainer(out / "whole", False)
    whole.train()
    whole.model.save_pretrained(out / "whole")
    resumed = {strategy: resume_run(out, strategy) for strategy in ("checkpoint", "all_checkpoints")}
    return {"resumed": resumed, "models": push_models(out)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(main(Path(sys.argv[1]))))
