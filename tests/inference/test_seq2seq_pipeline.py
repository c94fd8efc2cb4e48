"""The pipeline "seq2seq-generation": our encoder–decoders and other people's, batches, options, errors, strangers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import build_word_tokenizer, run_apart
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    GenerationConfig,
    Speech2TextConfig,
    Speech2TextForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)

from hf_seqmodels.inference import Seq2SeqGenerationPipeline
from model_table import CASES, ENCODER_DECODER, Case, build, perturb

TASK = "seq2seq-generation"
TEXTS = ["w5 w6 w7 w8", "w9", "w10 w3"]
HERE = Path(__file__).parent
OURS = [case for case in CASES if case.architecture in ENCODER_DECODER]
RNN, LEARNED = Case("seq_attention_rnn_seq2seq", "plain"), Case("seq_transformer", "pre_learned")
POSITIONS = 16  # rows of the tables of learned positions here
SPECIAL = {"pad_token_id": 0, "eos_token_id": 2}
OTHERS = {
    "t5": lambda: T5ForConditionalGeneration(
        T5Config(
            vocab_size=23, d_model=12, d_kv=6, num_heads=2, d_ff=20, num_layers=2, decoder_start_token_id=0, **SPECIAL
        )
    ),
    "bart": lambda: BartForConditionalGeneration(
        BartConfig(
            vocab_size=23, d_model=12, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
            decoder_attention_heads=2, encoder_ffn_dim=20, decoder_ffn_dim=20, max_position_embeddings=POSITIONS,
            bos_token_id=1, decoder_start_token_id=2, forced_eos_token_id=2, **SPECIAL,
        )
    ),
}  # fmt: skip


def make_model(name: str | Case) -> Any:
    if isinstance(name, Case):
        size = {"max_position_embeddings": POSITIONS} if name.architecture == "seq_transformer" else {}
        return build(name, "seq2seq-lm", **size).cpu()
    torch.manual_seed(0)
    model = OTHERS[name]().eval()
    perturb(model)
    return model


def save(name: str | Case, folder: Path) -> Any:
    """A model and its tokenizer in `folder`."""
    model = make_model(name)
    model.save_pretrained(folder)
    build_word_tokenizer().save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def writers(tmp_path_factory):
    """The pipelines of saved models, given by their folder, and the models."""
    made = {}
    for name in (RNN, LEARNED, *OTHERS):
        folder = tmp_path_factory.mktemp("writer")
        model = save(name, folder)
        made[str(name)] = pipeline(TASK, model=str(folder), device="cpu"), model
    return made


each_writer = pytest.mark.parametrize("name", [str(RNN), str(LEARNED), *OTHERS])


def texts_of(answers: list[dict[str, str]]) -> list[str]:
    return [answer["generated_text"] for answer in answers]


def write_by_hand(model: Any, text: str, **options: Any) -> list[str]:
    """What the model's own `generate` gives for one text."""
    tokenizer = build_word_tokenizer()
    ids = model.generate(tokenizer(text, return_tensors="pt").input_ids, **options)
    return [tokenizer.decode(row[1:], skip_special_tokens=True) for row in ids]


# -- what it writes ---------------------------------------------------------------------------------------------------
BEAMS = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6}


@each_writer
def test_batches_and_beams(name, writers):
    """A row of a padded batch gives what it gives alone, which is what `generate` gives."""
    write, model = writers[name]
    assert type(write) is Seq2SeqGenerationPipeline
    for options in ({"max_new_tokens": 6}, BEAMS):
        expected = [write_by_hand(model, text, **options) for text in TEXTS]
        assert len({tuple(texts) for texts in expected}) > 1
        assert [texts_of(write(text, **options)) for text in TEXTS] == expected
        assert [texts_of(answers) for answers in write(TEXTS, batch_size=3, **options)] == expected
        assert [texts_of(answers) for answers in write((text for text in TEXTS), **options)] == expected


@pytest.mark.slow
@pytest.mark.parametrize("case", OURS, ids=str)
def test_every_variant(case, tmp_path):
    model = save(case, tmp_path)
    write = pipeline(TASK, model=str(tmp_path), device="cpu")
    expected = [write_by_hand(model, text, **BEAMS) for text in TEXTS]
    assert [texts_of(answers) for answers in write(TEXTS, batch_size=3, **BEAMS)] == expected


def test_learns_to_translate(tmp_path):
    """w3 … w12 into w13 … w22, word by word."""
    tokenizer, generator = build_word_tokenizer(), torch.Generator().manual_seed(0)
    model = build(RNN, "seq2seq-lm", hidden_size=32, embedding_size=24).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(150):
        ids = torch.randint(3, 13, (32, 4), generator=generator)
        labels = torch.cat([ids + 10, torch.full((32, 1), 2)], dim=1)
        loss = model(ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    translate = pipeline(TASK, model=str(tmp_path), device="cpu")
    texts = ["w3 w9 w12 w4", "w7 w7 w5 w11"]
    assert [texts_of(answers) for answers in translate(texts, batch_size=2)] == [
        ["w13 w19 w22 w14"],
        ["w17 w17 w15 w21"],
    ]


# -- options ----------------------------------------------------------------------------------------------------------
@each_writer
def test_streaming(name, writers, capsys):
    """Words are printed as they are written; an iterator gets them, too."""
    write, _ = writers[name]
    capsys.readouterr()
    streamer = TextStreamer(write.tokenizer, skip_special_tokens=True)
    text = write("w5 w6 w7", max_new_tokens=5, streamer=streamer)[0]["generated_text"]
    assert text and capsys.readouterr().out.split() == text.split()
    pieces = TextIteratorStreamer(write.tokenizer, skip_special_tokens=True, timeout=60)
    write("w5 w6 w7", max_new_tokens=5, streamer=pieces)
    assert "".join(pieces).split() == text.split()


def test_token_ids(writers):
    write, model = writers[str(RNN)]
    expected = model.generate(write.tokenizer(TEXTS[0], return_tensors="pt").input_ids, max_new_tokens=5)[0]
    (answer,) = write(TEXTS[0], max_new_tokens=5, return_tensors=True)
    assert list(answer) == ["generated_token_ids"] and torch.equal(answer["generated_token_ids"], expected)
    (both,) = write(TEXTS[0], max_new_tokens=5, return_tensors=True, return_text=True)
    assert both["generated_text"] == write(TEXTS[0], max_new_tokens=5)[0]["generated_text"]
    assert torch.equal(both["generated_token_ids"], expected)
    with pytest.raises(ValueError, match="return_text=False without return_tensors=True returns nothing"):
        write(TEXTS[0], return_text=False)
    config = GenerationConfig(max_new_tokens=4, return_dict_in_generate=True, output_scores=True, **SPECIAL)
    config.decoder_start_token_id = model.config.decoder_start_token_id
    assert write(TEXTS[0], generation_config=config) == write(TEXTS[0], max_new_tokens=4)


def test_the_start_of_a_target_is_not_shown():
    """Here it is an ordinary word, which a decoder would not take for a special token."""
    model = build(RNN, "seq2seq-lm", decoder_start_token_id=3).cpu()
    write = pipeline(TASK, model=model, tokenizer=build_word_tokenizer(), device="cpu", max_new_tokens=5)
    (answer,) = write(TEXTS[0], return_tensors=True, return_text=True)
    assert answer["generated_token_ids"][0] == 3
    assert [answer["generated_text"]] == write_by_hand(model, TEXTS[0], max_new_tokens=5)
    special = write(TEXTS[1], skip_special_tokens=False, forced_eos_token_id=2)[0]["generated_text"]
    assert special == write(TEXTS[1], forced_eos_token_id=2)[0]["generated_text"] + " </s>"


def test_prefix(writers, tmp_path):
    """What T5 wants in front of a text, of the pipeline or of one call."""
    write, _ = writers["t5"]
    expected = write("w20 w21 w5 w6", max_new_tokens=5)
    assert expected != write("w5 w6", max_new_tokens=5) == write("w5 w6", max_new_tokens=5, prefix="")
    assert write("w5 w6", max_new_tokens=5, prefix="w20 w21 ") == expected
    again = pipeline(TASK, model=write.model, tokenizer=write.tokenizer, prefix="w20 w21 ", max_new_tokens=5)
    assert again("w5 w6") == expected


@pytest.mark.parametrize("name", [str(LEARNED), "bart"])
def test_as_long_as_the_table_of_positions(name, writers, caplog):
    """Longer texts are cut with a warning, or refused; what is written ends where the positions do."""
    write, _ = writers[name]
    long, short = " ".join(["w5"] * 40), " ".join(["w5"] * POSITIONS)
    with caplog.at_level("WARNING"):
        assert write(short, max_new_tokens=4) and not caplog.records
        assert write([long, short], max_new_tokens=4) == write([short, short], max_new_tokens=4)
    message = f"A text of 40 tokens is beyond the {POSITIONS} that this model reads: 24 of them are left out"
    assert any(message in record.getMessage() for record in caplog.records)
    with pytest.raises(ValueError, match=rf"^a text of 40 tokens is beyond the {POSITIONS} .* truncation=True$"):
        write(long, truncation=False)
    ids = write("w5 w6", return_tensors=True, eos_token_id=None, forced_eos_token_id=None)[0]["generated_token_ids"]
    assert len(ids) == POSITIONS + 1, "the start, and a token from each position"


def test_limit_of_the_tokenizer(tmp_path):
    save(RNN, tmp_path)
    tokenizer = build_word_tokenizer()
    tokenizer.model_max_length = 3
    tokenizer.save_pretrained(tmp_path)
    write = pipeline(TASK, model=str(tmp_path), device="cpu")
    assert write("w5 w6 w7 w8 w9", max_new_tokens=5) == write("w5 w6 w7", max_new_tokens=5)
    assert len(write("w5", return_tensors=True, min_new_tokens=256)[0]["generated_token_ids"]) == 257


# -- what it refuses --------------------------------------------------------------------------------------------------
WRONG = {
    "nothing": (None, TypeError, "the input is a NoneType and not a text: pass a string, or a list of strings"),
    "number": (3, TypeError, "the input is a int and not a text"),
    "bytes": (b"w5", TypeError, "the input is a bytes and not a text"),
    "mapping": ({"text": "w5"}, TypeError, "the input is a dict and not a text"),
    "empty": ("", ValueError, "the input is an empty text: pass at least one word"),
    "blank": (" \n", ValueError, "the input is an empty text"),
    "no texts": ([], ValueError, "an empty list holds no text for seq2seq-generation"),
    "one is empty": (["w5", ""], ValueError, r"inputs\[1\] is an empty text"),
    "one is a number": (("w5", 4), TypeError, r"inputs\[1\] is a int and not a text"),
    "a stream with one": ((text for text in ["w5", ""]), ValueError, "the input is an empty text"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_inputs_that_are_no_text(wrong, writers):
    given, kind, message = WRONG[wrong]
    with pytest.raises(kind, match=f"^{message}") as caught:
        list(writers[str(RNN)][0](given, max_new_tokens=2))
    assert "\n" not in str(caught.value)


def test_models_of_another_kind(tmp_path):
    tokenizer = build_word_tokenizer()
    for case, head in ((Case("seq_lstm", "plain"), "causal-lm"), (RNN, "backbone")):
        with pytest.raises(
            ValueError, match=r"^seq2seq-generation needs an encoder–decoder with a language model head"
        ):
            pipeline(TASK, model=build(case, head), tokenizer=tokenizer)
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 23, "conv_channels": 8}
    listener = Speech2TextForConditionalGeneration(Speech2TextConfig(**sizes))
    with pytest.raises(ValueError, match=r"^seq2seq-generation reads text, and Speech2Text\w+ input_features$"):
        pipeline(TASK, model=listener, tokenizer=tokenizer)
    make_model(RNN).save_pretrained(tmp_path)
    with pytest.raises((ValueError, OSError), match="tokenizer"):
        pipeline(TASK, model=str(tmp_path), device="cpu")


# -- shipped with the model -------------------------------------------------------------------------------------------
def test_strangers_get_the_pipeline_with_the_model(writers, tmp_path):
    """`pipe.save_pretrained` writes what works without the package: the pipeline's file, named in config.json."""
    for name, (write, _) in writers.items():
        before = write.model.config.to_dict()
        write.save_pretrained(tmp_path / name)
        assert write.model.config.to_dict() == before, "the model's configuration stays as it was"
        assert (tmp_path / name / "pipelines.py").exists()
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    found = json.loads(run_apart(HERE / "run_seq2seq_stranger.py", tmp_path, cwd=tmp_path))
    assert found.keys() == writers.keys()
    for name, (write, _) in writers.items():
        kind, module, answers = found[name]
        assert kind == "Seq2SeqGenerationPipeline" and module.startswith("transformers_modules.")
        assert answers == write(TEXTS, batch_size=3, num_beams=3, max_new_tokens=6)
    with pytest.raises(ValueError, match="trust_remote_code=True"):  # also here, where the class is known
        pipeline(TASK, model=str(tmp_path / "t5"), device="cpu")
