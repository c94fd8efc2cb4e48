"""Checks of frames and of which of their pixels were observed.

Shapes: B batch, T time, C channels, H height, W width.
"""

from typing import Any

import torch

from .shared_inputs import may_look_at


def check_frames(
    name: str, frames: torch.Tensor | None, config: Any, wanted: tuple[int, ...] | None = None
) -> torch.Tensor:
    """`frames` (B, T, C, H, W), after a look at their shape and type; with `wanted` at the whole shape."""
    sides = [str(side) for side in config.frame_size] or ["height", "width"]
    rule = ", ".join(map(str, wanted or ["batch", "frames", config.num_channels, *sides]))
    if frames is None:
        raise ValueError(f"this model reads frames: pass {name} ({rule})")
    shape = tuple(frames.shape)
    fits = len(shape) == 5 and shape[2] == config.num_channels and shape[3:] == (config.frame_size or shape[3:])
    if not fits or (wanted is not None and shape != wanted):
        raise ValueError(f"{name} of shape {shape} does not fit this model: pass ({rule})")
    if 0 in shape:
        raise ValueError(f"{name} of shape {shape} holds no frames: pass at least one row, frame and pixel")
    if not frames.is_floating_point():
        raise ValueError(f"{name} are {frames.dtype}: pass floating-point pixels, such as frames / 255")
    return frames


def observed_pixels(name: str, mask: torch.Tensor | None, frames: torch.Tensor) -> torch.Tensor | None:
    """(B, T, C, H, W) bool: which pixels of `frames` were observed. None: all.

    The mask has five axes, each as long as that of the frames or 1.
    """
    if mask is None:
        return None
    shape = tuple(frames.shape)
    if mask.ndim != 5 or any(side not in (1, full) for side, full in zip(mask.shape, shape, strict=True)):
        raise ValueError(
            f"{name} of shape {tuple(mask.shape)} does not fit frames of {shape}: pass that shape, any axis 1 where "
            "all its places are alike, with 1 for observed pixels and 0 for missing ones"
        )
    return mask.to(frames.device).bool().expand(shape)


def fill_missing(frames: torch.Tensor, observed: torch.Tensor | None) -> torch.Tensor:
    """0 in place of the pixels that are missing; the rest unchanged."""
    return frames if observed is None else torch.where(observed, frames, 0.0)


def check_pixels(name: str, mask: str, frames: torch.Tensor, bounded: bool = False) -> None:
    """Raise ValueError if a pixel is not finite or, with `bounded`, outside [0, 1]. Padding and missing pixels are 0
    by now; `mask` is the name of the argument that marks these."""
    if not may_look_at(frames):
        return
    wrong = ~torch.isfinite(frames)
    if wrong.any():
        row, step = (int(index) for index in wrong.nonzero()[0][:2])
        raise ValueError(
            f"{name} is {frames[wrong][0].item()} in row {row} at frame {step}: pass finite pixels, and mark missing "
            f"ones with 0 in {mask}"
        )
    low, high = (value.item() for value in torch.aminmax(frames))
    if bounded and not (low >= 0 and high <= 1):
        raise ValueError(
            f"{name} lie between {low:g} and {high:g}: loss='bce' wants pixels in [0, 1]; scale them, or use "
            "loss='mse'"
        )
