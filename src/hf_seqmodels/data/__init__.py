"""Data: text to tokens to windows to padded batches; synthetic tasks. Only `collate.py` pads."""

from hf_seqmodels.data.collate import (
    CausalLMCollator,
    FramesCollator,
    Seq2SeqCollator,
    SequenceClassificationCollator,
    TokenCollator,
)
from hf_seqmodels.data.fingerprint import content_hash
from hf_seqmodels.data.synthetic import SYNTHETIC, chance_level, make_synthetic
from hf_seqmodels.data.text import (
    build_character_tokenizer,
    load_pydoc_topics,
    load_text_files,
    out_of_vocabulary_share,
    token_stream,
    window_dataset,
)

__all__ = [
    "SYNTHETIC",
    "CausalLMCollator",
    "FramesCollator",
    "Seq2SeqCollator",
    "SequenceClassificationCollator",
    "TokenCollator",
    "build_character_tokenizer",
    "chance_level",
    "content_hash",
    "load_pydoc_topics",
    "load_text_files",
    "make_synthetic",
    "out_of_vocabulary_share",
    "token_stream",
    "window_dataset",
]
