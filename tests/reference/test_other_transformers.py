"""Our Transformer decoder against GPT-2 and Llama of transformers after copying the weights: logits and gradients."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from model_table import Case, assert_close, build, make_ids, named_gradients

WIDTH, INNER, LAYERS, HEADS, VOCAB, POSITIONS = 12, 20, 2, 2, 23, 16
TOLERANCE = 1e-5


def gpt2_pairs():
    """(our parameter's name, the same numbers' view of GPT-2's state or gradient), GPT-2 keeping W transposed."""
    yield "model.embed_tokens.weight", lambda get: get("transformer.wte.weight")
    yield "model.embed_positions.weight", lambda get: get("transformer.wpe.weight")
    for end in ("weight", "bias"):
        yield f"model.norm.{end}", lambda get, end=end: get(f"transformer.ln_f.{end}")
    for index in range(LAYERS):
        ours, theirs = f"model.layers.{index}", f"transformer.h.{index}"
        for end in ("weight", "bias"):
            for part, name in enumerate("qkv"):
                fused = f"{theirs}.attn.c_attn.{end}"
                yield f"{ours}.self_attn.{name}_proj.{end}", lambda get, f=fused, k=part: get(f).t().chunk(3)[k]
            for name, other in (
                ("self_attn.o_proj", "attn.c_proj"),
                ("mlp.up_proj", "mlp.c_fc"),
                ("mlp.down_proj", "mlp.c_proj"),
            ):
                yield f"{ours}.{name}.{end}", lambda get, key=f"{theirs}.{other}.{end}": get(key).t()
            for name, other in (("attention_norm", "ln_1"), ("mlp_norm", "ln_2")):
                yield f"{ours}.{name}.{end}", lambda get, key=f"{theirs}.{other}.{end}": get(key)


def llama_pairs():
    yield "model.embed_tokens.weight", lambda get: get("model.embed_tokens.weight")
    yield "model.norm.weight", lambda get: get("model.norm.weight")
    yield "lm_head.weight", lambda get: get("lm_head.weight")
    for index in range(LAYERS):
        layer = f"model.layers.{index}"
        names = {f"self_attn.{k}_proj": f"self_attn.{k}_proj" for k in "qkvo"}
        names |= {f"mlp.{k}_proj": f"mlp.{k}_proj" for k in ("up", "gate", "down")}
        names |= {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
        for name, other in names.items():
            yield f"{layer}.{name}.weight", lambda get, key=f"{layer}.{other}.weight": get(key)


def build_gpt2():
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=POSITIONS, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_inner=INNER,
        activation_function="gelu", resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval(), {"tie_word_embeddings": True}, gpt2_pairs


def build_llama():
    config = LlamaConfig(
        vocab_size=VOCAB, max_position_embeddings=POSITIONS, hidden_size=WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=INNER, rms_norm_eps=1e-5, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    options = {"positions": "rotary", "norm": "rmsnorm", "hidden_act": "swiglu"}
    return LlamaForCausalLM(config).eval(), options, llama_pairs


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("build_twin", [build_gpt2, build_llama])
def test_equals(build_twin, attention):
    twin, options, pairs = build_twin()
    torch.nn.utils.vector_to_parameters(
        torch.nn.utils.parameters_to_vector(twin.parameters()) * 5, twin.parameters()
    )  # the published initialisation is too small for a difference to show
    options = {
        "max_position_embeddings": POSITIONS,
        "intermediate_size": INNER,
        "attn_implementation": attention,
    } | options
    model = build(Case("seq_transformer_decoder", "plain"), "causal-lm", **options)
    pairs = dict(pairs())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(pairs[name](twin.get_parameter) if name in pairs else 0)
    zeroed = {name for name, _ in model.named_parameters()} - pairs.keys()
    assert all(name.endswith(".bias") for name in zeroed)  # Llama's linear layers have none
    ids = make_ids(3, 10)
    mask = torch.ones_like(ids)
    mask[0, :4] = 0  # left padding, with the positions that generate() gives
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    ours = model(ids, attention_mask=mask).logits[mask.bool()]
    theirs = twin(ids, attention_mask=mask, position_ids=positions).logits[mask.bool()]
    assert_close(ours, theirs, TOLERANCE, "A8 GPT-2, Llama")
    probe = torch.randn_like(ours)
    (ours * probe).sum().backward()
    (theirs * probe).sum().backward()
    gradients = named_gradients(model)
    for name, find in pairs.items():
        expected = find(lambda key: twin.get_parameter(key).grad)
        assert_close(gradients[name], expected, TOLERANCE, "A8 GPT-2, Llama", f"gradient of {name}")
