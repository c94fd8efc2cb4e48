"""A transformers encoder under a recurrent network: values, padding, freezing, saving, and what a file may not do."""

import json

import pytest
import torch
import transformers
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTextEncoding

from hf_seqmodels.models import ARCHITECTURES, HEADS
from model_table import (
    RECURRENT,
    Case,
    assert_close,
    assert_same_gradients,
    make_ids,
    make_mask,
    named_gradients,
    perturb,
)

V, E, D = 23, 12, 8
BERT = {
    "vocab_size": V, "hidden_size": E, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 14,
    "max_position_embeddings": 20, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
ROBERTA = BERT | {"pad_token_id": 0, "type_vocab_size": 1}
T5 = {"vocab_size": V, "d_model": E, "d_kv": 6, "d_ff": 14, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
ENCODERS = {
    "bert": BERT,
    "roberta": ROBERTA,
    "distilbert": {
        "vocab_size": V, "dim": E, "n_layers": 2, "n_heads": 2, "hidden_dim": 14, "max_position_embeddings": 20,
        "dropout": 0.0, "attention_dropout": 0.0,
    },
    "albert": BERT | {"embedding_size": 7},
    "electra": BERT | {"embedding_size": 7},
    "t5": T5,
}  # fmt: skip
OURS = "seq_transformer_encoder"
if OURS in ARCHITECTURES:
    ENCODERS[OURS] = {name: value for name, value in BERT.items() if not name.endswith("_prob")}
HEAD = "sequence-classification"
each_encoder = pytest.mark.parametrize("kind", ENCODERS)
each_architecture = pytest.mark.parametrize("architecture", RECURRENT)


def settings(kind: str) -> dict:
    return {"model_type": kind} | ENCODERS[kind]


def make_config(kind: str, architecture: str = "seq_lstm", **options):
    sizes = {"hidden_size": D, "num_labels": 3}
    return ARCHITECTURES[architecture].config(encoder=settings(kind), **(sizes | options))


def hybrid(kind: str, architecture: str = "seq_lstm", head: str = HEAD, **options):
    torch.manual_seed(0)
    model = ARCHITECTURES[architecture].models[head](make_config(kind, architecture, **options)).eval()
    perturb(model)
    return model


def pretrained(kind: str):
    """A model of transformers as somebody else trained it."""
    torch.manual_seed(9)
    config = transformers.AutoConfig.for_model(**settings(kind))
    auto = AutoModelForTextEncoding if kind == "t5" else AutoModel
    model = auto.from_config(config).eval()
    perturb(model)
    return model


# -- what it computes -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("head", ["backbone", HEAD, "token-classification", "question-answering", "masked-lm"])
@each_architecture
def test_encoder_feeds_the_first_layer(architecture, head):
    """The same numbers and gradients as the encoder first, and its output as embeddings of a model without one."""
    bidirectional = head == "masked-lm"
    model = hybrid("roberta", architecture, head, bidirectional=bidirectional)
    sizes = {"hidden_size": D, "num_labels": 3, "embedding_size": E, "vocab_size": V, "bidirectional": bidirectional}
    plain = ARCHITECTURES[architecture].models[head](ARCHITECTURES[architecture].config(**sizes)).eval()
    left = plain.load_state_dict(model.state_dict(), strict=False)
    assert all("encoder." in key for key in left.unexpected_keys)
    assert all("embed_tokens" in key for key in left.missing_keys)
    ids, mask = make_ids(5, 8), make_mask("right")
    encoder = model.base_model.encoder
    first = next(value for value in model(ids, attention_mask=mask).values() if value is not None)
    first.square().sum().backward()
    gradients = named_gradients(model)
    encoded = encoder(ids, attention_mask=mask).last_hidden_state
    expected = next(v for v in plain(inputs_embeds=encoded, attention_mask=mask).values() if v is not None)
    expected.square().sum().backward()
    assert_close(first, expected, 1e-5, "encoder under an RNN")
    prefix = "" if head == "backbone" else "model."
    expected_gradients = {f"{prefix}encoder.{n}": g for n, g in named_gradients(encoder).items()}
    expected_gradients |= {n: g for n, g in named_gradients(plain).items() if "embed_tokens" not in n}
    assert any(g.any() for n, g in expected_gradients.items() if "encoder" in n)
    assert_same_gradients(gradients, expected_gradients, 1e-5, "encoder under an RNN")


@each_encoder
def test_every_parameter_gets_a_gradient(kind):
    """No pooler or decoder hangs on unused, which distributed training would refuse."""
    model = hybrid(kind).train()
    model(make_ids(5, 8), attention_mask=make_mask("right"), labels=torch.arange(5) % 3).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


# Absolute positions count the padding on the left too, unless the encoder skips it (RoBERTa) or has none (T5).
ANYWHERE = [kind for kind in ENCODERS if kind in ("roberta", "t5", OURS)]


@pytest.mark.parametrize(
    ("kind", "padding"),
    [(kind, "right") for kind in ENCODERS]
    + [(kind, padding) for kind in ANYWHERE if kind != "t5" for padding in ("left", "mixed")],
)
@pytest.mark.parametrize("head", [HEAD, "token-classification"])
def test_a_row_in_a_batch_gets_what_it_gets_alone(kind, padding, head):
    """Whatever token ids stand under the padding; values and gradients."""
    model, ids, mask = hybrid(kind, head=head, bidirectional=True), make_ids(5, 8), make_mask(padding)
    logits = model(ids, attention_mask=mask).logits
    rows = [logits[r] if head == HEAD else logits[r][mask[r].bool()] for r in range(5)]
    torch.cat([row.flatten() for row in rows]).square().sum().backward()
    gradients = named_gradients(model)
    alone = [model(ids[r, mask[r].bool()][None]).logits[0] for r in range(5)]
    torch.cat([row.flatten() for row in alone]).square().sum().backward()
    for row, expected in zip(rows, alone, strict=True):
        assert_close(row, expected, 1e-5, "encoder, padding")
    assert_same_gradients(gradients, named_gradients(model), 1e-5, "encoder, padding")


@each_encoder
def test_all_padding_and_nan_under_padding(kind):
    """A row without tokens, and NaN under the padding: everything stays finite, and changes nothing else."""
    model, ids, mask = hybrid(kind), make_ids(5, 8), make_mask("right")
    mask[2] = 0
    width = model.get_input_embeddings().weight.shape[1]
    embeddings = torch.randn(5, 8, width)
    clean = model(inputs_embeds=embeddings, attention_mask=mask).logits
    poisoned = torch.where(mask.bool()[..., None], embeddings, float("nan")).requires_grad_()
    output = model(inputs_embeds=poisoned, attention_mask=mask).logits
    assert torch.equal(output, clean)
    (output.square().sum() + model(ids, attention_mask=mask).logits.square().sum()).backward()
    assert torch.isfinite(poisoned.grad).all() and not poisoned.grad[mask == 0].any()
    assert all(torch.isfinite(g).all() for g in named_gradients(model).values())


def test_two_texts():
    """Pairs of texts reach the encoder with their segments."""
    model, ids = hybrid("bert"), make_ids(2, 6)
    segments = torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)
    encoded = model.model.encoder(ids, token_type_ids=segments).last_hidden_state
    expected = model.score(model.pool(model.model.layers[0](encoded), None)[0])
    assert_close(model(ids, token_type_ids=segments).logits, expected, 1e-6, "encoder under an RNN")
    assert (model(ids).logits - expected).abs().max() > 1e-3


# -- sizes, embeddings ------------------------------------------------------------------------------------------------
@each_encoder
def test_sizes_follow_the_encoder(kind):
    config = make_config(kind)
    assert (config.embedding_size, config.vocab_size, config.use_cache) == (E, V, False)
    again = type(config).from_dict(json.loads(json.dumps(config.to_dict(), default=str)))
    assert again.encoder.to_dict() == config.encoder.to_dict()
    assert again.to_dict() == config.to_dict()


@pytest.mark.parametrize("size", [31, 17])
@each_encoder
def test_resize_token_embeddings(kind, size, tmp_path):
    model, ids = hybrid(kind), make_ids(2, 6, vocab_size=17)
    before = model(ids).logits
    model.resize_token_embeddings(size, mean_resizing=False)
    assert model.get_input_embeddings() is model.model.encoder.get_input_embeddings()
    assert model.config.vocab_size == model.config.encoder.vocab_size == model.get_input_embeddings().num_embeddings
    assert_close(model(ids).logits, before, 1e-6, "encoder, resize")
    with pytest.raises(ValueError, match=f"token id {size} is outside the vocabulary of {size}"):
        model(torch.full((1, 2), size))
    model.save_pretrained(tmp_path, save_code=False)
    assert_close(type(model).from_pretrained(tmp_path)(ids).logits, before, 1e-6, "encoder, resize")


# -- freezing ---------------------------------------------------------------------------------------------------------
@each_encoder
def test_frozen(kind, tmp_path):
    """No gradients, no dropout in the encoder while the model trains, and so again after save and load."""
    model = hybrid(kind, freeze_encoder=True)
    model.save_pretrained(tmp_path, save_code=False)
    ids, mask = make_ids(5, 8), make_mask("right")
    for frozen in (model, AutoModelForSequenceClassification.from_pretrained(tmp_path)):
        frozen.train()
        encoder = frozen.model.encoder
        assert frozen.training and not any(module.training for module in encoder.modules())
        seen = []
        handle = encoder.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out.last_hidden_state))
        frozen(ids, attention_mask=mask, labels=torch.arange(5) % 3).loss.backward()
        handle.remove()
        assert not seen[0].requires_grad
        for name, parameter in frozen.named_parameters():
            inside = name.startswith("model.encoder.")
            assert parameter.requires_grad is not inside and (parameter.grad is None) is inside, name
    assert all(parameter.requires_grad for parameter in hybrid(kind).parameters())


def test_trained_encoder_is_in_training_mode():
    model = hybrid("bert").train()
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("freeze", [False, True])
def test_gradient_checkpointing_reaches_the_encoder(freeze):
    model = hybrid("bert", freeze_encoder=freeze).train()
    ids, mask, results, calls = make_ids(5, 8), make_mask("right"), [], []
    model.model.encoder.encoder.layer[0].attention.register_forward_hook(lambda *_: calls.append(1))
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        loss = model(ids, attention_mask=mask, labels=torch.arange(5) % 3).loss
        loss.backward()
        results.append((loss.detach(), named_gradients(model)))
    assert len(calls) == (2 if freeze else 3)
    assert_close(results[1][0], results[0][0], 1e-6, "encoder, checkpointed")
    assert_same_gradients(results[1][1], results[0][1], 1e-6, "encoder, checkpointed")


# -- from a checkpoint, and back --------------------------------------------------------------------------------------
@each_encoder
@pytest.mark.parametrize("by", ["model", "path"])
def test_from_encoder(kind, by, tmp_path):
    """The weights are the checkpoint's; saved as one, loaded as one, the checkpoint gone."""
    source, folder = pretrained(kind), tmp_path / "encoder"
    source.save_pretrained(folder, **({"save_code": False} if kind == OURS else {}))
    cls = ARCHITECTURES["seq_gru"].models[HEAD]
    model = cls.from_encoder(source if by == "model" else str(folder), freeze=True, hidden_size=D, num_labels=3).eval()
    ids, mask = make_ids(5, 8), make_mask("right")
    expected = source(ids, attention_mask=mask).last_hidden_state
    encoded, _ = model.model.encode(ids, None, mask, None)
    assert_close(encoded[mask == 1], expected[mask == 1], 1e-6, "from_encoder")
    assert model.config.freeze_encoder and model.config.hidden_size == D
    model.save_pretrained(tmp_path / "whole", save_code=False)
    assert str(folder) not in (tmp_path / "whole" / "config.json").read_text()
    assert [path.name for path in (tmp_path / "whole").glob("*.safetensors")] == ["model.safetensors"]
    (folder / "model.safetensors").unlink()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole")
    assert torch.equal(loaded(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)


def test_from_encoder_with_a_head_on_it():
    """A masked language model's encoder is taken out of it, its own model untouched."""
    source = transformers.BertForMaskedLM(transformers.BertConfig(**BERT)).eval()
    before = {name: value.clone() for name, value in source.state_dict().items()}
    model = ARCHITECTURES["seq_lstm"].models["backbone"].from_encoder(source, hidden_size=D)
    model.encoder.embeddings.word_embeddings.weight.data.zero_()
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())


def test_from_encoder_refuses():
    cls = ARCHITECTURES["seq_lstm"].models[HEAD]
    with pytest.raises(ValueError, match="must be the name or path of a checkpoint, or a model"):
        cls.from_encoder(3)
    with pytest.raises(ValueError, match="does not encode text"):
        cls.from_encoder(transformers.ViTModel(transformers.ViTConfig(hidden_size=4, num_attention_heads=1)))


def test_a_checkpoint_without_some_tensors_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    pretrained("bert").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 tensors of the encoder, the first is 'encoder\.layer\.1"):
        ARCHITECTURES["seq_lstm"].models[HEAD].from_encoder(str(tmp_path))


# -- what a file may not do -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["_name_or_path", "name_or_path"])
def test_a_planted_path_is_not_followed(name, tmp_path):
    """Loading reads the model's own folder, whatever path its configuration names."""
    model, other = hybrid("roberta"), pretrained("roberta")
    other.save_pretrained(tmp_path / "other")
    model.save_pretrained(tmp_path / "model", save_code=False)
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config["encoder"] |= {name: str(tmp_path / "other"), "auto_map": {"AutoModel": f"{tmp_path}/other--evil.Model"}}
    file.write_text(json.dumps(config))
    loaded = type(model).from_pretrained(tmp_path / "model")
    assert not loaded.config.encoder._name_or_path and not hasattr(loaded.config.encoder, "auto_map")
    ids = make_ids(3, 5)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(OSError):
        type(model).from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("option", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("where", ["encoder", "deep", "top"])
@pytest.mark.parametrize("value", ["user/repo", {"": "user/repo"}], ids=["name", "dict"])
def test_kernels_from_a_file_are_refused(option, where, value, tmp_path):
    """C5: a name that is not transformers' own is a repository with code."""
    hybrid("bert", head="backbone").save_pretrained(tmp_path, save_code=False)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    place = {"encoder": config["encoder"], "top": config, "deep": config["encoder"].setdefault("text_config", {})}
    place[where][option] = value
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{option}='user/repo' is not allowed") as error:
        AutoModel.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_known_kernels_are_taken(attention):
    config = ARCHITECTURES["seq_lstm"].config(encoder=settings("bert") | {"attn_implementation": attention})
    model = ARCHITECTURES["seq_lstm"].models["backbone"](config)
    assert model.encoder.config._attn_implementation == attention


WRONG = {
    "type": ({"encoder": {"model_type": "nobody"}}, "model_type='nobody' is not known"),
    "no type": ({"encoder": BERT}, "model_type=None is not known"),
    "no text": ({"encoder": {"model_type": "vit"}}, "'vit' does not encode text"),
    "no sound": ({"encoder": {"model_type": "wav2vec2"}}, "'wav2vec2' does not encode text"),
    "funnel": ({"encoder": {"model_type": "funnel"}}, "model_type='funnel' has several models in transformers"),
    "whole bart": ({"encoder": {"model_type": "bart"}}, "no class for the encoder of 'bart' alone"),
    "layers": ({"encoder": settings("bert") | {"num_hidden_layers": 10**9}}, "encoder.num_hidden_layers=1000000000"),
    "width": ({"embedding_size": 5}, "embedding_size=5 is not allowed: it must be 12, as in the encoder"),
    "vocabulary": ({"vocab_size": 99}, "vocab_size=99 is not allowed: it must be 23, as in the encoder"),
    "features": ({"num_features": 3}, "num_features=3 is not allowed"),
    "tied": ({"tie_word_embeddings": True}, "tie_word_embeddings=True is not allowed"),
    "words": ({"embedding_dropout": 0.1}, "embedding_dropout=0.1 is not allowed"),
    "freeze": ({"encoder": None, "freeze_encoder": True}, "freeze_encoder=True is not allowed"),
}


@pytest.mark.parametrize("wrong", WRONG)
@each_architecture
def test_wrong_configurations(architecture, wrong):
    options, message = WRONG[wrong]
    with pytest.raises(ValueError, match=message.replace(".", r"\.")) as error:
        ARCHITECTURES[architecture].config(**({"encoder": settings("bert"), "hidden_size": D} | options))
    assert "\n" not in str(error.value)


@each_architecture
def test_no_state_and_no_next_token(architecture):
    """The encoder sees the whole sequence: no causal language model, and no cache."""
    with pytest.raises(ValueError, match="an encoder sees the token to predict"):
        hybrid("bert", architecture, "causal-lm")
    model = hybrid("bert", architecture)
    for wrong in ({"use_cache": True}, {"past_key_values": transformers.DynamicCache(config=model.config)}):
        with pytest.raises(ValueError, match="a model with an encoder has no state to continue from"):
            model(make_ids(2, 3), **wrong)
    assert model(make_ids(2, 3)).past_key_values is None


def test_wrong_inputs():
    model = hybrid("albert")
    with pytest.raises(ValueError, match="token id 23 is outside the vocabulary of 23"):
        model(torch.full((1, 2), V))
    with pytest.raises(ValueError, match=r"pass \(batch, positions, 7\)"):  # the width of ALBERT's own embeddings
        model(inputs_embeds=torch.randn(1, 2, E))
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="this model reads tokens"):
        model(input_features=torch.randn(1, 2, E))


@pytest.mark.parametrize(("kind", "most"), [("bert", 20), ("roberta", 19), ("distilbert", 20), ("electra", 20)])
def test_beyond_the_tables_of_the_encoder(kind, most):
    """RoBERTa's first position is the one after its padding token's, and it does not count padding."""
    model, ids = hybrid(kind), make_ids(2, most + 1)
    model(ids[:, 1:])
    given = {"ids": {"input_ids": ids}, "embeddings": {"inputs_embeds": model.get_input_embeddings()(ids)}}
    for inputs in given.values():
        with pytest.raises(ValueError, match=f"a text of {most + 1} tokens is beyond the encoder's {most} positions"):
            model(**inputs)
    if kind == "roberta":
        model(ids, attention_mask=torch.tensor([[0] + [1] * most] * 2))
    if kind != "distilbert":  # which has no token types
        wrong = torch.full((2, 3), 2)
        with pytest.raises(ValueError, match="token_type_ids: the encoder has no type 2, it has") as error:
            model(ids[:, :3], token_type_ids=wrong)
        assert "\n" not in str(error.value)


def test_every_head_that_reads_tokens_was_tried():
    tried = {"backbone", HEAD, "token-classification", "question-answering", "masked-lm", "causal-lm"}
    features = {"ctc", "audio-classification", "time-series-prediction"}  # refused: num_features
    assert all(set(ARCHITECTURES[name].models) <= tried | features for name in RECURRENT)
    assert set(HEADS) >= tried | features
    assert Case("seq_lstm", "plain").recurrent
