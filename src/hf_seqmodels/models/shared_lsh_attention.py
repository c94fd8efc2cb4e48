"""Attention within buckets of a locality-sensitive hash (Reformer: Kitaev 2020, section 2).

Shapes: B batch, H heads, T new tokens, S = remembered + T tokens, K head width, N rounds of hashing, C chunks of
M sorted tokens, W = 2·M tokens that a chunk looks at.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache

from .shared_attention import MultiHeadAttention, rotate
from .shared_token_layout import TokenLayout, compact, restore

SELF_SCORE = -1e5  # of a token with itself (Kitaev 2020, appendix A): it counts only where there is nothing else


def own_places(pairs: torch.Tensor) -> torch.Tensor:
    """(…, T, S) → (T, S) bool: where the key is the query itself; the queries are the last of the keys."""
    queries, keys = pairs.shape[-2:]
    square = torch.ones(queries, keys, dtype=torch.bool, device=pairs.device)
    return square.tril(keys - queries).triu(keys - queries)


def pick(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """(B, H, T, K) at index (B, H, S) → (B, H, S, K)."""
    return x.gather(2, index[..., None].expand(-1, -1, -1, x.shape[3]))


def with_chunk_before(x: torch.Tensor) -> torch.Tensor:
    """Chunks (B, H, C, M, …) → (B, H, C, 2·M, …): each behind the one before it.

    The first comes behind the last, with which it does not meet; a single chunk stays as it is.
    """
    return x if x.shape[2] == 1 else torch.cat([x.roll(1, dims=2), x], dim=3)


class LSHAttention(MultiHeadAttention):
    """Each token attends to those that a random hash puts into its bucket, in any of N rounds.

    Shared queries and keys: k_j = q_j / (‖q_j‖ / √K), scores q_i·k_j / √K (as in the authors' code; the paper omits
    the scale). The hash of a round is h(q) = argmax [q R; −q R] with a random R. The tokens, sorted by (bucket, place
    in the row), are cut into chunks; in round r token i may attend to

    P_i^r = {j: h(q_j) = h(q_i), j in the chunk of i or in the one before; in a decoder j ≤ i}       (eq. 4–6)

    without i itself, unless there is nothing else in any round. The context is the attention over the union of the
    rounds. The paper divides the weight of a pair by the number of rounds that allow it (N_ij in appendix A); here it
    counts in the first of them only, which gives the same sum.

    Distances and sorting go by tokens, so padding changes nothing: padding, and what fills the last chunk up, is a
    bucket of its own behind all others. Time and memory grow as T·M·N, and T·log T for sorting.

    What is particular to this pattern:
    - A bucket of more than M + 1 tokens overflows: who of it is seen depends on where a chunk happens to begin, and so
      (as in the paper) on the hashes of later tokens too. In an encoder tokens in the chunk behind are never seen.
    - While generating, a layer remembers all keys, values and buckets, and a new token attends to all earlier tokens
      of its own buckets. That is what the uncached pass computes, too, as long as no bucket overflows; where one does,
      the scores differ. Measured on a random decoder (2 layers, D = 64, weights from N(0, 0.2²), N = 2, M = 64, the
      second half of 512 random tokens): 32 buckets 0; 16 buckets (M is twice the average bucket, as in the paper)
      0.002 standard deviations of the logits on average, 0.6 at most, another most likely token at 0.5 % of the
      positions; 2 buckets (of 4·M tokens) 0.4 on average, 4.2 at most, another token at 67 %.
    - The hash has no gradient: derivatives are those of the attention within the buckets found.

    Buffer: rotations (H, K, N, buckets / 2), drawn from `hash_seed` + layer and saved with the model; None if there is
    one bucket.
    """

    rotations: torch.Tensor | None

    def __init__(self, config: Any, layer_idx: int, is_causal: bool = True):
        super().__init__(config, layer_idx, is_causal)
        del self.q_proj, self.k_proj
        heads = config.num_attention_heads
        self.qk_proj = nn.Linear(config.hidden_size, heads * self.head_dim, bias=config.use_bias)
        self.num_hashes, self.num_buckets = config.num_hashes, config.num_buckets
        self.chunk_length = config.lsh_chunk_length
        rotations = None
        if self.num_buckets > 1:
            rotations = torch.empty(heads, self.head_dim, self.num_hashes, self.num_buckets // 2)
            rotations.copy_(self.draw_rotations(config, rotations.shape))
        self.register_buffer("rotations", rotations)

    def draw_rotations(self, config: Any, shape: torch.Size) -> torch.Tensor:
        """The rotations of this layer; the same on every device and in every precision."""
        generator = torch.Generator().manual_seed(config.hash_seed + self.layer_idx)
        return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)

    def init_weights(self, config: Any) -> None:
        """Fill the rotations, which a model that was built without storage does not have yet."""
        if self.rotations is not None:
            init.copy_(self.rotations, self.draw_rotations(config, self.rotations.shape))

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        rotations: tuple[torch.Tensor, torch.Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, D) → (B, T, D) and, from `attn_implementation="eager"` without a past, the weights (B, H, T, T).

        `rotations` are those of rotary positions: what is compared is turned, and so that is what is hashed.
        """
        layout: TokenLayout = attention_mask
        query = self.split_heads(self.qk_proj(hidden_states))
        value = self.split_heads(self.v_proj(hidden_states))
        if rotations is not None:
            query = rotate(query, *rotations)
        query, value = compact(query, layout), compact(value, layout)
        key = F.rms_norm(query, (self.head_dim,), eps=1e-6)
        buckets = torch.where(layout.valid[:, None, None], self.hash(query), self.num_buckets)
        cache: Any = None if past_key_values is None else past_key_values.layers[self.layer_idx]
        memory = {} if cache is None else cache.read_states(key.dtype, key.device)
        states = {"keys": key, "values": value, "buckets": buckets}
        if memory:
            states = {name: torch.cat([memory[name], x], 3 if name == "buckets" else 2) for name, x in states.items()}
        if cache is not None:
            cache.write_states(states, key.shape[2])
        weights = None
        if memory or self.config._attn_implementation == "eager":
            allowed = self.find_pairs(states["buckets"], query.shape[2], in_chunks=not memory)
            output, weights = self.attend_eagerly(query, states["keys"], states["values"], allowed)
            weights = None if memory else restore(restore(weights, layout).mT, layout).mT
        else:
            output = self.attend_in_chunks(query, key, value, buckets)
        return self.o_proj(restore(output, layout).transpose(1, 2).flatten(2)), weights

    @torch.no_grad()
    def hash(self, query: torch.Tensor) -> torch.Tensor:
        """h(q) of each round: (B, H, T, K) → (B, H, N, T), numbers from 0 to `num_buckets` − 1."""
        if self.rotations is None:
            return query.new_zeros(len(query), query.shape[1], self.num_hashes, query.shape[2], dtype=torch.long)
        dtype = torch.promote_types(query.dtype, torch.float32)
        with torch.autocast(query.device.type, enabled=False):  # in half precision many products would be equal
            turned = torch.einsum("bhtk,hkrn->bhrtn", query.to(dtype), self.rotations.to(dtype))
        return torch.cat([turned, -turned], dim=-1).argmax(dim=-1)

    # -- the slow twin, and the cached step ------------------------------------------------------------------------
    def find_pairs(self, buckets: torch.Tensor, length: int, in_chunks: bool) -> torch.Tensor:
        """Which of the last `length` tokens meets which token in some round: (B, H, N, S) → (B, H, T, S)."""
        met = buckets[..., -length:, None] == buckets[..., None, :]
        if in_chunks:
            places = buckets.argsort(dim=-1, stable=True).argsort(dim=-1)
            chunks = places // self.chunk_length
            back = chunks[..., :, None] - chunks[..., None, :]
            met &= (back == 0) | (back == 1)
        allowed = met.any(dim=2)
        if self.is_causal:
            return allowed.tril(buckets.shape[3] - length - 1)  # those before it, not itself
        return allowed & ~own_places(allowed)

    def attend_eagerly(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, allowed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All T·S scores, those that are not allowed masked: context (B, H, T, K) and weights (B, H, T, S)."""
        scores = self.mask(query @ keys.mT * self.scaling, allowed, with_self=True)
        weights = torch.softmax(scores, dim=-1).to(values.dtype)
        weights = F.dropout(weights, p=self.attention_dropout, training=self.training)
        return weights @ values, weights

    @staticmethod
    def mask(scores: torch.Tensor, allowed: torch.Tensor, with_self: bool) -> torch.Tensor:
        """Scores (…, T, S) of what is allowed and, far below, of a token with itself.

        At least in fp32, whose range holds both, and in which z is fine enough.
        """
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        if not with_self:
            return scores
        return scores.masked_fill(own_places(scores), SELF_SCORE)

    # -- the fast path ---------------------------------------------------------------------------------------------
    def attend_in_chunks(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, buckets: torch.Tensor
    ) -> torch.Tensor:
        """Round after round in sorted chunks, then their sum: (B, H, T, K), buckets (B, H, N, T) → (B, H, T, K)."""
        length = query.shape[2]
        size = min(self.chunk_length, length)
        fill = -length % size
        query, key, value = (F.pad(x, (0, 0, 0, fill)) for x in (query, key, value))
        buckets = F.pad(buckets, (0, fill), value=self.num_buckets)
        order = buckets.argsort(dim=-1, stable=True)  # the number in the row of the first, second, … sorted token
        places = order.argsort(dim=-1)
        # One number for bucket and chunk: equal in the same chunk, one more than in the chunk before.
        stands = buckets * (query.shape[2] // size + 1) + places // size
        totals, contexts = [], []
        for index in range(self.num_hashes):
            sorted_tokens = order[:, :, index]
            tokens = sorted_tokens.unflatten(2, (-1, size))
            allowed = self.find_pairs_in_chunks(tokens, stands[:, :, : index + 1])
            q, k, v = (pick(x, sorted_tokens).unflatten(2, (-1, size)) for x in (query, key, value))
            total, context = self.attend_round(q, k, v, allowed, with_self=index == 0)
            totals.append(pick(total.flatten(2, 3), places[:, :, index]))
            contexts.append(pick(context.flatten(2, 3), places[:, :, index]))
        shares = torch.stack(totals).softmax(dim=0).to(value.dtype)
        return (shares * torch.stack(contexts)).sum(0)[:, :, :length]

    def find_pairs_in_chunks(self, tokens: torch.Tensor, stands: torch.Tensor) -> torch.Tensor:
        """(B, H, C, M, W): the pairs of the last of the rounds in `stands` that none of those before it has.

        Args:
            tokens (B, H, C, M): the sorted tokens of that round.
            stands (B, H, rounds, T).
        """
        seen = with_chunk_before(tokens)

        def meet(stand: torch.Tensor) -> torch.Tensor:
            own, other = (stand.gather(2, x.flatten(2)).view_as(x) for x in (tokens, seen))
            back = own[..., :, None] - other[..., None, :]
            return (back == 0) | (back == 1)

        own, other = tokens[..., :, None], seen[..., None, :]
        allowed = (other < own) if self.is_causal else (other != own)
        *before, last = stands.unbind(2)
        allowed &= meet(last)
        for stand in before:
            allowed &= ~meet(stand)
        return allowed

    def attend_round(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, allowed: torch.Tensor, with_self: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Chunks (B, H, C, M, K) → z = log Σ exp(scores) (B, H, C, M, 1) and the context (B, H, C, M, K).

        A query without pairs has a z so low that its context, whatever it is, counts for nothing.
        """
        key, value = with_chunk_before(key), with_chunk_before(value)
        scores = self.mask(query @ key.mT * self.scaling, allowed, with_self)
        weights = torch.softmax(scores, dim=-1).to(value.dtype)
        weights = F.dropout(weights, p=self.attention_dropout, training=self.training)
        return torch.logsumexp(scores, dim=-1, keepdim=True), weights @ value
