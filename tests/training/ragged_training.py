"""Trains a tiny model on rows of ragged lengths and ragged targets; run alone, under torchrun, or from a test.

python ragged_training.py OUT.json MODEL_TYPE PER_DEVICE_BATCH ACCUMULATION [--rows N]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, GPT2Config, set_seed

import hf_seqmodels
from hf_seqmodels.arguments import SeqTrainingArguments
from hf_seqmodels.data import CausalLMCollator
from hf_seqmodels.training import SeqTrainer

VOCABULARY = 19


def ragged_rows(count: int) -> Dataset:
    """Rows of 2 to 17 tokens; a third of the labels is −100, so targets per row run from none to 16."""
    generator = torch.Generator().manual_seed(0)
    ids, labels = [], []
    for _ in range(count):
        row = torch.randint(1, VOCABULARY, (int(torch.randint(2, 18, (), generator=generator)),), generator=generator)
        dropped = torch.rand(len(row), generator=generator) < 0.33
        ids.append(row.tolist())
        labels.append(row.masked_fill(dropped, -100).tolist())
    return Dataset.from_dict({"input_ids": ids, "labels": labels})


def tiny_model(model_type: str) -> torch.nn.Module:
    set_seed(0)
    if model_type == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        config = GPT2Config(vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, **sizes, **no_dropout)
    else:
        config = hf_seqmodels.ARCHITECTURES[model_type].config(vocab_size=VOCABULARY, hidden_size=16)
    return AutoModelForCausalLM.from_config(config)


def train(model_type: str, batch: int, accumulation: int, rows: int, folder: str, **options) -> dict:
    """Two epochs; returns losses of every step, evaluation, digest, world size and a checksum of the weights."""
    args = SeqTrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        **{"num_train_epochs": 2, "logging_steps": 1, "learning_rate": 1e-2, "use_cpu": True, "save_strategy": "no"}
        | {"load_best_model_at_end": False}
        | options,
    )
    trainer = SeqTrainer(
        model=tiny_model(model_type),
        args=args,
        train_dataset=ragged_rows(rows),
        eval_dataset=ragged_rows(rows - 4),
        data_collator=CausalLMCollator(pad_token_id=0),
        quiet=True,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    history = trainer.state.log_history
    return {
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "grad_norms": [entry["grad_norm"] for entry in history if "loss" in entry],
        "evaluation": [entry["eval_loss"] for entry in history if "eval_loss" in entry],
        "weights": sum(float(p.detach().double().abs().sum()) for p in trainer.model.parameters()),
        **trainer.record(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("model_type")
    parser.add_argument("batch", type=int)
    parser.add_argument("accumulation", type=int)
    parser.add_argument("--rows", type=int, default=21)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = train(given.model_type, given.batch, given.accumulation, given.rows, folder)
    if torch.distributed.is_initialized():
        main_process = torch.distributed.get_rank() == 0
        torch.distributed.destroy_process_group()
        if not main_process:
            sys.exit(0)
    with open(given.out, "w") as file:
        json.dump(record, file)
