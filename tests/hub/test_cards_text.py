"""Hostile names, labels, prompts and options stay text; cards are checked without a network."""

import ast
import copy
import json
import re
from pathlib import Path

import pytest
import yaml
from card_snippets import snippet_of
from huggingface_hub import ModelCard

from hf_seqmodels.hub.card import build_card, check_card
from hf_seqmodels.hub.card_lists import LICENSES, PIPELINE_TAGS
from hf_seqmodels.hub.card_text import code, escape, fence, literal
from hf_seqmodels.hub.card_usage import PIPELINE_TAGS as USED_TAGS
from hf_seqmodels.models import ARCHITECTURES, HEADS
from model_table import Case, build

RECORD = json.loads((Path(__file__).parents[2] / "results" / "lm" / "lstm.json").read_text(encoding="utf-8"))
HOSTILE = [
    "<script>alert(1)</script>",
    "</details><img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![x](https://evil.example/x.png)",
    "a | b |\n| --- | --- |",
    "x\n---\nlicense: gpl\n---\n# other",
    "license: gpl\npipeline_tag: other",
    "```\n# out\n```python\nimport os",
    "````` `` ` code",
    "!!python/object/apply:os.system ['id']",
    "{{ card_data }} {% for x in y %}",
    "'; \" \\' & : # * _ ~ $x$ &amp; *a: b",
    "\u202etxt.exe\u200b \x00 \x1b[31m \ud800 名 🙂",
    "https://evil.example www.evil.example a@evil.example",
    "- 1\r\n2. x\n\n> y",
    "",
]
ids = [str(number) for number in range(len(HOSTILE))]


def poisoned(text):
    """The record of a run with a text of an attacker wherever a record has text."""
    record = copy.deepcopy(RECORD)
    record["config"]["data"] |= {"train_file": f"/home/me/{text}", "tokenizer": text}
    record["config"]["model"]["weight_init"] = text
    record["seeds"][text] = 1
    record["versions"]["torch"] = record["hardware"]["machine"] = record["hardware"]["gpu"] = text
    record["measured"] = {text: 3.0}
    record["chance"] = {text: 0.5}
    record["data"] |= {"example": text, "windows": {"test": 3, text: 4}, "longest": {text: 2}}
    record["git"] = {"commit": text, "dirty": False}
    record["emissions"] = {"co2_kg": 1e-6, "energy_kwh": 1e-5, "country": text, "codecarbon": text}
    record["model_config"] = {"id2label": {"0": text}, text: text}
    record["metrics"][text] = {"bits_per_token": 1.0}
    record["batch_order"]["digest"] = text
    return record


def prose(text):
    """A card's text without what stands in blocks or spans of code, which Markdown does not read."""
    text = re.sub(r"^(`{3,})[^\n`]*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", "", text)


@pytest.mark.parametrize("text", HOSTILE, ids=ids)
def test_hostile_text_stays_text(text):
    model = build(Case("seq_lstm", "plain"), "causal-lm")
    other = copy.deepcopy(poisoned(text)) | {"name": text, "model_type": text, "parameters": 1}
    clean = build_card("name", RECORD, model, others=[RECORD | {"name": "other"}])
    card = build_card(text, poisoned(text), model, others=[other], prompt=text)
    for made in (card, build_card(text, None, model, prompt=text)):
        metadata = yaml.safe_load(made.content.split("\n---\n")[0].lstrip("-"))
        assert metadata["license"] == "apache-2.0" and metadata["pipeline_tag"] == "text-generation"
        assert set(metadata["tags"]) == {"hf_seqmodels", "seq_lstm"}
        assert check_card(made.content) == [] and ModelCard(made.content).data.license == "apache-2.0"
        shown = prose(made.text)
        assert len(re.findall(r"(?<!\\)<(?!/?(?:details|summary)>)", shown)) == 0, "no HTML but ours"
        assert shown.count("<details>") == shown.count("</details>") <= 1
        assert not re.search(r"(?<!\\)!?\[[^\]]*[^\\]\]\(", shown), "no link and no picture"
        assert not re.search(r"https?://|www\.evil|a@evil", shown), "nothing that becomes a link by itself"
        assert "\u202e" not in made.content and "\x00" not in made.content and "\x1b" not in made.content
        made.content.encode("utf-8")
    headings = re.findall(r"^#+ .*$", prose(card.text), flags=re.MULTILINE)
    assert headings[1:] == re.findall(r"^#+ .*$", prose(clean.text), flags=re.MULTILINE)[1:]
    tables = [line for line in prose(card.text).splitlines() if line.startswith("|")]
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in tables}
    assert cells == {3, 8}, "every row of a table has as many cells as its head"
    constants = [node.value for node in ast.walk(ast.parse(snippet_of(card.text))) if isinstance(node, ast.Constant)]
    assert text in constants, "the prompt comes out as it went in"


@pytest.mark.parametrize("text", HOSTILE, ids=ids)
def test_a_literal_is_the_text_and_has_no_backtick(text):
    assert eval(literal(text)) == text and "`" not in literal(text) and "\n" not in literal(text)


def test_markdown_is_escaped_and_code_keeps_its_ticks():
    assert escape("a_b|c*[d](e)<f>&\n#") == r"a\_b\|c\*\[d\]\(e\)&lt;f&gt;&amp; \#"
    assert escape("lstm-pydoc 1.5, 2/3") == "lstm-pydoc 1.5, 2/3"
    assert code("a`b``c") == "```a`b``c```" and code("`a") == "`` `a ``"
    assert fence("x\n```\ny", "yaml") == "````yaml\nx\n```\ny\n````"


# ---- check_card -----------------------------------------------------------------------------------------------------

VALID = """---
license: mit
pipeline_tag: text-generation
model-index:
- name: x
  results:
  - task: {type: text-generation}
    dataset: {type: d, name: D}
    metrics: [{type: accuracy, value: 0.5}]
---

# x

| a | 0.5 |
"""
BROKEN = {
    "no metadata": ("# x\n\nlicense: mit\n", "no metadata"),
    "empty": ("", "no metadata"),
    "no YAML": (VALID.replace("license: mit", "license: [mit"), "not plain YAML"),
    "no mapping": ("---\n- a\n---\ntext", "`key: value`"),
    "a Python object": (VALID.replace("value: 0.5", "value: !!python/name:os.system ''"), "not plain YAML"),
    "numpy": (VALID.replace("0.5 |", "np.float64(0.5) |"), "a Python object, not a number: np.float64(0.5)"),
    "numpy in the text": (VALID + "\naccuracy np.float32(nan)\n", "a Python object, not a number: np.float32(nan)"),
    "numpy in the metadata": (VALID.replace("0.5}", "np.float64(0.5)}"), "a Python object"),
    "a tensor in a block": (VALID + "\n```yaml\na: tensor(0.5)\n```\n", "a Python object, not a number: tensor(0.5)"),
    "a value that is text": (VALID.replace("0.5}", "nan}"), "the value 'nan', which is no number"),
    "a value in quotes": (VALID.replace("0.5}", "'0.5'}"), "the value '0.5', which is no number"),
    "a value that is true": (VALID.replace("0.5}", "true}"), "the value 'True', which is no number"),
    "unknown licence": (VALID.replace("mit", "my-licence"), "license 'my-licence' is not on the Hub's list"),
    "licence in a list": (VALID.replace("mit", "[mit, free]"), "license 'free'"),
    "no licence": (VALID.replace("license: mit\n", ""), "no license"),
    "other without a name": (VALID.replace("mit", "other"), "license_name"),
    "unknown tag": (VALID.replace("text-generation\n", "text-writing\n", 1), "pipeline_tag 'text-writing'"),
    "tag of another kind": (VALID.replace("text-generation\n", "[a]\n", 1), "pipeline_tag"),
    "NaN in the metadata": (VALID.replace("0.5}", ".nan}"), "metrics.0.value in the metadata is nan"),
    "infinity": (VALID.replace("0.5}", "-.inf}"), "is -inf"),
    "NaN in a table": (VALID.replace("0.5 |", "nan |"), "a number that is none: | nan"),
    "NaN in the text": (VALID + "\nloss: NaN\n", "a number that is none"),
    "left over": (VALID + "\n[More Information Needed]\n", "More information needed"),
    "no text": (VALID.partition("\n# x")[0], "no text"),
    "no value": (VALID.replace(", value: 0.5", ""), "model-index[0] is not whole"),
    "no data set": (VALID.replace("    dataset: {type: d, name: D}\n", ""), "model-index[0] is not whole"),
    "no results": (VALID.partition("  results:")[0] + "---\n\ntext", "model-index[0] is not whole"),
    "index is text": (re.sub(r"model-index:.*?---", "model-index: x\n---", VALID, flags=re.DOTALL), "is not whole"),
    "too long": (VALID + "x" * 1_000_001, "bytes"),
}


def test_a_valid_card_has_no_problems():
    assert check_card(VALID) == []
    assert check_card(VALID.replace("\n", "\r\n")) == []
    code = "```python\nx = np.float32(0.5), torch.tensor([[1, 2]]), np.zeros(3)\n```"
    assert check_card(f"{VALID}\n{code}\n") == check_card(VALID.replace("0.5}", "1}")) == []
    assert check_card(f"{VALID}\n{code}\n".replace("\n", "\r\n")) == []
    assert check_card("---\nlicense: other\nlicense_name: mine\n---\ntext about nan and infinity") == []


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_wrong_with_a_card_is_said_in_one_line(what):
    text, expected = BROKEN[what]
    problems = check_card(text)
    assert len(problems) == 1 and expected in problems[0] and "\n" not in problems[0], problems


def test_all_problems_are_told_and_aliases_do_not_explode():
    assert len(check_card("---\nlicense: no\npipeline_tag: no\n---\nMore information needed | nan |")) == 4
    lines = ["a0: &a0 [.nan]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    assert len(check_card("---\nlicense: mit\n" + "\n".join(lines) + "\n---\ntext")) == 1
    assert check_card("---\nlicense: mit\nx: " + "[" * 30_000 + "\n---\ntext") != []


def test_the_lists_are_the_hubs():
    assert {"apache-2.0", "mit", "bsd-3-clause", "cc-by-sa-4.0", "gpl-3.0", "llama3.1", "gemma", "unknown"} <= LICENSES
    assert {"openrail++", "creativeml-openrail-m", "other"} <= LICENSES and "apache2" not in LICENSES
    assert set(USED_TAGS.values()) <= PIPELINE_TAGS and set(USED_TAGS) == set(HEADS)
    from transformers.modelcard import TASK_MAPPING, TASK_TAG_TO_NAME_MAPPING

    assert set(TASK_MAPPING) | set(TASK_TAG_TO_NAME_MAPPING) <= PIPELINE_TAGS


def test_every_architecture_has_a_card_with_its_papers():
    for name in ARCHITECTURES:
        case = Case(name, "plain")
        card = build_card(name, None, build(case, case.main_head))
        assert check_card(card.content) == []
        assert card.data.pipeline_tag == USED_TAGS[case.main_head] and name in card.data.tags
        assert "model of transformers" not in card.text and len(re.findall("^@", card.text, flags=re.MULTILINE)) >= 2
    peephole = build_card("x", None, build(Case("seq_lstm", "peephole"), "causal-lm")).text
    assert "gers2000recurrent" in peephole and "hochreiter1997long" in peephole
    assert (
        "kitaev2020reformer" in build_card("x", None, build(Case("seq_transformer_encoder", "lsh"), "masked-lm")).text
    )
