"""A client's process: one `hf-seqmodels push` per line of JSON on stdin, one answer per line on stdout."""

import contextlib
import io
import json
import os
import sys


def main() -> None:
    from hf_seqmodels.hub.publish import main as push

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints beside the answers
    for line in sys.stdin:
        wanted = json.loads(line)
        for name, value in wanted["env"].items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = push(wanted["arguments"])
            except SystemExit as error:
                status = int(error.code or 0)
        answer = {"status": status, "stdout": out.getvalue(), "stderr": err.getvalue()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
