"""The page of `hf-seqmodels app`: language models continue one prompt side by side.

Every model shows what it writes, how fast, how many bits each character of the prompt costs it, how much state it
carries and, if it has attention, where it looks.

This file is also a whole Space. Alone, as its app.py, it needs gradio, torch and transformers; the environment says
the rest: `MODELS` (folders or Hub names) and `TRUST_REMOTE_CODE=1` if their code may run. Nothing leaves the machine:
no analytics, no version checks, no fonts from afar.
"""

from __future__ import annotations

import html
import importlib
import importlib.util
import json
import math
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer
from transformers.utils import logging

MOST_PROMPT = 500  # characters
LIMITS = {"Length": (1, 500), "Temperature": (0, 2), "Top-k": (0, 100), "Seed": (0, 9_999)}
MAP_SIZE = 24  # tokens of the prompt, the last ones, that an attention map shows
REFRESH = 0.15  # seconds between two looks at a text that grows


@dataclass(frozen=True)
class Request:
    """What a visitor asks of all models: a prompt of 1 to 500 characters, tokens to write, and how to draw them."""

    prompt: str
    new_tokens: int = 200
    temperature: float = 0.8  # 0 takes the likeliest token every time
    top_k: int = 0  # 0 draws from all tokens
    seed: int = 0


def read_request(prompt: Any, new_tokens: Any, temperature: Any, top_k: Any, seed: Any) -> Request:
    """A checked request; the page's controls have the same limits, but a browser can send anything.

    Raises:
        ValueError: with a sentence for the visitor.
    """
    text = str(prompt or "").replace("\r\n", "\n").encode("utf-8", "replace").decode()  # lone surrogates become "?"
    if not text.strip():
        raise ValueError("Type a few characters first: the models continue them.")
    if len(text) > MOST_PROMPT:
        raise ValueError(f"The prompt has {len(text):,} characters; {MOST_PROMPT} are read at most. Shorten it a bit.")
    values = {"Length": new_tokens, "Temperature": temperature, "Top-k": top_k, "Seed": seed}
    for name, (low, high) in LIMITS.items():
        if not isinstance(values[name], int | float) or not low <= values[name] <= high:  # NaN too
            raise ValueError(f"{name} must be a number from {low:,} to {high:,}.")
    return Request(text, int(new_tokens), float(temperature), int(top_k), int(seed))


@dataclass(frozen=True)
class Side:
    """One model of the page, with its tokenizer; `about` is the line under its name."""

    name: str
    model: Any
    tokenizer: Any
    about: str = ""


@dataclass(frozen=True)
class Answer:
    """What a card shows; None where there is nothing to show (yet).

    Args:
        prompt, text: what was read and what was written.
        bits: of the prompt, per character.
        tokens_per_second: of writing, reading the prompt included.
        state_bytes, state_tokens: size of the cache at the end, and the tokens it stands for.
        attention (N, N): weights of the last N tokens of the prompt; row n looks at columns m ≤ n.
        labels: those N tokens.
        notes: sentences for the visitor.
        waiting: whether more comes.
    """

    prompt: str = ""
    text: str = ""
    bits: float | None = None
    tokens_per_second: float | None = None
    state_bytes: int | None = None
    state_tokens: int = 0
    attention: Tensor | None = None
    labels: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    waiting: bool = True


@torch.no_grad()
def read(side: Side, text: str) -> Answer:
    """The model reads `text` once: bits per character, attention, and what its tokenizer does not know.

    The first token, which nothing predicts, is not counted; neither are its characters.
    """
    encoded = side.tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    ids, spans = encoded.input_ids, encoded.offset_mapping[0].tolist()
    output = side.model(ids, output_attentions=True, use_cache=False)
    nats = torch.nn.functional.cross_entropy(output.logits[0, :-1].float(), ids[0, 1:], reduction="sum").item()
    characters = len(text) - spans[0][1]
    pieces = [text[start:end] for start, end in spans]
    unknown = sorted({pieces[n] for n, i in enumerate(ids[0].tolist()) if i == side.tokenizer.unk_token_id})
    notes = [f"Not in its vocabulary, read as “unknown”: {' '.join(unknown[:8])}"] if unknown else []
    return Answer(
        prompt=text,
        bits=nats / math.log(2) / characters if characters > 0 else None,
        attention=_last_map(getattr(output, "attentions", None), len(pieces)),
        labels=pieces[-MAP_SIZE:],
        notes=notes,
    )


def _last_map(attentions: Any, length: int) -> Tensor | None:
    """The last layer's weights (T, T), the mean of its heads, cut to the last tokens; None without attention."""
    maps = [weights for weights in attentions or () if weights is not None]
    if not maps or maps[-1].shape[-2:] != (length, length):
        return None
    return maps[-1][0].float().mean(0)[-MAP_SIZE:, -MAP_SIZE:]


def state_size(cache: Any) -> int | None:
    """Bytes that a model must keep to go on: keys, values and recurrent states of its cache."""
    if not hasattr(cache, "layers"):
        return None
    tensors = [value for layer in cache.layers for value in vars(layer).values() if isinstance(value, Tensor)]
    tensors += [state for layer in cache.layers for state in getattr(layer, "states", {}).values()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def respond(side: Side, request: Request) -> Iterator[Answer]:
    """Read the prompt, then write: the answer so far, again and again; the last one has all numbers.

    Raises:
        ValueError: the model has no room for the prompt.
    """
    answer = read(side, request.prompt)
    ids = side.tokenizer(request.prompt, return_tensors="pt").input_ids
    config = side.model.config
    ends = getattr(config, "positions", "learned") == "learned"  # ours say so; others are not asked for more
    room = ((ends and getattr(config, "max_position_embeddings", None)) or math.inf) - ids.shape[1]
    if room < 1:
        raise ValueError(f"The prompt fills all {config.max_position_embeddings} places of this model.")
    if room < request.new_tokens:
        answer = replace(answer, notes=[*answer.notes, f"Writes {room} tokens only: it has no place for more."])
    yield answer
    options: dict[str, Any] = {"do_sample": False}
    if request.temperature > 0:
        options = {"do_sample": True, "temperature": request.temperature, "top_k": request.top_k, "top_p": 1.0}
    streamer: Any = TextIteratorStreamer(side.tokenizer, skip_prompt=True, skip_special_tokens=True)
    left, limit, outcome = threading.Event(), int(min(room, request.new_tokens)), {}

    def write() -> None:
        start = time.perf_counter()
        try:
            torch.manual_seed(request.seed)
            outcome["output"] = side.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=limit,
                num_beams=1,
                pad_token_id=side.tokenizer.pad_token_id or 0,
                return_dict_in_generate=True,
                stopping_criteria=[lambda ids, scores, **_: torch.full(ids.shape[:1], left.is_set())],
                streamer=streamer,
                **options,
            )
        except Exception as error:  # raised again below, where the page waits
            outcome["error"] = error
            streamer.end()
        outcome["seconds"] = time.perf_counter() - start

    worker = threading.Thread(target=write, daemon=True)
    worker.start()
    try:
        text, shown = "", time.perf_counter()
        for piece in streamer:
            text += piece
            if time.perf_counter() - shown > REFRESH:
                yield replace(answer, text=text)
                shown = time.perf_counter()
    finally:  # also when the visitor has left
        left.set()
        worker.join()
    if "error" in outcome:
        raise outcome["error"]
    output = outcome["output"]
    new = output.sequences[0, ids.shape[1] :]
    yield replace(
        answer,
        text=side.tokenizer.decode(new, skip_special_tokens=True),
        tokens_per_second=len(new) / outcome["seconds"],
        state_bytes=state_size(getattr(output, "past_key_values", None)),
        state_tokens=ids.shape[1] + len(new) - 1,
        notes=[*answer.notes, "Ended its text here."] if len(new) < limit else answer.notes,
        waiting=False,
    )


def default_models() -> list[str]:
    """`MODELS` of the environment, the lines of models.txt beside this file, or the language models in zoo/."""
    named = os.environ.get("MODELS", "").replace(",", " ").split()
    listed = Path(__file__).with_name("models.txt")
    if not named and listed.is_file():
        named = listed.read_text(encoding="utf-8").split()
    return named or [str(path.parent) for path in sorted(Path("zoo").glob("*/config.json")) if _writes(path)]


def _writes(config: Path) -> bool:
    return "ForCausalLM" in str(json.loads(config.read_text(encoding="utf-8")).get("architectures"))


def load_side(name: str, trust_remote_code: bool = False) -> Side:
    """A model and its tokenizer, from a folder or the Hub; safetensors only, and no code of its own unless trusted.

    Raises:
        ValueError: one line: it does not load, lacks weights, or does not read text.
    """
    local = Path(name).is_dir()
    if not local and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise ValueError(f"'{name}' is no folder here, and no name on the Hub (user/name): check the path")
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "local_files_only": local}
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        # Eager attention is the one that returns its weights; naming it also overrules what a config.json asks for.
        options |= {"use_safetensors": True, "attn_implementation": "eager", "output_loading_info": True}
        loaded: Any = AutoModelForCausalLM.from_pretrained(name, **options)
        model, found = loaded
        if lacking := sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])}):
            raise ValueError(f"{len(lacking)} weights are missing or of another shape, {lacking[0]} among them")
        about = f"{model.num_parameters():,} parameters"
        with suppress(OSError, LookupError, TypeError, ValueError):  # no record, or one of another task
            record = json.loads(Path(name, "result.json").read_text(encoding="utf-8"))
            about += f"\ntest {record['metrics']['test']['bits_per_token']:.2f} bits/token"
        side = Side(Path(name).name, model.eval(), tokenizer, about)
        read(side, "ab")
    except Exception as error:  # each library has errors of its own
        reason = " ".join(str(error).split())
        if "trust_remote_code" in reason:
            reason = "it brings its own code: install hf_seqmodels, or read that code and then trust it"
        raise ValueError(f"'{name}' is no language model that loads ({reason[:300]})") from None
    return side


STYLE = """
.gradio-container { max-width: 1500px !important; margin: auto }
#continue { align-self: center; height: 56px }
#cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 12px }
#cards div:not(.side *) { min-width: 0 !important; height: 100%; box-sizing: border-box }
#cards div:not(.side, .side *) { padding: 0 !important }
.side { border: 1px solid var(--border-color-primary); border-radius: 10px;
  padding: 12px; background: var(--block-background-fill); display: flex; flex-direction: column; gap: 10px }
.side h3 { margin: 0; font-size: 14px; white-space: nowrap; overflow: hidden; text-overflow: ellipsis }
.side dt, .side small { font-size: 12px; opacity: .75 } .side h3 + small { white-space: pre-line }
.side dl { display: grid; grid-template-columns: 3fr 3fr 4fr; margin: 0 } .side dt { grid-row: 2 }
.side dd { margin: 0; font-size: 16px; font-weight: 600; white-space: nowrap }
.side pre { margin: 0; padding: 8px; box-sizing: border-box; flex: 1 1 230px; min-height: 230px; max-height: 480px;
  overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere; border-radius: 6px;
  font: 12px/1.5 ui-monospace, Menlo, Consolas, monospace; background: var(--background-fill-secondary) }
.side pre i { font-style: normal; opacity: .6 } .side svg { width: 100% } .side rect { fill: #2f74c0 }
.side svg text { fill: var(--body-text-color); font: 8.5px ui-monospace, monospace; text-anchor: middle; opacity: .7 }
"""


def card(side: Side, answer: Answer) -> str:
    """One model's part of the page. Everything that a visitor or a model wrote is escaped."""
    numbers = [
        (_shown(answer.tokens_per_second, ",.0f"), "tokens/s", "written tokens per second, on this machine"),
        (_shown(answer.bits, ".2f"), "bits/char", "what a character of the prompt costs this model; less is better"),
        (_bytes(answer.state_bytes), "state", f"what must be kept to go on after {answer.state_tokens:,} tokens"),
    ]
    cells = "".join(f'<dt title="{title}">{name}</dt><dd>{value}</dd>' for value, name, title in numbers)
    notes = "".join(f"<small>{html.escape(note)}</small>" for note in answer.notes)
    name, text = html.escape(side.name), f"<i>{html.escape(answer.prompt)}</i>{html.escape(answer.text)}"
    return (
        f'<div class="side" data-done="{int(not answer.waiting)}"><div><h3 title="{name}">{name}</h3>'
        f"<small>{html.escape(side.about)}</small></div><dl>{cells}</dl><pre>{text}</pre>{notes}{_map(answer)}</div>"
    )


def _shown(number: float | None, form: str) -> str:
    return "–" if number is None else format(number, form)


def _bytes(size: int | None) -> str:
    return f"{size / 1000:,.0f} kB" if size and size >= 10_000 else _shown(size, ",") + " B"


def _map(answer: Answer) -> str:
    """The attention map as a drawing, dark where the weight is large; without attention a word on the state."""
    if answer.attention is None:
        size = answer.state_bytes
        return f"<small>No attention weights. What it keeps of the text: {_bytes(size)}.</small>" if size else ""
    labels = [html.escape(label.replace(" ", "␣").replace("\n", "⏎")[:2]) for label in answer.labels]
    count, top = len(labels), max(answer.attention.max().item(), 1e-9)
    parts = [f'<text x="{10 * n + 15}" y="7">{label}</text>' for n, label in enumerate(labels)]
    parts += [f'<text x="5" y="{10 * n + 17}">{label}</text>' for n, label in enumerate(labels)]
    for row, column in torch.ones(count, count).tril().nonzero().tolist():
        weight = answer.attention[row, column].item()
        box = f'x="{10 * column + 10}" y="{10 * row + 10}" width="10" height="10" fill-opacity="{weight / top:.2f}"'
        parts.append(f"<rect {box}><title>{weight:.3f}</title></rect>")
    size, name = 10 * count + 10, "attention over the prompt"
    drawing = f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="{name}">{"".join(parts)}</svg>'
    return f"<div>{drawing}<small>{name}: each row looks back at the columns; darkest {top:.2f}</small></div>"


def build_page(sides: Sequence[Side]) -> Any:
    """The page as `gradio.Blocks`; one visitor's request at a time, the others wait in a queue."""
    import gradio as gr

    def answer(*values: Any) -> Iterator[list[Any]]:
        try:
            request = read_request(*values)
        except ValueError as error:
            yield [str(error), *[gr.skip()] * len(sides)]
            return
        yield ["", *(card(side, Answer(prompt=request.prompt)) for side in sides)]
        for place, side in enumerate(sides):
            before, after = [gr.skip()] * (place + 1), [gr.skip()] * (len(sides) - place - 1)
            for shown in _kindly(side, request):
                yield [*before, card(side, shown), *after]

    with gr.Blocks(title="Sequence models side by side", analytics_enabled=False) as page:
        gr.Markdown("## Sequence models side by side\nOne prompt, continued by every architecture.")
        with gr.Row(equal_height=True):
            prompt = gr.Textbox("The import statement ", label="Prompt", lines=2, max_length=MOST_PROMPT, scale=5)
            button = gr.Button("Continue", variant="primary", elem_id="continue", scale=0, min_width=140)
        with gr.Row():
            infos = ("tokens to write", "0: the likeliest", "0: draw from all", "of the draws")
            controls = [
                gr.Slider(*LIMITS[name], start, step=step, label=name, info=info, elem_id=name.lower(), min_width=200)
                for name, start, step, info in zip(LIMITS, (200, 0.8, 0, 0), (1, 0.05, 1, 1), infos, strict=True)
            ]
        notice = gr.Markdown("", elem_id="notice")
        with gr.Row(elem_id="cards"):
            cards = [gr.HTML(card(side, Answer())) for side in sides]
        asked: Any = {"inputs": [prompt, *controls], "outputs": [notice, *cards], "api_visibility": "private"}
        for ask in (button.click, prompt.submit):
            ask(answer, show_progress="hidden", concurrency_id="models", concurrency_limit=1, **asked)
    return page.queue(max_size=20)


def _kindly(side: Side, request: Request) -> Iterator[Answer]:
    """[`respond`], with a sentence on the card where a model fails; the others still answer."""
    try:
        yield from respond(side, request)
    except Exception as error:  # whatever a model of somebody else's raises
        print(f"{side.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        reason = str(error) if isinstance(error, ValueError) else "This model could not answer; the log says why."
        yield Answer(prompt=request.prompt, notes=[reason], waiting=False)


def serve(models: Sequence[str] = (), host: str = "127.0.0.1", port: int = 7860, trust: bool = False) -> None:
    """Load the models, print the address, and serve until interrupted. `trust`: the models' own code may run.

    Raises:
        ValueError: there is no model, or one does not load.
    """
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    vars(importlib.import_module("huggingface_hub.constants"))["HF_HUB_DISABLE_TELEMETRY"] = True  # read at import
    names = list(models) or default_models()
    if not names:
        raise ValueError("no models in zoo/: name folders or Hub models: `hf-seqmodels app runs/lstm`")
    if importlib.util.find_spec("hf_seqmodels"):
        importlib.import_module("hf_seqmodels")  # its architectures need no code of their own then
    logging.disable_progress_bar()
    sides = []
    for number, name in enumerate(names, start=1):
        print(f"[{number}/{len(names)}] loading {name}", flush=True)
        sides.append(load_side(name, trust))
    if not models:  # those with a map stand together
        sides.sort(key=lambda side: read(side, "ab").attention is not None)
    import gradio as gr  # takes seconds, so it comes behind all that may fail

    theme = gr.themes.Default(primary_hue="blue", font="system-ui", font_mono="ui-monospace")
    options: dict[str, Any] = {"theme": theme, "css": STYLE, "footer_links": [], "run_history": False}
    options |= {"ssr_mode": False, "share": False, "max_file_size": 1, "quiet": True}
    page = build_page(sides)
    page.launch(server_name=host, server_port=port, prevent_thread_lock=True, **options)
    print(f"http://{host}:{port} (Ctrl-C ends it)", flush=True)
    page.block_thread()


if __name__ == "__main__":  # alone; a Space's proxy must reach the page
    address = "0.0.0.0" if os.environ.get("SYSTEM") == "spaces" else "127.0.0.1"
    serve(host=address, trust=os.environ.get("TRUST_REMOTE_CODE") == "1")
