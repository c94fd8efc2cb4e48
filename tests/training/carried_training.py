"""Trains a tiny language model on streams with carried state; run alone, under torchrun, or from a test.

python carried_training.py OUT.json MODEL_TYPE PER_DEVICE_BATCH ACCUMULATION FOLDER
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM, set_seed

import hf_seqmodels
from hf_seqmodels.arguments import SeqTrainingArguments
from hf_seqmodels.data import StreamCollator, StreamDataset
from hf_seqmodels.training import SeqTrainer

VOCABULARY, BLOCK, ROWS = 19, 7, 4
IDS = np.random.default_rng(0).integers(3, VOCABULARY, 400)
DOCUMENTS = np.arange(0, 400, 23)
OPTIONS = {"seq_attention_rnn": {"window": 5}, "seq_lstm": {"num_hidden_layers": 2, "dropout": 0.2}}


def tiny(model_type: str) -> torch.nn.Module:
    set_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 12, **OPTIONS.get(model_type, {})}
    return AutoModelForCausalLM.from_config(hf_seqmodels.ARCHITECTURES[model_type].config(**sizes))


def make_trainer(
    model_type: str,
    batch: int,
    accumulation: int,
    folder: str,
    random_lengths=False,
    documents=None,
    ids=IDS,
    **options,
) -> SeqTrainer:
    world = int(os.environ.get("WORLD_SIZE", 1))
    args = SeqTrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=2 // world,
        gradient_accumulation_steps=accumulation,
        remove_unused_columns=False,
        **{"num_train_epochs": 2, "logging_steps": 1, "learning_rate": 1e-2, "use_cpu": True, "save_strategy": "no"}
        | {"load_best_model_at_end": False, "carry_state": True, "report_to": "none"}
        | options,
    )
    rows = batch * accumulation * world
    cut = {} if documents is None else {"documents": documents, "start_id": 2}
    return SeqTrainer(
        model=tiny(model_type),
        args=args,
        train_dataset=StreamDataset(ids, rows, BLOCK, random_lengths, **cut),
        eval_dataset=StreamDataset(IDS[:101], 2, BLOCK),
        data_collator=StreamCollator(0, VOCABULARY),
        quiet=True,
    )


def train(*given, resume: bool = False, **options) -> dict:
    """Losses of every step, evaluations, digest, and the weights."""
    trainer = make_trainer(*given, **options)
    trainer.train(resume_from_checkpoint=resume or None)
    history = trainer.state.log_history
    return {
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "evaluation": [entry["eval_loss"] for entry in history if "eval_loss" in entry],
        "weights": [parameter.detach().flatten().tolist() for parameter in trainer.model.parameters()],
        **trainer.record(),
    }


if __name__ == "__main__":
    out, model_type, batch, accumulation, folder = sys.argv[1:]
    record = train(model_type, int(batch), int(accumulation), folder)
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if rank == 0:
        with open(out, "w") as file:
            json.dump(record, file)
