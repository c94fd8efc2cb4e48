"""`ragged_training` under Accelerate's FSDP2 on processes without a GPU.

torchrun --nproc_per_node 2 fsdp_training.py FOLDER ARCHITECTURE

Accelerate shards on accelerators alone; everything behind that one question is its own and the Trainer's code, and
works over gloo. So the question is answered here, as it would be on GPUs.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from ragged_training import train

FSDP2 = Path(__file__).parents[2] / "configs" / "accelerate" / "fsdp2.yaml"
ON_ANY_DEVICE = AcceleratorState.__init__


def read_settings() -> dict[str, str]:
    """What `accelerate launch --config_file configs/accelerate/fsdp2.yaml` tells the processes that it starts."""
    settings = yaml.safe_load(FSDP2.read_text())["fsdp_config"]
    words = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in settings.items()}
    return {"ACCELERATE_USE_FSDP": "true"} | {name.upper(): word for name, word in words.items()}


def on_gpus(self: AcceleratorState, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
    ON_ANY_DEVICE(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin


if __name__ == "__main__":
    os.environ.update(read_settings())
    AcceleratorState.__init__ = on_gpus  # type: ignore[method-assign]
    folder, model_type = sys.argv[1:]
    options: dict[str, Any] = {"save_strategy": "epoch", "eval_strategy": "epoch", "save_total_limit": 5}
    found = [train(model_type, 4, 1, 21, folder, **options)]
    checkpoint = str(Path(folder, "checkpoint-3"))
    found.append(train(model_type, 4, 1, 21, f"{folder}/resumed", **options, resume_from_checkpoint=checkpoint))
    if torch.distributed.get_rank() == 0:
        Path(folder, "record.json").write_text(json.dumps(found))
    gc.collect()  # as in sharded_training.py
    torch.distributed.destroy_process_group()
