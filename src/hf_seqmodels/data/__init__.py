"""Data: text to tokens to windows to padded batches. Only `collate.py` pads."""

from hf_seqmodels.data.collate import CausalLMCollator
from hf_seqmodels.data.fingerprint import content_hash
from hf_seqmodels.data.text import (
    build_character_tokenizer,
    load_pydoc_topics,
    load_text_files,
    out_of_vocabulary_share,
    token_stream,
    window_dataset,
)

__all__ = [
    "CausalLMCollator",
    "build_character_tokenizer",
    "content_hash",
    "load_pydoc_topics",
    "load_text_files",
    "out_of_vocabulary_share",
    "token_stream",
    "window_dataset",
]
