"""Push one model of each architecture to a Hub of four replies on this machine; print what it received as JSON.

The client reads its endpoint once, at import, so the server starts first and this is a process of its own.
"""

from __future__ import annotations

import base64
import json
import os
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

received: dict[str, dict[str, str]] = defaultdict(dict)  # repository → file → text (of weights: a note)


class Hub(BaseHTTPRequestHandler):
    """Creates repositories, has no files, and takes every upload as part of the commit."""

    def log_message(self, *arguments):
        pass

    def reply(self, body: dict, status: int = 200, **headers: str) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_GET(self) -> None:
        self.reply({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit="0" * 40)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        repository = "/".join(self.path.split("/")[3:5])
        if self.path == "/api/repos/create":
            self.reply({"url": f"{os.environ['HF_ENDPOINT']}/me/{json.loads(body)['name']}"})
        elif self.path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            regular = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self.reply({"files": regular})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    text = "(weights)" if line["value"]["path"].endswith(".safetensors") else content.decode()
                    received[repository][line["value"]["path"]] = text
            commit = "1" * 40
            self.reply({"commitOid": commit, "commitUrl": f"{os.environ['HF_ENDPOINT']}/{repository}/commit/{commit}"})
        else:
            self.reply({}, 404)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_TOKEN": "hf_none",
        "HF_HUB_DISABLE_XET": "1",
    }
    from hf_seqmodels.models import ARCHITECTURES

    for name, architecture in ARCHITECTURES.items():
        config = architecture.config(hidden_size=8)
        architecture.models["backbone"](config).push_to_hub(f"me/{name}")
    print(json.dumps(received))
