"""Synthetic tasks whose output is text: sequence to sequence, causal and masked language models.

Each function makes one example: `input_ids` and `labels`, token ids, −100 where nothing is predicted.
"""

from __future__ import annotations

import math

import numpy as np

from .symbols import EOS, FIRST, MASK, NO_LABEL

Example = dict[str, list[int]]

LETTERS = tuple("abcdefghij")
CHANCE_REVERSE = 0.0  # 10^−20 at the default length

PREFIXES = ("reverse:", "sort:")
PREFIXED = (*PREFIXES, *LETTERS)
CHANCE_PREFIXED = 1 / len(PREFIXES)  # a perfect worker who cannot read the prefix

COPIED = 4
COPY_SYMBOLS = (*LETTERS[:8], *"ABCDEFGH", "copy:")
CHANCE_COPY = 1 / 8

MARKOV_SYMBOLS = LETTERS[:8]
MARKOV_PROBABILITIES = (0.8, 0.15, 0.05)
CHANCE_BITS = math.log2(len(MARKOV_SYMBOLS))  # 3 bits
MARKOV_ENTROPY = -sum(p * math.log2(p) for p in MARKOV_PROBABILITIES)  # 0.884 bits: nobody can do better

CLOZE_MODULUS = 7
CLOZE_SYMBOLS = (*LETTERS[:CLOZE_MODULUS], ".")
CHANCE_CLOZE = 1 / CLOZE_MODULUS


def reverse(rng: np.random.Generator, length: int) -> Example:
    """`length` random letters of ten → the same letters from last to first, then the end.

    The classical test of what an encoder–decoder remembers: without attention everything has to pass through one
    vector (Sutskever 2014 reversed the source for that reason; Bahdanau 2014, section 1).
    Chance level (exact match): 10^−length.
    """
    source = FIRST + rng.integers(len(LETTERS), size=length)
    return {"input_ids": source.tolist(), "labels": [*source[::-1].tolist(), EOS]}


def prefixed(rng: np.random.Generator, length: int) -> Example:
    """A task prefix, then `length` random letters → the letters reversed, or sorted (text-to-text: Raffel 2020, T5).

    Chance level (exact match): 1/2 for a reader who masters both tasks and cannot read the prefix; 0 without the rest.
    """
    which = int(rng.integers(len(PREFIXES)))
    source = FIRST + len(PREFIXES) + rng.integers(len(LETTERS), size=length)
    target = source[::-1] if PREFIXES[which] == "reverse:" else np.sort(source)
    return {"input_ids": [FIRST + which, *source.tolist()], "labels": [*target.tolist(), EOS]}


def selective_copy(rng: np.random.Generator, length: int) -> Example:
    """`length` symbols of which four, anywhere, are small letters and the rest capitals; then `copy:`; then the four
    small letters in their order, the only targets.

    The copying task of Hochreiter & Schmidhuber 1997 with distractors at random places (Gu & Dao 2023, section 3.1):
    the model has to choose what to remember, and to keep it. Chance level (token accuracy): 1/8.
    """
    if length < COPIED:
        raise ValueError(f"selective_copy with length={length} has no room for {COPIED} letters; raise length")
    small, capital = FIRST + rng.integers(8, size=COPIED), FIRST + 8 + rng.integers(8, size=length)
    capital[np.sort(rng.choice(length, size=COPIED, replace=False))] = small
    start = FIRST + COPY_SYMBOLS.index("copy:")
    labels = [NO_LABEL] * (length + 1) + small.tolist()
    return {"input_ids": [*capital.tolist(), start, *small.tolist()], "labels": labels}


def markov_table() -> np.ndarray:
    """(8, 8, 3): the three symbols that may follow each pair of symbols, the likeliest first; one for all data."""
    rng = np.random.default_rng(2)
    symbols = len(MARKOV_SYMBOLS)
    table = [rng.permutation(symbols)[: len(MARKOV_PROBABILITIES)] for _ in range(symbols**2)]
    return np.array(table).reshape(symbols, symbols, len(MARKOV_PROBABILITIES))


_TABLE = markov_table()


def next_token(rng: np.random.Generator, length: int) -> Example:
    """`length` symbols of a second-order Markov source: after each pair one of three symbols, with the probabilities
    0.8, 0.15 and 0.05 (Shannon 1948, section 3). The first two symbols are free and no targets.

    Chance level: 3 bits per token (any of eight symbols). The source has 0.884 bits; no model can do better.
    """
    if length < 3:
        raise ValueError(f"next_token with length={length} has nothing to predict; it must be at least 3")
    ids = rng.integers(len(MARKOV_SYMBOLS), size=2).tolist()
    for choice in rng.choice(len(MARKOV_PROBABILITIES), size=length - 2, p=MARKOV_PROBABILITIES).tolist():
        ids.append(int(_TABLE[ids[-2], ids[-1], choice]))
    tokens = [FIRST + number for number in ids]
    return {"input_ids": tokens, "labels": [NO_LABEL, NO_LABEL, *tokens[2:]]}


def cloze(rng: np.random.Generator, length: int) -> Example:
    """`length` sentences of three words, `a b c .` with c = a + b modulo 7; one word of each is masked, at random.

    Any word follows from the other two, none from fewer: a Latin square. So the right-hand side is needed for two of
    three masks (Taylor 1953; Devlin 2018). Chance level (accuracy): 1/7; reading from the left alone reaches
    1/3 + 2/3 · 1/7 = 0.43.
    """
    first, second = rng.integers(CLOZE_MODULUS, size=(2, length))
    words = FIRST + np.stack([first, second, (first + second) % CLOZE_MODULUS], axis=1)
    masked = rng.integers(3, size=length)
    input_ids, labels = [], []
    for sentence, place in zip(words.tolist(), masked.tolist(), strict=True):
        input_ids += [*(MASK if i == place else word for i, word in enumerate(sentence)), FIRST + CLOZE_MODULUS]
        labels += [*(word if i == place else NO_LABEL for i, word in enumerate(sentence)), NO_LABEL]
    return {"input_ids": input_ids, "labels": labels}
