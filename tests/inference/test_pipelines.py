"""Pipelines on saved models, given by their folder: what they answer is what the model says, alone and in a batch."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting import build_word_tokenizer
from transformers import TextIteratorStreamer, TextStreamer, pipeline

from head_checks import pair_tokenizer
from model_table import PAIRS, Case, build
from sounds import BINS, HOP, RATE, VOCABULARY, make_extractor, make_tokenizer, say

TEXTS = ["w5 w6 w7 w8", "w9", "w10 w11 w3"]
LSTM, ENCODER = Case("seq_lstm", "plain"), Case("seq_transformer_encoder", "plain")
TAGS = {0: "O", 1: "B-NAME", 2: "I-NAME"}


def pairs_of(head: str) -> pytest.MarkDecorator:
    """Every variant with the head; what is not the first of its architecture is slow."""
    seen: set[str] = set()
    params = []
    for case, _ in [pair for pair in PAIRS if pair[1] == head and pair[0].reads_tokens]:
        marks = [pytest.mark.slow] if case.architecture in seen else []
        params.append(pytest.param(case, head, id=str(case), marks=marks))
        seen.add(case.architecture)
    assert len(seen) >= 5
    return pytest.mark.parametrize(("case", "head"), params)


def save(case: Case, head: str, folder: Path, *parts: Any, **options: Any) -> Any:
    """A model in `folder`, with what its pipeline loads beside it."""
    model = build(case, head, **options).cpu()
    model.save_pretrained(folder, save_code=False)
    for part in parts:
        part.save_pretrained(folder)
    return model


def even_out(model: Any, layer: Any, folder: Path, *inputs: torch.Tensor) -> None:
    """Shift the scores so that no class is the best everywhere; the model is saved anew."""
    with torch.no_grad():
        layer.bias -= torch.cat([model(each).logits[0] for each in inputs]).mean(0)
    model.save_pretrained(folder, save_code=False)


def load(task: str, folder: Path, **options: Any) -> Any:
    """The pipeline of a folder's name, as a user has it."""
    return pipeline(task, model=str(folder), device="cpu", **options)


# -- text -------------------------------------------------------------------------------------------------------------
GREEDY = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "return_full_text": False}


def write_by_hand(model: Any, tokenizer: Any, text: str) -> str:
    """Five times the most likely next token, </s> excepted, each from the whole text read anew."""
    ids = prompt = tokenizer(text, return_tensors="pt").input_ids
    for _ in range(5):
        with torch.no_grad():
            scores = model(ids, use_cache=False).logits[:, -1]
        scores[:, tokenizer.eos_token_id] = -torch.inf
        ids = torch.cat([ids, scores.argmax(-1, keepdim=True)], dim=1)
    return tokenizer.decode(ids[0, prompt.shape[1] :], skip_special_tokens=True)


@pairs_of("causal-lm")
def test_text_generation(case, head, tmp_path, capsys):
    """Alone, in a batch padded on the left, and as it is written: the text that the model writes by hand."""
    tokenizer = build_word_tokenizer()
    model = save(case, head, tmp_path, tokenizer, pad_token_id=0, eos_token_id=2, noise=0.5)
    write = load("text-generation", tmp_path)
    expected = [write_by_hand(model, tokenizer, text) for text in TEXTS]
    assert len(set(expected)) > 1
    found = write(TEXTS, batch_size=3, **GREEDY)
    assert [answer[0]["generated_text"].strip() for answer in found] == expected
    capsys.readouterr()
    streamer = TextStreamer(write.tokenizer, skip_prompt=True, skip_special_tokens=True)
    alone = write(TEXTS[0], streamer=streamer, **GREEDY)[0]["generated_text"]
    assert capsys.readouterr().out.strip() == alone.strip() == expected[0]


def test_text_arrives_word_by_word(tmp_path):
    """TextIteratorStreamer: the words come while the model writes in another thread."""
    tokenizer = build_word_tokenizer()
    model = save(LSTM, "causal-lm", tmp_path, tokenizer, pad_token_id=0, eos_token_id=2)
    write = load("text-generation", tmp_path)
    streamer = TextIteratorStreamer(write.tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    thread = threading.Thread(target=write, args=(TEXTS[0],), kwargs=GREEDY | {"streamer": streamer})
    thread.start()
    pieces = [piece for piece in streamer if piece]
    thread.join()
    assert "".join(pieces).strip() == write_by_hand(model, tokenizer, TEXTS[0])
    assert len(pieces) > 1


@pairs_of("sequence-classification")
def test_text_classification(case, head, tmp_path):
    tokenizer = pair_tokenizer()
    model = save(case, head, tmp_path, tokenizer, pad_token_id=0, id2label={0: "bad", 1: "good", 2: "so-so"})
    classify = load("text-classification", tmp_path, top_k=None)
    for text, answer in zip(TEXTS, classify(TEXTS, batch_size=3), strict=True):
        scores = model(tokenizer(text, return_tensors="pt").input_ids).logits[0].softmax(-1)
        found = {each["label"]: each["score"] for each in answer}
        torch.testing.assert_close(torch.tensor([found[name] for name in ("bad", "good", "so-so")]), scores.detach())


def group_by_hand(words: list[str], scores: torch.Tensor) -> list[tuple[str, str, float]]:
    """(kind, words, mean score) of the stretches of tags B-NAME, I-NAME: a B begins a new one."""
    spans: list[list[tuple[str, float]]] = []
    before = "O"
    for word, row in zip(words, scores, strict=True):
        tag = TAGS[int(row.argmax())]
        if tag == "B-NAME" or (tag == "I-NAME" and before == "O"):
            spans.append([])
        if tag != "O":
            spans[-1].append((word, row.max().item()))
        before = tag
    return [
        ("NAME", " ".join(word for word, _ in span), sum(score for _, score in span) / len(span)) for span in spans
    ]


@pairs_of("token-classification")
def test_token_classification(case, head, tmp_path):
    """Each word's tag, and the tags of a name put together."""
    tokenizer, text = build_word_tokenizer(), " ".join(f"w{index}" for index in range(3, 23))
    model = save(
        case, head, tmp_path, tokenizer, pad_token_id=0, id2label=TAGS, label2id={v: k for k, v in TAGS.items()}
    )
    ids = tokenizer(text, return_tensors="pt").input_ids
    even_out(model, model.score, tmp_path, ids)
    with torch.no_grad():
        scores = model(ids).logits[0].softmax(-1)
    tag = load("token-classification", tmp_path, ignore_labels=[])
    expected = [(word, TAGS[int(row.argmax())]) for word, row in zip(text.split(), scores, strict=True)]
    assert [(each["word"], each["entity"]) for each in tag(text)] == expected
    grouped = load("token-classification", tmp_path, aggregation_strategy="simple")([text, "w4 w9"], batch_size=2)[0]
    names = group_by_hand(text.split(), scores)
    assert [(each["entity_group"], each["word"]) for each in grouped] == [name[:2] for name in names]
    assert [float(each["score"]) for each in grouped] == pytest.approx([name[2] for name in names], abs=1e-5)
    assert len({kind for _, kind in expected}) > 1


@pairs_of("masked-lm")
def test_fill_mask(case, head, tmp_path):
    tokenizer = pair_tokenizer()
    model = save(case, head, tmp_path, tokenizer, pad_token_id=0)
    texts = ["w5 <mask> w7 w8", "<mask> w9"]
    for text, answer in zip(texts, load("fill-mask", tmp_path)(texts, batch_size=2, top_k=3), strict=True):
        ids = tokenizer(text, return_tensors="pt").input_ids
        scores = model(ids).logits[0][(ids[0] == tokenizer.mask_token_id)][0].softmax(-1).topk(3)
        assert [each["token"] for each in answer] == scores.indices.tolist()
        assert [each["score"] for each in answer] == pytest.approx(scores.values.tolist(), abs=1e-5)


@pairs_of("backbone")
def test_feature_extraction(case, head, tmp_path):
    tokenizer = build_word_tokenizer()
    model = save(case, head, tmp_path, tokenizer, pad_token_id=0)
    for text, found in zip(TEXTS, load("feature-extraction", tmp_path)(TEXTS, batch_size=3), strict=True):
        expected = model(tokenizer(text, return_tensors="pt").input_ids).last_hidden_state[0].detach()
        torch.testing.assert_close(torch.tensor(found)[0, -len(expected) :], expected)  # behind the padding


@pytest.mark.parametrize("case", [LSTM, ENCODER], ids=str)
def test_zero_shot_classification(case, tmp_path):
    """A model that tells whether a text entails another one puts labels that it never saw to a text."""
    tokenizer, kinds = pair_tokenizer(), {0: "entailment", 1: "neutral", 2: "contradiction"}
    options: dict[str, Any] = {"type_vocab_size": 2} if case is ENCODER else {}
    names = {"id2label": kinds, "label2id": {name: index for index, name in kinds.items()}}
    model = save(case, "sequence-classification", tmp_path, tokenizer, pad_token_id=0, **names, **options)
    labels, template = ["w9", "w10", "w11"], "w20 {}"
    found = load("zero-shot-classification", tmp_path)(TEXTS[0], labels, hypothesis_template=template, batch_size=3)
    logits = []
    for label in labels:
        pair = tokenizer(TEXTS[0], template.format(label), return_tensors="pt")
        logits.append(model(**pair).logits[0, 0])
    expected = dict(zip(labels, torch.stack(logits).softmax(-1).tolist(), strict=True))
    assert dict(zip(found["labels"], found["scores"], strict=True)) == pytest.approx(expected, abs=1e-5)


# -- sounds -----------------------------------------------------------------------------------------------------------
SOUNDS = ["ab", "cab|a", "b"]


def frames_of(sound: Any) -> torch.Tensor:
    return make_extractor()(sound, sampling_rate=RATE, return_tensors="pt")["input_features"]


@pairs_of("ctc")
def test_speech_recognition(case, head, tmp_path):
    """Sounds in, best path out: repeated symbols are one, blanks none, "|" is the space between words."""
    parts = make_extractor(), make_tokenizer(tmp_path)
    sizes = {"num_features": BINS, "vocab_size": len(VOCABULARY), "inputs_to_logits_ratio": HOP}
    model = save(case, head, tmp_path, *parts, **sizes)
    sounds = [say(text, seed=index) for index, text in enumerate(SOUNDS)]
    even_out(model, model.lm_head, tmp_path, *map(frames_of, sounds))
    hear, symbols = load("automatic-speech-recognition", tmp_path), {v: k for k, v in VOCABULARY.items()}
    expected = []
    for sound in sounds:
        path = [symbol for symbol, _ in itertools.groupby(model(frames_of(sound)).logits[0].argmax(-1).tolist())]
        expected.append("".join(symbols[symbol] for symbol in path if symbol != VOCABULARY["<pad>"]))
    words = [" ".join(text.replace("<unk>", "").replace("|", " ").split()) for text in expected]
    assert len(set(words)) > 1
    for heard in ([hear(sound) for sound in sounds], hear(sounds, batch_size=3)):
        assert [" ".join(each["text"].replace("<unk>", "").split()) for each in heard] == words


@pairs_of("audio-classification")
def test_audio_classification(case, head, tmp_path):
    names = {0: "low", 1: "middle", 2: "high"}
    options = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    model = save(case, head, tmp_path, make_extractor(), num_features=BINS, **options)
    classify = load("audio-classification", tmp_path)
    sounds = [say(text, seed=index) for index, text in enumerate(SOUNDS)]
    for sound, batched in zip(sounds, classify(sounds, batch_size=3), strict=True):
        scores = model(frames_of(sound)).logits[0].softmax(-1).tolist()
        for answer in (batched, classify(sound)):
            found = {each["label"]: each["score"] for each in answer}
            assert found == pytest.approx(dict(zip(names.values(), scores, strict=True)), abs=1e-5)
