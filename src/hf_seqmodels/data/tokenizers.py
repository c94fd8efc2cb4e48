"""Tokenizers built from a training text: characters, bytes, words, byte-level BPE. All are `PreTrainedTokenizerFast`.

Give them the training split only, so that no score peeks. Ids start with `<pad>`; the end of a text is `</s>`. Nothing
is added when encoding. They pad on the left, as generation wants, and load anywhere without this package.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

PAD_TOKEN, UNK_TOKEN, EOS_TOKEN = "<pad>", "<unk>", "</s>"
EVERY_CHARACTER = r"[\s\S]"  # "." would skip newlines
BPE_SIZE = 8192
BYTES = 256
# What the library splits words at: Unicode's White_Space, of which `str.split` has four control characters more.
_SPACE = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+")


def build_tokenizer(name: str, texts: Iterable[str], vocabulary_size: int | None = None) -> PreTrainedTokenizerFast:
    """The tokenizer `name`, one of `BUILT`, of a training text.

    Args:
        name: characters, bytes, words or bpe.
        texts: the rows of the training split.
        vocabulary_size: most tokens of words (None: all) or bpe (None: 8192), `<pad>` and the like counted.

    Raises:
        ValueError: no such tokenizer, no text, or a size that it cannot have.
    """
    if name not in BUILT:
        raise ValueError(f"tokenizer '{name}' cannot be built: it must be one of {', '.join(BUILT)}")
    return BUILT[name](texts, vocabulary_size)


def build_character_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """One token per character (Unicode code point).

    Ids: 0 `<pad>`, 1 `<unk>`, 2 `</s>`, then the characters of `texts` in sorted order. Characters not in `texts`
    become `<unk>`; everything else comes back from `decode` unchanged. A special token spelt out in a text is read as
    its characters, never as the token.

    Raises:
        ValueError: `texts` holds no character.
    """
    characters = sorted(set().union(*texts))
    if not characters:
        raise ValueError("no characters in the texts: a tokenizer needs at least one; check the training split")
    tokenizer = Tokenizer(models.WordLevel(_numbered(UNK_TOKEN, EOS_TOKEN, *characters), unk_token=UNK_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(EVERY_CHARACTER), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()  # the default joins tokens with spaces
    return _finished(tokenizer, unk_token=UNK_TOKEN)


def build_byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte of UTF-8: 0 `<pad>`, 1 `</s>`, then byte b as b + 2. Any text comes back unchanged.

    A special token spelt out in a text is read as its bytes.
    """
    symbols = bytes_to_unicode()
    tokenizer = Tokenizer(models.BPE(_numbered(EOS_TOKEN, *(symbols[byte] for byte in range(BYTES))), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return _finished(tokenizer)


def build_word_tokenizer(texts: Iterable[str], vocabulary_size: int | None = None) -> PreTrainedTokenizerFast:
    """One token per word, words stand apart by white space; `decode` joins them with one space.

    Ids: 0 `<pad>`, 1 `<unk>`, 2 `</s>`, then the words of `texts`, the most frequent first, ties by their text. Words
    without an id become `<unk>`. A word that spells one of the three is that token: texts whose rare words are written
    `<unk>`, as in the Penn Treebank, have them as unknown.

    Args:
        texts: the rows of the training split.
        vocabulary_size: most ids; None gives every word one.

    Raises:
        ValueError: `texts` holds no word.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(split_words(text))
    for token in (PAD_TOKEN, UNK_TOKEN, EOS_TOKEN):
        counts.pop(token, None)
    if not counts:
        raise ValueError("no words in the texts: a tokenizer needs at least one; check the training split")
    words = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = _numbered(UNK_TOKEN, EOS_TOKEN, *words[: None if vocabulary_size is None else vocabulary_size - 3])
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK_TOKEN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _finished(tokenizer, unk_token=UNK_TOKEN)


def build_bpe_tokenizer(texts: Iterable[str], vocabulary_size: int | None = None) -> PreTrainedTokenizerFast:
    """Byte-level byte-pair encoding (Sennrich 2016; Radford 2019, section 2.2), trained on `texts` by `tokenizers`.

    Ids: 0 `<pad>`, 1 `</s>`, the 256 bytes, then merges in their order. Any text comes back unchanged. A special token
    spelt out in a text is read as its bytes. The same texts give the same tokenizer.

    Args:
        texts: the rows of the training split.
        vocabulary_size: most ids, at least 258; 8192 if None. Short texts give fewer.

    Raises:
        ValueError: the size is below 258.
    """
    size = BPE_SIZE if vocabulary_size is None else vocabulary_size
    if size < BYTES + 2:
        raise ValueError(f"vocabulary_size={size} is too small for bpe: two special tokens and 256 bytes need 258")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD_TOKEN, EOS_TOKEN],
        initial_alphabet=list(bytes_to_unicode().values()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _finished(tokenizer)


def split_words(text: str) -> list[str]:
    """The words of a text, as the word tokenizer splits it."""
    return [word for word in _SPACE.split(text) if word]


BUILT: dict[str, Any] = {
    "characters": lambda texts, size: build_character_tokenizer(texts),
    "bytes": lambda texts, size: build_byte_tokenizer(),
    "words": build_word_tokenizer,
    "bpe": build_bpe_tokenizer,
}


def _numbered(*tokens: str) -> dict[str, int]:
    return {token: number for number, token in enumerate([PAD_TOKEN, *tokens])}


def _finished(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=EOS_TOKEN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        **special,
    )
