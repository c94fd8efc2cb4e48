"""Goes on with saved sessions in a fresh process.

    python run_restored.py FOLDER

FOLDER holds one model per subfolder with `session.safetensors` and the `rest.safetensors` of its stream; the answers
to that, and three tokens more of a language model, go to FOLDER/<name>/went_on.safetensors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import transformers
from safetensors.torch import load_file, save_file

import hf_seqmodels

for folder in sorted(Path(sys.argv[1]).iterdir()):
    config = transformers.AutoConfig.from_pretrained(folder)
    (name,) = config.architectures
    model = getattr(hf_seqmodels, name, None) or getattr(transformers, name)
    model = model.from_pretrained(folder).eval()
    session = hf_seqmodels.StreamingSession.restore(model, folder / "session.safetensors")
    answers = {}
    for index, piece in enumerate(load_file(folder / "rest.safetensors")["rest"].split([1, 2, 2], dim=1)):
        answer = session.feed(piece)
        parts = answer[0] if isinstance(answer, tuple) else (answer,)
        answers |= {f"{index}.{part}": tensor.contiguous() for part, tensor in enumerate(parts)}
    if model.can_generate():
        answers["written"] = session.generate(3)
    save_file(answers, folder / "went_on.safetensors")
