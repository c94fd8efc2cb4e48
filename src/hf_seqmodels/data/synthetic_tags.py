"""Synthetic tasks whose output is classes: one for the sequence, or one for each token.

Each function makes one example: `input_ids` (token ids) and `labels` (class ids; −100 where there is none).
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from .symbols import FIRST, NO_LABEL

Example = dict[str, Any]

BITS = ("0", "1")
LOOKAHEAD = 3

KEYS, VALUES, REACH, QUESTIONS = 8, tuple("0123"), 30, 2
RECALL_SYMBOLS = (
    *(f"k{key}?" for key in range(KEYS)),
    *(f"k{key}={value}" for key, value in itertools.product(range(KEYS), VALUES)),
    *(f"x{number}" for number in range(32)),
)
CHANCE_RECALL = 1 / len(VALUES)

KINDS = ("A", "B", "C")
BRACKETED_TAGS = ("O", *(f"{place}-{kind}" for kind in KINDS for place in "BIE"))
BRACKETED_WORDS = tuple(f"w{number}" for number in range(len(BRACKETED_TAGS)))
NOISE = 0.25
CHANCE_BRACKETED = 0.0  # exact match: all 20 tags of a sequence

BRACKETS = tuple("([{<)]}>")
CLOSING = tuple(")]}>")
CHANCE_NESTED = 1 / len(CLOSING)

SPIKE_SYMBOLS = ("49", "50", "_", "x", "y")
DELAY_STEPS = (49, 50)
SILENCE = 52


def parity(rng: np.random.Generator, length: int) -> Example:
    """`length` random bits; is the number of ones even or odd?

    No bit can be forgotten and no part of the sequence says anything (Minsky & Papert 1969; Hochreiter & Schmidhuber
    1997, section 1). Chance level (accuracy): 1/2.
    """
    bits = rng.integers(2, size=length)
    return {"input_ids": (FIRST + bits).tolist(), "labels": int(bits.sum() % 2)}


def parity_up_to(rng: np.random.Generator, length: int) -> Example:
    """Training examples of parity: any length from 1 to `length`, so that there is something to begin with."""
    return parity(rng, int(rng.integers(1, length + 1)))


def lookahead_tags(rng: np.random.Generator, length: int) -> Example:
    """`length` random bits; the tag of a token is the parity of the next three. The last three have no tag.

    A model that reads from the left has seen none of what the tag depends on (Schuster & Paliwal 1997). Chance level
    (token accuracy), and the best one direction can do: 1/2.
    """
    if length <= LOOKAHEAD:
        raise ValueError(f"lookahead_tags with length={length} has no tag; it must be above {LOOKAHEAD}")
    bits = rng.integers(2, size=length)
    tags = [int(bits[i + 1 : i + 1 + LOOKAHEAD].sum() % 2) for i in range(length - LOOKAHEAD)]
    return {"input_ids": (FIRST + bits).tolist(), "labels": tags + [NO_LABEL] * LOOKAHEAD}


def recall(rng: np.random.Generator, length: int) -> Example:
    """`length` tokens: among distractors `x0` … stands each of eight keys once with its value, `k7=3`, and twice as a
    question, `k7?`, at most 30 tokens away on either side; a question's tag is the value, other tokens have none
    (associative recall: Graves 2014, section 4.3; Arora 2023).

    A layout that sees the neighbourhood can answer, one that sees only the next tokens cannot. Chance level (token
    accuracy): 1/4.
    """
    if length < 4 * KEYS + REACH:
        raise ValueError(
            f"recall with length={length} has no room for {KEYS} keys; it must be at least {4 * KEYS + REACH}"
        )
    tokens = KEYS * (1 + len(VALUES)) + rng.integers(32, size=length)
    values = rng.integers(len(VALUES), size=KEYS)
    places = rng.choice(length, size=KEYS, replace=False)
    tokens[places] = KEYS + np.arange(KEYS) * len(VALUES) + values
    labels, taken = [NO_LABEL] * length, set(places.tolist())
    for key, place in enumerate(places.tolist()):
        near = [i for i in range(max(0, place - REACH), min(length, place + REACH + 1)) if i not in taken]
        for i in rng.choice(near, size=QUESTIONS, replace=False).tolist():
            tokens[i], labels[i] = key, int(values[key])
            taken.add(i)
    return {"input_ids": (FIRST + tokens).tolist(), "labels": labels}


def bracketed_tags(rng: np.random.Generator, length: int) -> Example:
    """`length` tags of a bracketed sequence, spans `B-A I-A … E-A` of three kinds between `O`; each tag has a word,
    and a quarter of the words are replaced by any other.

    A word alone leaves the tag open; which tag may follow which is certain (Lample 2016, section 2.2; Huang 2015).
    After O or the end of a span: a span of each kind with probability 1/6, else O; a span goes on with probability
    2/3. Chance level (exact match of a sequence): 0; (token accuracy) of the commonest tag, O: about 0.2.
    """
    tags: list[int] = []
    while len(tags) < length:
        kind = int(rng.integers(2 * len(KINDS)))
        if kind >= len(KINDS):
            tags.append(0)
            continue
        begin, inside = 1 + 3 * kind, int(rng.geometric(1 / 3)) - 1
        tags += [begin, *[begin + 1] * inside, begin + 2]
    labels = np.array(tags[:length])
    others = (labels + rng.integers(1, len(BRACKETED_WORDS), size=length)) % len(BRACKETED_WORDS)
    words = np.where(rng.random(length) < NOISE, others, labels)
    return {"input_ids": (FIRST + words).tolist(), "labels": labels.tolist()}


def nested_brackets(rng: np.random.Generator, length: int) -> Example:
    """The first `length` symbols of a random walk through correctly nested brackets of four kinds (a Dyck language);
    the class of a closing bracket is the one that has to close next, none where nothing is open any more.

    To know it again after an inner pair has closed, a model has to keep a stack (Suzgun 2019; Hewitt 2020). Opening
    brackets, after which the answer stands before the reader, have no class. They open with probability 1/2, at most
    twelve deep. Chance level (accuracy): 1/4.
    """
    kinds, deepest = len(CLOSING), 12
    stack: list[int] = []
    tokens, labels = [], []
    for opens, kind in zip(rng.random(length) < 0.5, rng.integers(kinds, size=length).tolist(), strict=True):
        if (opens and len(stack) < deepest) or not stack:
            stack.append(kind)
            tokens.append(FIRST + kind)
            labels.append(NO_LABEL)
        else:
            tokens.append(FIRST + kinds + stack.pop())
            labels.append(stack[-1] if stack else NO_LABEL)
    return {"input_ids": tokens, "labels": labels}


def spike_timing(rng: np.random.Generator, length: int) -> Example:
    """`length` random symbols that mean nothing, then `49` or `50`, then silence; the class of a token says whether a
    spike is due: exactly once, 49 or 50 steps after the number.

    "Generating timed spikes" of Gers, Schraudolph & Schmidhuber 2002 (section 4.2; JMLR 3:115–143) with F = 49 and
    I ∈ {0, 1}, the fine distinction of Gers & Schmidhuber 2000, learned without shorter examples. Nothing arrives
    while the model counts, so it has to find the moment from its own state. Chance level (exact match of all classes):
    1/2, for a spike that always comes after 49 steps.
    """
    later = int(rng.integers(2))
    before, number = FIRST + 3 + rng.integers(2, size=length), FIRST + later
    labels = [0] * (length + 1 + SILENCE)
    labels[length + DELAY_STEPS[later]] = 1
    return {"input_ids": [*before.tolist(), number, *[FIRST + 2] * SILENCE], "labels": labels}
