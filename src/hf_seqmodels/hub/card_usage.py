"""The usage snippet of a card: Python that loads the model from its folder and uses its head, ready to run."""

from __future__ import annotations

from typing import Any

import transformers

from ..models import ARCHITECTURES, HEADS
from .card_text import literal, one_line

# Head → the Hub's name of what it does. `text2text-generation` stands for encoder–decoders in transformers' own cards.
PIPELINE_TAGS = {
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
    "seq2seq-lm": "text2text-generation",
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
    "question-answering": "question-answering",
    "ctc": "automatic-speech-recognition",
    "audio-classification": "audio-classification",
    "time-series-prediction": "time-series-forecasting",
    "backbone": "feature-extraction",
}
_PIPELINES = {
    "causal-lm": 'generate = pipeline("text-generation", model=model, tokenizer=tokenizer)\n'
    'print(generate({prompt}, max_new_tokens={new})[0]["generated_text"])',
    "masked-lm": 'fill = pipeline("fill-mask", model=model, tokenizer=tokenizer)\nprint(fill({prompt}, top_k=2))',
    "sequence-classification": 'classify = pipeline("text-classification", model=model, tokenizer=tokenizer)\n'
    "print(classify({prompt}))",
    "token-classification": 'tag = pipeline("token-classification", model=model, tokenizer=tokenizer)\n'
    'print([(found["word"], found["entity"]) for found in tag({prompt}, ignore_labels=[])])',
}
_SEQ2SEQ = """\
inputs = tokenizer({prompt}, return_tensors="pt")
tokens = model.generate(**inputs, max_new_tokens={new})
print(tokenizer.decode(tokens[0], skip_special_tokens=True))"""
_QUESTION = """\
inputs = tokenizer("Which one?", {prompt}, return_tensors="pt")
outputs = model(**inputs)
first, last = outputs.start_logits.argmax().item(), outputs.end_logits.argmax().item()
print(tokenizer.decode(inputs.input_ids[0, first : last + 1]))"""
_TOKENS = """\
outputs = model(input_ids=torch.tensor([[1, 2, 3]]){more})
print({{name: tuple(value.shape) for name, value in outputs.items() if hasattr(value, "shape")}})"""
_FEATURES = {
    "ctc": "print(model(input_features=features).logits.argmax(-1))  # (1, frames): token ids, blanks between them",
    "audio-classification": "scores = model(input_features=features).logits.softmax(-1)[0]\n"
    "print({label: round(scores[number].item(), 3) for number, label in model.config.id2label.items()})",
}


NEW_TOKENS = 80  # that a snippet asks for


def places(config: Any) -> int | None:
    """How many positions a model of ours can read, and one of transformers was made for; None: any number."""
    if getattr(config, "model_type", None) in ARCHITECTURES and getattr(config, "positions", None) != "learned":
        return None
    found = getattr(config, "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def fit(prompt: str, room: int | None, shared: bool) -> tuple[str, int]:
    """A prompt that fits, and how many tokens may follow it.

    Args:
        prompt: any text. It has at most as many tokens as bytes, besides one at its begin and one at its end.
        room: positions of the model; None: any number.
        shared: what is written stands behind the prompt, and not in a decoder of its own.
    """
    if room is None:
        return prompt, NEW_TOKENS

    def size(text: str) -> int:
        return len(text.encode("utf-8", errors="replace")) + 2

    if size(prompt) > room - shared:
        most = room // 2 if shared else room
        prompt = prompt[: max(1, most)]
        while len(prompt) > 1 and size(prompt) > most:
            prompt = prompt[:-1]
    left = room - size(prompt) if shared else room - 1  # a decoder of its own begins with a token
    return prompt, max(1, min(NEW_TOKENS, left))


def auto_name(head: str) -> str:
    """The Auto class of transformers that a head is loaded with."""
    return HEADS[head]


def head_of(model: Any) -> str:
    """Which head (a key of `HEADS`) a model has; `backbone` where none is found."""
    cls = type(model)
    for head, auto in HEADS.items():
        if getattr(cls, "auto_model", None) == auto:  # ours, also when loaded as remote code
            return head
    for head, auto in HEADS.items():
        mapping = getattr(transformers, auto)._model_mapping
        found = mapping.get(type(model.config), ())
        classes = found if isinstance(found, tuple | list) else [found]
        if cls.__name__ in [entry.__name__ for entry in classes]:
            return head
    return "backbone"


def usage(
    head: str,
    model_type: str,
    config: Any,
    prompt: str | None,
    *,
    has_code: bool,
    has_tokenizer: bool = True,
    folder: str = ".",
) -> str:
    """The snippet, without a fence around it.

    Args:
        head: a key of `HEADS`.
        model_type: the architecture.
        config: the model's; None where only a record is known.
        prompt: text to start from; None takes words that mean nothing.
        has_code: the folder holds modelling files, which `trust_remote_code=True` runs.
        has_tokenizer: the folder holds a tokenizer.
        folder: where the model is.
    """
    ours = model_type in ARCHITECTURES
    code = has_code and (ours or bool(getattr(config, "auto_map", None)))
    trust = ", trust_remote_code=True" if code else ""
    body, imports = _body(head, config, prompt, ours, has_tokenizer)
    names = [auto_name(head), *(["AutoTokenizer"] if "tokenizer" in body else [])]
    names += ["pipeline"] if "pipeline(" in body else []
    lines = [*imports, f"from transformers import {', '.join(names)}"]
    where = "this folder, or user/name on the Hub" if folder == "." else "the folder of the run"
    if ours and not code:
        lines += ["", "import hf_seqmodels  # makes the architecture known to transformers"]
    lines += ["", f"folder = {literal(one_line(folder))}  # {where}"]
    lines += [f"model = {auto_name(head)}.from_pretrained(folder{trust}).eval()"]
    if "tokenizer" in body:
        lines += [f"tokenizer = AutoTokenizer.from_pretrained(folder{trust})"]
    return "\n".join([*lines, body])


def _body(head: str, config: Any, prompt: str | None, ours: bool, has_tokenizer: bool) -> tuple[str, list[str]]:
    """What to do with the loaded model, and the imports that it needs."""
    torch = ["import torch"]
    if head == "time-series-prediction" and ours and config is not None:
        return _series(config), torch
    if getattr(config, "num_features", None) is not None and ours:
        features = f"features = torch.randn(1, 50, {config.num_features})  # (rows, frames, features of a frame)\n"
        if head in _FEATURES:
            return features + _FEATURES[head], torch
        return f"{features}outputs = model(input_features=features)\nprint(list(outputs))", torch
    if head in _PIPELINES | {"seq2seq-lm": 0, "question-answering": 0} and has_tokenizer:
        start, new = "The " if prompt is None else prompt, NEW_TOKENS
        if head in ("causal-lm", "seq2seq-lm"):
            start, new = fit(start, places(config), shared=head == "causal-lm")
        text = literal(start)
        if prompt is None and head == "masked-lm":
            text += " + tokenizer.mask_token"
        template = {"seq2seq-lm": _SEQ2SEQ, "question-answering": _QUESTION}.get(head) or _PIPELINES[head]
        return template.replace("{new}", str(new)).replace("{prompt}", text), []
    reads_tokens = head in (*_PIPELINES, "seq2seq-lm", "question-answering", "backbone") and bool(
        getattr(config, "vocab_size", None)
    )
    if reads_tokens:
        twice = getattr(config, "is_encoder_decoder", False)
        more = ", decoder_input_ids=torch.tensor([[1, 2]])" if twice else ""
        return _TOKENS.format(more=more), torch
    return 'print(f"{model.num_parameters():,} parameters")', []


def _series(config: Any) -> str:
    """Foresee a series, or the frames of a film."""
    if config.model_type == "seq_conv_lstm":
        height, width = config.frame_size or (16, 16)
        shape = f"1, {config.prediction_length}, {config.num_channels}, {height}, {width}"
        return (
            f"past = torch.rand({shape})  # (rows, frames, channels, height, width)\n"
            "print(model.generate(past).sequences.shape)  # (rows, 1, frames to come, channels, height, width)"
        )
    known, length = config.num_time_features, config.prediction_length
    values = f"torch.rand(1, 24, {config.num_variates})"
    if getattr(config, "distribution_output", None) == "bernoulli":
        values = f"({values} < 0.05).float()"  # 0 and 1 are all that it allows
    lines = [f"past = {values}  # (rows, steps, variates)"]
    more = ""
    if known:
        lines += [f"hours = torch.rand(1, {24 + length}, {known})  # known in advance for past and future steps"]
        more = ", past_time_features=hours[:, :24], future_time_features=hours[:, 24:]"
    lines += [f"paths = model.generate(past_values=past{more}).sequences  # (rows, paths, {length}, variates)"]
    return "\n".join([*lines, "print(paths.mean(1))"])
