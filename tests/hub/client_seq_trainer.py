"""A client's process: SeqTrainer pushes in every way that it can, and fails in every way that it may.

    python client_seq_trainer.py OUT TOKEN [SCENE…]

Prints one JSON: scene → what happened. TOKEN is given as `hub_token`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from transformers import TrainerCallback, set_seed

from export.exporting import build_word_tokenizer
from hf_seqmodels.arguments import SeqTrainingArguments
from hf_seqmodels.cli import main
from hf_seqmodels.models import ARCHITECTURES
from hf_seqmodels.training import SeqTrainer

ROWS = Dataset.from_dict({"input_ids": [[3 + row % 5, 4, 5, 6] for row in range(24)], "labels": [[3, 4, 5, 6]] * 24})


def build(out: Path, scene: str, **options) -> SeqTrainer:
    set_seed(0)
    gru = ARCHITECTURES["seq_gru"]
    model = gru.models["causal-lm"](gru.config(vocab_size=23, hidden_size=8))
    given = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2}
    given |= {"eval_strategy": "no", "load_best_model_at_end": False, "report_to": "none", "save_total_limit": 1}
    given |= {"push_to_hub": True, "hub_model_id": f"user/{scene}", "hub_token": TOKEN}
    arguments = SeqTrainingArguments(str(out / scene), **(given | options))
    trainer = SeqTrainer(model, arguments, train_dataset=ROWS, processing_class=build_word_tokenizer(), quiet=True)
    return trainer


def outcome(call) -> list[str]:
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["fine", ""]


def every_save(out: Path) -> dict:
    trainer = build(out, "every_save", hub_always_push=True)
    trained = outcome(trainer.train)
    saved = outcome(trainer.save_model)
    return {"trained": trained, "saved": saved}


def end(out: Path) -> dict:
    trainer = build(out, "end", hub_strategy="end", hub_revision="dev")
    return {"trained": outcome(trainer.train), "pushed": outcome(trainer.push_to_hub)}


def background(out: Path) -> dict:
    """The Hub refuses the first checkpoint."""
    trainer = build(out, "background", hub_always_push=True)
    trained = outcome(trainer.train)
    return {"trained": trained, "steps": trainer.state.global_step, "pushed": outcome(trainer.push_to_hub)}


def patient(out: Path) -> dict:
    """The Hub is busy once, then drops the connection, then takes it."""
    trainer = build(out, "patient", hub_strategy="end", hub_private_repo=False)
    return {"trained": outcome(trainer.train), "pushed": outcome(trainer.push_to_hub)}


def refused(out: Path) -> dict:
    """The Hub refuses the last push."""
    trainer = build(out, "refused", hub_strategy="end")
    return {"trained": outcome(trainer.train), "saved": outcome(trainer.save_model)}


def slow(out: Path) -> dict:
    """Checkpoints are deleted while their push still waits."""
    trainer = build(out, "slow", save_steps=1, hub_always_push=True)
    return {"trained": outcome(trainer.train)}


def full(out: Path) -> dict:
    """There is no place for a copy of the checkpoint; then the copy breaks off half-way."""
    trainer, temporary = build(out, "full"), tempfile.gettempdir()
    try:
        tempfile.tempdir = str(out / "nowhere")
        trained, steps = outcome(trainer.train), trainer.state.global_step
        checkpoint, staging = out / "full/checkpoint-4", out / "staging"
        staging.mkdir()
        (checkpoint / "vocab.json").symlink_to(out / "nowhere")
        tempfile.tempdir = str(staging)
        trainer._push_from_checkpoint(str(checkpoint))
    finally:
        tempfile.tempdir = temporary
    left = [path.name for path in staging.iterdir()]
    return {"trained": trained, "steps": steps, "broken": outcome(trainer.raise_failed_pushes), "left": left}


class Poison(TrainerCallback):
    """A weight breaks after the second step."""

    def on_step_end(self, args, state, control, model, **kwargs):
        if state.global_step == 2:
            next(model.parameters()).data.fill_(float("nan"))


def diverged(out: Path) -> dict:
    trainer = build(out, "diverged", save_steps=1, hub_always_push=True)
    trainer.add_callback(Poison())
    return {"trained": outcome(trainer.train), "pushed": outcome(trainer.push_to_hub)}


def command_line(out: Path) -> dict:
    """`hf-seqmodels train`: a run that is pushed, and one that is refused."""
    options = ["--config", "lm/gru", "--hidden_size", "8", "--max_steps", "2", "--per_device_train_batch_size", "2"]
    options += ["--save_strategy", "steps", "--save_steps", "1", "--eval_strategy", "steps", "--eval_steps", "1"]
    options += ["--push_to_hub", "true", "--hub_token", TOKEN]
    statuses = {}
    for name, strategy in (("command_line", "end"), ("wrong_strategy", "checkpoint")):
        where = ["--hub_model_id", f"user/{name}", "--output_dir", str(out / name), "--hub_strategy", strategy]
        statuses[name] = main(["train", *options, *where])
    return statuses


def forbidden(out: Path) -> dict:
    """What is refused before anything starts."""
    return {
        "checkpoint": outcome(lambda: build(out, "forbidden", hub_strategy="checkpoint")),
        "all_checkpoints": outcome(lambda: build(out, "forbidden", hub_strategy="all_checkpoints")),
        "name": outcome(lambda: build(out, "forbidden", hub_model_id="user/../forbidden")),
        "token": outcome(lambda: build(out, "forbidden", hub_token=None)),
        "unknown token": outcome(lambda: build(out, "forbidden", hub_token="hf_" + "x" * 34)),
        "processes": outcome(lambda: build(out, "forbidden", expect_processes=2)),
        "another's": outcome(lambda: build(out, "forbidden", hub_model_id="other/forbidden")),
        "public": outcome(lambda: build(out, "forbidden", hub_model_id="user/open")),
    }


SCENES = (every_save, end, background, patient, refused, slow, full, diverged, forbidden, command_line)

if __name__ == "__main__":
    torch.set_num_threads(1)
    TOKEN = sys.argv[2]
    chosen = [scene for scene in SCENES if not sys.argv[3:] or scene.__name__ in sys.argv[3:]]
    print(json.dumps({scene.__name__: scene(Path(sys.argv[1])) for scene in chosen}))
