"""Looking inside a trained model: where its attention goes, and how far back its gradients reach."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

Weights = list[tuple[str, torch.Tensor]]


@torch.no_grad()
def attention_weights(model: PreTrainedModel, input_ids: torch.Tensor, **inputs: torch.Tensor) -> Weights:
    """What each token looks at: a named matrix for each layer, averaged over the heads.

    Args:
        input_ids (1, T): tokens; of an encoder–decoder, the source.
        inputs: what else the model reads, as `decoder_input_ids` (1, T').

    Returns:
        (name, (T, S)) with rows that sum to at most 1; empty for models without attention weights (recurrent ones, and
        the attention patterns that never hold the whole matrix). Of an encoder–decoder the cross-attention, (T', S);
        of a classifier that pools by attention, (1, T).
    """
    before = getattr(model.config, "_attn_implementation", None)
    training = model.training
    if before not in (None, "eager"):
        model.set_attn_implementation("eager")  # the others never write the weights down
    try:
        outputs = model.eval()(input_ids=input_ids, output_attentions=True, **inputs)
    finally:
        model.train(training)
        if before not in (None, "eager"):
            model.set_attn_implementation(before)
    pooling = outputs.get("pooling_attentions")
    if pooling is not None:
        return [("pooling", pooling.float())]
    name = "cross_attentions" if model.config.is_encoder_decoder else "attentions"
    found = [weights for weights in outputs.get(name) or () if weights is not None]
    kind = "cross-attention" if model.config.is_encoder_decoder else "layer"
    return [
        (f"{kind} {number}" if len(found) > 1 or kind == "layer" else kind, _one_head(weights).float())
        for number, weights in enumerate(found, start=1)
        if weights.ndim >= 3
    ]


def _one_head(weights: torch.Tensor) -> torch.Tensor:
    """(1, H, T, S) or (1, T, S) → (T, S)."""
    return weights[0].mean(0) if weights.ndim == 4 else weights[0]


def carries_state(model: PreTrainedModel) -> bool:
    """Whether a head of ours reads tokens one by one and hands the state of a cell from step to step."""
    one_direction = getattr(model.config, "bidirectional", None) is False  # only recurrent networks have the option
    has_head = getattr(type(model), "auto_model", "AutoModel") != "AutoModel"
    reads = inspect.signature(model.forward).parameters.keys()
    return (
        one_direction
        and has_head
        and not model.config.is_encoder_decoder
        and {"input_ids", "past_key_values"} <= reads
    )


def gradient_flow(model: PreTrainedModel, input_ids: torch.Tensor) -> dict[str, list[float]]:
    """Length of the gradient of the last step's loss by each state carried so far: does the past still teach?

    The tokens are read one by one with the state carried along, so that d loss / d h_t holds every path through the
    recurrence from h_t to the end (Bengio 1994; Pascanu 2013, equation 5). The loss is −log p of the last token for a
    language model (which reads all tokens but that one), of the likeliest class for others.

    Args:
        model: one that [`carries_state`].
        input_ids (B, T): tokens without padding, T ≥ 3.

    Returns:
        "layer 1, h" → the norms (L2 over the units, mean over the rows) at distance 1 (the state that the last step
        starts from), 2, …
    """
    training = model.training
    model.eval()
    language_model = hasattr(model, "lm_head")
    read = input_ids[:, :-1] if language_model else input_ids
    cache: Any = DynamicCache(config=model.config)  # ours, since not every head's output hands one back
    tracked, logits = [], None
    with torch.enable_grad():
        for step in read.split(1, dim=1):
            logits = model(input_ids=step, past_key_values=cache, use_cache=True).logits
            tracked.append(_states(cache))
        del tracked[-1]  # what is carried out of the last step has no part in its loss
        assert logits is not None
        scores = logits[:, -1] if logits.ndim == 3 else logits
        target = input_ids[:, -1] if language_model else scores.argmax(-1)
        loss = torch.nn.functional.cross_entropy(scores.float(), target, reduction="sum")
        names = [name for name, state in tracked[0].items() if all(_same(state, step.get(name)) for step in tracked)]
        wanted = [step[name] for step in tracked for name in names]
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    model.train(training)
    lengths = [0.0 if grad is None else grad.flatten(1).norm(dim=1).mean().item() for grad in gradients]
    return {name: lengths[place :: len(names)][::-1] for place, name in enumerate(names)}


def _states(cache: Any) -> dict[str, torch.Tensor]:
    """Every floating state of a cache that gradients flow through, by layer and name."""
    return {
        f"layer {number}, {name}": state
        for number, layer in enumerate(cache.layers, start=1)
        for name, state in getattr(layer, "states", {}).items()
        if state.is_floating_point() and state.requires_grad
    }


def _same(state: torch.Tensor, other: torch.Tensor | None) -> bool:
    """A state of a fixed size; a memory of the past grows and is none."""
    return other is not None and other.shape == state.shape
