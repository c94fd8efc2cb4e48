"""Streams: a model that reads tokens or frames as they come, and can be put away and gone on with, to the bit."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from ..evaluation.generation import cache_tensors
from .session_file import SessionFileError, flatten, read_session, unflatten, write_session
from .session_inputs import InputRule, input_rule

NEXT = "next_logits"  # the scores of the next token: they come from the state and are kept for `stream` alone


class StreamingSession:
    """Feeds a model piece by piece: single tokens or frames, or as many at once as there are.

        session = StreamingSession(model)
        logits = session.feed(tokenizer("to be").input_ids)   # (1, T, V)
        session.save("stream.safetensors")                    # later, in another process:
        session = StreamingSession.restore(model, "stream.safetensors")
        for token in session.stream(20): ...

    **Memory.** The session keeps what the model needs to go on, `state_bytes` of it, and nothing of what it has read.
    For RNN, LSTM, GRU, ConvLSTM, an attention-RNN with a `window` and a Transformer with a sliding window that is
    constant (the last two grow until the window is full). The past of an attention-RNN without a window, and the keys
    and values of a Transformer with full or LSH attention, grow with every token: `max_tokens` bounds them. A table
    of learned positions ends the stream; rotary ones do not.

    **Exactness.** Pieces give what the whole gives, to rounding, however it is cut (LSH attention: where no bucket
    overflows). A restored session goes on bit for bit as it would have gone on, on the same machine and versions. A
    model that was built there and loaded from its files here has its weights elsewhere in memory, where MKL rounds
    differently on some processors; `MKL_CBWR=AUTO` in the environment of both makes these bits equal too.

    **What is fed** depends on the model: tokens (B, T) of whole numbers; frames (B, T, F) for `num_features`; values
    (B, T, V) for a time-series head; pictures (B, T, C, H, W) for a ConvLSTM. B and T may be left out where they are
    1: a single token or frame, T of them for one stream, or one each for B streams. All streams of a session advance
    together.

    Args:
        model: one that reads from left to right, in evaluation mode; its weights are not copied. Any head of ours that
            answers step by step (causal LM, CTC, token classification, time series), answers for what it has read so
            far (sequence and audio classification), the backbone, or a causal language model of transformers.
        batch_size: streams B that are read side by side.
        max_tokens: steps after which `feed` refuses more; None: no limit.

    Raises:
        ValueError: a model that must see its whole input first (bidirectional, an encoder, an encoder–decoder, …), or
            a size below 1.
    """

    def __init__(self, model: PreTrainedModel, batch_size: int = 1, max_tokens: int | None = None):
        for name, size in (("batch_size", batch_size), ("max_tokens", max_tokens)):
            if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
                raise ValueError(f"{name}={size!r} streams nothing: pass a whole number of at least 1")
        obstacle = find_obstacle(model)
        if obstacle is not None:
            raise ValueError(f"{type(model).__name__} cannot read a stream: {obstacle}")
        self.model, self.batch_size, self.max_tokens = model, batch_size, max_tokens
        self.reset()

    def reset(self) -> None:
        """Forget everything that was read."""
        self._rule: InputRule = input_rule(self.model)
        self._cache: Any = DynamicCache(config=self.model.config)
        self._carried: dict[str, torch.Tensor] = {}
        self._position = 0

    @property
    def position(self) -> int:
        """Steps that each stream has read."""
        return self._position

    @property
    def state_bytes(self) -> int:
        """Bytes of what must be kept to go on; without the scores of the next token, which come from it."""
        kept = [tensor for name, tensor in self._carried.items() if name != NEXT]
        return sum(tensor.numel() * tensor.element_size() for tensor in [*cache_tensors(self._cache), *kept])

    # -- reading ------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def feed(self, inputs: Any, *, observed: Any = None, time_features: Any = None) -> Any:
        """Read the next T steps of every stream.

        Args:
            inputs: tokens, frames, values or pictures: a tensor, an array, lists or a number.
            observed: for a time-series head, 1 or 0 for each value; a missing one may be NaN. None: all are there.
            time_features: for a time-series head with `num_time_features`, those of each step.

        Returns:
            Logits (B, T, V) or (B, T, num_labels) of each step; (B, num_labels) for a label of all that was read;
            the backbone's hidden states; (B, T', …) frames that a ConvLSTM predicts next. Of a time-series head
            (params, loc, scale): `model.output_distribution(*session.feed(values))` is what was expected at each of
            the steps before its value was seen. With `scaling` the first piece sets the scale, as the past does.

        Raises:
            ValueError: a token that is none, a width, type or number of streams that does not fit, numbers that are
                not finite, more than `max_tokens`, or a model in training mode. The session is as it was before.
        """
        if self.model.training:
            raise ValueError("the model is in training mode, where dropout is drawn anew: call model.eval()")
        item_shape = self._rule.item_shape
        arguments, length = self._rule.read(inputs, self.batch_size, observed, time_features)
        if self.max_tokens is not None and self._position + length > self.max_tokens:
            raise ValueError(
                f"{self._position} steps were read and {length} more are beyond max_tokens={self.max_tokens}: "
                "reset() starts a new stream"
            )
        before = [dict(vars(layer)) for layer in self._cache.layers], dict(self._carried)
        try:
            answer = self._run(arguments, length)
        except BaseException:
            for layer, values in zip(self._cache.layers, before[0], strict=True):
                vars(layer).clear()
                vars(layer).update(values)
            self._carried, self._rule.item_shape = before[1], item_shape
            raise
        self._position += length
        return answer

    def _run(self, arguments: dict[str, Any], length: int) -> Any:
        """The model over one piece; updates the cache and what is carried beside it."""
        kind, model = getattr(self.model, "auto_model", ""), self.model
        state = {"past_key_values": self._cache, "use_cache": True, "return_dict": True}
        if kind == "AutoModelForAudioClassification":
            return self._label_so_far(model.base_model(**arguments, **state).last_hidden_state, length)
        if "past_values" in arguments:
            outputs = model(**arguments, **state, **self._carried, return_loss=False)
            last = arguments["past_values"][:, -1].clone()
            if arguments["past_observed_mask"] is not None:
                last = last.masked_fill(~arguments["past_observed_mask"][:, -1], float("nan"))
            self._carried = {"previous_values": last, "loc": outputs.loc, "scale": outputs.scale}
            return outputs.params, outputs.loc, outputs.scale
        outputs = model(**arguments, **state)
        for name in ("prediction_outputs", "logits", "last_hidden_state"):
            if name in outputs:
                if name == "logits" and model.can_generate():
                    self._carried = {NEXT: outputs.logits[:, -1].clone()}  # not a view, which would keep all steps
                return outputs[name]
        raise ValueError(f"{type(model).__name__} returned neither logits nor hidden states: {list(outputs)}")

    def _label_so_far(self, hidden_states: torch.Tensor, length: int) -> torch.Tensor:
        """The head over the mean of all frames so far, of which the sum is carried."""
        total = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32)).sum(1)
        if "total" in self._carried:
            total = total + self._carried["total"]
        self._carried = {"total": total}
        head: Any = self.model
        return head.score((total / (self._position + length)).to(hidden_states.dtype))

    # -- writing ------------------------------------------------------------------------------------------------------
    def stream(
        self, num_tokens: int, temperature: float = 0.0, generator: torch.Generator | None = None
    ) -> Iterator[torch.Tensor]:
        """Go on with the text: yields `num_tokens` times the next token (B,), which the session has then read.

        Args:
            temperature: 0 takes the most likely token; above, tokens are drawn from softmax(logits / temperature).
            generator: of the draws; None: torch's.

        Raises:
            ValueError: the model is no language model, nothing was fed yet, or a negative temperature.
        """
        if not self.model.can_generate():
            raise ValueError(
                f"{type(self.model).__name__} is no language model: feed() says what it makes of a stream"
            )
        if NEXT not in self._carried:
            raise ValueError("nothing was read yet: feed() a prompt, of one token at least")
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature={temperature} draws nothing: pass 0 for the most likely token, or more")
        if num_tokens < 0:
            raise ValueError(f"num_tokens={num_tokens}: pass 0 or more")
        return self._write(num_tokens, temperature, generator)

    def _write(self, num_tokens: int, temperature: float, generator: torch.Generator | None) -> Iterator[torch.Tensor]:
        for _ in range(num_tokens):
            scores = self._carried[NEXT]
            if temperature:
                weights = torch.softmax(scores.float() / temperature, dim=-1)
                tokens = torch.multinomial(weights, 1, generator=generator)[:, 0]
            else:
                tokens = scores.argmax(-1)
            self.feed(tokens[:, None])
            yield tokens

    def generate(
        self, num_tokens: int, temperature: float = 0.0, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """The tokens (B, num_tokens) that [`stream`] yields, together."""
        tokens = list(self.stream(num_tokens, temperature, generator))
        empty = torch.empty(self.batch_size, 0, dtype=torch.long, device=self.model.device)
        return torch.stack(tokens, dim=1) if tokens else empty

    # -- saving -------------------------------------------------------------------------------------------------------
    def save(self, path: str | Path) -> Path:
        """Write the state, not the weights, into one safetensors file, whole or not at all.

        Raises:
            SessionFileError: a name that does not end in `.safetensors`, a folder that is not there, or a file in
                the way that holds something else (weights, say).
        """
        facts = {
            "batch_size": self.batch_size,
            "max_tokens": self.max_tokens,
            "position": self._position,
            "item_shape": list(self._rule.item_shape),
        }
        return write_session(Path(path), self.model, self._cache, self._carried, facts)

    @classmethod
    def restore(cls, model: PreTrainedModel, path: str | Path) -> StreamingSession:
        """The session that `save` wrote, for the model it was made with.

        Raises:
            SessionFileError: no such file, one that is damaged or holds no session, or a session of another model
                (its type, its configuration or a weight differs).
        """
        try:
            tensors, layers, facts = read_session(Path(path), model)
            session = cls(model, facts["batch_size"], facts["max_tokens"])
            session._rule.adopt(facts["item_shape"], tensors)
            check_state(path, tensors, session, facts["position"])
            session._carried = unflatten(session._cache, tensors, layers, model.device)
            session._position = facts["position"]
            if session._cache.get_seq_length() != session._position:
                raise SessionFileError(f"{path}: its state has not read the {session._position} steps that it says")
        except (KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise SessionFileError(f"{path}: its description of the session is damaged ({error!r})") from error
        return session

    def _probe(self, length: int) -> dict[str, torch.Tensor]:
        """The tensors of a session like this one after `length` steps of zeros: which there are, and how large."""
        probe = StreamingSession(self.model, self.batch_size)
        probe._rule.item_shape = self._rule.item_shape
        if length:
            with torch.no_grad():
                probe._run(self._rule.zeros(self.batch_size, length), length)
        return flatten(probe._cache, probe._carried)[0]


def check_state(path: Any, found: dict[str, torch.Tensor], session: StreamingSession, position: int) -> None:
    """Raise SessionFileError unless the tensors are the state of this model: kernels read past the end of another.

    Only an axis that grows with time, by which the states after one and two steps differ, may have any size.
    """
    rows = {tensor.shape[0] for tensor in found.values() if tensor.ndim > 1}
    if not isinstance(position, int) or position < 0 or rows - {session.batch_size} or (position > 0 and not rows):
        raise SessionFileError(
            f"{path} does not hold the state of {session.batch_size} streams after {position} steps: its tensors have "
            f"{sorted(rows)} rows"
        )
    one, two = (session._probe(length if position else 0) for length in (1, 2))
    if found.keys() != one.keys():
        name = sorted(found.keys() ^ one.keys())[0]
        raise SessionFileError(f"{path} does not hold the state of this model: '{name}' is lacking or too much")
    for name, tensor in found.items():
        like, grown = one[name], two[name]
        fits = tensor.dtype == like.dtype and tensor.ndim == like.ndim
        if not fits or any(a == b != size for size, a, b in zip(tensor.shape, like.shape, grown.shape, strict=True)):
            raise SessionFileError(
                f"{path} does not hold the state of this model: '{name}' is {tuple(tensor.shape)} of {tensor.dtype}, "
                f"and the model's {tuple(like.shape)} of {like.dtype}"
            )


def find_obstacle(model: PreTrainedModel) -> str | None:
    """Why a model cannot read step by step, in a line; None if it can."""
    config: Any = model.config
    backbone: Any = model.base_model
    if config.is_encoder_decoder:
        return "an encoder–decoder reads its whole source before it writes; call model.generate(source)"
    if getattr(config, "bidirectional", False):
        return "bidirectional=True reads every text from its end, too; use bidirectional=False"
    if getattr(config, "encoder", None) is not None:
        return "the encoder under it sees the whole text; take a model that reads tokens itself"
    if getattr(backbone, "is_causal", True) is False or getattr(config, "is_decoder", True) is False:
        return "each of its tokens sees the whole text; take a recurrent model or a decoder"
    if "past_key_values" not in inspect.signature(backbone.forward).parameters:
        return "its forward takes no past_key_values, in which a state could be carried"
    if getattr(config, "crf", False) and hasattr(model, "crf"):
        return "a CRF scores the labels of a whole row together; use crf=False"
    if hasattr(model, "pooling"):
        return "its head weighs all tokens of a text against one another; take another head or architecture"
    if hasattr(model, "qa_outputs"):
        return "an answer is looked for in the whole text; take another head"
    if not hasattr(model, "auto_model") and not model.can_generate():
        return "of other people's models only causal language models are known to answer step by step"
    return None
