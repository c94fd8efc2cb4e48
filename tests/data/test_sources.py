"""Data sets found on disk, read by split, and what is said when something is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from hf_seqmodels.data import find_data, load_splits, load_texts
from hf_seqmodels.data.sources import ENVIRONMENT, KNOWN

ROWS = {"train": ["one two", "", "three\n"], "validation": ["four"], "test": ["five", "six"]}
NO_TEST = {"train": "train", "validation": "validation", "test": "validation"}


def write(folder: Path, rows: dict[str, list], column: str = "text", kind: pyarrow.DataType | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, values in rows.items():
        table = pyarrow.table({column: pyarrow.array(values, kind), "number": list(range(len(values)))})
        pyarrow.parquet.write_table(table, folder / f"{split}.parquet")
    return folder


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    """A working directory beside which there is no data."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    return tmp_path


def test_a_name_is_looked_for_in_each_place_and_the_first_wins(somewhere, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no data set 'songs' in data, ../shared/data; give"):
        find_data("songs")
    write(somewhere / "shared/data/songs", ROWS)
    assert find_data("songs") == Path("../shared/data/songs")
    write(somewhere / "work/data/songs", ROWS)
    assert find_data("songs") == Path("data/songs")
    write(somewhere / "set/songs", ROWS)
    monkeypatch.setenv(ENVIRONMENT, str(somewhere / "set"))
    assert find_data("songs") == somewhere / "set/songs"
    write(somewhere / "given/songs", ROWS)
    assert find_data("songs", str(somewhere / "given")) == somewhere / "given/songs"
    assert find_data(str(somewhere / "given/songs")) == somewhere / "given/songs"
    with pytest.raises(FileNotFoundError, match=r"no data set 'songs' in .*empty; give"):
        find_data("songs", str(somewhere / "empty"))


def test_a_hub_id_is_what_is_no_folder(somewhere):
    assert find_data("user/songs") == "user/songs"
    assert find_data("user/songs:small") == "user/songs:small"
    write(somewhere / "work/user/songs", ROWS)
    assert find_data("user/songs") == Path("user/songs")
    with pytest.raises(FileNotFoundError):
        find_data("a/b/c")


@pytest.mark.parametrize("name", KNOWN)
def test_a_known_set_that_is_missing_is_described(somewhere, name):
    with pytest.raises(FileNotFoundError) as missing:
        find_data(name)
    told = str(missing.value)
    assert f"no data set '{name}' in data, ../shared/data" in told and f"into data/{name}" in told
    assert "github.com/" in told and "train.parquet" in told and KNOWN[name].columns in told
    assert "\n" not in told


def test_a_misspelt_name_gets_a_hint(somewhere):
    with pytest.raises(FileNotFoundError, match="did you mean 'ptb_word'"):
        find_data("ptb_words")


def test_a_file_is_no_data_set(somewhere):
    Path("text.txt").write_text("some")
    with pytest.raises(FileNotFoundError, match=r"'text.txt' is a file and must be a folder; .* train_file"):
        find_data("text.txt")


def test_splits_are_read_as_they_are(tmp_path):
    folder = write(tmp_path / "songs", ROWS)
    splits = load_splits(str(folder))
    assert list(splits) == ["train", "validation", "test"]
    assert {name: list(rows["text"]) for name, rows in splits.items()} == ROWS
    assert splits["train"].column_names == ["text", "number"]
    assert load_splits(str(folder), columns=["number"])["test"].column_names == ["number"]
    assert list(load_splits(str(folder), wanted=NO_TEST)["test"]["text"]) == ["four"]


def test_text_files_are_lines(tmp_path):
    for split, text in {"train": "a b\r\n\nc\x0cd\n", "validation": "e", "test": "f\n"}.items():
        (tmp_path / f"{split}.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert list(load_texts(str(tmp_path))["train"]["text"]) == ["a b", "", "c\x0cd"]
    whole = load_texts(str(tmp_path), keep_line_ends=True)
    assert list(whole["train"]["text"]) == ["a b\n", "\n", "c\x0cd\n"]
    assert list(whole["validation"]["text"]) == ["e"]


def test_other_folders_are_read_by_the_library(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "songs"
    (folder / "data").mkdir(parents=True)
    for split in ("train", "validation"):
        (folder / f"data/{split}-0.csv").write_text(f"text,number\n{split},1\n")
    splits = load_texts(str(folder), wanted=NO_TEST)
    assert {name: list(rows["text"]) for name, rows in splits.items()} == {
        "train": ["train"],
        "validation": ["validation"],
        "test": ["validation"],
    }
    with pytest.raises(ValueError, match=r"has no split 'test', it has train, validation; .*--test_split validation"):
        load_texts(str(folder))


def test_the_column_is_named_text_whatever_it_was(tmp_path):
    folder = write(tmp_path, ROWS, column="sentence")
    texts = load_texts(str(folder), column="sentence")
    assert texts["train"].column_names == ["text"] and list(texts["test"]["text"]) == ROWS["test"]


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        (ROWS | {"test": []}, pyarrow.string(), r"test.parquet: the split has no rows"),
        (ROWS | {"test": ["a", None]}, None, r"test.parquet: row 1 of 'text' has no text \(null\)"),
        ({split: [1, 2] for split in ROWS}, None, r"train.parquet: column 'text' holds int64 and must hold text"),
        ({split: [b"a"] for split in ROWS}, None, r"train.parquet: column 'text' holds binary and must hold text"),
        ({"train": ROWS["train"], "validation": ["a"]}, None, r"has no split 'test' \(test.parquet or test.txt\); .*"),
        ({"validation": ["a"], "test": ["a"]}, None, r"has no split 'train' \(train.parquet or train.txt\); put it"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named(tmp_path, rows, kind, message):
    write(tmp_path, rows, kind=kind)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_texts(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_missing_column_is_named_with_those_there(tmp_path):
    write(tmp_path, ROWS)
    with pytest.raises(ValueError, match=r"train.parquet: there is no column 'texts' among text, number: did"):
        load_texts(str(tmp_path), column="texts")


def test_rows_that_are_not_utf8_are_named(tmp_path):
    write(tmp_path, ROWS)
    raw = pyarrow.array(["für".encode("latin-1")], pyarrow.binary())
    raw = pyarrow.Array.from_buffers(pyarrow.string(), 1, raw.buffers())  # as other writers let pass
    rows = pyarrow.concat_arrays([pyarrow.array(["fine"] * 1200), raw])
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"train.parquet: row 1200 of 'text' is not UTF-8 \(byte 1 of the row\)"):
        load_texts(str(tmp_path))


def test_text_files_that_are_not_utf8_are_named(tmp_path):
    for split in ROWS:
        (tmp_path / f"{split}.txt").write_bytes("für".encode("latin-1"))
    with pytest.raises(ValueError, match=r"train.txt' is not UTF-8 \(byte 1\).*iconv"):
        load_texts(str(tmp_path))


def test_a_broken_file_is_named(tmp_path):
    write(tmp_path, ROWS)
    whole = (tmp_path / "train.parquet").read_bytes()
    (tmp_path / "train.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train.parquet' cannot be read as parquet .*; get the file again"):
        load_texts(str(tmp_path))


def test_an_empty_folder_is_no_data_set(tmp_path):
    with pytest.raises(ValueError, match=r"holds no data set: it must have train.parquet or train.txt, and one"):
        load_texts(str(tmp_path))


def test_without_a_network_a_hub_id_says_the_way_out(tmp_path):
    """In a process of its own: whether there is a network is decided at import. Nothing is said beside the error."""
    code = (
        "from hf_seqmodels.data import load_texts\ntry:\n load_texts('user/songs')\nexcept ValueError as e: print(e)"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    assert done.stdout.startswith("data set 'user/songs' is neither a folder here nor to be had from the Hub; check")
    assert "hf download --repo-type dataset user/songs --local-dir data/songs" in done.stdout
    assert done.stdout.count("\n") == 1
