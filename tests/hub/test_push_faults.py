"""Our push when the Hub refuses, fails, drops connections or is changed meanwhile: loud, whole, and resumable."""

import itertools
import shutil
import struct
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from pushing import CARD, Pusher, write_checkpoint

from hf_seqmodels.hub import retry
from hf_seqmodels.hub.files import read_checksums, write_checksums
from hf_seqmodels.hub.publish import push as push_here
from hf_seqmodels.hub.publish_plan import PushRefused, _planned
from hf_seqmodels.hub.retry import HubUnavailable, Patience, patient_session
from loopback_hub.hub_process import WRITER, LoopbackHub


@pytest.fixture(scope="module")
def whole_hub(tmp_path_factory):
    with LoopbackHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def hub(whole_hub):
    yield whole_hub
    whole_hub.heal()


@pytest.fixture(scope="module")
def push(whole_hub):
    with Pusher(whole_hub) as push:
        yield push


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("exported") / "gru")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "gru")


@pytest.fixture
def fresh(folder):
    """Weights that no push before has uploaded: large files are stored once for all repositories."""
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + struct.pack("<f", next(NUMBERS)))
    write_checksums(folder)
    return folder


NUMBERS = itertools.count(1)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def made(hub, repo):
    """How many commits a repository has beside the first one that creating it makes."""
    return len(hub.commits(repo)) - 1


# Where a push can be stopped: name → method, pattern of the path, and whether a commit has been made by then.
STAGES = {
    "create": ("POST", "/api/repos/create", False),
    "branch": ("GET", "/revision/main", False),
    "preupload": ("POST", "/preupload/", False),
    "batch": ("POST", "/objects/batch", False),
    "upload": ("PUT", "/lfs/", False),
    "commit": ("POST", "/commit/", False),
    "verify": ("GET", "/resolve/.*/model.safetensors", True),
    "tag": ("POST", "/tag/", True),
    "collection": ("POST", "/api/collections", True),
}
REFUSALS = [(stage, 403) for stage in STAGES] + [("create", 401), ("upload", 413), ("commit", 401), ("commit", 413)]


@pytest.mark.parametrize(("stage", "status"), REFUSALS)
def test_refused_at_once_then_resumed(hub, push, fresh, stage, status):
    method, path, committed = STAGES[stage]
    repo, before = f"user/{stage}-{status}", contents(fresh)
    options = ["--tag", "v1", "--collection", f"{stage} {status}"]
    hub.fail(method, path, status=status, times=-1)
    stopped = push(fresh, repo, *options)
    assert "retry" not in stopped.stderr, "waiting does not help against a refusal"
    assert stopped.status == 1 and str(status) in stopped.error and "--resume" in stopped.error, stopped
    assert "http" not in stopped.error and WRITER not in stopped.stderr
    assert contents(fresh) == before
    if stage != "create":
        assert made(hub, repo) == committed

    hub.heal()
    hub.forget_requests()
    resumed = push(fresh, repo, *options, "--resume")
    assert resumed.status == 0, resumed.stderr
    assert made(hub, repo) == 1 and hub.files(repo, "v1")["model.safetensors"] == before["model.safetensors"]
    assert any(repo == item["id"] for each in hub.collections().values() for item in each["items"])
    uploads = 0 if stage in ("commit", "verify", "tag", "collection") else 1
    assert len(hub.requests("PUT")) == uploads, "what was uploaded is not uploaded again"
    assert push(fresh, repo, "--resume").status == 2, "there is nothing left to go on with"


# Every call of a push, each failing once: (method, path).
CALLS = [("GET", "/api/whoami"), ("POST", "/validate-yaml"), ("POST", "/repos/create"), ("GET", "/tree/")]
CALLS += [("POST", "/preupload/"), ("POST", "/objects/batch"), ("PUT", "/lfs/"), ("POST", "/commit/")]
CALLS += [("GET", "/resolve/.*/config.json"), ("POST", "/tag/")]


@pytest.mark.parametrize(
    "fault", [503, "lose", *(pytest.param(each, marks=pytest.mark.slow) for each in (500, "drop"))]
)
def test_a_passing_fault_at_any_call_is_waited_out_and_one_commit_is_made(hub, push, fresh, fault):
    repo = f"user/passing-{fault}"
    hub.forget_requests()
    for method, path in CALLS:
        hub.fail(method, path, status=fault)
    done = push(fresh, repo, "--tag", "v1")
    assert done.status == 0, done.stderr
    waits = [line for line in done.stderr.splitlines() if "retry 1 of 6 in 0." in line]
    assert len(waits) >= len(CALLS) - 1, done.stderr  # a dropped GET of a file may be taken up by the client itself
    assert made(hub, repo) == 1 and hub.files(repo)["config.json"] == (fresh / "config.json").read_bytes()
    sent = hub.requests("PUT", "/lfs/")
    assert len(sent) == 2 and sent[0].body == sent[1].body, "a file is read again from its start"


def test_retry_after_is_honoured_and_printed(hub, push, original):
    hub.fail("POST", "/commit/", status=429, headers={"Retry-After": "1"})
    hub.fail("POST", "/preupload/", status=429, headers={"ratelimit": '"api";r=0;t=1'})
    began = time.perf_counter()
    done = push(original, "user/busy")
    assert done.status == 0 and time.perf_counter() - began >= 2
    assert done.stderr.count("the Hub answers 429; retry 1 of 6 in 1.") == 2, done.stderr
    assert made(hub, "user/busy") == 1


def test_a_hub_that_never_answers_is_given_up_loudly(hub, push, original):
    hub.fail("POST", "/preupload/", status=503, times=-1)
    done = push(original, "user/down", "--retries", "1")
    assert done.status == 1 and "503; gave up after 2 tries" in done.error and "--resume" in done.error
    assert len(hub.requests("POST", "/api/models/user/down/preupload/")) == 2 and made(hub, "user/down") == 0
    hub.heal()
    hub.fail("POST", "/commit/", status=429, headers={"Retry-After": "86400"})
    asked = push(original, "user/down", "--resume")
    assert asked.status == 1 and "asks to wait 86,400 s" in asked.error
    assert push(original, "user/down", "--resume").status == 0 and made(hub, "user/down") == 1


def test_a_hub_that_hangs_counts_as_dropped(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(retry, "SILENCE", 0.3)
    hub.fail("GET", "/api/whoami-v2", status="delay", seconds=3.0)
    said, began = [], time.perf_counter()
    with patient_session(Patience(say=said.append)):
        assert get_session().get(f"{hub.endpoint}/api/whoami-v2").status_code == 401
    assert "the connection failed (ReadTimeout)" in said[0] and time.perf_counter() - began < 2.5


def test_a_download_that_stays_away_stops_the_verification(hub, push, original):
    hub.fail("HEAD", "/resolve/", status=503, times=-1)
    done = push(original, "user/unseen", "--retries", "0")
    assert done.status == 1 and "could not verify" in done.error and "--resume" in done.error, done
    hub.heal()
    hub.fail("GET", "/resolve/", status=504, times=-1)
    done = push(original, "user/unseen", "--resume", "--retries", "0")
    assert done.status == 1 and "504" in done.error, done
    hub.heal()
    assert push(original, "user/unseen", "--resume").status == 0 and made(hub, "user/unseen") == 1


@pytest.mark.parametrize("resumed", [False, True])
def test_a_lost_answer_makes_no_second_pull_request(hub, push, original, folder, resumed):
    repo = f"user/lost-{resumed}"
    assert push(original, repo).status == 0
    (folder / "README.md").write_text(CARD + "\nMore.\n")
    write_checksums(folder)
    hub.fail("POST", "/commit/", status="lose")
    done = push(folder, repo, "--create_pr", "--retries", 0 if resumed else 1)
    if resumed:
        assert done.status == 1 and "the connection failed" in done.error
        done = push(folder, repo, "--resume")
    assert done.status == 0, done.stderr
    assert len(hub.repository(repo).discussions) == 1 and done.stdout.endswith("/discussions/1\n")
    assert hub.files(repo, "refs/pr/1")["README.md"].endswith(b"More.\n") and made(hub, repo) == 1


# ---- races -------------------------------------------------------------------------------------------------------


@contextmanager
def meanwhile(hub, path, do):
    """Something else happens as soon as the hub was asked for a path; the call to it has to be slow."""

    def wait_and_do():
        while not hub.requests("*", path):
            time.sleep(0.01)
        do()

    other = threading.Thread(target=wait_and_do)
    other.start()
    yield
    other.join()


def test_somebody_else_commits_while_we_upload(hub, push, original):
    hub.put("user/race", {"notes.md": b"first"}, private=True)
    hub.fail("POST", "/preupload/", status="delay", seconds=1.0)
    with meanwhile(hub, "/user/race/preupload", lambda: hub.put("user/race", {"notes.md": b"second"})):
        done = push(original, "user/race")
    assert done.status == 1 and "somebody else committed" in done.error and "--resume" not in done.error, done
    assert hub.files("user/race") == {"notes.md": b"second"}, "nothing half-done"
    again = push(original, "user/race", "--resume")
    assert again.status == 2, "what raced cannot be gone on with"
    assert push(original, "user/race").status == 0 and hub.files("user/race")["notes.md"] == b"second"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("call", ["tree", "preupload"])
def test_a_file_that_changes_meanwhile_stops_the_push(hub, push, fresh, call, name):
    repo = f"user/edited-{call}-{name.partition('.')[0]}"
    hub.fail("*", f"/{call}/", status="delay", seconds=1.0)
    with meanwhile(hub, f"{repo}/{call}/", lambda: (fresh / name).write_bytes(b"other")):
        done = push(fresh, repo)
    assert done.status == 1 and f"'{name}' changed while it was pushed; nothing was committed" in done.error, done
    assert made(hub, repo) == 0 and "--resume" not in done.error


def test_weights_that_change_after_they_were_announced_are_named(hub, push, fresh):
    """They do not arrive, which is not what the user has to hear."""
    repo, call = "user/edited-batch", ".git/info/lfs/objects/batch"
    hub.fail("*", call, status="delay", seconds=1.0)
    with meanwhile(hub, f"{repo}{call}", lambda: (fresh / "model.safetensors").write_bytes(b"other")):
        done = push(fresh, repo)
    assert done.status == 1 and "'model.safetensors' changed while it was pushed; nothing was" in done.error, done
    assert made(hub, repo) == 0


def test_a_second_try_sends_what_was_checked(hub, push, fresh):
    """The client reads its files again for each commit: what changed between two tries must not go."""
    before = contents(fresh)
    hub.fail("POST", "/commit/", status=503)
    with meanwhile(hub, "user/tries/commit/", lambda: (fresh / "config.json").write_bytes(b"{}")):
        done = push(fresh, "user/tries")
    assert done.status == 0 and "retry 1 of 6" in done.stderr, done
    assert hub.files("user/tries")["config.json"] == before["config.json"]


def test_a_file_that_changes_while_it_is_checked_is_refused(folder):
    listed = read_checksums(folder)
    assert _planned(folder, "config.json", listed, {}).sha256 == listed["config.json"]
    (folder / "config.json").write_text("{}")
    with pytest.raises(PushRefused, match=r"'config\.json' changed while it was checked"):
        _planned(folder, "config.json", listed, {})


@pytest.mark.parametrize("begun", [False, True])
def test_interrupted(hub, push, fresh, begun):
    """--resume is offered where there is something to go on with."""
    repo = f"user/interrupted-{begun}"
    hub.fail("*", "/commit/" if begun else "/api/whoami", status="delay", seconds=2.0)
    hub.forget_requests()
    with meanwhile(hub, "/commit/" if begun else "/api/whoami", push.interrupt):
        done = push(fresh, repo)
    assert done.status == 130, done
    way_on = f"interrupted. Your files are as they were; to go on: hf-seqmodels push {fresh} {repo} --resume"
    assert done.error == (way_on if begun else "interrupted; no push had begun")
    assert push(fresh, repo, "--resume").status == (0 if begun else 2)


def test_a_commit_between_stop_and_resume_is_a_race_too(hub, push, original):
    hub.fail("POST", "/commit/", status=403)
    assert push(original, "user/late").status == 1
    hub.put("user/late", {"notes.md": b"other"})
    done = push(original, "user/late", "--resume")
    assert (
        done.status == 1
        and "somebody else committed" in done.error
        and hub.files("user/late") == {"notes.md": b"other"}
    )


def test_resume_is_the_same_push_or_none(hub, push, original, folder):
    hub.fail("POST", "/commit/", status=403)
    assert push(folder, "user/same", "--branch", "main", "--message", "One").status == 1
    other = push(folder, "user/same", "--resume", "--message", "Two")
    assert other.status == 2 and "'One'" in other.error
    elsewhere = push(original, "user/same", "--resume")
    assert elsewhere.status == 2 and "stopped here" in elsewhere.error
    (folder / "README.md").write_text(CARD + "\nMore.\n")
    write_checksums(folder)
    changed = push(folder, "user/same", "--resume")
    assert changed.status == 2 and "has changed" in changed.error
    assert made(hub, "user/same") == 0


# ---- what arrived ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "modeling_gru.py"])
def test_one_flipped_bit_on_the_way_is_noticed(hub, push, original, name):
    repo = f"user/flip-{name.partition('.')[0]}"
    hub.fail("GET", f"/resolve/.*/{name}", status="flip")
    done = push(original, repo)
    assert done.status == 1 and f"'{name}' came back" in done.error and "do not use this commit" in done.error
    again = push(original, repo)
    assert again.status == 0 and "nothing to do" in again.stdout, "it was only on the way"


def test_a_file_that_the_hub_lost_is_noticed(hub, push, original):
    hub.fail("HEAD", "/resolve/.*/config.json", status=404, headers={"X-Error-Code": "EntryNotFound"})
    done = push(original, "user/gone")
    assert done.status == 1 and "'config.json' did not arrive" in done.error


def test_a_truncated_download_is_taken_up_again(hub, push, original):
    hub.fail("GET", "/resolve/.*/tokenizer.json", status="truncate")
    done = push(original, "user/cut")
    assert done.status == 0 and made(hub, "user/cut") == 1, done.stderr
    assert len(hub.requests("GET", "/user/cut/resolve/.*/tokenizer.json")) == 2, "the rest was asked for"


# ---- patience ----------------------------------------------------------------------------------------------------


def test_waits_double_are_cut_at_random_and_end(monkeypatch):
    slept, said = [], []
    monkeypatch.setattr(time, "sleep", slept.append)
    patience = Patience(retries=9, first=1.0, longest=20.0, say=said.append)
    for tried in range(1, 10):
        patience.wait(tried, "busy")
    for seconds, most in zip(slept, [1, 2, 4, 8, 16, 20, 20, 20, 20], strict=True):
        assert most / 2 <= seconds <= most
    assert len(said) == 9 and said[0].startswith("busy; retry 1 of 9 in ")
    patience.wait(1, "busy", asked=30.0)
    assert 30 <= slept[-1] <= 30.5
    with pytest.raises(HubUnavailable, match="gave up after 10 tries"):
        patience.wait(10, "busy")


def test_the_session_is_left_as_it_was(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    said, session = [], get_session()
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=2))
    hub.fail("GET", "/api/whoami-v2", status=503, headers={"Retry-After": moment})
    with patient_session(Patience(say=said.append)):
        assert session.get(f"{hub.endpoint}/api/whoami-v2").status_code == 401
    assert len(said) == 1 and not {"request", "stream"} & vars(session).keys() and session.timeout.read is None
    hub.fail("GET", "/api/whoami-v2", status=503)
    assert session.get(f"{hub.endpoint}/api/whoami-v2").status_code == 503


def test_offline_is_named(original, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PushRefused, match="HF_HUB_OFFLINE is set"):
        push_here(original, "user/off")
