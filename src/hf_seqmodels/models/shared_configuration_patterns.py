"""Options of the Transformers with one stack: who attends to whom."""

from .shared_configuration import MOST_TOKENS, MOST_WIDTH
from .shared_configuration_transformer import TransformerOptions
from .shared_versions import strict

MOST_HASHES = 1_000
PATTERNS = ("full", "sliding_window", "lsh")


@strict
class AttentionPatternOptions(TransformerOptions):
    """Options of the attention pattern, the same in every layer.

    Args:
        attention_pattern (`str`, defaults to `"full"`): `"full"` (Vaswani 2017), time and memory grow as T²;
            `"sliding_window"` (Longformer: Beltagy 2020), as T·W; `"lsh"` (Reformer: Kitaev 2020), as T·log T.
        attention_window (`int`, defaults to 256): tokens W that a token sees in a sliding window. In an encoder both
            sides together, so it is even, and the token itself is not counted; in a decoder the token itself and
            those before it. A window that is longer than the text is full attention.
        num_global_tokens (`int`, defaults to 0): with a sliding window, the first tokens of a row that see, and are
            seen by, all others; an encoder can be told others with `global_attention_mask`.
        num_hashes (`int`, defaults to 2): rounds of hashing with `"lsh"` (Kitaev 2020, section 2); more of them miss
            less.
        num_buckets (`int`, defaults to 16): buckets of a round, an even number, or 1, which turns hashing off.
        lsh_chunk_length (`int`, defaults to 64): the tokens, sorted by bucket, are cut into chunks of this length,
            which attend to themselves and to the chunk before. Any number of tokens is allowed: the last chunk is
            filled up inside. Twice an average bucket, tokens / `num_buckets`, is the paper's choice.
        hash_seed (`int`, defaults to 0): seed of the random rotations, which are saved with the model.
        feed_forward_chunk (`int`, defaults to 0): positions that the feed-forward layer computes at a time, with any
            pattern, which bounds its memory (Kitaev 2020, section 3); 0: all at once.
    """

    attention_pattern: str = "full"
    attention_window: int = 256
    num_global_tokens: int = 0
    num_hashes: int = 2
    num_buckets: int = 16
    lsh_chunk_length: int = 64
    hash_seed: int = 0
    feed_forward_chunk: int = 0

    def check_ranges(self) -> None:
        super().check_ranges()
        known = ", ".join(map(repr, PATTERNS))
        self.require("attention_pattern", f"one of {known}", self.attention_pattern in PATTERNS)
        for name, least in (
            ("attention_window", 1),
            ("num_global_tokens", 0),
            ("lsh_chunk_length", 1),
            ("feed_forward_chunk", 0),
        ):
            self.require(name, f"between {least} and {MOST_TOKENS}", least <= getattr(self, name) <= MOST_TOKENS)
        self.require("num_hashes", f"between 1 and {MOST_HASHES}", 1 <= self.num_hashes <= MOST_HASHES)
        even = 2 <= self.num_buckets <= MOST_WIDTH and self.num_buckets % 2 == 0
        self.require("num_buckets", f"1, or an even number up to {MOST_WIDTH}", self.num_buckets == 1 or even)
        self.require("hash_seed", "between 0 and 2³² − 1", 0 <= self.hash_seed < 2**32)
        if self.attention_pattern != "full":
            rule = "another one: relative positions need all T² scores, which attention_pattern avoids"
            self.require("positions", rule, self.positions != "relative")

    @property
    def layer_types(self) -> list[str]:
        """Patterns keep what their next step needs in cache layers of ours; full attention in transformers' own, which
        are chosen, as are its masks, where there is no such attribute.
        """
        if self.attention_pattern == "full":
            raise AttributeError("layer_types: attention_pattern='full' has layers of one type only")
        return ["seq_recurrent"] * self.num_hidden_layers

    def validate_layer_type(self):
        """The upstream check knows only transformers' own layer types; ours is the property above."""
