"""The web page of `hf-seqmodels app`: its numbers are the models', and it stays kind whatever a visitor sends."""

from __future__ import annotations

import importlib.util
import io
import json
import math
import shutil
import socket
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
import yaml
from app_browser import ask, free_port, opened, served, what_is_missing
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import hf_seqmodels
from hf_seqmodels.data import CausalLMCollator, build_character_tokenizer
from hf_seqmodels.evaluation.generation import state_bytes
from hf_seqmodels.inference import app, page
from hf_seqmodels.inference.page import Answer, Request, Side, card, load_side, read, read_request, respond
from hf_seqmodels.training.trainer import SeqTrainer, SeqTrainingArguments

TEXT = "The import statement combines two operations; it searches for the named module, then it binds a name.\n"
HOSTILE = "The <img src=x onerror=alert(1)> `${alert(2)}` {{value}} & é☃"
TOKENIZER = build_character_tokenizer([TEXT])
SIZES = {"vocab_size": len(TOKENIZER), "hidden_size": 8, "pad_token_id": 0, "eos_token_id": 2}
CONFIGS = {
    "lstm": lambda: hf_seqmodels.LSTMConfig(**SIZES),
    "attention-rnn": lambda: hf_seqmodels.AttentionRNNConfig(**SIZES),
    "transformer": lambda: hf_seqmodels.TransformerDecoderConfig(num_attention_heads=2, positions="rotary", **SIZES),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The path of each model, saved after a few steps on one sentence."""
    root = tmp_path_factory.mktemp("models")
    ids = TOKENIZER(TEXT, return_tensors="pt").input_ids
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config())
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
        for _ in range(40):
            model(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(root / name, save_code=False)
        TOKENIZER.save_pretrained(root / name)
    return {name: root / name for name in CONFIGS}


@pytest.fixture(scope="module")
def sides(folders):
    return {name: load_side(str(folder)) for name, folder in folders.items()}


def tiny_gpt2(places: int = 20) -> GPT2LMHeadModel:
    """Somebody else's model, which never ends a text."""
    torch.manual_seed(0)
    sizes = {"vocab_size": len(TOKENIZER), "n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": places}
    return GPT2LMHeadModel(GPT2Config(eos_token_id=None, attn_implementation="eager", **sizes)).eval()


def answered(side: Side, **wanted) -> list[Answer]:
    return list(respond(side, Request(**{"prompt": "The import ", "new_tokens": 30} | wanted)))


# ---- what is asked ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (("", 9, 0.8, 0, 0), "Type a few characters"),
        ((None, 9, 0.8, 0, 0), "Type a few characters"),
        ((" \n", 9, 0.8, 0, 0), "Type a few characters"),
        (("a" * 501, 9, 0.8, 0, 0), "501 characters; 500"),
        (("a", 0, 0.8, 0, 0), "Length must be a number from 1 to 500"),
        (("a", 501, 0.8, 0, 0), "Length"),
        (("a", 10**12, 0.8, 0, 0), "Length"),
        (("a", None, 0.8, 0, 0), "Length"),
        (("a", 9, math.nan, 0, 0), "Temperature must be a number from 0 to 2"),
        (("a", 9, -0.1, 0, 0), "Temperature"),
        (("a", 9, math.inf, 0, 0), "Temperature"),
        (("a", 9, 0.8, 101, 0), "Top-k must be a number from 0 to 100"),
        (("a", 9, 0.8, "3; import os", 0), "Top-k"),
        (("a", 9, 0.8, 0, -1), "Seed must be a number from 0 to 9,999"),
    ],
)
def test_requests_beyond_the_limits_are_answered_with_a_sentence(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_request(*values)


def test_requests_within_the_limits_are_taken_as_they_are():
    assert read_request("a" * 500, 500, 2, 100, 9_999) == Request("a" * 500, 500, 2.0, 100, 9_999)
    assert read_request("a\r\nb \ud800", 1, 0, 0, 0) == Request("a\nb ?", 1, 0.0, 0, 0)


# ---- numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_bits_per_character_are_those_of_the_evaluation(name, sides, tmp_path):
    side = sides[name]
    ids = TOKENIZER(TEXT).input_ids
    arguments = SeqTrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    rows = Dataset.from_list([{"input_ids": ids, "labels": ids}])
    trainer = SeqTrainer(
        model=side.model, args=arguments, data_collator=CausalLMCollator(0), eval_dataset=rows, quiet=True
    )
    assert read(side, TEXT).bits == pytest.approx(trainer.evaluate()["eval_bits_per_token"], rel=1e-5)
    assert read(side, "T").bits is None, "the first character has nothing before it"


def test_bits_are_counted_by_characters_where_tokens_are_longer(sides):
    """A tokenizer that reads two characters at once: the same nats, on the characters behind the first token."""
    pairs = build_character_tokenizer(["ab"])
    backend = pairs.backend_tokenizer
    from tokenizers import Regex, models, pre_tokenizers

    backend.pre_tokenizer = pre_tokenizers.Split(Regex("[ab]{2}"), behavior="isolated")
    backend.model = models.WordLevel({"<pad>": 0, "<unk>": 1, "</s>": 2, "aa": 3, "ab": 4, "bb": 5}, unk_token="<unk>")
    side = Side("pairs", sides["lstm"].model, pairs)
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        nats = 2 * side.model(ids, labels=ids).loss.item()  # the mean over two targets
    assert read(side, "aaabbb").bits == pytest.approx(nats / math.log(2) / 4, rel=1e-5)


def test_characters_outside_the_vocabulary_are_named(sides):
    assert read(sides["lstm"], TEXT).notes == []
    (note,) = read(sides["lstm"], "The é ☃ é").notes
    assert note.endswith("é ☃")


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("prompt", [TEXT[:9], TEXT])
def test_the_map_is_the_last_layers_mean_head(name, prompt, sides):
    answer = read(sides[name], prompt)
    if name == "lstm":
        assert answer.attention is None
        return
    ids = TOKENIZER(prompt, return_tensors="pt").input_ids
    with torch.no_grad():
        weights = sides[name].model(ids, output_attentions=True).attentions[-1][0].mean(0)
    size = min(page.MAP_SIZE, len(prompt))
    torch.testing.assert_close(answer.attention, weights[-size:, -size:])
    assert answer.labels == list(prompt[-size:])
    drawn = card(sides[name], answer)
    assert drawn.count("<rect") == size * (size + 1) // 2 and drawn.count("<svg") == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_text_is_generates_and_the_state_is_weighed(name, sides):
    side, prompt = sides[name], "The import "
    first, *_, last = answered(side, temperature=0)
    ids = TOKENIZER(prompt, return_tensors="pt").input_ids
    expected = side.model.generate(ids, max_new_tokens=30, do_sample=False)[0, ids.shape[1] :]
    assert last.text == TOKENIZER.decode(expected, skip_special_tokens=True) != ""
    assert last.state_tokens == len(prompt) + len(expected) - 1
    assert last.state_bytes == state_bytes(side.model, last.state_tokens)
    assert first.waiting and not last.waiting and last.tokens_per_second > 0
    assert first.bits == last.bits == read(side, prompt).bits


def test_a_seed_decides_what_is_drawn_and_the_controls_count(sides):
    def written(**wanted) -> str:
        return answered(sides["lstm"], **wanted)[-1].text

    assert written(seed=3, temperature=2.0) == written(seed=3, temperature=2.0) != written(seed=4, temperature=2.0)
    assert written(temperature=2.0, top_k=1) == written(temperature=0) != written(temperature=2.0)


def test_the_text_grows_and_a_visitor_who_leaves_stops_the_model(sides, monkeypatch):
    monkeypatch.setattr(page, "REFRESH", 0.0)
    texts = [answer.text for answer in answered(sides["transformer"], new_tokens=60, temperature=2.0)]
    assert len(texts) > 3 and texts == sorted(texts, key=len)
    steps, before, model = [], threading.active_count(), tiny_gpt2(places=520)
    model.register_forward_hook(lambda *_: steps.append(1))
    answers = respond(Side("gpt2", model, TOKENIZER), Request("The import ", 500, temperature=2.0))
    next(answers), next(answers)
    answers.close()
    assert 1 < len(steps) < 400 and threading.active_count() == before


def test_a_model_with_few_places_writes_what_fits_and_may_be_anybodys():
    side = Side("gpt2", tiny_gpt2(), TOKENIZER)
    last = answered(side, prompt="The import sta", temperature=1.0)[-1]
    assert last.state_tokens == 19 and last.attention.shape == (14, 14)
    assert last.notes == ["Writes 6 tokens only: it has no place for more."]
    with pytest.raises(ValueError, match="fills all 20 places"):
        answered(side, prompt="The import statement")


@pytest.mark.parametrize(("positions", "written"), [("learned", 6), ("rotary", 30), ("sinusoidal", 30)])
def test_only_a_table_of_positions_has_an_end(positions, written):
    few = SIZES | {"max_position_embeddings": 20, "num_attention_heads": 2, "eos_token_id": None}
    model = AutoModelForCausalLM.from_config(hf_seqmodels.TransformerDecoderConfig(positions=positions, **few)).eval()
    assert answered(Side("x", model, TOKENIZER), prompt="The import sta")[-1].state_tokens == 14 + written - 1


# ---- the page -----------------------------------------------------------------------------------------------------


class Tags(HTMLParser):
    """The names of all tags and attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = set(), set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}

    def handle_data(self, data):
        self.text += data


def test_nothing_that_was_typed_written_or_named_becomes_markup(sides):
    calm = Tags(card(sides["transformer"], read(sides["transformer"], TEXT)))
    side = Side(f'"><script>{HOSTILE}', sides["transformer"].model, TOKENIZER, "<b>about</b>")
    answer = read(side, "<svg onload='alert(1)'>\"é☃</pre><script>x</script>")
    shown = Tags(card(side, Answer(**vars(answer) | {"text": HOSTILE, "notes": [*answer.notes, "<script>"]})))
    assert shown.tags <= calm.tags | {"small"} and shown.attributes == calm.attributes
    assert HOSTILE in shown.text and "<script>" in shown.text


def test_a_model_that_fails_says_so_kindly_and_the_log_has_the_reason(sides, capsys):
    model = AutoModelForCausalLM.from_config(CONFIGS["lstm"]()).eval()
    model.register_forward_hook(lambda *_: 1 / 0)
    (answer,) = page._kindly(Side("broken", model, TOKENIZER), Request("The "))
    assert answer.notes == ["This model could not answer; the log says why."] and not answer.waiting
    assert "broken: ZeroDivisionError" in capsys.readouterr().err
    assert "broken" in card(Side("broken", model, TOKENIZER), answer)


def test_a_record_without_bits_is_no_fault_of_the_model(folders, tmp_path):
    shutil.copytree(folders["lstm"], tmp_path / "model")
    plain, told = load_side(str(folders["lstm"])).about, '{"metrics": {"test": {"bits_per_token": 1.5}}}'
    for text in (told, '{"metrics": {"test": {"loss": 1}}}', "[]", "{", '{"metrics": {"test": null}}'):
        (tmp_path / "model" / "result.json").write_text(text)
        assert load_side(str(tmp_path / "model")).about == plain + "\ntest 1.50 bits/token" * (text == told)


def test_models_that_do_not_load_are_named(tmp_path):
    (tmp_path / "empty").mkdir()
    partial, pickled, tagger = tmp_path / "partial", tmp_path / "pickled", tmp_path / "tagger"
    model = tiny_gpt2()  # ours refuse both by themselves
    state = model.state_dict()
    model.save_pretrained(partial, state_dict={key: state[key] for key in state if "mlp.c_fc.bias" not in key})
    model.config.save_pretrained(pickled)
    torch.save(state, pickled / "pytorch_model.bin")
    hf_seqmodels.TransformerEncoderModel(hf_seqmodels.TransformerEncoderConfig(**SIZES)).save_pretrained(tagger)
    for folder in (partial, pickled, tagger):
        TOKENIZER.save_pretrained(folder)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    auto = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (foreign / "config.json").write_text(json.dumps({"model_type": "unheard_of", "auto_map": auto}))
    (foreign / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    TOKENIZER.save_pretrained(foreign)
    expected = {"empty": "loads", "partial": "c_fc.bias", "pickled": "safetensors", "tagger": "loads"}
    expected |= {"foreign": "brings its own code"}
    for name, reason in expected.items():
        with pytest.raises(ValueError, match=f"{name}' is no language model that .*{reason}") as found:
            load_side(str(tmp_path / name))
        assert "\n" not in str(found.value)
    assert not (tmp_path / "ran").exists()
    for name in ("nothing", "../user/name", "/etc", "a/b/c", "./x"):
        with pytest.raises(ValueError, match=r"is no (folder|language model)"):
            load_side(name)


# ---- the command --------------------------------------------------------------------------------------------------


def said(capsys, *arguments: str) -> str:
    """The one line of a command that ends with status 2."""
    assert app.main(list(arguments)) == 2
    *warnings, line = capsys.readouterr().err.splitlines()
    assert line.startswith("hf-seqmodels app: error: ")
    return "\n".join([*warnings, line])


def test_what_the_user_can_mend_is_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    port = str(free_port())
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "gradio", None)
        assert "pip install 'hf_seqmodels[demo]'" in said(capsys)
    if importlib.util.find_spec("gradio") is None:
        pytest.skip("the rest needs gradio")
    assert "no models in zoo/" in said(capsys, "--port", port)
    assert "'nowhere' is no folder" in said(capsys, "nowhere", "--port", port)
    assert "--port 70000 is out of range" in said(capsys, "nowhere", "--port", "70000")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "give another --port" in said(capsys, "nowhere", "--port", str(taken.getsockname()[1]))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "config.json").write_text("{}")
    index = {"metadata": {}, "weight_map": {"a": "../../etc/passwd"}}
    (outside / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "../../etc/passwd" in said(capsys, str(outside), "--port", port)
    assert "without a password" in said(capsys, "nowhere", "--host", "0.0.0.0", "--port", port)
    assert "without a password" not in said(capsys, "nowhere", "--host", "localhost", "--port", port)


def test_the_models_are_those_named_or_the_language_models_of_the_zoo(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODELS", raising=False)
    for name, kind in (("b", "LSTMForCausalLM"), ("a", "GRUForCausalLM"), ("tagger", "LSTMForTokenClassification")):
        (tmp_path / "zoo" / name).mkdir(parents=True)
        content = {"architectures": [kind], "auto_map": {"AutoModelForCausalLM": "x.LSTMForCausalLM"}}
        (tmp_path / "zoo" / name / "config.json").write_text(json.dumps(content))
    assert page.default_models() == ["zoo/a", "zoo/b"]
    monkeypatch.setenv("MODELS", "user/lstm, user/gru")
    assert page.default_models() == ["user/lstm", "user/gru"]


def test_a_space_is_written_whole_or_not_at_all(capsys, tmp_path):
    space = tmp_path / "new" / "space"
    assert app.main(["--space", str(space), "user/lstm", "user/gru"]) == 0
    assert sorted(path.name for path in space.iterdir()) == ["README.md", "app.py", "models.txt", "requirements.txt"]
    assert (space / "app.py").read_bytes() == Path(page.__file__).read_bytes()
    _, header, text = (space / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(header)
    assert (card["sdk"], card["app_file"], card["models"]) == ("gradio", "app.py", ["user/lstm", "user/gru"])
    assert "TRUST_REMOTE_CODE" in text and (space / "models.txt").read_text().split() == card["models"]
    assert "not empty" in said(capsys, "--space", str(space))
    for bad in ("../x", "user/../x", "zoo", str(space), "a/b/c", ""):
        assert "is no name on the Hub" in said(capsys, "--space", str(tmp_path / "other"), bad)
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert [path.name for path in space.parent.iterdir()] == ["space"]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs gradio")
def test_a_space_runs_without_the_package(sides, folders, tmp_path):
    space, model = tmp_path / "space", tmp_path / "lstm"
    app.write_space(space, [])
    sides["lstm"].model.save_pretrained(model)  # with its code
    TOKENIZER.save_pretrained(model)
    script = f"""
import sys
sys.modules["hf_seqmodels"] = None
import app
try:
    app.load_side({str(model)!r})
except ValueError as error:
    print("own code" in str(error))
side = app.load_side({str(model)!r}, trust_remote_code=True)
print(list(app.respond(side, app.Request("The import ", 30, temperature=0)))[-1].text == {{text!r}})
print(type(app.build_page([side])).__name__)
"""
    text = answered(sides["lstm"], temperature=0)[-1].text
    command = [sys.executable, "-c", script.replace("{text!r}", repr(text))]
    done = subprocess.run(command, cwd=space, capture_output=True, text=True, timeout=200)
    assert done.stdout.split() == ["True", "True", "Blocks"], done.stderr


@pytest.mark.skipif(bool(what_is_missing()), reason=what_is_missing() or "all is here")
def test_in_a_browser_every_model_answers_and_nothing_leaves_this_machine(sides, folders, tmp_path):
    expected = {name: answered(side, prompt=HOSTILE, new_tokens=20)[-1] for name, side in sides.items()}
    with served([str(folder) for folder in folders.values()], tmp_path) as (address, tried):  # noqa: SIM117
        with opened(address) as (browser, requests):
            dialogs = []
            browser.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
            browser.fill("textarea", " ")
            browser.click("#continue")
            browser.wait_for_selector("text=Type a few characters")
            assert browser.locator(".side[data-done='1']").count() == 0
            ask(browser, HOSTILE, len(sides), length=20)
            for place, (name, answer) in enumerate(expected.items()):
                shown = browser.locator(".side").nth(place)
                assert shown.locator("h3").inner_text() == name
                assert shown.locator("pre").text_content() == HOSTILE + answer.text
                speed, bits, state = shown.locator("dd").all_inner_texts()
                assert float(speed.replace(",", "")) > 0
                assert bits == f"{answer.bits:.2f}" and state == f"{answer.state_bytes:,} B"
                assert "Not in its vocabulary" in shown.inner_text()
            assert [card.locator("svg[role=img]").count() for card in browser.locator(".side").all()] == [0, 1, 1]
            assert browser.locator("svg[role=img]").first.bounding_box()["width"] > 100
            assert browser.get_by_text("Type a few characters").count() == 0
            picture = Image.open(io.BytesIO(browser.screenshot()))
    assert picture.size == (1280, 900) and len(picture.convert("RGB").getcolors(2**20)) > 20
    assert not dialogs
    assert len(requests) > 5 and not [url for url in requests if not url.startswith((address, "data:", "blob:"))]
    assert not tried.exists(), tried.read_text()
