"""Sounds made in code, and what transformers has around a speech model: features, characters, a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Speech2TextFeatureExtractor, Wav2Vec2CTCTokenizer

RATE, HOP, BINS = 16_000, 160, 16  # samples a second, samples a frame, columns of a frame
VOCABULARY = {"<pad>": 0, "<unk>": 1, "|": 2, "a": 3, "b": 4, "c": 5}  # "|" between words; <pad> is the blank
PITCH = {"|": 5000, "a": 400, "b": 1000, "c": 2500}  # Hz


def make_extractor() -> Speech2TextFeatureExtractor:
    """Log-mel frames (B, T, 16) of 25 ms, every 10 ms."""
    return Speech2TextFeatureExtractor(feature_size=BINS, num_mel_bins=BINS, normalize_vars=False)


def make_tokenizer(folder: Path) -> Wav2Vec2CTCTokenizer:
    (folder / "vocabulary.json").write_text(json.dumps(VOCABULARY))
    return Wav2Vec2CTCTokenizer(
        folder / "vocabulary.json", pad_token="<pad>", unk_token="<unk>", bos_token=None, eos_token=None
    )


def say(text: str, seconds: float = 0.06, pause: float = 0.04, seed: int = 0) -> np.ndarray:
    """(samples,) a tone for each character, "|" too, and a pause behind it, with a little noise."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    quiet = np.zeros(round(pause * RATE))
    parts = [part for char in text for part in (0.3 * np.sin(2 * np.pi * PITCH[char] * time), quiet)]
    sound = np.concatenate(parts)
    return (sound + 0.003 * generator.standard_normal(len(sound))).astype(np.float32)


def draw_texts(count: int, seed: int, letters: str = "abc|") -> list[str]:
    """Texts of 2 to 5 letters; no pause between words at an end, nor two in a row."""
    generator = np.random.default_rng(seed)
    texts: list[str] = []
    while len(texts) < count:
        text = "".join(generator.choice(list(letters), generator.integers(2, 6)))
        if text == text.strip("|") and "||" not in text:
            texts.append(text)
    return texts


class SpeechCollator:
    """Rows of `input_features` (T, F) and `labels`: a padded batch with its mask, −100 behind the labels."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        features = [torch.as_tensor(row["input_features"], dtype=torch.float32) for row in rows]
        pad = torch.nn.utils.rnn.pad_sequence
        batch = {
            "input_features": pad(features, batch_first=True),
            "attention_mask": pad([torch.ones(len(row), dtype=torch.long) for row in features], batch_first=True),
        }
        labels = [torch.as_tensor(row["labels"]) for row in rows]
        ctc = labels[0].ndim == 1
        return batch | {"labels": pad(labels, batch_first=True, padding_value=-100) if ctc else torch.stack(labels)}


def make_rows(texts: list[str], extractor: Any) -> list[dict[str, Any]]:
    """Features and labels of spoken texts."""
    sounds = [say(text, seed=index) for index, text in enumerate(texts)]
    frames = [extractor(sound, sampling_rate=RATE)["input_features"][0] for sound in sounds]
    return [
        {"input_features": row, "labels": [VOCABULARY[char] for char in text]}
        for row, text in zip(frames, texts, strict=True)
    ]
