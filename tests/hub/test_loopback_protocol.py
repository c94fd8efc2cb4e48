"""The loopback Hub speaks to the real client as the Hub does: round trips, errors, collections."""

from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request

import pytest
from asking import ask, status_of

from loopback_hub.hub_process import OTHER, READER, UNKNOWN, WRITER, LoopbackHub
from loopback_hub.probe import require

README = b"---\nlicense: mit\n---\n# A model\n"


@pytest.fixture
def hub(tmp_path):
    with LoopbackHub(tmp_path / "hub") as hub:
        yield hub


ROUND_TRIP = """
folder = folder_of()
found["user"] = api.whoami()["name"]
api.create_repo("user/model", private=True)
api.create_repo("user/model", exist_ok=True)
found["created twice"] = error_of(api.create_repo, "user/model")
first = api.upload_folder(repo_id="user/model", folder_path=folder)
found["second push"] = api.upload_folder(repo_id="user/model", folder_path=folder).oid == first.oid
copy = Path(snapshot_download("user/model"))
names = ("config.json", "sub/notes.txt", "model.safetensors", "README.md")
found["same bytes"] = all((copy / name).read_bytes() == (folder / name).read_bytes() for name in names)
found["mismatches"] = len(api.verify_repo_checksums("user/model").mismatches)
api.create_branch("user/model", branch="dev")
api.create_tag("user/model", tag="v1")

(folder / "sub" / "notes.txt").write_text("second")
(folder / "model.safetensors").write_bytes(bytes(range(256)) * 600)
pull = api.upload_folder(repo_id="user/model", folder_path=folder, create_pr=True)
found["pull request"] = [pull.pr_revision, pull.pr_url.rpartition("user/")[2]]
text = lambda revision: Path(hf_hub_download("user/model", "sub/notes.txt", revision=revision)).read_text()
found["notes"] = {revision: text(revision) for revision in ("main", "dev", "v1", "refs/pr/1", first.oid)}
references = api.list_repo_refs("user/model", include_pull_requests=True)
found["references"] = [each.ref for each in references.branches + references.tags + references.pull_requests]
found["commits"] = [each.title for each in api.list_repo_commits("user/model")]
found["tree"] = [each.path for each in api.list_repo_tree("user/model", recursive=True)]
found["sizes"] = [each.size for each in api.get_paths_info("user/model", ["model.safetensors", "nothing.txt"])]
api.delete_file("config.json", repo_id="user/model")
found["deleted"] = "config.json" not in api.list_repo_files("user/model")
api.update_repo_settings("user/model", private=False)
info = api.model_info("user/model")
found["info"] = [info.private, info.card_data.license]
"""


@pytest.mark.parametrize("mode", ["lfs", "xet"])
def test_round_trip(mode, tmp_path):
    with LoopbackHub(tmp_path / "hub", require(mode)) as hub:
        found = ask(hub, ROUND_TRIP)
        stored = hub.repository("user/model").commit("v1").files["model.safetensors"]
        assert (stored.lfs, bool(stored.xet)) == (True, mode == "xet")
        assert hub.files("user/model")["model.safetensors"] == bytes(range(256)) * 500
        assert hub.files("user/model", "refs/pr/1")["model.safetensors"] == bytes(range(256)) * 600
        sent = hub.requests("PUT", "^/lfs/")
        assert len(sent) == (2 if mode == "lfs" else 0)
        assert hub.carriers_of(WRITER) == [], "the token is in headers of authorization alone"
    assert found == {
        "user": "user",
        "created twice": ["HfHubHTTPError", 409],
        "second push": True,
        "same bytes": True,
        "mismatches": 0,
        "pull request": ["refs/pr/1", "model/discussions/1"],
        "notes": {**dict.fromkeys(("main", "dev", "v1"), "first"), "refs/pr/1": "second"}
        | {hub.commits("user/model")[1].sha: "first"},
        "references": ["refs/heads/main", "refs/heads/dev", "refs/tags/v1", "refs/pr/1"],
        "commits": ["Upload folder using huggingface_hub", "initial commit"],
        "tree": [".gitattributes", "README.md", "config.json", "model.safetensors", "sub", "sub/notes.txt"],
        "sizes": [256 * 500],
        "deleted": True,
        "info": [False, "mit"],
    }


# ---- errors -----------------------------------------------------------------------------------------------------
ERRORS = """
folder = folder_of()
get = lambda *arguments, **options: error_of(hf_hub_download, *arguments, **options)
found["no repository"] = get("user/nothing", "config.json")
found["no revision"] = get("user/open", "config.json", revision="nowhere")
found["no file"] = get("user/open", "nothing.json")
found["remembered"] = any(Path(os.environ["HF_HOME"]).rglob(".no_exist/*/nothing.json"))
found["gated"] = get("other/gated", "config.json")
found["gated, anonymous"] = get("other/gated", "config.json", token=False)
found["private of another"] = get("other/private", "config.json")
found["private, anonymous"] = get("other/private", "config.json", token=False)
found["own private"] = get("user/private", "config.json")
found["own private, reading"] = get("user/private", "config.json", token=sys.argv[2])
found["unknown token"] = error_of(api.whoami, token=sys.argv[1])
found["unknown token, public file"] = get("user/open", "config.json", token=sys.argv[1])
found["no token"] = error_of(api.create_repo, "user/new", token=False)
found["read-only creates"] = error_of(api.create_repo, "user/new", token=sys.argv[2])
push = lambda **options: error_of(api.upload_folder, repo_id="user/open", folder_path=folder, **options)
found["read-only pushes"] = push(token=sys.argv[2])
found["another pushes"] = push(token=sys.argv[3])
found["in another's name"] = error_of(api.create_repo, "other/new")
found["pushed nowhere"] = error_of(api.upload_folder, repo_id="user/nothing", folder_path=folder)
found["pushed to no branch"] = push(revision="nowhere")
found["pushed to a tag"] = push(revision="v1")
head = api.model_info("user/open").sha
add = lambda text: [CommitOperationAdd("a.txt", text)]
commit = lambda text: api.create_commit("user/open", add(text), commit_message="m", parent_commit=head)
commit(b"1")
found["stale parent"] = error_of(commit, b"2")
found["bad card"] = error_of(ModelCard("---\\nlicense: 7\\n---\\n").validate)
found["no YAML"] = error_of(ModelCard("---\\nlicense: mit\\n---\\n").push_to_hub, "user/nothing")
(folder / "README.md").write_text("---\\nlicense: [\\n---\\n")
found["a push with a bad card"] = push()
found["out of the folder"] = get("user/../../x", "config.json")
found["tag twice"] = error_of(api.create_tag, "user/open", tag="v1")
"""


def test_errors_become_the_exceptions_that_the_protocol_names(hub):
    for name, private in (
        ("user/open", False),
        ("user/private", True),
        ("other/gated", False),
        ("other/private", True),
    ):
        hub.put(name, {"config.json": b"{}", "README.md": README}, private=private)
    hub.repository("other/gated").gated = "manual"
    hub.repository("user/open").references["refs/tags/v1"] = hub.commits("user/open")[0].sha
    found = ask(hub, ERRORS, UNKNOWN, READER, OTHER)
    assert found == {
        "no repository": ["RepositoryNotFoundError", 404],
        "no revision": ["RevisionNotFoundError", 404],
        "no file": ["RemoteEntryNotFoundError", 404],
        "remembered": True,
        "gated": ["GatedRepoError", 403],
        "gated, anonymous": ["GatedRepoError", 401],
        "private of another": ["RepositoryNotFoundError", 404],
        "private, anonymous": ["RepositoryNotFoundError", 401],
        "own private": "no error",
        "own private, reading": "no error",
        "unknown token": ["HfHubHTTPError", 401],
        "unknown token, public file": ["HfHubHTTPError", 401],
        "no token": ["HfHubHTTPError", 401],
        "read-only creates": ["HfHubHTTPError", 403],
        "read-only pushes": ["HfHubHTTPError", 403],
        "another pushes": ["HfHubHTTPError", 403],
        "in another's name": ["HfHubHTTPError", 403],
        "pushed nowhere": ["RepositoryNotFoundError", 404],
        "pushed to no branch": ["RevisionNotFoundError", 404],
        "pushed to a tag": ["RevisionNotFoundError", 404],
        "stale parent": ["HfHubHTTPError", 412],
        "bad card": ["ValueError", None],
        "no YAML": ["RepositoryNotFoundError", 404],
        "a push with a bad card": ["ValueError", None],
        "out of the folder": ["HFValidationError", None],
        "tag twice": ["HfHubHTTPError", 409],
    }
    titles = [commit.title for commit in hub.commits("user/open")]
    assert titles == ["m", "files put by the test", "initial commit"], "what was refused changed nothing"
    assert sorted(hub.repositories()) == ["other/gated", "other/private", "user/open", "user/private"]


# ---- collections ------------------------------------------------------------------------------------------------
COLLECTIONS = """
made = api.create_collection("Five models", description="of one text", private=True)
found["again"] = api.create_collection("Five models", exists_ok=True).slug == made.slug
found["twice"] = error_of(api.create_collection, "Five models")
api.add_collection_item(made.slug, "user/one", "model", note="a note")
api.add_collection_item(made.slug, "user/one", "model", exists_ok=True)
found["item twice"] = error_of(api.add_collection_item, made.slug, "user/one", "model")
found["item missing"] = error_of(api.add_collection_item, made.slug, "user/nothing", "model")
found["for another"] = error_of(api.get_collection, made.slug, token=sys.argv[1])
found["reading only"] = error_of(api.add_collection_item, made.slug, "user/two", "model", token=sys.argv[2])
api.add_collection_item(made.slug, "user/two", "model")
got = api.get_collection(made.slug)
found["items"] = [[item.item_id, item.item_type, item.note] for item in got.items]
found["listed"] = [each.title for each in api.list_collections(owner="user")]
api.delete_collection_item(made.slug, got.items[0].item_object_id)
found["left"] = [item.item_id for item in api.get_collection(made.slug).items]
"""


def test_collections(hub):
    for name in ("user/one", "user/two"):
        hub.put(name, {"config.json": b"{}"})
    assert ask(hub, COLLECTIONS, OTHER, READER) == {
        "again": True,
        "twice": ["HfHubHTTPError", 409],
        "item twice": ["HfHubHTTPError", 409],
        "item missing": ["RepositoryNotFoundError", 404],
        "for another": ["HfHubHTTPError", 404],
        "reading only": ["HfHubHTTPError", 403],
        "items": [["user/one", "model", "a note"], ["user/two", "model", None]],
        "listed": ["Five models"],
        "left": ["user/two"],
    }


# ---- the server does not take everything ------------------------------------------------------------------------
def test_large_files_must_be_what_they_claim(hub):
    hub.put("user/model", {})
    data = b"weights"
    oid = hashlib.sha256(data).hexdigest()
    assert status_of(hub, f"/lfs/{oid}", method="PUT", data=b"others") == 422
    assert status_of(hub, f"/lfs/{oid}", WRITER, "PUT", data) == 400, "the storage must not see a token"
    lines = [{"key": "header", "value": {"summary": "m"}}]
    lines += [{"key": "lfsFile", "value": {"path": "a.safetensors", "oid": oid, "algo": "sha256"}}]
    body = "\n".join(map(json.dumps, lines)).encode()
    commit = "/api/models/user/model/commit/main"
    assert status_of(hub, commit, WRITER, "POST", body) == 400, "its bytes never came"
    assert status_of(hub, "/lfs-verify", method="POST", data=json.dumps({"oid": oid, "size": 7}).encode()) == 404
    assert status_of(hub, f"/lfs/{oid}", method="PUT", data=data) == 200
    assert status_of(hub, commit, WRITER, "POST", body) == 200
    assert hub.files("user/model") == {"a.safetensors": data}


@pytest.mark.parametrize("path", ["/api/agent-harnesses", "/", "/api/models/user/model/commit", "/api/models/x"])
def test_unknown_calls_are_not_found(hub, path):
    assert status_of(hub, path, WRITER) == 404


@pytest.mark.parametrize(
    ("wanted", "status", "length"), [("bytes=2-4", 206, 3), ("bytes=-3", 206, 3), ("bytes=8-", 206, 2)]
)
def test_ranges(hub, wanted, status, length):
    hub.put("user/model", {"a.txt": b"0123456789"})
    request = urllib.request.Request(f"{hub.endpoint}/user/model/resolve/main/a.txt", headers={"Range": wanted})
    with urllib.request.urlopen(request, timeout=10) as answer:
        body = answer.read()
        assert (answer.status, len(body)) == (status, length)
        first = int(answer.headers["Content-Range"].removeprefix("bytes ").partition("-")[0])
    assert b"0123456789"[first : first + length] == body
    request = urllib.request.Request(f"{hub.endpoint}/user/model/resolve/main/a.txt", headers={"Range": "bytes=10-"})
    with pytest.raises(urllib.error.HTTPError, match="416"):
        urllib.request.urlopen(request, timeout=10)


def test_a_broken_server_is_no_hub_that_refuses(tmp_path):
    with pytest.raises(AssertionError, match="the loopback hub is broken"), LoopbackHub(tmp_path) as hub:
        assert status_of(hub, "/api/repos/create", WRITER, "POST", b'{"type": "model"}') == 500  # it has no name
