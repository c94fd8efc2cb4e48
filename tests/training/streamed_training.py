"""Trains on a split that is read as it comes, in each of several processes; what each saw, step by step.

torchrun --nproc_per_node 2 streamed_training.py FOLDER_OF_SHARDS OUT
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ragged_training import VOCABULARY, tiny_model
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from hf_seqmodels.arguments import SeqTrainingArguments
from hf_seqmodels.data import CausalLMCollator, Division, StreamedText, build_tokenizer, open_rows, streaming
from hf_seqmodels.training import SeqTrainer

BLOCK, BATCH, ACCUMULATION = 8, 2, 2
LETTERS = "abcdefghijklmnop"
assert len(LETTERS) + 3 <= VOCABULARY


class Watched(SeqTrainer):
    """Keeps the rows with targets of every micro-step."""

    seen: list[tuple[int, list[list[int]]]]

    def training_step(self, model, inputs, num_items_in_batch=None):
        rows = [
            row[mask.bool()].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        ]
        kept = [row for row, labels in zip(rows, inputs["labels"], strict=True) if labels.ne(-100).any()]
        self.seen.append((self.state.global_step, kept))
        return super().training_step(model, inputs, num_items_in_batch)


def make(folder: str) -> StreamedText:
    streaming.PIECE_ROWS, streaming.BUFFER = 3, 6
    tokenizer: PreTrainedTokenizerFast = build_tokenizer("characters", [LETTERS])
    rows, name = open_rows(folder, None, "train")
    return StreamedText(rows, tokenizer, BLOCK, name=name)


def steps_of_a_pass(folder: str, number: int, rank: int, processes: int) -> int:
    data = make(folder)
    data.division = Division(rank, processes)
    return math.ceil(sum(1 for _ in data.own_windows(number)) / (BATCH * ACCUMULATION))


def train(folder: str, out: str, steps: int, resume: str | None = None) -> Watched:
    args = SeqTrainingArguments(
        output_dir=out,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATION,
        max_steps=steps,
        learning_rate=1e-2,
        eval_strategy="no",
        save_strategy="steps",
        save_steps=3,
        save_total_limit=99,
        load_best_model_at_end=False,
        use_cpu=True,
    )
    trainer = Watched(
        model=tiny_model("seq_gru"),
        args=args,
        train_dataset=make(folder),
        data_collator=CausalLMCollator(0),
        quiet=True,
    )
    trainer.seen = []
    trainer.train(resume_from_checkpoint=resume)
    return trainer


if __name__ == "__main__":
    folder, out = sys.argv[1:]
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    own = torch.tensor([steps_of_a_pass(folder, number, rank, processes) for number in (0, 1)])
    dist.all_reduce(own, dist.ReduceOp.MAX)
    steps = int(own.sum())
    trainer = train(folder, out, steps)
    resumed = train(folder, f"{out}/resumed", steps, f"{out}/checkpoint-3")
    gathered: list[Any] = [None] * processes
    dist.all_gather_object(gathered, trainer.seen)
    if rank == 0:
        last = [load_file(f"{place}/checkpoint-{steps}/model.safetensors") for place in (out, f"{out}/resumed")]
        same = all(weight.equal(last[1][name]) for name, weight in last[0].items())
        found = {"seen": gathered, "steps": own.tolist(), "resumed_bit_exactly": same}
        found |= {"digests": [t.record()["batch_order"] for t in (trainer, resumed)], **trainer.record()}
        Path(out, "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()
