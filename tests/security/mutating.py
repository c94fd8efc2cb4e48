"""Damages saved models in seeded, structured ways, loads each, and tells what came of it.

    python mutating.py FOLDER COUNT SEED

FOLDER holds one saved model per subfolder. Prints one JSON object: how often what happened, and under "leaks" each
mutation that ended in anything but a model or a declared error, took longer than SLOWEST seconds, or memory.
The process may map no more than MEMORY bytes: an allocation by a broken size fails here.
"""

from __future__ import annotations

import collections
import copy
import json
import random
import resource
import struct
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MEMORY, SLOWEST = 12 << 30, 5.0  # torch alone maps some 5 GB
GROWTH = 200 << 20  # bytes of peak memory that one load of a model of some kilobytes may add

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 10**9, 10**12, -(10**18), 10**40, 0.5, -0.0, 1e-300, 1e308, float("nan"),
    float("inf"), "", "x", "NaN", "1", "../x", "/etc/passwd", "who/what", "\x00", "é" * 1000, [], [1], [None], [[1]],
    {}, {"a": 1}, {"1": 2}, "eager", "float16", "int8", ["x"] * 50,
]  # fmt: skip
KEYS = [
    "model_type", "architectures", "auto_map", "dtype", "torch_dtype", "num_labels", "id2label", "label2id",
    "problem_type", "attn_implementation", "_attn_implementation", "experts_implementation", "quantization_config",
    "transformers_weights", "configuration_files", "text_config", "sub_configs", "layer_types", "rope_parameters",
    "rope_scaling", "generation_config", "is_encoder_decoder", "tie_word_embeddings", "use_cache", "return_dict",
    "fusion_config", "kernel_config", "distributed_config", "per_layer_config", "base_model_tp_plan",
    "name_or_path", "_name_or_path", "transformers_version", "attribute_map", "keys_to_ignore_at_inference",
    "chunk_size_feed_forward", "output_attentions", "output_hidden_states", "loss_type", "pruned_heads",
    "tokenizer_class", "task_specific_params", "max_length", "num_beams", "custom_generate", "base_config_key",
    "has_no_defaults_at_init", "__class__", "__dict__", "to_dict", "save_pretrained", "validate", "check_ranges",
    "output_size", "config_class", "gguf_file",
]  # fmt: skip


# ---- config.json ------------------------------------------------------------------------------------------------


def mutate_config(settings: dict[str, Any], chance: random.Random) -> tuple[str, bytes]:
    """What was done, and the new file."""
    settings, kind = copy.deepcopy(settings), chance.choice(["value"] * 6 + ["key"] * 4 + ["drop", "text", "many"])
    if kind == "value":
        key = chance.choice(list(settings))
        settings[key] = value = chance.choice(VALUES)
        told = f"{key}={value!r:.40}"
    elif kind == "key":
        key = chance.choice(KEYS)
        settings[key] = value = chance.choice(VALUES)
        told = f"{key}={value!r:.40}"
    elif kind == "drop":
        told = f"without {(key := chance.choice(list(settings)))}"
        del settings[key]
    elif kind == "many":
        keys = chance.sample(list(settings), 5)
        values = [settings[key] for key in keys]
        settings |= dict(zip(keys, chance.sample(values, 5), strict=True))
        told = f"shuffled {keys}"
    else:
        return mutate_text(json.dumps(settings, indent=2), chance)
    return f"config: {told}", json.dumps(settings).encode()


def mutate_text(text: str, chance: random.Random) -> tuple[str, bytes]:
    """Of the file as text: cut, flipped, nested, doubled, replaced by other JSON."""
    kind, raw = chance.choice(["cut", "flip", "nest", "double", "other", "encoding"]), text.encode()
    place = chance.randrange(len(raw))
    if kind == "cut":
        return f"config: cut at {place}", raw[:place]
    if kind == "flip":
        return f"config: flipped {place}", raw[:place] + bytes([raw[place] ^ (1 << chance.randrange(8))]) + raw[
            place + 1 :
        ]
    if kind == "nest":
        depth = chance.choice([10, 70, 200, 900, 100_000])
        return f"config: {depth} deep", text[:-1].encode() + b', "x": ' + b"[" * depth + b"]" * depth + b"}"
    if kind == "double":
        return "config: keys twice", (text[:-1] + "," + text[1:]).encode()
    if kind == "encoding":
        return "config: other encoding", text.encode(chance.choice(["utf-16", "utf-8-sig", "utf-32"]))
    other = chance.choice(["[]", "3", "null", '"x"', "", "{}", "NaN", "[" * 100_000, "{" * 100_000, "\x00" * 100])
    return f"config: {other[:9]!r} instead", other.encode()


def flip(raw: bytes, place: int, chance: random.Random) -> bytes:
    return raw[:place] + bytes([raw[place] ^ (1 << chance.randrange(8))]) + raw[place + 1 :]


# ---- model.safetensors ------------------------------------------------------------------------------------------


def mutate_weights(raw: bytes, chance: random.Random) -> tuple[str, bytes]:
    """What was done, and the new file: its length word, its header, or the file as bytes."""
    length = struct.unpack("<Q", raw[:8])[0]
    header, body = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    kind = chance.choice(["length", "cut", "flip", "longer"] + ["header"] * 8)
    if kind == "length":
        value = chance.choice([0, 1, 7, length - 1, length + 1, len(raw), 10**8, 2**31, 2**40, 2**63, 2**64 - 1])
        return f"weights: header of {value} bytes", struct.pack("<Q", value) + raw[8:]
    if kind == "cut":
        place = chance.choice([0, 1, 7, 8, 9, chance.randrange(len(raw)), len(raw) - 1])
        return f"weights: cut at {place}", raw[:place]
    if kind == "flip":
        place = chance.choice([chance.randrange(len(raw)), chance.randrange(8 + length)])
        return f"weights: flipped {place}", raw[:place] + bytes([raw[place] ^ (1 << chance.randrange(8))]) + raw[
            place + 1 :
        ]
    if kind == "longer":
        return "weights: longer", raw + b"\x00" * chance.choice([1, 8, 100_000])
    told, text = mutate_header(header, len(body), chance)
    encoded = text.encode("utf-8", "surrogatepass")
    return f"weights: {told}", struct.pack("<Q", len(encoded)) + encoded + body


def mutate_header(header: dict[str, Any], size: int, chance: random.Random) -> tuple[str, str]:
    name = chance.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    kind = chance.choice(["dtype", "shape", "offsets", "name", "drop", "extra", "metadata", "type", "twice", "text"])
    if kind == "dtype":
        entry["dtype"] = chance.choice(["F16", "F64", "I32", "I8", "BOOL", "BF16", "F8_E4M3", "F4", "X", "", 3, None])
    elif kind == "shape":
        shape = entry["shape"]
        numbers = [[], [0], [-1], [2**40, 2**40], [2**63], [1.5], [None], "x", [*shape, 1], shape[::-1], [1] * 500]
        entry["shape"] = chance.choice(numbers)
    elif kind == "offsets":
        start, end = entry["data_offsets"]
        pairs = [
            [0, size],
            [end, start],
            [start, end + 4],
            [start + 4, end],
            [-4, end],
            [start, 2**63],
            [2**62, 2**62],
        ]
        entry["data_offsets"] = chance.choice([*pairs, [0], [], "x", None, [0.5, 4], [start, start], [0, end - start]])
    elif kind == "name":
        header[chance.choice(["", "../x", "x" * 5000, "\x00", "model", name.upper(), "lm_head"])] = header.pop(name)
    elif kind == "drop":
        del header[name]
    elif kind == "extra":
        header["extra"] = dict(entry)
    elif kind == "metadata":
        values = [
            {"format": "tf"},
            {},
            {"format": 3},
            None,
            3,
            {"format": ["pt"]},
            {"a": "b" * 10_000},
            {"format": ""},
        ]
        header["__metadata__"] = chance.choice(values)
    elif kind == "type":
        header[name] = chance.choice([None, 3, [], {}, "x", [entry]])
    elif kind == "twice":
        text = json.dumps(header)
        return f"{name} twice", text[:-1] + f', "{name}": {json.dumps(entry)}}}'
    else:
        return "other header", chance.choice(
            ["", "{}", "[]", "null", "{" * 5000, "[" * 100_000, " " * 50, "NaN", "\ud800"]
        )
    return f"{name} {kind} {header.get(name, entry)!r:.60}", json.dumps(header)


# ---- loading ----------------------------------------------------------------------------------------------------


def load_and_tell(load: Any, folder: Path, own: bool) -> tuple[str, str | None]:
    """(what happened, None) or ("leak", what is wrong with it).

    Declared are ValueError, OSError, and RuntimeError for shapes that differ, transformers' own. What AutoModel says
    before it has come to a class of this package is transformers' business; it may not crash, hang or grow, either.
    """
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        load(folder)
        outcome, problem = "loaded", None
    except Exception as error:
        outcome, problem = type(error).__name__, None
        frames = traceback.extract_tb(error.__traceback__)
        reached = own or any("hf_seqmodels" in frame.filename for frame in frames)
        declared = isinstance(error, ValueError | OSError | RuntimeError) and not isinstance(error, RecursionError)
        if not str(error).strip() or (reached and not declared):
            problem = f"{type(error).__name__}: {error!s:.200}"
    if (seconds := time.perf_counter() - start) > SLOWEST:
        problem = f"{seconds:.1f} s"
    if (grown := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 > GROWTH:
        problem = f"{grown / 1024:.0f} MiB more"
    return ("leak", problem) if problem else (outcome, None)


def each_size(made: list[Path], thorough: bool) -> Iterator[tuple[Path, str, bytes]]:
    """Every whole number of a configuration, far too large: (folder, what was done, the new file).

    With `thorough` for every architecture, else for the first that has such a number.
    """
    done: set[str] = set()
    for path in made:
        settings = json.loads((path / "config.json").read_bytes())
        numbers = [key for key, value in settings.items() if isinstance(value, int) and not isinstance(value, bool)]
        for key in [*numbers, "num_labels", "num_features", "max_position_embeddings", "head_dim"]:
            if key in done and not thorough:
                continue
            done.add(key)
            for size in (999_999, 10**12):
                yield path, f"config: {key}={size}", json.dumps(settings | {key: size}).encode()


def each_mutation(made: list[Path], count: int, chance: random.Random) -> Iterator[tuple[Path, str, bytes, bytes]]:
    """(folder, what was done, config.json, model.safetensors)."""
    yield from ((path, "nothing", *contents(path)) for path in made)
    yield from ((path, told, config, contents(path)[1]) for path, told, config in each_size(made, count > 1000))
    for number in range(count):
        path = made[number % len(made)]
        config, weights = contents(path)
        if chance.random() < 0.5:
            told, config = mutate_config(json.loads(config), chance)
        else:
            told, weights = mutate_weights(weights, chance)
        yield path, told, config, weights


def contents(path: Path) -> tuple[bytes, bytes]:
    return (path / "config.json").read_bytes(), (path / "model.safetensors").read_bytes()


def main(folder: str, count: str, seed: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    from transformers import AutoModel
    from transformers.utils import logging

    from hf_seqmodels.models import ARCHITECTURES

    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    made, work = sorted(Path(folder).iterdir()), Path(folder, "..", "mutated").resolve()
    work.mkdir(exist_ok=True)
    found, leaks = collections.Counter[str](), []
    for path, told, config, weights in each_mutation(made, int(count), random.Random(int(seed))):
        (work / "config.json").write_bytes(config)
        (work / "model.safetensors").write_bytes(weights)
        for own in (True, False):
            loader = ARCHITECTURES[path.name].models["backbone"] if own else AutoModel
            outcome, problem = load_and_tell(loader.from_pretrained, work, own)
            found[outcome] += 1
            if told == "nothing" and outcome != "loaded":
                problem = f"an honest model ended in {outcome}"
            if problem:
                leaks.append(f"{path.name} {'own' if own else 'auto'}, {told}: {problem}")
    print(json.dumps({"found": found, "leaks": leaks}))


if __name__ == "__main__":
    main(*sys.argv[1:])
