"""Synthetic tasks: every label is computed again by an obvious other way, and every chance level is counted."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, product

import numpy as np
import pytest

from hf_seqmodels.arguments import DATASETS, READ
from hf_seqmodels.data import SYNTHETIC, chance_level, content_hash, make_synthetic
from hf_seqmodels.data.synthetic_tags import DELAY_STEPS
from hf_seqmodels.data.synthetic_text import MARKOV_ENTROPY, markov_table

each_task = pytest.mark.parametrize("name", SYNTHETIC)


def rows(name: str, number: int = 200, length: int | None = None, seed: int = 0):
    """The training rows as words: (input words, labels as the task has them)."""
    splits, tokenizer = make_synthetic(name, number, length, seed)
    for row in splits["train"]:
        yield tokenizer.convert_ids_to_tokens(row["input_ids"]), row["labels"], tokenizer


@each_task
def test_same_arguments_same_examples(name):
    first, second = (content_hash(make_synthetic(name, 20, seed=3)[0]) for _ in range(2))
    assert first == second
    assert content_hash(make_synthetic(name, 20, seed=4)[0]) != first


@each_task
def test_no_input_of_one_split_stands_in_another(name):
    splits, _ = make_synthetic(name, 400)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 400, "validation": 40, "test": 40}
    column = {"moving_squares": "frames", "adding": "input_features"}.get(name, "input_ids")
    inputs = {split: {tuple(np.asarray(row).tolist()) for row in rows[column]} for split, rows in splits.items()}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not inputs[one] & inputs[other]


def test_splits_stay_apart_where_examples_repeat():
    """Parity of up to 6 bits has few inputs, so without the check the splits would overlap."""
    splits, _ = make_synthetic("parity", 60, length=6)
    train, test = ({tuple(ids) for ids in splits[split]["input_ids"]} for split in ("train", "test"))
    assert len(train) < 60 and not train & test


def test_too_few_different_examples_are_refused():
    with pytest.raises(
        ValueError, match=r"parity with length=2 has too few different examples for 1000; raise length"
    ):
        make_synthetic("parity", 1000, length=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("revers", 20), "there is no synthetic task 'revers': it must be one of reverse,"),
        (("reverse", 9), "num_examples=9 is out of range: it must be at least 10"),
        (("selective_copy", 20, 3), "no room for 4 letters"),
        (("recall", 20, 4), "no room for 8 keys"),
        (("lookahead_tags", 20, 3), "must be above 3"),
        (("next_token", 20, 2), "at least 3"),
    ],
)
def test_what_cannot_be_made_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_synthetic(*arguments)


def test_every_made_data_set_has_a_task_on_the_command_line():
    assert set(DATASETS) == {*READ, *SYNTHETIC}


# ---- each definition, once more -----------------------------------------------------------------------------------


def test_reverse():
    for words, labels, tokenizer in rows("reverse"):
        assert tokenizer.convert_ids_to_tokens(labels) == [*reversed(words), "</s>"] and len(words) == 20


def test_prefixed():
    seen = Counter()
    for (prefix, *letters), labels, tokenizer in rows("prefixed"):
        seen[prefix] += 1
        wanted = sorted(letters) if prefix == "sort:" else letters[::-1]
        assert tokenizer.convert_ids_to_tokens(labels) == [*wanted, "</s>"]
    assert set(seen) == {"reverse:", "sort:"} and min(seen.values()) > 70


def test_selective_copy():
    for words, labels, tokenizer in rows("selective_copy"):
        small = [word for word in words[:40] if word.islower()]
        assert words[40] == "copy:" and words[41:] == small and len(small) == 4
        assert labels[:41] == [-100] * 41 and tokenizer.convert_ids_to_tokens(labels[41:]) == small


def test_next_token_comes_from_the_table_with_the_stated_probabilities():
    table, places = markov_table(), Counter()
    for words, labels, _ in rows("next_token"):
        numbers = ["abcdefgh".index(word) for word in words]
        for one, two, three in zip(numbers, numbers[1:], numbers[2:], strict=False):
            places[table[one, two].tolist().index(three)] += 1
        assert labels[:2] == [-100, -100] and -100 not in labels[2:]
    shares = np.array([places[place] / places.total() for place in range(3)])
    assert shares == pytest.approx([0.8, 0.15, 0.05], abs=0.01)
    assert -(shares * np.log2(shares)).sum() == pytest.approx(MARKOV_ENTROPY, abs=0.03)


def test_the_markov_source_needs_both_symbols():
    """Knowing only the last symbol leaves the next one open: no column of the table is constant."""
    likeliest = markov_table()[:, :, 0]
    assert all(len(set(likeliest[:, last])) > 2 for last in range(8))


def test_cloze_is_determined_by_both_sides_and_by_nothing_less():
    for words, labels, tokenizer in rows("cloze"):
        for start in range(0, len(words), 4):
            sentence = words[start : start + 4]
            place = sentence.index("<mask>")
            fitting = [
                letter
                for letter in "abcdefg"
                if (lambda a, b, c: (ord(a) + ord(b) - 2 * ord("a")) % 7 == ord(c) - ord("a"))(
                    *[letter if i == place else word for i, word in enumerate(sentence[:3])]
                )
            ]
            true = labels[start + place]
            assert fitting == [tokenizer.convert_ids_to_tokens(true)] and sentence[3] == "."
            assert [label for label in labels[start : start + 4] if label != -100] == [true]


def test_parity():
    lengths = set()
    for words, label, _ in rows("parity"):
        assert label == words.count("1") % 2
        lengths.add(len(words))
    assert max(lengths) <= 40 and len(lengths) > 30, "the training examples are of all lengths"
    splits, _ = make_synthetic("parity", 200)
    assert {len(ids) for ids in splits["test"]["input_ids"]} == {40}


def test_recall():
    for words, labels, _ in rows("recall"):
        pairs = {word.split("=")[0]: (int(word.split("=")[1]), i) for i, word in enumerate(words) if "=" in word}
        asked = [(i, word.removesuffix("?")) for i, word in enumerate(words) if word.endswith("?")]
        assert len(words) == 256 and len(pairs) == 8 and len(asked) == 16
        assert {i for i, label in enumerate(labels) if label != -100} == {i for i, _ in asked}
        for i, key in asked:
            value, place = pairs[key]
            assert labels[i] == value and abs(place - i) <= 30


def test_lookahead_tags():
    for words, labels, _ in rows("lookahead_tags"):
        assert labels[-3:] == [-100] * 3
        assert labels[:-3] == [words[i + 1 : i + 4].count("1") % 2 for i in range(len(words) - 3)]


def test_bracketed_tags_follow_each_other_as_brackets_do():
    allowed = {("O", "O")} | {("O", f"B-{kind}") for kind in "ABC"}
    for kind, other in product("ABC", "ABC"):
        allowed |= {(f"B-{kind}", f"I-{kind}"), (f"B-{kind}", f"E-{kind}"), (f"I-{kind}", f"I-{kind}")}
        allowed |= {(f"I-{kind}", f"E-{kind}"), (f"E-{kind}", "O"), (f"E-{kind}", f"B-{other}")}
    names, right, total = SYNTHETIC["bracketed_tags"].labels, 0, 0
    for words, labels, _ in rows("bracketed_tags"):
        tags = [names[label] for label in labels]
        assert tags[0][0] in "OB" and set(pairwise(tags)) <= allowed
        right += sum(word == f"w{label}" for word, label in zip(words, labels, strict=True))
        total += len(words)
    assert right / total == pytest.approx(0.75, abs=0.02)


def test_nested_brackets():
    partner, checked = dict(zip("([{<", ")]}>", strict=True)), 0
    names = SYNTHETIC["nested_brackets"].labels
    for words, labels, _ in rows("nested_brackets"):
        for end, label in enumerate(labels, start=1):
            rest = "".join(words[:end])
            for _ in range(end):  # rub out closed pairs until nothing changes: no stack needed
                for pair in ("()", "[]", "{}", "<>"):
                    rest = rest.replace(pair, "")
            assert len(rest) <= 12 and not set(rest) & set(")]}>")
            if words[end - 1] in partner or not rest:
                assert label == -100
            else:
                assert names[label] == partner[rest[-1]]
                checked += 1
    assert checked > 1000


def test_spike_timing():
    for words, labels, _ in rows("spike_timing"):
        cue = next(place for place, word in enumerate(words) if word in ("49", "50"))
        assert set(words[cue + 1 :]) == {"_"} and set(words[:cue]) <= {"x", "y"}
        assert [place for place, label in enumerate(labels) if label] == [cue + int(words[cue])]
        assert len(words) > cue + max(DELAY_STEPS)


def test_moving_squares_move_with_constant_speed_and_bounce():
    splits, tokenizer = make_synthetic("moving_squares", 60)
    assert tokenizer is None
    singles = 0
    for row in splits["train"]:
        frames = np.asarray(row["frames"]).reshape(row["shape"])[:, 0]
        assert frames.shape == (20, 16, 16) and set(np.unique(frames)) == {0.0, 1.0}
        if not (frames.sum((1, 2)) == 16).all():  # two squares; one alone is easy to follow
            assert frames.sum((1, 2)).max() <= 32
            continue
        corners = np.array([np.argwhere(frame)[0] for frame in frames])
        assert all(frame[y : y + 4, x : x + 4].all() for frame, (y, x) in zip(frames, corners, strict=True))
        for path in corners.T:
            steps = np.abs(np.diff(path))
            away = (path[:-1] >= 2) & (path[:-1] <= 10)  # no wall within reach
            assert len(set(steps[away])) <= 1 and steps.max() <= 2 and np.abs(np.diff(corners, axis=0)).any()
        singles += 1
    assert singles > 5


# ---- chance levels ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["parity", "recall", "lookahead_tags", "nested_brackets", "cloze", "selective_copy"])
def test_the_commonest_answer_is_right_as_often_as_stated(name):
    answers = Counter()
    splits, _ = make_synthetic(name, 3000)
    for labels in splits["train" if name != "parity" else "test"]["labels"]:
        answers.update(label for label in (labels if isinstance(labels, list) else [labels]) if label != -100)
    share = answers.most_common(1)[0][1] / answers.total()
    assert share == pytest.approx(chance_level(name, splits["test"]), abs=0.06 if name == "parity" else 0.03)


def test_one_direction_knows_nothing_about_lookahead_tags():
    """Whatever the last four tokens are, both tags are equally frequent."""
    seen: dict[tuple[str, ...], Counter] = {}
    for words, labels, _ in rows("lookahead_tags", 2000):
        for i in range(3, len(words) - 3):
            seen.setdefault(tuple(words[i - 3 : i + 1]), Counter())[labels[i]] += 1
    assert all(counts[1] / counts.total() == pytest.approx(0.5, abs=0.05) for counts in seen.values())


def test_repeating_the_last_frame_is_as_wrong_as_stated():
    splits, _ = make_synthetic("moving_squares", 100)
    frames = np.stack(splits["test"]["frames"]).reshape(-1, 20, 256)
    wanted = np.mean((frames[:, 10:] - frames[:, 9:10]) ** 2)
    assert chance_level("moving_squares", splits["test"]) == pytest.approx(wanted, rel=1e-5)
