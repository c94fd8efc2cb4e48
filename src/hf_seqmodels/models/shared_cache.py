"""Recurrent state as a layer of the transformers cache.

`DynamicCache(config=...)` and `StaticCache(config=...)` build one `RecurrentCacheLayer` per layer of a recurrent model
(the configuration's `layer_types` says so), and `generate()`, beams, pipelines and carried-state training then move
the state as they move keys and values.

The class is found by its name "seq_recurrent", and the last definition in a process wins (the package and exported
copies of it may be loaded together): never `isinstance` a cache layer.
"""

from typing import Any

import torch
from transformers.cache_utils import STATIC_LAYER_TYPE_MAPPING, DynamicLayer


class RecurrentCacheLayer(DynamicLayer):
    """Named states of one layer, each (B, ...), batch first, and the number of tokens they stand for.

    A state has the same size however long the text is. The past that an attention-RNN attends to is the
    exception: `values`, `keys` and `positions` have a time axis and grow, up to the window if there is one.
    """

    _layer_type = "seq_recurrent"
    is_compileable = False
    is_croppable = False  # a state cannot be taken back
    supports_early_init = False

    def __init__(self, **kwargs):
        super().__init__()
        self.states: dict[str, torch.Tensor] = {}
        self.num_tokens = 0
        self.is_initialized = True  # there is nothing to allocate before the first state arrives

    def read_states(self, dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor]:
        """The states, floating ones cast to `dtype` (autocast leaves bf16 behind); empty before the first token."""
        self.states = {
            name: state.to(device, dtype if state.is_floating_point() else state.dtype)
            for name, state in self.states.items()
        }
        return self.states

    def write_states(self, states: dict[str, torch.Tensor], num_new_tokens: int) -> None:
        """Replace the states (kept differentiable; truncated BPTT detaches them) and count the tokens read."""
        self.states = states
        self.num_tokens += num_new_tokens

    def get_seq_length(self) -> int:
        return self.num_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.num_tokens + query_length, 0

    def _replace(self, change) -> None:
        self.states = {name: change(state) for name, state in self.states.items()}

    def detach(self) -> None:
        """Cut the graph between what was read and what comes (truncated back-propagation through time)."""
        self._replace(torch.Tensor.detach)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self._replace(lambda state: state.index_select(0, beam_idx.to(state.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._replace(lambda state: state.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._replace(lambda state: state[indices])

    def offload(self) -> None:
        self._replace(lambda state: state.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Nothing to do: `read_states` moves the states to the device of the input."""

    def reset(self) -> None:
        self.states, self.num_tokens = {}, 0

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove != 0:
            raise ValueError(
                f"a recurrent state cannot forget its last {abs(tokens_to_remove)} tokens: "
                "run the model again on the shorter text"
            )


def check_holds_states(cache: Any, num_layers: int) -> None:
    """Raise ValueError unless a cache has a [`RecurrentCacheLayer`] for each of `num_layers` layers."""
    if sum(hasattr(layer, "read_states") for layer in cache.layers) < num_layers:
        kind = type(cache).__name__
        raise ValueError(f"this {kind} cannot hold recurrent state: build it with {kind}(config=model.config)")


STATIC_LAYER_TYPE_MAPPING[RecurrentCacheLayer._layer_type] = RecurrentCacheLayer
