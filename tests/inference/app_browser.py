"""`hf-seqmodels app` in a process of its own, and headless Chromium before it: for the test and for the screenshot."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = "/usr/bin/chromium"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]

# Python runs this file before anything else: whatever the server asks of another machine is written down and refused.
GUARD = """
import os, sys

def _guard(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        host = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
        host = host[0] if isinstance(host, tuple) else host
        if str(host) not in ("127.0.0.1", "localhost", "::1", "None"):
            with open(os.environ["CONNECTIONS"], "a") as file:
                file.write(f"{event} {host}\\n")
            raise OSError("no connections beyond this machine")

sys.addaudithook(_guard)
"""


def what_is_missing() -> str:
    """What the browser test needs and is not here; "" if all is."""
    lacking = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
    lacking += [] if Path(CHROMIUM).exists() else [CHROMIUM]
    return f"needs {' and '.join(lacking)}" if lacking else ""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def served(models: Sequence[str], folder: Path, command: Sequence[str] = ("-m", "hf_seqmodels.inference.app")) -> Any:
    """Run the command with these models on a free port; yields (address, file of the connections it tried).

    Args:
        folder: where its log, its guard and that file are written.
    """
    port, log = free_port(), folder / "app.log"
    (folder / "sitecustomize.py").write_text(GUARD)
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"PYTHONPATH": str(folder), "CONNECTIONS": str(folder / "connections.txt"), "HF_HUB_OFFLINE": "0"}
    arguments = [sys.executable, *command, *models, "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        yield _wait_for_address(process, log), folder / "connections.txt"
    finally:
        process.terminate()
        process.wait(timeout=20)


def _wait_for_address(process: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> str:
    """The line with the address, which comes after one line for each model."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(r"^(http://\S+)", log.read_text(), flags=re.MULTILINE):
            return found[1]
        time.sleep(0.1)
    raise AssertionError(f"no address came: {log.read_text()}")


@contextmanager
def opened(address: str, width: int = 1280, height: int = 900) -> Iterator[tuple[Any, list[str]]]:
    """The page in headless Chromium; yields (playwright's page, addresses of all its requests)."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            requests: list[str] = []
            page.on("request", lambda request: requests.append(request.url))
            page.on("websocket", lambda connection: requests.append(connection.url))
            page.goto(address, wait_until="load")
            page.wait_for_selector("#continue", timeout=60_000)
            yield page, requests
        finally:
            browser.close()


def ask(page: Any, prompt: str, cards: int, length: int = 200) -> None:
    """Type a prompt, click, and wait until every card is done."""
    page.fill("textarea", prompt)
    page.fill("#length input[type=number]", str(length))
    page.click("#continue")
    page.wait_for_function(
        "count => document.querySelectorAll('.side[data-done=\"1\"]').length === count", arg=cards, timeout=120_000
    )
