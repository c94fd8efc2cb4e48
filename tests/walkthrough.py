"""The whole way on a Hub of this machine: train → export → doctor → card → push → a stranger's load → push again.

    python tests/walkthrough.py FOLDER [--recipe lm/lstm] [--record FILE] [-- options of the training]

Every step is the command that a user types, in a process of its own; only the Hub is a loopback one
(tests/loopback_hub), spoken to by the real client. Prints each command with its seconds and its last lines, and stops
at the first step that does not do what it should. `make publish-walkthrough` writes results/publish_walkthrough.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from loopback_hub.hub_process import LoopbackHub

STRANGER = """
import json, sys, torch, transformers
sys.modules["hf_seqmodels"] = None  # importing it fails
from huggingface_hub import hf_hub_download
from safetensors import safe_open
repo, revision = sys.argv[1:]
model = transformers.AutoModelForCausalLM.from_pretrained(repo, revision=revision, trust_remote_code=True).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(repo, revision=revision, trust_remote_code=True)
with safe_open(hf_hub_download(repo, "golden.safetensors", revision=revision), framework="pt") as file:
    golden = {name: file.get_tensor(name) for name in file.keys()}
expected = golden.pop("scores")
with torch.no_grad():
    logits = model(**{name.removeprefix("input."): value for name, value in golden.items()}).logits
print("scores differ from the golden ones by", (logits - expected).abs().max().item())
ids = tokenizer("The import statement ", return_tensors="pt")
print(repr(tokenizer.decode(model.generate(**ids, max_new_tokens=60, do_sample=False)[0])))
"""
REPO = "user/lstm-pydoc"


class Walk:
    """Runs the steps one after another and keeps what they printed and took."""

    def __init__(self, folder: Path, hub: LoopbackHub):
        self.folder, self.hub, self.steps = folder, hub, []

    def step(self, title: str, *arguments: str | Path, home: str | None = "user", shown: int = 4) -> str:
        """`hf-seqmodels ARGUMENTS` (or Python code) against the loopback Hub; returns what it printed."""
        words = [str(argument) for argument in arguments]
        python = words[0].startswith("\n")
        command = [sys.executable, "-c", *words] if python else [sys.executable, "-m", "hf_seqmodels.cli", *words]
        environment = self.hub.environment(home=home) | {"OMP_NUM_THREADS": str(os.cpu_count() or 1)}
        start = time.perf_counter()
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=1800)
        seconds = time.perf_counter() - start
        typed = f"python -c '…' {' '.join(words[1:])}" if python else f"hf-seqmodels {' '.join(words)}"
        last = [line.rstrip() for line in done.stdout.splitlines() if line.strip()][-shown:]
        self.steps.append({"title": title, "command": typed, "seconds": seconds, "lines": last})
        print(f"\n{title}: $ {typed}   ({seconds:.1f} s, exit status {done.returncode})", flush=True)
        print("\n".join(f"    {line}" for line in last), flush=True)
        if done.returncode != 0:
            raise SystemExit(f"{title} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return done.stdout

    def table(self) -> str:
        """Markdown: the commands with their seconds, and under each its last lines."""
        total = sum(step["seconds"] for step in self.steps)
        head = (
            "# The whole way, on a Hub of this machine\n\n"
            "Written by `make publish-walkthrough`: every step is the command that a user types, in a process of its\n"
            "own; the Hub is a loopback one (tests/loopback_hub), spoken to by the real client "
            f"(huggingface_hub {version('huggingface_hub')}, {'LFS' if self.hub.mode == 'lfs' else 'Xet'} uploads).\n"
            f"{total:.0f} s in all on {os.cpu_count()} CPU cores ({platform.machine()}), "
            f"Python {platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}.\n"
        )
        rows = [
            f"\n## {number}. {step['title']} ({step['seconds']:.1f} s)\n\n```\n$ {step['command']}\n"
            + "\n".join(step["lines"])
            + "\n```\n"
            for number, step in enumerate(self.steps, start=1)
        ]
        return head + "".join(rows)


def walk(folder: Path, hub: LoopbackHub, recipe: str, options: list[str]) -> Walk:
    """All steps; each promise is checked where it is made."""
    way = Walk(folder, hub)
    way.step("Train", "train", "--config", recipe, "--output_dir", "run", *options)
    way.step("Export", "export", "run", "exported", "--name", "lstm-pydoc", shown=20)
    way.step("Doctor", "doctor", "exported", "--trust_remote_code", shown=40)
    before = (folder / "exported" / "README.md").read_bytes()
    way.step("Card, written again", "card", "exported")
    assert (folder / "exported" / "README.md").read_bytes() == before, "the card changed on a second run"
    way.step("What would be pushed", "push", "exported", REPO, "--dry_run", shown=40)
    assert hub.repositories() == [], "the dry run made a repository"
    way.step("Push", "push", "exported", REPO, "--tag", "v1")
    assert hub.repository(REPO).private, "a pushed repository is private unless asked otherwise"
    commits = len(hub.commits(REPO))
    out = way.step(
        "A stranger loads it, without the package, from a fresh cache", STRANGER, REPO, "v1", home="stranger"
    )
    assert float(out.split("golden ones by")[1].split()[0]) <= 1e-5, out
    way.step("Push again", "push", "exported", REPO)
    assert len(hub.commits(REPO)) == commits, "the second push made a commit"
    way.step("Doctor, of the repository", "doctor", REPO, "--trust_remote_code", home="examiner", shown=3)
    assert not hub.left_loopback(), hub.left_loopback()
    return way


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder for the run, the export and the Hub")
    parser.add_argument("--recipe", default="lm/lstm")
    parser.add_argument("--mode", choices=["lfs", "xet"], default="lfs")
    parser.add_argument("--record", type=Path, help="write the table there")
    parser.add_argument("options", nargs="*", help="options of the training, after --")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True)
    with LoopbackHub(asked.folder / "hub", asked.mode) as hub:
        way = walk(asked.folder.resolve(), hub, asked.recipe, asked.options)
    if asked.record:
        asked.record.write_text(way.table(), encoding="utf-8")
    print(json.dumps({step["title"]: round(step["seconds"], 1) for step in way.steps}, indent=2))


if __name__ == "__main__":
    main()
