"""The loopback Hub fails as it is told to, the real client notices, and no client reaches another machine."""

from __future__ import annotations

import pytest
from asking import ask, status_of

from loopback_hub.hub_process import OTHER, WRITER, LoopbackHub, run_client


@pytest.fixture
def hub(tmp_path):
    with LoopbackHub(tmp_path / "hub") as hub:
        yield hub


# ---- faults -----------------------------------------------------------------------------------------------------
GET = "found['error'] = error_of(hf_hub_download, 'user/model', 'weights.safetensors')\n" + (
    "found['right'] = not isinstance(found['error'], list) and Path(\n"
    "    hf_hub_download('user/model', 'weights.safetensors')).read_bytes() == bytes(range(256)) * 40\n"
)


@pytest.mark.parametrize(
    ("fault", "error", "calls"),
    [
        ({"status": 503}, "HfHubHTTPError", 1),
        ({"status": 401}, "HfHubHTTPError", 1),
        ({"status": 403}, "HfHubHTTPError", 1),
        ({"status": 429, "headers": {"Retry-After": "0"}}, None, 2),
        ({"status": "delay", "seconds": 0.4}, None, 1),
        ({"status": "drop"}, None, 2),
        ({"status": "lose"}, None, 2),
        ({"status": "truncate"}, None, 2),
    ],
    ids=lambda value: str(value.get("status")) if isinstance(value, dict) else None,
)
def test_faults_on_the_way_down(hub, fault, error, calls):
    hub.put("user/model", {"weights.safetensors": bytes(range(256)) * 40})
    hub.fail("GET", "resolve/.*/weights", **fault)
    found = ask(hub, GET)
    asked = hub.requests("GET", "resolve")
    assert len(asked) == calls
    assert found["right"] == (error is None)
    if error is not None:
        assert found["error"][0] == error


FLIPPED = """
api.snapshot_download("user/model")
found["mismatches"] = [each["path"] if isinstance(each, dict) else each.path
                       for each in api.verify_repo_checksums("user/model").mismatches]
"""


def test_a_flipped_bit_is_taken_and_found_by_the_checksums(hub):
    hub.put("user/model", {"config.json": b'{"a": 1}', "notes.txt": b"text"})
    hub.fail("GET", "resolve/.*/config.json", "flip")
    assert ask(hub, FLIPPED) == {"mismatches": ["config.json"]}


PUSH = """
folder = folder_of()
found["error"] = error_of(api.create_repo, "user/model", exist_ok=True)
if found["error"] == "no error":
    found["error"] = error_of(api.upload_folder, repo_id="user/model", folder_path=folder)
"""


@pytest.mark.parametrize(
    ("call", "fault", "error"),
    [
        ("/commit/", 503, ["HfHubHTTPError", 503]),
        ("/commit/", "drop", ["RemoteProtocolError", None]),
        ("/commit/", 413, ["HfHubHTTPError", 413]),
        ("/preupload/", 500, "no error"),
        ("objects/batch", 401, ["HfHubHTTPError", 401]),
        ("/repos/create", 403, ["HfHubHTTPError", 403]),
    ],
)
def test_faults_on_the_way_up(hub, call, fault, error):
    """What the client does not try again is for the caller; nothing is half there, and a second push completes it."""
    hub.fail("POST", call, fault)
    assert ask(hub, PUSH)["error"] == error
    if error != "no error":
        assert all(hub.files(name) == {} for name in hub.repositories()), "a commit happens or it does not"
        assert ask(hub, PUSH)["error"] == "no error"
    assert set(hub.files("user/model")) == {"README.md", "config.json", "model.safetensors", "sub/notes.txt"}
    assert len(hub.commits("user/model")) == 2


def test_a_lost_answer_hides_a_commit_that_was_made(hub):
    hub.fail("POST", "/commit/", "lose")
    assert ask(hub, PUSH)["error"] == ["RemoteProtocolError", None]
    assert "model.safetensors" in hub.files("user/model")
    assert ask(hub, PUSH)["error"] == "no error"
    assert len(hub.commits("user/model")) == 2, "the client sees that nothing is left to do"


def test_faults_wait_for_their_turn(hub):
    fault = hub.fail("GET", "/api/whoami", 500, times=2, after=1)
    assert [status_of(hub, "/api/whoami-v2", WRITER) for _ in range(4)] == [200, 500, 500, 200]
    assert fault.times == 0
    hub.fail("*", ".", 418, times=-1)
    assert [status_of(hub, "/api/whoami-v2", WRITER) for _ in range(3)] == [418] * 3
    hub.heal()
    assert status_of(hub, "/api/whoami-v2", WRITER) == 200
    with pytest.raises(ValueError, match="status='dorp' is no fault"):
        hub.fail("GET", ".", "dorp")


PLANT = """
(folder := Path("planted")).mkdir()
(folder / "notes.txt").write_text("take " + sys.argv[1])
(folder / "model.safetensors").write_bytes(b"\\0" * 600 + sys.argv[1].encode())
api.create_repo("user/planted")
api.upload_folder(repo_id="user/planted", folder_path=folder)
"""


def test_a_token_in_what_is_sent_is_found_however_it_is_encoded(hub):
    ask(hub, PLANT, OTHER)
    found = hub.carriers_of(OTHER)
    repo = "/api/models/user/planted"
    assert [call for call in found if call.startswith("POST")] == [
        f"POST {repo}/preupload/main",
        f"POST {repo}/commit/main",
    ]
    assert len(found) == 3 and found[1].startswith("PUT "), "and as it is, behind the sample"
    assert hub.carriers_of(WRITER) == [], "the Authorization header is where a token belongs"


# ---- nobody else is reached -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "attempt",
    [
        "socket.create_connection(('192.0.2.1', 80), 1)",
        "socket.getaddrinfo('huggingface.co', 443)",
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
        "socket.socket(socket.AF_INET6).connect(('2001:db8::1', 80))",
        "urllib.request.urlopen('http://192.0.2.1/', timeout=1)",
        "subprocess.run([sys.executable, '-c', 'import socket; socket.gethostbyname(\"huggingface.co\")'])",
    ],
)
def test_a_client_that_leaves_loopback_fails_even_if_it_hides_it(hub, attempt):
    code = f"import socket, subprocess, sys, urllib.request\ntry:\n    {attempt}\nexcept OSError:\n    pass"
    with pytest.raises(AssertionError, match="the client left loopback"):
        run_client(code, hub)
    assert len(hub.left_loopback()) == 1
    assert run_client("print('fine')", hub).stdout == "fine\n", "only the client that did it is to blame"


def test_another_endpoint_is_caught(hub):
    """What a mistake in the environment would do: the real client asks the real Hub."""
    code = "from huggingface_hub import model_info\ntry:\n    model_info('gpt2')\nexcept Exception:\n    pass"
    with pytest.raises(AssertionError, match=r"left loopback.*huggingface\.co"):
        run_client(code, hub, env={"HF_ENDPOINT": "https://huggingface.co"})


def test_the_environment_is_that_of_nobody(hub, monkeypatch):
    secret = {"HF_TOKEN": "mine", "HUGGING_FACE_HUB_TOKEN": "mine", "HF_HUB_OFFLINE": "1", "https_proxy": "http://x"}
    secret |= {
        "HF_HOME": "/mine",
        "AWS_SECRET_ACCESS_KEY": "mine",
        "TRANSFORMERS_OFFLINE": "1",
        "XDG_CACHE_HOME": "/y",
    }
    for name, value in secret.items():
        monkeypatch.setenv(name, value)
    environment = hub.environment()
    assert (environment["HF_TOKEN"], environment["HF_ENDPOINT"]) == (WRITER, hub.endpoint)
    assert environment["HF_HUB_DISABLE_XET"] == "1"
    assert not {"mine", "/mine", "http://x", "/y"} & set(environment.values())
    assert not {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"} & environment.keys()
    assert "HF_TOKEN" not in hub.environment(token=None)
    assert hub.environment()["HF_HOME"] != hub.environment()["HF_HOME"], "a fresh cache each time"
    assert hub.environment(home="kept")["HF_HOME"] == hub.environment(home="kept")["HF_HOME"]
