"""A small LSTM with dropout and weight noise to be trained in many ways; 5 steps make an epoch.

python small_training.py OUT.pt   (under torchrun: what every process ended with)
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
import torch.distributed
from ragged_training import VOCABULARY, ragged_rows
from transformers import set_seed

from hf_seqmodels import LSTMConfig, LSTMForCausalLM
from hf_seqmodels.arguments import SeqTrainingArguments
from hf_seqmodels.data import CausalLMCollator
from hf_seqmodels.training import SeqTrainer

STEPS_PER_EPOCH = 5
NT_ASGD = {"optim": "nt_asgd", "non_monotone_interval": 1, "learning_rate": 4.0, "max_grad_norm": 0.0}


def small_trainer(
    folder: Any, rescale_to: int | None = None, weight_noise: float = 0.05, **options: Any
) -> SeqTrainer:
    """Evaluates and saves in every step, and keeps the last weights, unless the options say otherwise."""
    args = SeqTrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        **{"max_steps": 8, "per_device_train_batch_size": 4, "logging_steps": 1, "load_best_model_at_end": False}
        | {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
        | {"save_total_limit": None, "warmup_steps": 0, "weight_decay": 1e-3, "report_to": "none"}
        | options,
    )
    set_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 8, "num_hidden_layers": 2}
    return SeqTrainer(
        model=LSTMForCausalLM(LSTMConfig(**sizes, dropout=0.2, weight_noise=weight_noise)),
        args=args,
        train_dataset=ragged_rows(4 * STEPS_PER_EPOCH),
        eval_dataset=ragged_rows(7),
        data_collator=CausalLMCollator(pad_token_id=0),
        rescale_to=rescale_to,
        quiet=True,
    )


def everything(trainer: SeqTrainer) -> dict[str, Any]:
    """Weights, optimizer, schedule, and the losses on the way."""
    history = trainer.state.log_history
    names = ("loss", "learning_rate", "grad_norm", "eval_loss")
    return {
        "weights": {name: p.detach().clone() for name, p in trainer.model.named_parameters()},
        "optimizer": trainer.optimizer.state_dict(),
        "schedule": trainer.lr_scheduler.state_dict(),
        "history": [
            (line["step"], *(line.get(name) for name in names)) for line in history if "train_loss" not in line
        ],
        "random": torch.get_rng_state(),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        trainer = small_trainer(scratch, rescale_to=10, weight_noise=0.0, per_device_train_batch_size=2, **NT_ASGD)
        trainer.train()
    mine = {"rank": trainer.args.process_index, "averaged": trainer.pace()["averaged_iterates"], **everything(trainer)}
    gathered: list[Any] = [None] * trainer.args.world_size
    torch.distributed.all_gather_object(gathered, mine)
    if trainer.args.process_index == 0:
        torch.save(gathered, sys.argv[1])
    torch.distributed.destroy_process_group()
