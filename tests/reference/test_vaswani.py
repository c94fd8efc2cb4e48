"""Encoder, decoder and cross-attention against the equations of Vaswani 2017, Devlin 2019 and Raffel 2020 written out.

The twins read the models' own parameters, so gradients are compared too.
"""

from __future__ import annotations

import math

import pytest
import torch

from hf_seqmodels.models.configuration_transformer import TransformerConfig
from hf_seqmodels.models.configuration_transformer_encoder import TransformerEncoderConfig
from hf_seqmodels.models.modeling_transformer import TransformerForSeq2SeqLM
from hf_seqmodels.models.modeling_transformer_encoder import TransformerEncoderForMaskedLM
from model_table import assert_close, assert_same_gradients, make_ids, named_gradients, perturb

SIZES = {"vocab_size": 23, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 20, "max_position_embeddings": 16, "norm_eps": 1e-3}
T5 = {"positions": "relative", "norm": "rmsnorm", "norm_position": "pre", "use_bias": False, "share_embeddings": True}
# Few buckets, so that the eleven tokens of a source reach the logarithmic ones and the last.
T5 |= {"tie_word_embeddings": True, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 9}
LAYOUTS = {
    "vaswani": {},
    "vaswani_shared": {"share_embeddings": True, "tie_word_embeddings": True},
    "pre_norm": {"norm_position": "pre", "positions": "learned", "num_decoder_layers": 3, "lm_head_bias": True},
    "t5": T5,
    "t5_v1_1": T5 | {"hidden_act": "geglu", "tie_word_embeddings": False, "head_dim": 4},
    "torch": {"positions": "none", "final_norm": True, "hidden_act": "gelu"},
}


class Equations:
    """One half of a model, from its parameters: `p("layers.0.mlp.up_proj.weight")`."""

    def __init__(self, stack, is_causal: bool):
        self.config, self.is_causal = stack.config, is_causal
        self.parameters = dict(stack.named_parameters())

    def linear(self, name, x):
        y = x @ self.parameters[f"{name}.weight"].T
        return y + self.parameters[f"{name}.bias"] if f"{name}.bias" in self.parameters else y

    def norm(self, name, x):
        if self.config.norm == "layernorm":
            x = x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + self.config.norm_eps).sqrt() * self.parameters[f"{name}.weight"]
        return x + self.parameters[f"{name}.bias"] if self.config.norm == "layernorm" else x

    def bucket(self, distance: int) -> int:
        """Raffel 2020, section 2.1 and footnote; `distance` is key − query."""
        count, first = self.config.relative_attention_num_buckets, 0
        if not self.is_causal:
            count //= 2
            first = count if distance > 0 else 0
        distance = abs(distance) if not self.is_causal else max(-distance, 0)
        if distance < count // 2:
            return first + distance
        scale = math.log(distance / (count // 2)) / math.log(
            self.config.relative_attention_max_distance / (count // 2)
        )
        return first + min(count - 1, count // 2 + int(scale * (count - count // 2)))

    def attention(self, name, x, y, is_causal, with_bias):
        """One row: x (T, D) attends to y (S, D). Eq. 1 for each head and query, then section 3.2.2."""
        width = self.config.head_dim or self.config.hidden_size // self.config.num_attention_heads
        q, k, v = self.linear(f"{name}.q_proj", x), self.linear(f"{name}.k_proj", y), self.linear(f"{name}.v_proj", y)
        outputs = []
        for t in range(len(x)):
            seen = t + 1 if is_causal else len(y)
            heads = []
            for h in range(self.config.num_attention_heads):
                part = slice(h * width, (h + 1) * width)
                scores = k[:seen, part] @ q[t, part] / math.sqrt(width)
                if with_bias and self.config.positions == "relative":
                    bias = self.parameters["relative_bias.weight"]
                    scores = scores + torch.stack([bias[self.bucket(s - t), h] for s in range(seen)])
                weights = scores.exp() / scores.exp().sum()
                heads.append(weights @ v[:seen, part])
            outputs.append(torch.cat(heads))
        return self.linear(f"{name}.o_proj", torch.stack(outputs))

    def feed_forward(self, name, x):
        """Eq. 2, and Shazeer 2020, eq. 6."""
        up = self.linear(f"{name}.up_proj", x)
        tanh_gelu = lambda z: z / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))  # noqa: E731
        if self.config.hidden_act == "geglu":
            return self.linear(f"{name}.down_proj", tanh_gelu(self.linear(f"{name}.gate_proj", x)) * up)
        inner = up.clamp(min=0) if self.config.hidden_act == "relu" else up / 2 * (1 + torch.erf(up / math.sqrt(2)))
        return self.linear(f"{name}.down_proj", inner)

    def embed(self, table, ids):
        x = table[ids]
        width = self.config.hidden_size
        if self.config.positions == "learned":
            x = x + self.parameters["embed_positions.weight"][: len(ids)]
        if self.config.positions == "sinusoidal":  # sections 3.4 and 3.5
            x = x * math.sqrt(width)
            rows = []
            for pos in range(len(ids)):
                angles = [pos / 10_000 ** (2 * i / width) for i in range(width // 2)]
                rows.append([f(angle) for angle in angles for f in (math.sin, math.cos)])
            x = x + torch.tensor(rows, dtype=x.dtype)
        return x

    def sublayer(self, kind, index, x, source):
        """Figure 1 and section 3.1."""
        if kind == "attention":
            return self.attention(f"layers.{index}.self_attn", x, x, self.is_causal, True)
        if kind == "cross_attention":
            return self.attention(f"layers.{index}.cross_attn", x, source, False, False)
        return self.feed_forward(f"layers.{index}.mlp", x)

    def run(self, x, source=None):
        """The layers over one row (T, D)."""
        config, post = self.config, self.config.norm_position == "post"
        for index in range(config.num_hidden_layers if source is None else config.num_decoder_layers):
            for kind in ("attention", "cross_attention", "mlp"):
                if kind == "cross_attention" and source is None:
                    continue
                norm = f"layers.{index}.{kind}_norm"
                if post:
                    x = self.norm(norm, x + self.sublayer(kind, index, x, source))
                else:
                    x = x + self.sublayer(kind, index, self.norm(norm, x), source)
        final = config.norm_position == "pre" if config.final_norm is None else config.final_norm
        return self.norm("norm", x) if final else x


def build(model_class, config, attention):
    torch.manual_seed(0)
    config._attn_implementation = attention
    model = model_class(config).double().eval()
    perturb(model, 0.3)
    return model


def compare(model, ours, theirs):
    assert_close(ours, theirs, 1e-12, "Vaswani")
    probe = torch.randn_like(ours)
    (ours * probe).sum().backward()
    gradients = named_gradients(model)
    (theirs * probe).sum().backward()
    expected = named_gradients(model)
    # Every parameter takes part; but a bias of all keys adds the same to all scores, which changes no weight.
    unused = [name for name, gradient in expected.items() if gradient.abs().max() < 1e-6]
    assert all(name.endswith("k_proj.bias") for name in unused), unused
    assert_same_gradients(gradients, expected, 1e-12, "Vaswani")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_encoder_decoder(layout, attention):
    config = TransformerConfig(**(SIZES | LAYOUTS[layout]))
    model = build(TransformerForSeq2SeqLM, config, attention)
    encoder, decoder = Equations(model.model.encoder, False), Equations(model.model.decoder, True)
    ids, target = make_ids(2, 11), make_ids(2, 6, seed=2)
    source_table = model.model.encoder.embed_tokens.weight
    target_table = source_table if config.share_embeddings else model.model.decoder.embed_tokens.weight
    expected = []
    for source_ids, target_ids in zip(ids, target, strict=True):
        source = encoder.run(encoder.embed(source_table, source_ids))
        output = decoder.run(decoder.embed(target_table, target_ids), source)
        expected.append(output @ model.lm_head.weight.T + (model.lm_head.bias if config.lm_head_bias else 0))
    compare(model, model(ids, decoder_input_ids=target).logits, torch.stack(expected))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "options",
    [{}, {"norm_position": "pre", "embedding_norm": False, "positions": "relative", "lm_head_transform": False}],
    ids=["bert", "relative"],
)
def test_encoder(options, attention):
    config = TransformerEncoderConfig(**(SIZES | options))
    model = build(TransformerEncoderForMaskedLM, config, attention)
    encoder, whole = Equations(model.model, False), Equations(model, False)
    ids, types = make_ids(2, 11), torch.tensor([[0] * 6 + [1] * 5, [0] * 3 + [1] * 8])
    expected = []
    for row, kinds in zip(ids, types, strict=True):
        x = encoder.embed(model.model.embed_tokens.weight, row) + model.model.embed_token_types.weight[kinds]
        x = encoder.run(encoder.norm("embedding_norm", x) if config.embedding_norm else x)
        if config.lm_head_transform:
            z = whole.linear("transform.dense", x)
            x = whole.norm("transform.norm", z / 2 * (1 + torch.erf(z / math.sqrt(2))))
        expected.append(x @ model.lm_head.weight.T)
    compare(model, model(ids, token_type_ids=types).logits, torch.stack(expected))


def test_buckets_of_all_distances():
    """The vectorised buckets against the paper's rule, far beyond the largest distance."""
    for buckets, furthest in ((8, 9), (32, 128), (4, 5), (6, 100)):
        options = {"relative_attention_num_buckets": buckets, "relative_attention_max_distance": furthest}
        config = TransformerConfig(**(SIZES | {"positions": "relative"} | options))
        model = TransformerForSeq2SeqLM(config).model
        distances = torch.arange(-300, 301)
        for stack, is_causal in ((model.encoder, False), (model.decoder, True)):
            expected = [Equations(stack, is_causal).bucket(int(distance)) for distance in distances]
            assert stack.relative_bias.buckets(distances).tolist() == expected
            assert set(expected) <= set(range(buckets)) and buckets - 1 in expected
