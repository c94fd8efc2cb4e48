"""Carried state: a window of a stream starts from the state in which its row ended the window before it.

The state is a number to the gradient (truncated back-propagation through time: Williams & Peng 1990; Mikolov 2010),
is never kept on the model, and is part of a checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch.utils.data import Sampler
from transformers import DynamicCache, PreTrainedModel

from ..arguments import ConfigError
from ..data import StreamDataset
from ..models.shared_recurrent_model import RecurrentPreTrainedModel

NAME = "carried_state-{rank}.safetensors"


class StreamSampler(Sampler[tuple[int, int]]):
    """All windows of an epoch in their order, as (epoch, number): the windows may differ from epoch to epoch.

    Args:
        size: windows of all rows.
        epoch: returns the current epoch, as for `BatchSampler`.
    """

    def __init__(self, size: int, epoch: Any):
        self.size, self.epoch = size, epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch()
        yield from ((epoch, number) for number in range(self.size))


def check_rows(dataset: StreamDataset, batch: int) -> None:
    """Raise ValueError unless a step of `batch` windows is one window of every row."""
    if dataset.rows != batch:
        raise ValueError(
            f"the streams have {dataset.rows} rows and a step reads {batch}: make StreamDataset with rows={batch}, "
            "which is batch size · accumulation steps · processes"
        )


class CarriedState:
    """The states of one process's rows between their windows: one cache for each micro-batch of a step.

    Args:
        model: whose caches are carried.

    Raises:
        ConfigError: the model has no recurrent state, or one that grows with all it has read.
    """

    def __init__(self, model: PreTrainedModel):
        self.config = model.config
        self.caches: dict[int, Any] = {}  # of DynamicCaches, whose layers are [`RecurrentCacheLayer`]s
        if not isinstance(model, RecurrentPreTrainedModel):
            raise ConfigError(
                f"carry_state needs the recurrent state of our models, which {type(model).__name__} does not have; "
                "leave carry_state out: its windows are then read each on its own"
            )
        if getattr(self.config, "window", 0) is None:
            raise ConfigError("carry_state with window=None would remember every token of an epoch; set --window 50")

    def attach(self, inputs: dict[str, Any], slot: int) -> dict[str, Any]:
        """The inputs of a micro-batch with the state that its rows carry; `starts` (B,) is taken out of them.

        Args:
            slot: number of the micro-batch within its step; its rows are the same in every step.
        """
        starts = inputs["starts"]
        if bool(starts.all()):
            self.caches[slot] = DynamicCache(config=self.config)
        elif slot not in self.caches:
            raise ConfigError("a window goes on from a state that is not there: resume from a checkpoint that has it")
        elif bool(starts.any()):
            for layer in self.caches[slot].layers:
                _begin_anew(layer, starts)
        rest = {name: value for name, value in inputs.items() if name != "starts"}
        return rest | {"past_key_values": self.caches[slot], "use_cache": True}

    def detach(self) -> None:
        """Cut the graph: what comes sends no gradient into what was read."""
        for cache in self.caches.values():
            for layer in cache.layers:
                layer.detach()

    def reset(self) -> None:
        """Forget all states: the rows begin anew."""
        self.caches = {}

    def save(self, folder: Path, rank: int) -> None:
        """Write the states of this process beside a checkpoint."""
        tensors, tokens = {}, {}
        for slot, cache in self.caches.items():
            for number, layer in enumerate(cache.layers):
                tokens[f"{slot}.{number}"] = layer.num_tokens
                for name, state in layer.states.items():
                    tensors[f"{slot}.{number}.{name}"] = state.detach().cpu().contiguous()
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / NAME.format(rank=rank), metadata={"tokens": json.dumps(tokens)})

    def load(self, folder: Path, rank: int, processes: int, micro_batches: int, rows: int) -> None:
        """Go on from what `save` wrote, as the same of as many processes.

        Args:
            folder: the checkpoint.
            rank, processes: this process of so many.
            micro_batches: of a step of this process.
            rows: of a micro-batch.

        Raises:
            ConfigError: the checkpoint is of another number of processes, or of other rows or micro-batches; has no
                states; or its file is damaged.
        """
        found = len(list(folder.glob(NAME.format(rank="*"))))
        if found != processes:
            raise ConfigError(
                f"'{folder}' carries the states of {found} processes and this run has {processes}, each with rows of "
                "its own: resume as it was started, or start anew with --overwrite"
            )
        file = folder / NAME.format(rank=rank)
        try:
            with safe_open(file, framework="pt") as stored:
                tokens = json.loads(stored.metadata()["tokens"])
            # Copied to where torch puts tensors: kernels round differently on memory that is not aligned as they like.
            tensors = {name: state.clone() for name, state in load_file(file).items()}
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file} is damaged ({type(error).__name__}): resume from another checkpoint") from None
        self.reset()
        for place, count in tokens.items():
            slot, number = map(int, place.split("."))
            cache = self.caches.setdefault(slot, DynamicCache(config=self.config))
            states = {name.rpartition(".")[2]: t for name, t in tensors.items() if name.rpartition(".")[0] == place}
            cache.layers[number].write_states(states, count)
        held = {name.partition(".")[0]: len(state) for name, state in tensors.items()}
        if held != {str(slot): rows for slot in range(micro_batches)}:
            raise ConfigError(
                f"'{folder}' carries the states of {'+'.join(map(str, held.values()))} rows in {len(held)} "
                f"micro-batches and this run has {micro_batches} of {rows}: resume with the batch size and "
                "accumulation steps that it was started with, or start anew with --overwrite"
            )


def _begin_anew(layer: Any, starts: torch.Tensor) -> None:
    """Zero the states of the rows where `starts`; places of remembered tokens (whole numbers) become −1, nowhere."""
    for name, state in layer.states.items():
        rows = starts.to(state.device).view(-1, *[1] * (state.ndim - 1))
        layer.states[name] = torch.where(rows, state.new_tensor(0 if state.is_floating_point() else -1), state)
