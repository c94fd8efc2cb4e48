"""The sequence-to-sequence head: labels and loss, embedding tables in every combination, the stock trainer."""

import json

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from safetensors import safe_open
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)
from transformers.models.bart.modeling_bart import shift_tokens_right

from hf_seqmodels.models.shared_heads_seq2seq import shift_right
from model_table import Case, assert_close, assert_same_gradients, make_ids, named_gradients
from model_table import build as build_case
from seq2seq_cases import SOURCE_MASK, TARGET_MASK, build_system, each_system, make_batch

TARGET = TARGET_MASK.bool()


def make_labels(mask: torch.Tensor) -> torch.Tensor:
    return make_ids(*mask.shape, seed=4).masked_fill(mask == 0, -100)


# -- labels and loss ------------------------------------------------------------------------------------------------
def test_labels_are_shifted_as_everybody_does():
    labels = make_labels(torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]]))
    assert torch.equal(shift_right(labels, 7, 0), shift_tokens_right(labels, 0, 7))


def test_labels_with_padding_anywhere_follow_on_one_another():
    labels = torch.tensor([[-100, -100, 5, 6], [5, -100, 6, -100], [-100, -100, -100, -100]])
    shifted = shift_right(labels, 7, 0)
    targets = labels != -100
    assert [row[kept].tolist() for row, kept in zip(shifted, targets, strict=True)] == [[7, 5], [7, 5], []]
    assert shifted[0, :2].tolist() == [0, 0] and shifted[2].tolist() == [0] * 4


@each_system
def test_loss_of_labels(system):
    """The mean of −log p over the targets, unshifted; the decoder's inputs are made from the labels."""
    model, ids, labels = build_system(system), make_ids(5, 8), make_labels(TARGET_MASK)
    source = {"input_ids": ids, "attention_mask": SOURCE_MASK}
    outputs = model(**source, labels=labels)
    assert_close(outputs.loss, F.cross_entropy(outputs.logits[TARGET], labels[TARGET]), 1e-6, "loss seq2seq")
    total = 0.0
    for i in range(5):  # each row alone, written out
        target = labels[i][TARGET[i]]
        read = torch.cat([torch.tensor([1]), target[:-1]])  # decoder_start_token_id is 1
        logits = model(ids[i][SOURCE_MASK[i].bool()][None], decoder_input_ids=read[None]).logits[0]
        total = total + F.cross_entropy(logits, target, reduction="sum")
    assert_close(outputs.loss, total / TARGET.sum(), 1e-5, "loss seq2seq")
    scaled = model(**source, labels=labels, num_items_in_batch=100).loss
    assert_close(scaled, total / 100, 1e-5, "loss seq2seq")
    assert model(**source, labels=torch.full((5, 3), -100)).loss.item() == 0.0


def test_decoder_inputs_win_over_labels():
    model, batch, labels = build_system("plain"), make_batch(), make_labels(TARGET_MASK)
    outputs = model(**batch, labels=labels)
    assert_close(outputs.logits, model(**batch).logits, 1e-6, "loss seq2seq")
    table = model.model.get_decoder_embeddings()
    ids = batch.pop("decoder_input_ids")
    embedded = model(**batch, decoder_inputs_embeds=table(ids), labels=labels)
    assert_close(embedded.loss, outputs.loss, 1e-6, "loss seq2seq")


@pytest.mark.parametrize("architecture", ["seq_attention_rnn_seq2seq", "seq_transformer"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_stock_collator_pads_either_side(architecture, side):
    """It gives decoder inputs made from the labels, and no mask for them: a row gets what it gets alone."""
    model = build_case(Case(architecture, "plain"), "seq2seq-lm")
    words = Tokenizer(WordLevel({f"w{index}": index for index in range(23)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", padding_side=side)
    rows = [{"input_ids": [3, 4, 5], "labels": [6]}, {"input_ids": [7], "labels": [8, 9, 3, 4]}]
    collate = DataCollatorForSeq2Seq(tokenizer, model=model)
    batch = collate(rows)
    assert "decoder_input_ids" in batch and "decoder_attention_mask" not in batch
    together = model(**batch).logits
    for index, row in enumerate(rows):
        alone = model(**collate([row])).logits[0]
        assert_close(together[index][batch["labels"][index] != -100], alone, 1e-5, "labels padded")


# -- embedding tables -----------------------------------------------------------------------------------------------
COMBINATIONS = {
    (False, False): {"decoder.embed_tokens", "encoder.embed_tokens", "lm_head"},
    (True, False): {"encoder.embed_tokens", "lm_head"},
    (False, True): {"decoder.embed_tokens", "encoder.embed_tokens"},
    (True, True): {"encoder.embed_tokens"},
}
each_combination = pytest.mark.parametrize(("share", "tie"), COMBINATIONS)


def build_tables(share: bool, tie: bool, **options):
    return build_system("plain", share_embeddings=share, tie_word_embeddings=tie, **options)


@each_combination
def test_tables_are_saved_once_and_loaded_back(share, tie, tmp_path):
    model, batch = build_tables(share, tie), make_batch()
    assert (model.lm_head.weight is model.model.get_decoder_embeddings().weight) == tie
    assert (model.model.get_decoder_embeddings() is model.get_input_embeddings()) == share
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as stored:
        tables = {name for name in stored.keys() if stored.get_slice(name).get_shape()[0] == 23}  # noqa: SIM118
    assert {name.removeprefix("model.").removesuffix(".weight") for name in tables} == COMBINATIONS[share, tie]
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (loaded.lm_head.weight is loaded.model.get_decoder_embeddings().weight) == tie
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert json.loads((tmp_path / "config.json").read_text())["share_embeddings"] == share


@each_combination
def test_tables_can_be_resized(share, tie):
    model, batch = build_tables(share, tie), make_batch()
    with torch.no_grad():
        before = model(**batch).logits
    model.resize_token_embeddings(30)
    tables = (model.get_input_embeddings(), model.model.get_decoder_embeddings(), model.lm_head)
    assert [len(table.weight) for table in tables] == [30, 30, 30]
    assert (model.lm_head.weight is model.model.get_decoder_embeddings().weight) == tie
    after = model(**batch).logits
    assert after.shape[-1] == 30
    assert_close(after[..., :23], before, 1e-6, "resize")
    loss = model(input_ids=torch.full((2, 3), 29), labels=torch.full((2, 3), 29)).loss
    loss.backward()
    assert all(table.weight.grad[29].any() for table in tables)


def test_a_missing_table_is_named(tmp_path):
    model = build_tables(True, False)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"share_embeddings": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lacks 1 tensors .* 'model.decoder.embed_tokens.weight'"):
        type(model).from_pretrained(tmp_path)


def test_head_on_a_saved_backbone(tmp_path):
    model = build_tables(False, False)
    model.model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {"lm_head.weight"}
    assert torch.equal(loaded.model(**make_batch()).last_hidden_state, model.model(**make_batch()).last_hidden_state)


# -- accumulation, and the trainer as it comes ----------------------------------------------------------------------
@pytest.mark.parametrize("system", ["plain", "bahdanau"])
def test_accumulated_gradients_are_those_of_one_batch(system):
    """A16: two calls with the global number of targets equal one."""
    model, ids, labels = build_system(system), make_ids(4, 6), make_labels(TARGET_MASK[:4])
    model(ids, labels=labels).loss.backward()
    whole, count = named_gradients(model), (labels != -100).sum()
    for rows in (slice(0, 1), slice(1, 4)):
        model(ids[rows], labels=labels[rows], num_items_in_batch=count).loss.backward()
    assert_same_gradients(named_gradients(model), whole, 1e-6, "A16 seq2seq")


def test_stock_trainer_learns_and_writes(tmp_path):
    """Seq2SeqTrainer with predict_with_generate, DataCollatorForSeq2Seq: copying two words is learnt."""
    words = Tokenizer(WordLevel({f"w{index}": index for index in range(23)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2")
    rows = [{"input_ids": [a, b], "labels": [a, b, 2]} for a in range(3, 9) for b in range(3, 9)]
    rows += [{"input_ids": [a], "labels": [a, 2]} for a in range(3, 9)]
    sizes = {"hidden_size": 24, "embedding_size": 16, "decoder_start_token_id": 1, "eos_token_id": 2}
    model = build_system("general", noise=0.0, **sizes)
    arguments = Seq2SeqTrainingArguments(
        tmp_path,
        max_steps=120,
        learning_rate=2e-2,
        per_device_train_batch_size=14,
        per_device_eval_batch_size=21,
        predict_with_generate=True,
        generation_max_length=5,
        report_to="none",
        logging_strategy="no",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    data = Dataset.from_list(rows)
    trainer = Seq2SeqTrainer(
        model,
        arguments,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        train_dataset=data,
        compute_metrics=lambda result: {"exact": exact_match(*result)},
    )
    before = trainer.evaluate(data)
    trainer.train()
    after = trainer.evaluate(data)
    assert after["eval_loss"] < 0.2 < before["eval_loss"]
    assert after["eval_exact"] >= 0.9 > before["eval_exact"]
    assert trainer.predict(data).predictions.shape[0] == len(rows)


def exact_match(predictions, labels) -> float:
    """Share of rows whose words up to </s> are those of the labels."""
    hits = 0
    for prediction, label in zip(predictions.tolist(), labels.tolist(), strict=True):
        wanted = [token for token in label if token not in (0, -100)]  # the trainer pads with both
        hits += prediction[1 : 1 + len(wanted)] == wanted
    return hits / len(labels)
