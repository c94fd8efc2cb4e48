"""Data: text to tokens to windows to padded batches; synthetic tasks. Only `collate.py` pads."""

from hf_seqmodels.data.collate import (
    CausalLMCollator,
    FeaturesCollator,
    FramesCollator,
    PianoRollCollator,
    Seq2SeqCollator,
    SequenceClassificationCollator,
    StreamCollator,
    TokenCollator,
)
from hf_seqmodels.data.encoding import text_rows
from hf_seqmodels.data.fingerprint import content_hash
from hf_seqmodels.data.music import KEYS, cut_pieces, load_piano_rolls, to_pitches, to_roll
from hf_seqmodels.data.sources import find_data, load_splits, load_texts
from hf_seqmodels.data.streaming import Division, StreamedText, open_rows, read_rows
from hf_seqmodels.data.streams import StreamDataset
from hf_seqmodels.data.synthetic import SYNTHETIC, chance_level, make_synthetic
from hf_seqmodels.data.text import (
    load_pydoc_topics,
    load_text_files,
    out_of_vocabulary_share,
    token_stream,
    window_dataset,
)
from hf_seqmodels.data.token_cache import token_streams
from hf_seqmodels.data.tokenizers import BUILT, build_character_tokenizer, build_tokenizer

__all__ = [
    "BUILT",
    "KEYS",
    "SYNTHETIC",
    "CausalLMCollator",
    "Division",
    "FeaturesCollator",
    "FramesCollator",
    "PianoRollCollator",
    "Seq2SeqCollator",
    "SequenceClassificationCollator",
    "StreamCollator",
    "StreamDataset",
    "StreamedText",
    "TokenCollator",
    "build_character_tokenizer",
    "build_tokenizer",
    "chance_level",
    "content_hash",
    "cut_pieces",
    "find_data",
    "load_piano_rolls",
    "load_pydoc_topics",
    "load_splits",
    "load_text_files",
    "load_texts",
    "make_synthetic",
    "open_rows",
    "out_of_vocabulary_share",
    "read_rows",
    "text_rows",
    "to_pitches",
    "to_roll",
    "token_stream",
    "token_streams",
    "window_dataset",
]
