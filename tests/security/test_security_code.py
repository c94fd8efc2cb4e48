"""C4, C13: code and templates that come with weights run only when asked for, and templates in a sandbox."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from canaries import build
from jinja2.exceptions import SecurityError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import hf_seqmodels
from hf_seqmodels.models.modeling_gru import GRUForCausalLM


@pytest.fixture
def exported(tmp_path) -> tuple[Path, Path]:
    """A saved model whose code, and whose custom `generate`, leave files in the second folder when they are run."""
    folder, canaries = tmp_path / "model", tmp_path / "canaries"
    canaries.mkdir()
    build().save_pretrained(folder)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("def generate(model, **kwargs): pass\n")
    for path in (*folder.glob("*_gru.py"), folder / "shared_base.py", folder / "custom_generate" / "generate.py"):
        with path.open("a") as file:
            file.write(f"\nopen({str(canaries / path.stem)!r}, 'w')\n")
    return folder, canaries


def test_code_of_a_folder_runs_only_at_explicit_trust(exported, tmp_path):
    folder, canaries = exported
    command = [sys.executable, "-I", str(Path(__file__).with_name("run_untrusting.py")), str(folder), str(canaries)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    options = {"cwd": tmp_path, "env": environment, "stdin": subprocess.DEVNULL}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["refusals"]) == 8
    for how, said in found["refusals"].items():
        assert "trust_remote_code=True" in said, (how, said)
    assert found["run_without_trust"] == []
    assert {"shared_base", "configuration_gru", "modeling_gru"} <= set(found["run_with_trust"])
    assert found["loaded"] == "transformers_modules"


@pytest.mark.parametrize("trust", [{}, {"trust_remote_code": False}, {"trust_remote_code": None}])
def test_with_the_package_no_trust_is_needed_and_no_code_is_run(trust, exported):
    folder, canaries = exported
    for load in (AutoModelForCausalLM.from_pretrained, GRUForCausalLM.from_pretrained):
        assert type(load(folder, **trust)) is GRUForCausalLM
    assert list(canaries.iterdir()) == []


# ---- C13 --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tokenizer(tmp_path):
    """One that somebody saved with a template of their own."""

    def load(template: str) -> PreTrainedTokenizerFast:
        model = Tokenizer(WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
        saved = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="<unk>")
        saved.chat_template = template
        saved.save_pretrained(tmp_path)
        return AutoTokenizer.from_pretrained(tmp_path)

    return load


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('touch canary') }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__.os }}",
    ],
)
def test_templates_are_rendered_in_a_sandbox(attack, tokenizer, tmp_path, monkeypatch):
    """transformers' promise, which everything that renders a template relies on."""
    monkeypatch.chdir(tmp_path)
    chat = [{"role": "user", "content": "a"}]
    plain = tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}")
    assert plain.apply_chat_template(chat, tokenize=False) == "a"
    with pytest.raises(SecurityError):
        tokenizer(attack).apply_chat_template(chat, tokenize=False)
    assert not Path("canary").exists()


def test_a_template_cannot_count_for_ever(tokenizer):
    """jinja's sandbox limits one range; loops inside loops have no limit of time, so this package renders nothing."""
    chat = [{"role": "user", "content": "a"}]
    with pytest.raises(OverflowError, match="Range too big"):
        tokenizer("{% for i in range(10**9) %}{% endfor %}").apply_chat_template(chat, tokenize=False)
    package = Path(hf_seqmodels.__file__).parent
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "apply_chat_template" not in text and "render_jinja" not in text, path
