"""A stranger without hf_seqmodels: reads the texts of a folder with the pipelines that came with its models.

    python run_seq2seq_stranger.py FOLDER

FOLDER holds one saved pipeline per subfolder and `texts.json`. Prints one JSON: name → [class, its module, answers].
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "export"))
import run_stranger  # noqa: F401  (hides the package)
from transformers import pipeline

folder = Path(sys.argv[1])
texts = json.loads((folder / "texts.json").read_text())
found = {}
for path in sorted(path for path in folder.iterdir() if path.is_dir()):
    write = pipeline(model=str(path), trust_remote_code=True, device="cpu")
    answers = write(texts, batch_size=len(texts), num_beams=3, max_new_tokens=6)
    found[path.name] = [type(write).__name__, type(write).__module__, answers]
assert "hf_seqmodels" not in sys.modules
print(json.dumps(found))
