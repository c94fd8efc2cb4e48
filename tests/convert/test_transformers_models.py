"""GPT-2, BERT, T5 and nn.Transformer imported into ours: the same outputs for every class and option that is taken."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, GPT2Config, T5Config

from hf_seqmodels.convert import cli
from hf_seqmodels.convert.torch_transformer import from_torch_transformer, import_file
from hf_seqmodels.convert.transformers_models import from_transformers, import_folder
from model_table import assert_close, perturb

GPT2 = {
    "vocab_size": 23,
    "n_positions": 16,
    "n_embd": 12,
    "n_layer": 2,
    "n_head": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BERT = {"vocab_size": 23, "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
BERT |= {"max_position_embeddings": 16, "num_labels": 4}
T5 = {"vocab_size": 23, "d_model": 12, "d_kv": 5, "d_ff": 20, "num_layers": 2, "num_heads": 3, "num_decoder_layers": 3}
T5 |= {"decoder_start_token_id": 0, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 6}
V1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}

SOURCES = {
    "gpt2": ("GPT2LMHeadModel", GPT2Config, GPT2),
    "gpt2 exact gelu, untied": (
        "GPT2LMHeadModel", GPT2Config, GPT2 | {"activation_function": "gelu", "tie_word_embeddings": False}
    ),
    "gpt2 backbone": ("GPT2Model", GPT2Config, GPT2),
    "bert": ("BertForMaskedLM", BertConfig, BERT),
    "bert untied, gelu_new": (
        "BertForMaskedLM", BertConfig, BERT | {"tie_word_embeddings": False, "hidden_act": "gelu_new"}
    ),
    "bert backbone": ("BertModel", BertConfig, BERT | {"type_vocab_size": 3, "hidden_act": "relu"}),
    "bert sequence": ("BertForSequenceClassification", BertConfig, BERT),
    "bert token": ("BertForTokenClassification", BertConfig, BERT),
    "bert question": ("BertForQuestionAnswering", BertConfig, BERT | {"num_labels": 2}),
    "t5": ("T5ForConditionalGeneration", T5Config, T5),
    "t5 v1.1": ("T5ForConditionalGeneration", T5Config, T5 | V1_1),
    "t5 backbone": ("T5Model", T5Config, T5),
    "t5 encoder": ("T5EncoderModel", T5Config, T5 | V1_1),
}  # fmt: skip


def build(name: str, **options):
    torch.manual_seed(0)
    cls, config, sizes = SOURCES[name]
    source = getattr(transformers, cls)(config(**(sizes | options))).eval()
    perturb(source, 0.3)  # norms and biases away from one and zero
    return source


@pytest.mark.parametrize("name", SOURCES)
def test_import(name):
    source = build(name)
    model, report = from_transformers(source)
    assert report.max_difference <= 1e-5
    assert (report.source, report.target) == (type(source).__name__, type(model).__name__)
    assert report.parameters == model.num_parameters()
    note(name, report)
    # Dropout apart, the options are the source's: a model built from them has the same sizes, and trains.
    assert model.config.vocab_size == source.config.vocab_size
    assert not model.training


def note(name, report):
    """The report's number in the table that the run prints."""
    assert_close(torch.tensor(report.max_difference), torch.tensor(0.0), 1e-5, f"A8 import, {name}")


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "t5 v1.1"])
def test_left_padding_and_gradients(name):
    """By hand, not by the report: tokens on the right, and the gradient of the embedding matrix."""
    source = build(name)
    model, _ = from_transformers(source)
    torch.manual_seed(3)
    ids, mask = torch.randint(3, 23, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    theirs = inputs | ({} if name.startswith("t5") else {"position_ids": positions})
    if name.startswith("t5"):
        inputs["decoder_input_ids"] = theirs["decoder_input_ids"] = ids[:, 4:]
    mask = mask if not name.startswith("t5") else mask[:, 4:]
    ours, expected = model(**inputs).logits[mask.bool()], source(**theirs).logits[mask.bool()]
    assert_close(ours, expected, 1e-5, f"A8 import, {name}")
    probe = torch.randn_like(ours)
    (ours * probe).sum().backward()
    (expected * probe).sum().backward()
    ours, expected = (network.get_input_embeddings().weight.grad for network in (model, source))
    if name == "t5":  # tied, and the division by √D is in the norm: the output layer's part is larger by √D
        return
    assert_close(ours, expected, 1e-5, f"A8 import, {name}")


def test_generation_is_the_source_s():
    # With more layers in the decoder than in the encoder, transformers' T5 cannot generate.
    for name, options in (("gpt2", {}), ("t5", {"num_decoder_layers": 2})):
        source = build(name, **options)
        model, _ = from_transformers(source)
        ids = torch.randint(3, 23, (2, 5), generator=torch.Generator().manual_seed(0))
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(model.generate(ids, **options), source.generate(ids, **options))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not supported"),
        ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights=False is not supported"),
        ("gpt2", {"activation_function": "tanh"}, "activation_function='tanh' is not supported, only gelu"),
        ("bert", {"hidden_act": "silu"}, "hidden_act='silu' is not supported, only gelu"),
        ("t5", {"feed_forward_proj": "gated-relu"}, "feed_forward_proj='relu' is not supported, only gelu_new"),
    ],
)
def test_unsupported_options_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        from_transformers(build(name, **options))


def test_positions_that_bert_no_longer_has():
    source = build("bert")
    source.config.position_embedding_type = "relative_key"
    with pytest.raises(ValueError, match="position_embedding_type='relative_key' is not supported"):
        from_transformers(source)


def test_other_classes_are_refused():
    source = transformers.BertForNextSentencePrediction(BertConfig(**BERT))
    with pytest.raises(ValueError, match=r"BertForNextSentencePrediction cannot be imported: .* are GPT2Model"):
        from_transformers(source)


def test_the_first_tensor_that_does_not_fit_is_named():
    source = build("bert")
    source.bert.encoder.layer[1].output.dense = nn.Linear(21, 12)
    with pytest.raises(ValueError, match=r"tensor 'bert\..*\.1\.output\.dense\.weight' has shape \(12, 21\)"):
        from_transformers(source)
    source = build("t5")
    source.extra = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"tensor 'extra\.weight' is unexpected, 2 such in all"):
        from_transformers(source)


def test_a_wrong_mapping_would_be_seen():
    """The report compares outputs: a source that computes something else is refused."""
    source = build("gpt2")
    source.transformer.h[1].ln_1.eps = 0.5
    with pytest.raises(ValueError, match="computes something else"):
        from_transformers(source)


@pytest.mark.parametrize("name", ["gpt2", "bert sequence", "t5"])
def test_folder(name, tmp_path):
    source = build(name)
    source.save_pretrained(tmp_path)
    model, report = import_folder(tmp_path)
    expected, _ = from_transformers(source)
    assert report.max_difference <= 1e-5
    for key, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[key], tensor), key
    with pytest.raises(ValueError, match=r"holds no config\.json"):
        import_folder(tmp_path / "elsewhere")


def test_folder_lacking_a_tensor(tmp_path):
    build("bert").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("bert.encoder.layer.0.output.dense.bias")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"tensor 'bert\.encoder\.layer\.0\.output\.dense\.bias' is missing"):
        import_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "tensor", "option"),
    [
        ("gpt2", "transformer.h.1.mlp.c_fc.weight", {"n_embd": 24}),
        ("bert", "bert.encoder.layer.1.output.dense.weight", {"hidden_size": 24}),
        ("bert backbone", "encoder.layer.1.output.dense.weight", {"intermediate_size": 24}),
        ("t5", "decoder.block.1.layer.1.EncDecAttention.k.weight", {"d_model": 24}),
    ],
)
def test_folder_with_a_tensor_of_another_shape(name, tensor, option, tmp_path, capfd):
    """In the file, or for what config.json says: one line with its name, exit status 2, nothing written."""
    build(name).save_pretrained(tmp_path / "bad")
    build(name).save_pretrained(tmp_path / "other")
    tensors = load_file(tmp_path / "bad" / "model.safetensors")
    rows, columns = tensors[tensor].shape
    tensors[tensor] = torch.zeros(rows + 1, columns)
    save_file(tensors, tmp_path / "bad" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "other" / "config.json").read_text()) | option
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    found = f"tensor '{tensor}' has shape ({rows + 1}, {columns}), expected ({rows}, {columns})"
    capfd.readouterr()
    for folder, message in (("bad", found), ("other", "expected (")):
        assert cli.main(["--from", "transformers", str(tmp_path / folder), str(tmp_path / "ours")]) == 2
        error = capfd.readouterr().err
        assert message in error and error.count("\n") == 1, error
        assert not (tmp_path / "ours").exists()


def build_torch(norm_first=False, activation="relu", batch_first=True, bias=True, layers=(2, 3)):
    torch.manual_seed(0)
    module = nn.Transformer(
        12, 3, *layers, 20, 0.1, activation, batch_first=batch_first, norm_first=norm_first, bias=bias
    )
    perturb(module, 0.2)
    return module


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch_first", "time_first"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [False, True], ids=["post", "pre"])
def test_torch_transformer(norm_first, activation, batch_first, bias):
    module = build_torch(norm_first, activation, batch_first, bias)
    model, report = from_torch_transformer(module)
    note("nn.Transformer", report)
    source, target = torch.randn(2, 5, 12), torch.randn(2, 4, 12)
    given = (source, target) if batch_first else (source.transpose(0, 1), target.transpose(0, 1))
    expected = module.eval()(*given, tgt_mask=nn.Transformer.generate_square_subsequent_mask(4))
    expected = expected if batch_first else expected.transpose(0, 1)
    ours = model(inputs_embeds=source, decoder_inputs_embeds=target).last_hidden_state
    assert_close(ours, expected, 1e-5, "A8 import, nn.Transformer")


def test_torch_transformer_from_a_file(tmp_path):
    module = build_torch(norm_first=True, activation="gelu")
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    model, report = import_file(tmp_path / "weights.safetensors", num_heads=3, norm_first=True, activation="gelu")
    assert report.max_difference <= 1e-5
    assert report.assumed == "num_heads=3, norm_first=True, activation=gelu, norm_eps=1e-05"
    expected, _ = from_torch_transformer(module)
    assert all(torch.equal(tensor, expected.state_dict()[key]) for key, tensor in model.state_dict().items())
    for options, message in (
        ({}, "does not tell its heads: say num_heads"),
        ({"num_heads": 5}, "num_heads=5 does not divide the width 12"),
        ({"num_heads": 3, "activation": "tanh"}, "activation='tanh' is not supported"),
    ):
        with pytest.raises(ValueError, match=message):
            import_file(tmp_path / "weights.safetensors", **options)
    tensors = module.state_dict()
    tensors.pop("decoder.layers.1.norm3.bias")
    with pytest.raises(ValueError, match=r"tensor 'decoder\.layers\.1\.norm3\.bias' is missing"):
        from_torch_transformer(tensors, num_heads=3)


def test_command_line(tmp_path, capsys):
    build("bert").save_pretrained(tmp_path / "bert")
    assert cli.main(["--from", "transformers", str(tmp_path / "bert"), str(tmp_path / "ours")]) == 0
    assert "BertForMaskedLM → TransformerEncoderForMaskedLM" in capsys.readouterr().out
    save_file(build_torch().state_dict(), tmp_path / "torch.safetensors")
    command = ["--from", "torch.nn.Transformer", str(tmp_path / "torch.safetensors"), str(tmp_path / "transformer")]
    assert cli.main(command) == 2
    assert "say num_heads" in capsys.readouterr().err
    assert cli.main([*command, "--num_heads", "3"]) == 0
    assert transformers.AutoModel.from_pretrained(tmp_path / "transformer").config.positions == "none"
