"""Token classification with a CRF: loss, logits and decoding, over recurrent and Transformer backbones."""

from __future__ import annotations

import pytest
import torch
from crf_paths import K, all_paths, draw_labels, slow_log_likelihood
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hf_seqmodels.models import ARCHITECTURES
from hf_seqmodels.models.shared_crf import LinearChainCRF
from model_table import (
    PADDINGS,
    SIZES,
    TOLERANCE,
    Case,
    assert_close,
    assert_same_gradients,
    build,
    make_ids,
    make_mask,
    named_gradients,
)

CASES = [
    Case("seq_lstm", "bidirectional"),
    Case("seq_gru", "plain"),
    Case("seq_attention_rnn", "plain"),
    Case("seq_transformer_decoder", "plain"),
]
each_case = pytest.mark.parametrize("case", CASES, ids=str)
on_cpu = pytest.mark.skipif(
    "os.environ.get('HF_SEQMODELS_TEST_DEVICE', 'cpu') != 'cpu'",
    reason="stock classes that choose their device",
)
each_padding = pytest.mark.parametrize("padding", PADDINGS)


def build_tagger(case: Case, dtype: torch.dtype = torch.float32, **options):
    return build(case, "token-classification", dtype, crf=True, **options)


def emissions_of(model, *args, **kwargs) -> torch.Tensor:
    """The scores before the CRF, which the models give in training; no dropout is set."""
    logits = model.train()(*args, **kwargs).logits
    model.eval()
    return logits


@each_padding
@each_case
def test_row_in_batch_equals_row_alone(case, padding):
    """Logits (max-marginals) and loss, values and gradients."""
    for dtype in (torch.float32, torch.float64):
        model, ids, mask, labels = build_tagger(case, dtype), make_ids(5, 8), make_mask(padding), draw_labels(5, 8)
        tokens, tolerance, row = mask.bool(), TOLERANCE[dtype], f"CRF padding {str(dtype)[6:]}"
        labels[:, 3] = 1  # every row has a label
        labels[4, 0] = 1
        outputs = model(ids, attention_mask=mask, labels=labels)
        probe = torch.randn(*outputs.logits.shape).to(dtype)
        ((outputs.logits * probe)[tokens].sum() + outputs.loss).backward()
        gradients, alone_loss = named_gradients(model), 0.0
        count = int((labels[tokens] != -100).sum())
        for i, kept in enumerate(tokens):
            alone = model(ids[i][kept][None], labels=labels[i][kept][None], num_items_in_batch=count)
            assert_close(outputs.logits[i][kept], alone.logits[0], tolerance, row, f"row {i}")
            ((alone.logits[0] * probe[i][kept]).sum() + alone.loss).backward()
            alone_loss += alone.loss.detach()
        assert_close(outputs.loss, alone_loss, tolerance, row, "loss")
        assert_same_gradients(gradients, named_gradients(model), tolerance, row)


@each_case
def test_nothing_under_padding_leaks(case):
    """Bit-exact: NaN under the padding, and labels under it, change no logits, loss or gradient."""
    model, mask, labels = build_tagger(case), make_mask("mixed"), draw_labels(5, 8)
    tokens = mask.bool()
    clean = torch.randn(*mask.shape, model.get_input_embeddings().embedding_dim)
    results = []
    for under, label in ((clean, -100), (torch.full_like(clean, float("nan")), 2)):
        embeddings = torch.where(tokens[..., None], clean, under).requires_grad_()
        given = torch.where(tokens, labels, label)
        outputs = model(inputs_embeds=embeddings, attention_mask=mask, labels=given)
        (outputs.logits.square().sum() + outputs.loss).backward()
        results.append((outputs.logits, outputs.loss, embeddings.grad, named_gradients(model)))
    for expected, actual in zip(results[0][:3], results[1][:3], strict=True):
        assert torch.isfinite(expected).all()
        assert torch.equal(actual, expected)
    for name, gradient in results[0][3].items():
        assert torch.equal(results[1][3][name], gradient), name


@each_case
def test_loss_and_logits_are_those_of_all_paths(case):
    """Loss: −Σ log p over the labels that are not −100; logits in training: the emissions, in evaluation: Viterbi."""
    model, ids, mask, labels = build_tagger(case, torch.float64), make_ids(5, 8), make_mask("mixed"), draw_labels(5, 8)
    tokens = mask.bool()
    emissions = emissions_of(model, ids, attention_mask=mask)
    assert_close(emissions, model.score(model.model(ids, attention_mask=mask).last_hidden_state), 1e-12, "CRF head")
    outputs = model(ids, attention_mask=mask, labels=labels)
    short = [i for i in range(5) if tokens[i].sum() <= 5]
    slow = sum(slow_log_likelihood(model.crf, emissions[i][tokens[i]], labels[i][tokens[i]]) for i in short)
    some = model(ids[short], attention_mask=mask[short], labels=labels[short])
    count = (labels[short][tokens[short]] != -100).sum()
    assert_close(some.loss, -slow / count, 1e-12, "CRF head", "loss")
    for i in short:
        paths, scores = all_paths(model.crf, emissions[i][tokens[i]])
        assert outputs.logits[i][tokens[i]].argmax(-1).tolist() == paths[scores.argmax()].tolist()
    assert (outputs.logits.argmax(-1) != emissions.argmax(-1))[tokens].any(), "the transitions change some label"


@each_case
def test_every_parameter_learns(case):
    model, ids, mask = build_tagger(case).train(), make_ids(5, 8), make_mask("mixed")
    model(ids, attention_mask=mask, labels=draw_labels(5, 8)).loss.backward()
    for name, gradient in named_gradients(model).items():
        assert gradient.any(), name


@each_case
def test_accumulated_batches_are_one_batch(case):
    model, ids, mask, labels = build_tagger(case), make_ids(5, 8), make_mask("mixed"), draw_labels(5, 8)
    labels = torch.where(mask.bool(), labels, -100)
    count = (labels != -100).sum()
    whole = model(ids, attention_mask=mask, labels=labels).loss
    whole.backward()
    expected, total = named_gradients(model), 0.0
    for part in (slice(0, 2), slice(2, 5)):
        loss = model(ids[part], attention_mask=mask[part], labels=labels[part], num_items_in_batch=count).loss
        loss.backward()
        total += loss.detach()
    assert_close(total, whole.detach(), 1e-6, "A16 CRF")
    assert_same_gradients(named_gradients(model), expected, 1e-5, "A16 CRF")


def bare_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0} | {f"w{index}": index for index in range(1, SIZES["vocab_size"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


@on_cpu
def test_stock_trainer(tmp_path):
    """A16: 3 × 2 rows and 1 × 6 rows give the same losses and weights; the predictions are Viterbi's."""
    rows = [{"input_ids": make_ids(1, 2 + n % 6, seed=n)[0].tolist()} for n in range(12)]
    for n, row in enumerate(rows):
        row["labels"] = draw_labels(1, len(row["input_ids"]), seed=n)[0].tolist()
    outcomes = []
    for batch, accumulation in ((2, 3), (6, 1)):
        model = build_tagger(CASES[1])
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation, "max_steps": 2}
        options |= {"optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant", "logging_steps": 1}
        options |= {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True}
        arguments = TrainingArguments(str(tmp_path), max_grad_norm=1e9, **options)
        trainer = Trainer(
            model, arguments, train_dataset=rows, data_collator=DataCollatorForTokenClassification(bare_tokenizer())
        )
        trainer.train()
        losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
        outcomes.append((losses, model.state_dict()))
    (small_losses, small), (losses, weights) = outcomes
    assert len(losses) == 2
    assert small_losses == pytest.approx(losses, rel=1e-5)
    for name, weight in weights.items():
        assert_close(small[name], weight, 2e-6, "A16 CRF", name)
    predicted = torch.tensor(trainer.predict(rows).predictions).argmax(-1)
    for i, row in enumerate(rows):
        ids = torch.tensor([row["input_ids"]])
        expected = model.crf.viterbi(emissions_of(model, ids), torch.ones_like(ids, dtype=torch.bool))
        assert predicted[i, : ids.shape[1]].tolist() == expected[0].tolist()


@each_case
def test_saved_and_loaded(case, tmp_path):
    model, ids = build_tagger(case), make_ids(2, 6)
    plain = build(case, "token-classification")
    names = {"crf.transitions", "crf.start", "crf.end"}
    assert set(model.state_dict()) - set(plain.state_dict()) == names
    assert set(plain.state_dict()) <= set(model.state_dict())
    model.save_pretrained(tmp_path)
    assert (tmp_path / "shared_crf.py").exists()
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert loaded.config.crf is True
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert torch.equal(loaded(ids).logits, model(ids).logits)


def test_new_crf_on_an_old_backbone(tmp_path):
    """A checkpoint without a CRF under a head with one: the chain starts at 0; saved taggers must be complete."""
    backbone = build(CASES[0])
    backbone.save_pretrained(tmp_path / "backbone")
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path / "backbone", crf=True, num_labels=K)
    assert not any(parameter.any() for parameter in loaded.crf.parameters())
    build(CASES[0], "token-classification").save_pretrained(tmp_path / "tagger")
    with pytest.raises(ValueError, match=r"lacks 3 tensors of .* 'crf.end'"):
        AutoModelForTokenClassification.from_pretrained(tmp_path / "tagger", crf=True)


@on_cpu
@each_case
def test_pipeline_decodes_with_viterbi(case):
    """The stock pipeline knows nothing of a CRF; batches of unequal texts are padded by it."""
    model, texts = build_tagger(case), ["w1 w7 w3 w9 w2 w2 w14", "w5 w6", "w8 w1 w20 w22"]
    tagger = pipeline("token-classification", model=model, tokenizer=bare_tokenizer(), device="cpu")
    for text, found in zip(texts, tagger(texts, batch_size=3), strict=True):
        ids = torch.tensor([[int(word[1:]) for word in text.split()]])
        expected = model.crf.viterbi(emissions_of(model, ids), torch.ones_like(ids, dtype=torch.bool))[0]
        assert [entity["entity"] for entity in found] == [f"LABEL_{label}" for label in expected]


@each_case
def test_half_precision(case):
    """In bf16 the loss is fp32, and the argmax of the logits still the best path of the emissions as rounded."""
    model, ids, labels, tokens = build_tagger(case), make_ids(5, 8), draw_labels(5, 8), make_mask("right").bool()
    expected = model(ids, attention_mask=tokens, labels=labels).loss
    for name in ("autocast", "bf16"):
        model = model if name == "autocast" else model.to(torch.bfloat16)
        with torch.autocast("cpu", torch.bfloat16, enabled=name == "autocast"):
            outputs = model(ids, attention_mask=tokens, labels=labels)
            emissions = emissions_of(model, ids, attention_mask=tokens)
        assert outputs.loss.dtype == torch.float32 and outputs.logits.dtype == emissions.dtype == torch.bfloat16
        assert_close(outputs.loss, expected, 5e-2, "CRF bf16")
        best = model.crf.viterbi(emissions, tokens)
        assert torch.equal(outputs.logits.argmax(-1)[tokens], best[tokens]), name


def test_crf_is_an_option_of_every_token_classifier():
    for name, architecture in ARCHITECTURES.items():
        if "token-classification" in architecture.models:
            assert isinstance(build_tagger(Case(name, "plain")).crf, LinearChainCRF), name
