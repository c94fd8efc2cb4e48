"""`hf-seqmodels generate`: a trained model writes text, or music as a MIDI file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .config import one_line

DESCRIPTION = """\
A language model goes on with --prompt; the text is printed, or written to --output.
A model of piano rolls goes on with the music of --prompt and writes prompt and continuation as a MIDI file, one
quarter note for each step (a step of the JSB chorales is one). Every key is drawn by the probability that the model
gives it. Without --prompt a C major chord is the first step: models do not learn to begin a piece.
"""
EPILOG = """\
examples:
  hf-seqmodels generate runs/jsb_chorales/gru --output chorale.mid
  hf-seqmodels generate runs/jsb_chorales/gru --prompt test:3 --prompt_steps 16 --steps 48
  hf-seqmodels generate runs/jsb_chorales/gru --prompt begun.mid --temperature 0.8
  hf-seqmodels generate zoo/lstm-pydoc --prompt "The import statement " --temperature 0
"""
# Option → its default for music or for text; each kind of model takes its own.
MUSIC = {"steps": 64, "prompt_steps": None, "data": None, "data_dir": None, "tempo": 100.0}
TEXT = {"max_new_tokens": 200}
CHORD = (48, 55, 64, 72)  # C major in four voices
KINDS: dict[str, dict[str, Any]] = {"music": MUSIC, "text": TEXT}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; exit status 0, or 2 with one line for what the user can mend."""
    options = _parser().parse_args(argv)
    try:
        _check_numbers(options)
        told = generate(options)
    except (ValueError, OSError) as error:
        print(f"hf-seqmodels generate: error: {one_line(error)}", file=sys.stderr)
        return 2
    print(told)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-seqmodels generate",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", help="the folder of a run or of a saved model, or its name on the Hub")
    add("--prompt", help="text; for music a MIDI file, or SPLIT:ROW of the data set (test:0 is its first piece)")
    add("--output", type=Path, help="a new file; default for music: the model's name with the ending .mid")
    add("--temperature", type=float, default=1.0, help="above 1 bolder, below 1 surer, 0 the likeliest (%(default)s)")
    add("--seed", type=int, default=0, help="of the draws (%(default)s)")
    add("--max_new_tokens", type=int, help=f"text: tokens to write, at most ({TEXT['max_new_tokens']})")
    add("--steps", type=int, help=f"music: steps to write ({MUSIC['steps']})")
    add("--prompt_steps", type=int, help="music: how many of the prompt's steps are read (all)")
    add("--tempo", type=float, help=f"music: quarter notes, which are steps, a minute ({MUSIC['tempo']:g})")
    add("--data", help="music: the data set of --prompt SPLIT:ROW; default: the one the model learned from")
    add("--data_dir", help="music: where that data set lies, as in training")
    return parser


def _check_numbers(options: argparse.Namespace) -> None:
    """Raise ValueError for a number out of range, before anything is loaded."""
    for name in ("steps", "prompt_steps", "max_new_tokens"):
        value = getattr(options, name)
        if value is not None and not 1 <= value <= 100_000:
            raise ValueError(f"--{name} {value} is out of range: it must be 1 to 100,000")
    if not 0 <= options.temperature <= 100:  # NaN too
        raise ValueError(f"--temperature {options.temperature} is out of range: it must be 0 to 100")
    if not 0 <= options.seed < 2**32:
        raise ValueError(f"--seed {options.seed} is out of range: it must be at least 0 and below 2**32")
    if options.tempo is not None and not 4 <= options.tempo <= 1000:
        raise ValueError(f"--tempo {options.tempo} is out of range: it must be 4 to 1000")
    if options.output is not None:
        check_new_file(options.output)


def check_new_file(file: Path) -> None:
    """Raise ValueError unless `--output` is a new file in a folder that exists."""
    if file.exists():
        raise ValueError(f"'{file}' is there already; give another --output, or delete it")
    if not file.absolute().parent.is_dir():
        raise ValueError(f"the folder of --output '{file}' does not exist; make it first")


def generate(options: argparse.Namespace) -> str:
    """Load the model and let it write; returns what there is to print.

    Raises:
        ValueError, OSError: the model, the prompt, the data or an option do not fit.
    """
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    model, tokenizer = load(options.model)
    kind = kind_of(model)
    for other, its_own in KINDS.items():
        wrong = [name for name in its_own if other != kind and getattr(options, name) is not None]
        if wrong:
            raise ValueError(f"--{wrong[0]} is for {other}, and '{options.model}' writes {kind}; leave it out")
    for name, value in KINDS[kind].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return write_text(model, tokenizer, options) if kind == "text" else write_music(model, options)


def load(name: str) -> tuple[Any, Any]:
    """Model and tokenizer (None without one), from a folder or from the Hub; a model's own code is never run.

    Raises:
        ValueError, OSError: there is none, or it cannot be read.
    """
    from .hub.saved import load_strict, load_tokenizer, read_record

    if Path(name).is_dir():
        read_record(Path(name))  # says what an unfinished run lacks
        return load_strict(Path(name)), load_tokenizer(Path(name))
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        raise ValueError(f"'{name}' is no folder here and no name of a repository: write user/name")
    try:
        return _from_hub(name)
    except OSError as error:
        raise ValueError(
            f"'{name}' is no folder here and cannot be had from the Hub; check the name ({one_line(error)})"
        ) from None


def _from_hub(name: str) -> tuple[Any, Any]:
    import transformers

    config = transformers.AutoConfig.from_pretrained(name)
    series = str((config.architectures or [""])[0]).endswith("ForTimeSeriesPrediction")
    auto = transformers.AutoModelForTimeSeriesPrediction if series else transformers.AutoModelForCausalLM
    tokenizer = None if series else transformers.AutoTokenizer.from_pretrained(name)
    return auto.from_pretrained(name, use_safetensors=True).eval(), tokenizer


def kind_of(model: Any) -> str:
    """Whether a model writes text or music.

    Raises:
        ValueError: neither.
    """
    from .data import KEYS

    config = model.config
    if model.main_input_name == "past_values":
        if getattr(config, "distribution_output", None) == "bernoulli" and config.num_variates == KEYS:
            return "music"
        raise ValueError(f"{type(model).__name__} draws no piano rolls: it must draw {KEYS} keys, each 0 or 1")
    if model.main_input_name == "input_ids" and model.can_generate() and not config.is_encoder_decoder:
        return "text"
    raise ValueError(f"{type(model).__name__} writes neither text nor music; give a language model or a music model")


# ---- text -------------------------------------------------------------------------------------------------------


def write_text(model: Any, tokenizer: Any, options: argparse.Namespace) -> str:
    """Prompt and continuation, or where they were written to."""
    import torch
    from transformers import set_seed

    if tokenizer is None:
        raise ValueError(f"'{options.model}' has no tokenizer to read --prompt with; save it beside the model")
    ids = tokenizer(options.prompt or "").input_ids
    begin = next((i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None), None)
    if not ids and begin is None:
        raise ValueError("this tokenizer has no token that begins a text; give --prompt with some text")
    inputs = torch.tensor([ids or [begin]], device=model.device)
    longest = getattr(model.config, "max_position_embeddings", None)
    needed = inputs.shape[1] + options.max_new_tokens
    if longest is not None and getattr(model.config, "positions", "learned") == "learned" and needed > longest:
        raise ValueError(f"prompt and --max_new_tokens are {needed} tokens and the model has {longest} positions")
    draws: dict[str, Any] = {"do_sample": False}
    if options.temperature:
        draws = {"do_sample": True, "temperature": options.temperature, "top_k": 0}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    set_seed(options.seed)
    tokens = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=options.max_new_tokens,
        pad_token_id=pad,
        **draws,
    )
    text = tokenizer.decode(tokens[0], skip_special_tokens=True)
    if options.output is None:
        return text
    options.output.write_text(text, encoding="utf-8")
    return f"{options.output}: {len(text):,} characters"


# ---- music ------------------------------------------------------------------------------------------------------


def write_music(model: Any, options: argparse.Namespace) -> str:
    """Write the MIDI file; returns what stands in it."""
    import torch
    from transformers import set_seed

    from .data.midi import write_midi

    output = options.output or Path(f"{Path(options.model).resolve().name}.mid")
    check_new_file(output)
    past = torch.from_numpy(read_music(options))
    soften(model, options.temperature)
    model.config.prediction_length = options.steps
    set_seed(options.seed)
    drawn = model.generate(past_values=past[None].to(model.device, model.dtype), num_parallel_samples=1).sequences
    roll = torch.cat([past, drawn[0, 0].float().cpu()])
    write_midi(roll.numpy(), output, options.tempo)
    notes = drawn.sum().item() / options.steps
    return f"{output}: {len(past)} steps of prompt and {options.steps} written, with {notes:.2f} keys a step"


def read_music(options: argparse.Namespace) -> Any:
    """The roll (T, 88) that the model goes on with."""
    from .data import to_roll

    split, _, row = (options.prompt or "").rpartition(":")
    of_data = bool(split) and row.isdecimal() and not Path(options.prompt).exists()
    for name in ("data", "data_dir"):
        if getattr(options, name) is not None and not of_data:
            raise ValueError(f"--{name} is where a --prompt SPLIT:ROW is read from; give one, or leave it out")
    if options.prompt is None:
        if options.prompt_steps is not None:
            raise ValueError("--prompt_steps says how much of --prompt is read; give one, or leave it out")
        return to_roll([CHORD])
    if of_data:
        roll = to_roll(read_piece(options, split, int(row)))
    else:
        from .data.midi import read_midi

        roll = read_midi(options.prompt)
    if options.prompt_steps is not None and options.prompt_steps > len(roll):
        raise ValueError(f"--prompt_steps {options.prompt_steps} is more than the {len(roll)} steps of the prompt")
    return roll[: options.prompt_steps]


def read_piece(options: argparse.Namespace, split: str, row: int) -> Sequence[Sequence[int]]:
    """The pitches of a piece of the data set that the model learned from, or of `--data`."""
    from .data import load_piano_rolls
    from .data.sources import SPLITS
    from .hub.saved import read_record

    record = read_record(Path(options.model)) if Path(options.model).is_dir() else None
    known = (record or {}).get("config", {}).get("data", {})
    path = options.data or known.get("path")
    if path is None:
        raise ValueError(f"--prompt {options.prompt} names a piece and no data set is known; give --data")
    splits = SPLITS | {"test": known.get("test_split") or "test"}
    if split not in splits:
        raise ValueError(f"--prompt {options.prompt}: the split must be one of {', '.join(splits)}")
    data_dir = options.data_dir or (None if options.data else known.get("data_dir"))
    pieces = load_piano_rolls(path, data_dir, {split: splits[split]})[0][split]
    if row >= len(pieces):
        raise ValueError(f"--prompt {options.prompt}: the split has {len(pieces)} pieces, 0 to {len(pieces) - 1}")
    return pieces[row]["pitches"]


def soften(model: Any, temperature: float) -> None:
    """Divide the log-odds of every key by the temperature, in the layer that gives them; 0 leaves no chance."""
    import torch

    with torch.no_grad():
        for parameter in model.parameter_projection.parameters():
            parameter.div_(max(temperature, 1e-6))


if __name__ == "__main__":
    sys.exit(main())
