"""Trains a tiny language model with the stock Trainer under whatever launched it; the first process prints one JSON.

python launched.py FOLDER ROWS_PER_PROCESS
"""

from __future__ import annotations

import json
import sys

import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments, set_seed

import hf_seqmodels
from hf_seqmodels.data import CausalLMCollator


def ragged(rows: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    ids = []
    for _ in range(rows):
        length = int(torch.randint(3, 12, (), generator=generator))
        ids.append(torch.randint(1, 23, (length,), generator=generator).tolist())
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def main(folder: str, per_device: int) -> None:
    arguments = TrainingArguments(
        folder,
        max_steps=3,
        per_device_train_batch_size=per_device,
        train_sampling_strategy="sequential",
        learning_rate=1e-2,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    set_seed(0)
    model = hf_seqmodels.LSTMForCausalLM(hf_seqmodels.LSTMConfig(vocab_size=23, hidden_size=16))
    trainer = Trainer(model, arguments, train_dataset=ragged(24), data_collator=CausalLMCollator(pad_token_id=0))
    trainer.train()
    trainer.save_model(folder)
    distributed = torch.distributed.is_initialized()
    if trainer.is_world_process_zero():
        record = {
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "processes": trainer.accelerator.num_processes,
            "device": str(trainer.accelerator.device),
            "backend": torch.distributed.get_backend() if distributed else None,
            "wrapper": type(trainer.model_wrapped).__name__,
        }
        print("RECORD " + json.dumps(record))
    if distributed:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
