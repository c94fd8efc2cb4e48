"""A source's tensors, taken one by one under their own names, and put into a model of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel


class Tensors:
    """The tensors of a source; every error names the source's own tensor.

        tensors = Tensors(state_dict, "torch.nn.LSTM")
        weight = tensors.take("weight_ih_l0", rows, inputs)
        tensors.finish()

    Args:
        tensors: name → tensor.
        source: what they come from, for messages.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], source: str):
        self.source = source
        self._left = dict(tensors)
        self.taken = 0

    def __contains__(self, name: str) -> bool:
        return name in self._left

    @property
    def names(self) -> list[str]:
        """Names that nobody has taken yet."""
        return list(self._left)

    def shape(self, name: str, ndim: int) -> tuple[int, ...]:
        """The sizes of a tensor, from which a configuration is built.

        Raises:
            ValueError: it is missing, or does not have `ndim` axes.
        """
        if name not in self._left:
            raise ValueError(f"{self.source}: tensor '{name}' is missing")
        shape = tuple(self._left[name].shape)
        if len(shape) != ndim:
            raise ValueError(f"{self.source}: tensor '{name}' has shape {shape}, expected {ndim} axes")
        return shape

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """The tensor, in fp32 on the CPU.

        Raises:
            ValueError: it is missing, has another shape, or holds no floating-point numbers.
        """
        found = self.shape(name, len(shape))
        if found != shape:
            raise ValueError(f"{self.source}: tensor '{name}' has shape {found}, expected {shape}")
        tensor = self._left.pop(name).detach()
        if not tensor.is_floating_point():
            raise ValueError(f"{self.source}: tensor '{name}' holds {tensor.dtype}, not floating-point weights")
        self.taken += 1
        return tensor.to("cpu", torch.float32)

    def leave_out(self, *names: str) -> None:
        """Tensors that are known to carry no weights (constant masks, say); they need not be there."""
        for name in names:
            self._left.pop(name, None)

    def finish(self) -> None:
        """Raise ValueError with the name of the first tensor that nobody took."""
        if self._left:
            raise ValueError(
                f"{self.source}: tensor '{self.names[0]}' is unexpected, {len(self._left)} such in all: "
                "the imported model has no place for it"
            )


def build(model_class: type[PreTrainedModel], config: PreTrainedConfig, weights: Mapping[str, torch.Tensor]) -> Any:
    """A `model_class` in eval mode that holds `weights`, whose names are the model's own.

    Raises:
        ValueError: the first tensor that is missing, unexpected or of another shape; tied ones may be missing.
    """
    # The weights drawn here are overwritten below.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        model = model_class(config)
    own, name = model.state_dict(), model_class.__name__
    for key, tensor in own.items():
        if key not in weights and key not in model.all_tied_weights_keys:
            raise ValueError(f"{name}: nothing was imported into tensor '{key}'")
        if key in weights and weights[key].shape != tensor.shape:
            shapes = f"has shape {tuple(weights[key].shape)}, expected {tuple(tensor.shape)}"
            raise ValueError(f"{name}: what was imported into tensor '{key}' {shapes}")
    for key in weights:
        if key not in own:
            raise ValueError(f"{name} has no tensor '{key}'")
    model.load_state_dict(dict(weights), strict=False)
    return model.eval()
