"""What generating costs: speed, and the bytes of state a model carries."""

from __future__ import annotations

import time
from typing import Any

import torch
from transformers import PreTrainedModel


def cache_tensors(cache: Any) -> list[torch.Tensor]:
    """Every tensor that a transformers cache holds: keys, values and recurrent states."""
    tensors = []
    for layer in cache.layers:
        tensors += [value for value in vars(layer).values() if isinstance(value, torch.Tensor)]
        tensors += getattr(layer, "states", {}).values()
    return tensors


@torch.no_grad()
def state_bytes(model: PreTrainedModel, context: int) -> int:
    """Bytes of the cache after reading `context` tokens of one sequence: what must be kept to go on."""
    tokens = torch.arange(context, device=model.device)[None] % model.config.vocab_size
    cache = model(tokens, use_cache=True, logits_to_keep=1).past_key_values
    return sum(tensor.numel() * tensor.element_size() for tensor in cache_tensors(cache))


@torch.no_grad()
def generation_speed(model: PreTrainedModel, prompt: torch.Tensor, new_tokens: int = 200, repeats: int = 3) -> float:
    """Tokens per second of greedy `generate()` with its cache, one sequence, after a warm-up; best of `repeats`.

    Args:
        prompt (1, T): token ids.
    """
    options: dict[str, Any] = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt)}
    generate: Any = model.generate
    generate(prompt, max_new_tokens=8, **options)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        generate(prompt, max_new_tokens=new_tokens, min_new_tokens=new_tokens, **options)
        seconds.append(time.perf_counter() - start)
    return new_tokens / min(seconds)
