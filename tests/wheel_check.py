"""Build the wheel, install it in an empty environment, and train, export and examine there, outside the checkout."""

import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = """
import pathlib, hf_seqmodels
assert "site-packages" in hf_seqmodels.__file__, hf_seqmodels.__file__
from transformers import AutoConfig
assert AutoConfig.for_model("seq_lstm").model_type == "seq_lstm"
"""


def run(*command: str | Path, cwd: Path, environment: dict[str, str]) -> None:
    """A command that must succeed."""
    print("+", *command, flush=True)
    subprocess.run([str(part) for part in command], cwd=cwd, env=environment, check=True)


def main() -> None:
    """An empty environment gets the wheel and what it declares to need, in the tested versions, and nothing else."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        run(sys.executable, "-m", "build", "--wheel", "--outdir", scratch, ROOT, cwd=scratch, environment=environment)
        (wheel,) = scratch.glob("*.whl")
        venv.create(scratch / "env", with_pip=True)
        python = scratch / "env" / "bin" / "python"
        install = (python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt")
        index = ("--index-url", os.environ["TORCH_INDEX"]) if os.environ.get("TORCH_INDEX") else ()
        run(*install, *index, "torch", cwd=scratch, environment=environment)
        run(*install, wheel, cwd=scratch, environment=environment)
        run(python, "-c", STEPS, cwd=scratch, environment=environment)
        program = scratch / "env" / "bin" / "hf-seqmodels"
        run(program, "list", cwd=scratch, environment=environment)
        options = ("--max_steps", "2", "--output_dir", "run", "--hidden_size", "16", "--eval_strategy", "no")
        options += ("--save_strategy", "no", "--load_best_model_at_end", "false")
        run(program, "train", "--config", "lm/lstm", *options, cwd=scratch, environment=environment)
        for name in ("model.safetensors", "modeling_lstm.py", "result.json"):
            assert (scratch / "run" / name).is_file(), f"the run left no {name}"
        run(program, "export", "run", "exported", cwd=scratch, environment=environment)
        run(program, "doctor", "exported", "--trust_remote_code", cwd=scratch, environment=environment)
        print("the wheel builds, installs, imports, trains two steps, exports and examines outside the checkout")


if __name__ == "__main__":
    main()
