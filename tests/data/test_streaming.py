"""Text read as it comes: the same windows for any number of processes, and the same number of steps on each."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from safetensors.torch import load_file

from hf_seqmodels.arguments import ConfigError
from hf_seqmodels.config import parse
from hf_seqmodels.data import Division, StreamedText, build_tokenizer, open_rows, read_rows, streaming
from hf_seqmodels.data.sources import load_texts
from hf_seqmodels.run import run

BLOCK, BATCH = 8, 4
SIZES = [23, 5, 11]  # rows of the shards


def write(folder: Path, sizes: list[int] = SIZES, split: str = "train") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for shard, rows in enumerate(sizes):
        texts = [f"{split} {shard}: row {row} of {rows}" + "." * (row % 7) for row in range(rows)]
        file = folder / f"{split}-{shard:05d}-of-{len(sizes):05d}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": texts, "number": list(range(rows))}), file)
    return folder


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(streaming, "PIECE_ROWS", 3)
    monkeypatch.setattr(streaming, "BUFFER", 6)


def stream(folder: Path, **options: Any) -> StreamedText:
    rows, name = open_rows(str(folder), None, "train")
    return StreamedText(rows, build_tokenizer("bytes", []), BLOCK, BATCH, name=name, **options)


def in_step(datasets: list[StreamedText], number: int) -> list[list[dict]]:
    """The samples of a pass on several processes, here threads: `anyone` waits for all of them to answer."""
    answers, barrier = [False] * len(datasets), threading.Barrier(len(datasets), timeout=30)
    found: list[list[dict]] = [[] for _ in datasets]

    def read(rank: int) -> None:
        def anyone(answer: bool) -> bool:
            answers[rank] = answer
            barrier.wait()
            together = any(answers)
            barrier.wait()
            return together

        datasets[rank].division = Division(rank, len(datasets), anyone)
        found[rank] = list(datasets[rank].one_pass(number))

    threads = [threading.Thread(target=read, args=(rank,)) for rank in range(len(datasets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def windows(samples: list[dict]) -> Counter:
    return Counter(tuple(sample["input_ids"]) for sample in samples if (sample["labels"] != -100).any())


def test_every_token_is_a_target_once(tmp_path):
    data = stream(write(tmp_path), seed=None)
    eos = data.tokenizer.eos_token_id
    texts = [
        text for file in sorted(tmp_path.iterdir()) for text in pyarrow.parquet.read_table(file)["text"].to_pylist()
    ]
    expected = [number for text in texts for number in [*data.tokenizer(text)["input_ids"], eos]]
    samples = list(data.own_windows(0))
    assert [n for sample in samples for n in sample["labels"] if n != -100] == expected
    assert samples[0]["input_ids"][0] == eos and all(len(sample["input_ids"]) <= BLOCK + 1 for sample in samples)
    for sample in samples:
        assert (sample["labels"][1:] == sample["input_ids"][1:]).all() and sample["labels"][0] == -100
    bare = list(stream(tmp_path, seed=None, row_end="nothing").own_windows(0))
    without = [number for number in expected if number != eos]
    targets = [n for sample in bare for n in sample["labels"] if n != -100]
    assert len(targets) == len(without) - len(SIZES)  # of each piece the first token is context alone
    assert bare[0]["input_ids"].tolist() == without[: BLOCK + 1]


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("sizes", [[23], [23, 5], SIZES, [1, 1, 1, 40]], ids=str)
def test_processes_see_each_window_once_in_as_many_steps(tmp_path, small_pieces, sizes, processes):
    write(tmp_path, sizes)
    alone = windows(list(stream(tmp_path).own_windows(0)))
    for number in (0, 1):
        found = in_step([stream(tmp_path) for _ in range(processes)], number)
        assert len({len(samples) for samples in found}) == 1 and len(found[0]) % BATCH == 0
        seen = [windows(samples) for samples in found]
        assert sum(seen, Counter()) == alone
        if len(sizes) % processes:  # pieces in turn: about as much for each
            counts = [sum(counter.values()) for counter in seen]
            assert max(counts) - min(counts) <= max(counts) / 2 or sum(sizes) < 10
        else:  # each reads shards of its own
            for shard in range(len(sizes)):
                word = f"train {shard}: row 0"
                holders = [any(word[:BLOCK] in text(sample) for sample in samples) for samples in found]
                assert sum(holders) == 1


def text(sample: dict) -> str:
    return build_tokenizer("bytes", []).decode(sample["input_ids"])


def test_order_is_drawn_for_each_pass_and_drawn_again(tmp_path, small_pieces):
    write(tmp_path)
    passes = [[tuple(s["input_ids"]) for s in stream(tmp_path, seed=seed).one_pass(n)] for seed, n in
              [(0, 0), (0, 0), (0, 1), (1, 0), (None, 0), (None, 1)]]  # fmt: skip
    assert passes[0] == passes[1] and passes[4] == passes[5]
    assert len({tuple(order) for order in passes}) == 4
    assert len({frozenset(order) for order in passes}) == 1
    endless = list(islice(stream(tmp_path), len(passes[0]) + len(passes[2])))
    assert [tuple(sample["input_ids"]) for sample in endless] == passes[0] + passes[2]


def test_bad_input_is_named(tmp_path):
    write(tmp_path / "good")
    with pytest.raises(ValueError, match=r"no column 'words' among text, number"):
        open_rows(str(tmp_path / "good"), None, "train", "words")
    with pytest.raises(ValueError, match=r"wanted was split 'validation'"):
        open_rows(str(tmp_path / "good"), None, "validation")
    (tmp_path / "holes").mkdir()
    file = tmp_path / "holes" / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["one", "two", None]}), file)
    with pytest.raises(ConfigError, match=r"train.parquet: row 2 of shard 0 has no text \(null\)"):
        list(stream(tmp_path / "holes").one_pass(0))
    with pytest.raises(ValueError, match=r"row 2 of 'text' has no text \(null\)"):
        read_rows(str(tmp_path / "holes"), None, "train")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["", ""]}), file)
    with pytest.raises(ConfigError, match=r"train.parquet has no row with text"):
        next(iter(stream(tmp_path / "holes", row_end="nothing")))
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), file)
    with pytest.raises(ConfigError, match=r"train.parquet: rows of shard 0 cannot be read"):
        next(iter(stream(tmp_path / "holes")))


def test_lines_of_a_text_file(tmp_path):
    (tmp_path / "train.txt").write_text("one\n\ntwo\n")
    assert read_rows(str(tmp_path), None, "train")["text"] == ["one", "", "two"]
    assert read_rows(str(tmp_path), None, "train", keep_line_ends=True)["text"] == ["one\n", "\n", "two\n"]


def test_shards_of_text_are_read_as_one_file_is(tmp_path):
    """Line ends as asked for, no byte order mark, a byte that is not UTF-8 by its place."""
    for folder, files in (("one", ["train"]), ("two", ["train-00000-of-00002", "train-00001-of-00002"])):
        (tmp_path / folder).mkdir()
        for file in files:
            text = "a\nb\n" if folder == "two" else "a\nb\na\nb\n"
            (tmp_path / folder / f"{file}.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    for keep, rows in ((True, ["a\n", "b\n"] * 2), (False, ["a", "b"] * 2)):
        for folder in ("one", "two"):
            place = str(tmp_path / folder)
            assert read_rows(place, None, "train", keep_line_ends=keep)["text"] == rows
            whole = load_texts(place, None, {"train": "train"}, keep_line_ends=keep)
            assert whole["train"]["text"] == rows
    (tmp_path / "one" / "train.txt").write_bytes(b"good\nb\xffd\n")
    with pytest.raises(ValueError, match=r"train.txt' is not UTF-8 \(byte 6\)"):
        read_rows(str(tmp_path / "one"), None, "train")
    with pytest.raises(ConfigError, match=r"train.txt' is not UTF-8 \(byte 6\)"):
        next(iter(stream(tmp_path / "one")))


# ---- whole runs -------------------------------------------------------------------------------------------------


def arguments(folder: Path, out: str, *more: str) -> list[str]:
    argv = ["--model_type", "seq_lstm", "--hidden_size", "8", "--output_dropout", "0.1", "--dataset", "text"]
    argv += ["--path", str(folder / "data"), "--streaming", "true", "--tokenizer", "bytes", "--block_size", "16"]
    argv += ["--per_device_train_batch_size", "8", "--eval_strategy", "no", "--load_best_model_at_end", "false"]
    argv += [
        "--save_strategy",
        "steps",
        "--save_steps",
        "3",
        "--logging_steps",
        "1",
        "--lr_scheduler_type",
        "constant",
    ]
    return [*argv, "--output_dir", str(folder / out), *more]


@pytest.fixture
def texts(tmp_path) -> Iterator[Path]:
    write(tmp_path / "data")
    for split in ("validation", "test"):
        write(tmp_path / "data", [6], split)
    return tmp_path


def test_a_resumed_run_goes_on_bit_exactly_also_in_the_next_pass(texts):
    rows, _ = open_rows(str(texts / "data"), None, "train")
    steps = len(list(StreamedText(rows, build_tokenizer("bytes", []), 16, 8).one_pass(0))) // 8
    more, many = steps + 5 - steps % 3, ["--gradient_accumulation_steps", "2", "--per_device_train_batch_size", "4"]
    assert more > steps and more % 3 == 2
    whole = run(parse(arguments(texts, "whole", "--max_steps", str(more))), quiet=True)
    run(parse(arguments(texts, "parts", "--max_steps", str(more - 2))), quiet=True)
    resumed = run(parse(arguments(texts, "parts", "--max_steps", str(more), "--resume", "true")), quiet=True)
    assert (resumed["resumed_at_step"], resumed["steps"]) == (more - 2, more)
    assert resumed["batch_order"] == whole["batch_order"] and whole["data"]["streamed"] == ["train"]
    expected = load_file(texts / "whole" / "model.safetensors")
    found = load_file(texts / "parts" / "model.safetensors")
    assert all(weight.equal(found[name]) for name, weight in expected.items())
    accumulated = run(parse(arguments(texts, "many", "--max_steps", str(more), *many)), quiet=True)
    assert accumulated["batch_order"] == whole["batch_order"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--max_steps", "-1"], "streaming has no length.*--max_steps"),
        (["--tokenizer", "bpe"], "tokenizer=bpe is built from the training text"),
        (["--dataloader_num_workers", "2"], "dataloader_num_workers=2 does not apply to streaming"),
        (["--lr_scheduler_type", "epoch_decay"], "epoch_decay does not apply to streaming"),
        (["--eval_strategy", "epoch"], "eval_strategy=epoch does not apply to streaming"),
        (["--windows", "streams"], "streaming never has the text as a whole"),
    ],
)
def test_what_streaming_cannot_do_is_refused(texts, more, said):
    with pytest.raises(ConfigError, match=said):
        parse(arguments(texts, "refused", "--max_steps", "3", *more))
