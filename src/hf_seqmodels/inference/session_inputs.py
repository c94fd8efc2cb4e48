"""What a stream is fed: from numbers, lists, arrays or tensors to what the model's forward takes, checked."""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import PreTrainedModel

KINDS = {
    "input_ids": "token",
    "input_features": "frame",
    "past_values": "value",
    "pixel_values": "picture",
}


class InputRule:
    """How the pieces of one model look.

    Attributes:
        name: the argument of the model's forward.
        item_shape: of one step of one stream: () for a token, (F,) for a frame, (V,) for values, (C, H, W); −1 where
            the first piece decides.
    """

    def __init__(self, model: PreTrainedModel, name: str, item_shape: tuple[int, ...]):
        self.model, self.name, self.item_shape = model, name, item_shape
        self.num_time_features = getattr(model.config, "num_time_features", 0) if name == "past_values" else 0

    def read(
        self, given: Any, batch: int, observed: Any = None, time_features: Any = None
    ) -> tuple[dict[str, Any], int]:
        """The arguments of forward and the number of steps T.

        Raises:
            ValueError: what does not fit, by name.
        """
        piece = self._shape(self.name, self._numbers(given), batch, self.item_shape)
        if self.name != "past_values":
            for name, value in (("observed", observed), ("time_features", time_features)):
                if value is not None:
                    raise ValueError(f"{name} is for models with a time-series head: leave it out")
        if self.name == "input_ids":
            self._check_tokens(piece)
            arguments: dict[str, Any] = {self.name: piece.long()}
        elif self.name == "past_values":
            arguments = self._read_series(piece, batch, observed, time_features)
        else:
            check_finite(self.name, piece)
            arguments = {self.name: piece.to(self.model.dtype)}
        if -1 in self.item_shape:
            self.item_shape = tuple(piece.shape[2:])
        device = self.model.device
        moved = {name: None if value is None else value.to(device) for name, value in arguments.items()}
        return moved, piece.shape[1]

    def adopt(self, item_shape: list[int], tensors: dict[str, torch.Tensor]) -> None:
        """Take over the sizes of a saved session, which decide how large a picture is; others are the model's."""
        sizes = {size for tensor in tensors.values() for size in tensor.shape}
        fits = len(item_shape) == len(self.item_shape) and all(
            given == own or (own == -1 and (given == -1 or given in sizes))
            for given, own in zip(item_shape, self.item_shape, strict=False)
        )
        if not fits:
            raise ValueError(f"the session reads steps of shape {tuple(item_shape)} and the model {self.item_shape}")
        self.item_shape = tuple(item_shape)

    def zeros(self, batch: int, length: int) -> dict[str, Any]:
        """Arguments of forward that stand for nothing."""
        dtype = torch.long if self.name == "input_ids" else self.model.dtype
        return self.read(
            torch.zeros(batch, length, *self.item_shape, dtype=dtype),
            batch,
            None,
            torch.zeros(batch, length, self.num_time_features) if self.num_time_features else None,
        )[0]

    def _numbers(self, given: Any) -> torch.Tensor:
        """A tensor of the kind that the model reads."""
        whole = self.name == "input_ids"
        if isinstance(given, str | bytes):
            raise ValueError(f"{given[:40]!r} is text and this model reads {KINDS[self.name]}s: feed numbers")
        try:
            typed = isinstance(given, torch.Tensor) or hasattr(given, "dtype")
            tensor = torch.as_tensor(given) if typed or whole else torch.as_tensor(given, dtype=self.model.dtype)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"a {type(given).__name__} of {KINDS[self.name]}s that is no regular array of numbers ({error}): "
                "feed a tensor, or lists of equal lengths"
            ) from None
        integral = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
        if tensor.numel() == 0:
            raise ValueError(f"an input of shape {tuple(tensor.shape)} holds no {KINDS[self.name]}: feed at least one")
        if whole and not integral:
            raise ValueError(f"tokens of {tensor.dtype} are no token ids: feed whole numbers (torch.long)")
        if not whole and not tensor.is_floating_point():
            raise ValueError(f"{KINDS[self.name]}s of {tensor.dtype} are no real numbers: feed torch.float32")
        return tensor

    def _shape(self, name: str, tensor: torch.Tensor, batch: int, item: tuple[int, ...]) -> torch.Tensor:
        """(B, T, *item) from a tensor that may lack B and T."""
        given, leading = tuple(tensor.shape), tensor.ndim - len(item)
        if leading == 0 and batch == 1:
            tensor = tensor[None, None]
        elif leading == 1:
            tensor = tensor[None] if batch == 1 else tensor[:, None]
        fits = tensor.ndim == len(item) + 2 and tensor.shape[0] == batch
        fits = fits and all(want in (-1, size) for size, want in zip(tensor.shape[2:], item, strict=True))
        if not fits:
            sizes = "".join(f", {'any' if size == -1 else size}" for size in item)
            raise ValueError(
                f"{name} of shape {given} does not fit {batch} stream{'s' * (batch > 1)} of this model: "
                f"feed ({batch}, steps{sizes})"
            )
        return tensor

    def _check_tokens(self, tokens: torch.Tensor) -> None:
        size = self.model.config.vocab_size
        low, high = (int(value) for value in torch.aminmax(tokens))
        if low < 0 or high >= size:
            raise ValueError(
                f"token id {low if low < 0 else high} is outside the vocabulary of {size} (ids 0 to {size - 1}): use "
                "this model's tokenizer"
            )

    def _read_series(self, values: torch.Tensor, batch: int, observed: Any, time_features: Any) -> dict[str, Any]:
        mask, features = None, None
        if observed is None:
            check_finite(self.name, values, "; mark a missing value with observed=0")
        else:
            mask = self._shape("observed", torch.as_tensor(observed), batch, self.item_shape).bool()
            if mask.shape != values.shape:
                raise ValueError(f"observed has shape {tuple(mask.shape)} and the values {tuple(values.shape)}")
            check_finite(self.name, values.masked_fill(~mask.to(values.device), 0.0))
        if time_features is not None:
            given = torch.as_tensor(time_features, dtype=values.dtype)
            features = self._shape("time_features", given, batch, (self.num_time_features,))
        return {"past_values": values, "past_observed_mask": mask, "past_time_features": features}


def check_finite(name: str, values: torch.Tensor, way_out: str = "") -> None:
    """Raise ValueError for the first number of (B, T, …) that is NaN or infinite: the state would keep it forever."""
    wrong = ~torch.isfinite(values)
    if wrong.any():
        row, step = (int(index) for index in wrong.nonzero()[0][:2])
        number = (
            values[row, step][wrong[row, step]].flatten()[0].item() if values.ndim > 2 else values[row, step].item()
        )
        shown = "nan" if math.isnan(number) else f"{number:g}"
        raise ValueError(f"{name} is {shown} in stream {row} at step {step}: feed finite numbers{way_out}")


def input_rule(model: PreTrainedModel) -> InputRule:
    """What the pieces of a model look like, by its main input."""
    config: Any = model.config
    name = model.main_input_name
    if name == "pixel_values":
        size = getattr(config, "image_size", None)
        height, width = (-1, -1) if size is None else (size, size) if isinstance(size, int) else tuple(size)
        return InputRule(model, name, (config.num_channels, height, width))
    if name == "past_values":
        return InputRule(model, name, (config.num_variates,))
    if name == "input_features":
        return InputRule(model, name, (config.num_features,))
    return InputRule(model, "input_ids", ())
