"""The snippet of a card, taken out of it and run in a fresh process where the card lies."""

import json
import os
import re
import subprocess
import sys

# Each snippet in names and a working directory of its own; the process starts once for all.
RUN = """
import contextlib, io, json, os, sys

if not json.loads(sys.argv[2]):  # a stranger: the package does not exist, whatever is installed
    class Absent:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "hf_seqmodels":
                raise ModuleNotFoundError(f"No module named '{name}'", name=name)
    sys.meta_path.insert(0, Absent())
outputs = []
for folder, snippet in json.loads(sys.argv[1]):
    os.chdir(folder)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            exec(compile(snippet, folder, "exec"), {"__name__": "__main__"})
        except Exception as error:
            raise SystemExit(f"{folder}: {type(error).__name__}: {error}\\n{snippet}")
    outputs.append(out.getvalue())
print(json.dumps(outputs))
"""


def snippet_of(text):
    """The only block of Python in a card."""
    (found,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    return found


def run_snippets(cards, package):
    """What the snippets print, for (folder, text of the card) each; without the package if `package` is False."""
    jobs = json.dumps([(str(folder), snippet_of(text)) for folder, text in cards])
    command = [sys.executable, "-c", RUN, jobs, json.dumps(package)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])
