"""Sliding-window attention with global tokens (Longformer: Beltagy 2020, section 3.1).

Shapes: B batch, H heads, T new tokens, S = remembered + T tokens, W window, G global tokens, K head width, C queries
in a block.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache

from .shared_attention import MultiHeadAttention, rotate, softmax
from .shared_token_layout import TokenLayout, compact, gather_tokens, restore

SMALLEST_BLOCK = 32  # narrower windows are computed in blocks of so many queries, which costs less than many blocks


class Keys(NamedTuple):
    """What queries may attend to, tokens side by side, the new ones last.

    Attributes:
        keys, values (B, H, S, K).
        numbers (B, S): each token's number in its row, negative where the row has not had so many.
        valid (B, S) bool: whether there is a token.
        is_global (B, S) bool: whether it sees, and is seen by, every token.
    """

    keys: torch.Tensor
    values: torch.Tensor
    numbers: torch.Tensor
    valid: torch.Tensor
    is_global: torch.Tensor


class SlidingWindowAttention(MultiHeadAttention):
    """Each token attends to its neighbours, and to the row's global tokens, which attend to all:

    encoder: |i − j| ≤ W/2            (W even, both sides together)
    decoder: 0 ≤ i − j < W            (W ≥ 1, the token itself counted)
    either, further away, if token i or token j is global; in a decoder only j ≤ i.

    Distances are counted in tokens, so padding changes nothing; with W ≥ T it is full attention. The same projections
    serve local and global attention (Beltagy 2020 may use two sets, which start as copies). Time and memory grow as
    T·(W + G). While generating, a layer remembers the last W − 1 tokens and the global ones.
    """

    def __init__(self, config: Any, layer_idx: int, is_causal: bool = True):
        super().__init__(config, layer_idx, is_causal)
        window = config.attention_window
        self.left: int = window - 1 if is_causal else window // 2
        self.right: int = 0 if is_causal else window // 2
        self.num_global = config.num_global_tokens

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        attention_mask: TokenLayout,
        rotations: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, D) → (B, T, D) and, from `attn_implementation="eager"` without a past, the weights (B, H, T, T)."""
        layout = attention_mask
        query = self.split_heads(self.q_proj(hidden_states))
        key = self.split_heads(self.k_proj(hidden_states))
        value = self.split_heads(self.v_proj(hidden_states))
        if rotations is not None:
            query, key = rotate(query, *rotations), rotate(key, *rotations)
        query, key, value = (compact(x, layout) for x in (query, key, value))
        cache: Any = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        memory = {} if cache is None else cache.read_states(key.dtype, key.device)
        seen = self.join(memory, key, value, layout)
        first = self.first_tokens(memory, key, value, layout)
        weights = None
        if self.config._attn_implementation == "eager":
            output, all_weights = self.attend_eagerly(query, seen, first)
            weights = None if memory else self.restore_weights(all_weights, first, layout)
        else:
            output = self.attend_in_blocks(query, seen, first)
        if cache is not None:
            cache.write_states(self.remember(memory, seen, first, layout), key.shape[2])
        output = restore(output, layout).transpose(1, 2)
        return self.o_proj(output.flatten(2)), weights

    # -- what there is to attend to --------------------------------------------------------------------------------
    def join(self, memory: dict, key: torch.Tensor, value: torch.Tensor, layout: TokenLayout) -> Keys:
        """The remembered tokens, which end where the new ones begin, and the new ones."""
        remembered, length = 0, key.shape[2]
        before = layout.valid.new_zeros(len(key), dtype=torch.long)
        if memory:
            before, remembered = memory["count"], memory["keys"].shape[2]
            key, value = (torch.cat([memory[name], x], 2) for name, x in (("keys", key), ("values", value)))
        numbers = before[:, None] + torch.arange(-remembered, length, device=key.device)
        valid = torch.cat([numbers[:, :remembered] >= 0, layout.valid], dim=1)
        is_global = numbers < self.num_global if layout.is_global is None else layout.is_global
        return Keys(key, value, numbers, valid, is_global & valid)

    def first_tokens(self, memory: dict, key: torch.Tensor, value: torch.Tensor, layout: TokenLayout) -> Keys | None:
        """The G global tokens of each row, also those that have left the window; None if there are none."""
        if layout.is_global is not None:  # an encoder was told which: they may stand anywhere
            count = int(layout.is_global.sum(1).max())
            index = (~layout.is_global).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]
            valid, numbers = layout.is_global.gather(1, index), index
        else:
            # A decoder's memory has a place for each of them from the start; an encoder has no more than its tokens.
            count = self.num_global if self.is_causal else min(self.num_global, key.shape[2])
            before = memory["count"] if memory else layout.valid.new_zeros(len(key), dtype=torch.long)
            numbers = torch.arange(count, device=key.device).expand(len(key), -1)
            valid = numbers < (before + layout.valid.sum(1))[:, None]
            index = (numbers - before[:, None]).clamp(0, key.shape[2] - 1)
        if count == 0:
            return None
        keys, values = gather_tokens(key, index), gather_tokens(value, index)
        if memory:
            old = (numbers < memory["count"][:, None])[:, None, :, None]
            keys = torch.where(old, memory["global_keys"], keys)
            values = torch.where(old, memory["global_values"], values)
        return Keys(keys, values, numbers, valid, valid)

    def remember(self, memory: dict, seen: Keys, first: Keys | None, layout: TokenLayout) -> dict[str, torch.Tensor]:
        """What the next step needs: each row's last W − 1 tokens, its global ones, and how many it has had."""
        new = layout.valid.sum(1)
        remembered = seen.keys.shape[2] - layout.valid.shape[1]
        kept = min(self.left, seen.keys.shape[2])
        index = (remembered + new)[:, None] + torch.arange(-kept, 0, device=new.device)
        index = index.clamp(min=0)  # of rows that have not had so many tokens; their numbers are negative
        states = {"keys": gather_tokens(seen.keys, index), "values": gather_tokens(seen.values, index)}
        states["count"] = new + (memory["count"] if memory else 0)
        if first is not None:
            states |= {"global_keys": first.keys, "global_values": first.values}
        return states

    # -- the slow twin ---------------------------------------------------------------------------------------------
    def attend_eagerly(self, query: torch.Tensor, seen: Keys, first: Keys | None) -> tuple[torch.Tensor, torch.Tensor]:
        """All scores, those that are not allowed masked, and the weights (B, H, T, G + S)."""
        length = query.shape[2]
        rows, columns = seen.numbers[:, -length:, None], seen.numbers[:, None]
        near = (columns >= rows - self.left) & (columns <= rows + self.right)
        if not self.is_causal:
            near |= seen.is_global[:, -length:, None]  # a global token sees all
        allowed = near & seen.valid[:, None]
        own = torch.eye(length, dtype=torch.bool, device=query.device)
        allowed[:, :, -length:] |= own  # so that padding, which nobody reads, has a finite result
        keys, values = seen.keys, seen.values
        if first is not None:
            keys, values = torch.cat([first.keys, keys], 2), torch.cat([first.values, values], 2)
            allowed = torch.cat([self.sees_global(rows, first, seen, length), allowed], dim=2)
        scores = query @ keys.transpose(2, 3) * self.scaling
        scores = scores.masked_fill(~allowed[:, None], torch.finfo(scores.dtype).min)
        weights = F.dropout(softmax(scores), p=self.attention_dropout, training=self.training)
        return weights @ values, weights

    def sees_global(self, rows: torch.Tensor, first: Keys, seen: Keys, length: int) -> torch.Tensor:
        """(B, T, G): which global tokens a query sees outside its window; inside, they are among its neighbours."""
        columns = first.numbers[:, None]
        outside = (columns < rows - self.left) | (columns > rows + self.right)
        if self.is_causal:
            outside &= columns <= rows
        else:
            outside &= ~seen.is_global[:, -length:, None]  # those see all tokens as neighbours
        return outside & first.valid[:, None]

    @staticmethod
    def restore_weights(weights: torch.Tensor, first: Keys | None, layout: TokenLayout) -> torch.Tensor:
        """Weights over G global tokens and T tokens side by side → over T positions, padding included."""
        length = weights.shape[2]
        if first is not None:
            count = first.keys.shape[2]
            far, weights = weights[..., :count], weights[..., count:]
            index = first.numbers.clamp(max=length - 1)[:, None, None].expand_as(far)
            weights = weights.scatter_add(3, index, torch.where(first.valid[:, None, None], far, 0.0))
        weights = restore(weights, layout)
        return restore(weights.transpose(2, 3), layout).transpose(2, 3)

    # -- the fast path ---------------------------------------------------------------------------------------------
    def attend_in_blocks(self, query: torch.Tensor, seen: Keys, first: Keys | None) -> torch.Tensor:
        """Blocks of C queries, each with the keys that any of them can see: (B, H, T, K) → (B, H, T, K)."""
        batch, _, length, _ = query.shape
        past = seen.keys.shape[2] - length
        left, right = min(self.left, seen.keys.shape[2] - 1), min(self.right, length - 1)
        block = min(max(left + right, SMALLEST_BLOCK), length)
        blocks = -(-length // block)
        pad = blocks * block - length  # queries that fill the last block
        span = left + block + right
        # Keys from `left` before the first query to `right` behind the last.
        before, after = left - past, pad + right
        keys, values = (F.pad(x, (0, 0, before, after)).unfold(2, span, block) for x in (seen.keys, seen.values))
        valid = F.pad(seen.valid, (before, after)).unfold(1, span, block)  # (B, blocks, span)
        offset = torch.arange(span, device=query.device) - left - torch.arange(block, device=query.device)[:, None]
        allowed = ((offset >= -left) & (offset <= right)) & valid[:, :, None] | (offset == 0)
        keys, values = (x.permute(0, 2, 1, 4, 3).flatten(0, 1) for x in (keys, values))  # (B·blocks, H, span, K)
        if first is not None:
            rows = F.pad(seen.numbers[:, -length:], (0, pad)).view(batch, -1, 1)
            flags = F.pad(seen.is_global[:, -length:], (0, pad))
            far = self.sees_global(rows, first, seen._replace(is_global=flags), flags.shape[1])
            allowed = torch.cat([far.view(batch, blocks, block, -1), allowed], dim=3)
            keys, values = (
                torch.cat([x.repeat_interleave(blocks, dim=0), y], dim=2)
                for x, y in ((first.keys, keys), (first.values, values))
            )
        queries = F.pad(query, (0, 0, 0, pad)).unflatten(2, (blocks, block)).transpose(1, 2).flatten(0, 1)
        dropout = self.attention_dropout if self.training else 0.0
        output = F.scaled_dot_product_attention(
            queries, keys, values, allowed.flatten(0, 1)[:, None], dropout_p=dropout, scale=self.scaling
        )
        output = output.unflatten(0, (batch, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :length]
        return output if self.is_causal or first is None else self.attend_from_global(output, query, seen, first)

    def attend_from_global(self, output: torch.Tensor, query: torch.Tensor, seen: Keys, first: Keys) -> torch.Tensor:
        """In an encoder global tokens see all: their rows of the output again, over the whole row."""
        dropout = self.attention_dropout if self.training else 0.0
        allowed = seen.valid[:, None, None] | ~first.valid[:, None, :, None]
        whole = F.scaled_dot_product_attention(
            gather_tokens(query, first.numbers),
            seen.keys,
            seen.values,
            allowed,
            dropout_p=dropout,
            scale=self.scaling,
        )
        index = first.numbers[:, None, :, None].expand_as(whole)
        whole = torch.where(first.valid[:, None, :, None], whole, output.gather(2, index))
        return output.scatter(2, index, whole)
