"""Our push where large files go by Xet, as they do to the Hub: the client's Rust code, with a store in a folder."""

import pytest
from pushing import CARD, Pusher, write_checkpoint

from hf_seqmodels.hub.files import write_checksums
from loopback_hub.hub_process import LoopbackHub


def reason_to_skip(store):
    """Why the client's local store does not work here; None when it does. It is no documented promise of hf_xet."""
    try:
        import hf_xet

        with hf_xet.XetSession().new_upload_commit(endpoint=f"local://{store}") as commit:
            commit.start_upload_bytes(b"probe", sha256=hf_xet.COMPUTE_SHA256)
    except Exception as error:
        return f"hf_xet's local store does not work here: {error}"
    return None


@pytest.fixture(scope="module")
def pushed(tmp_path_factory):
    """One process that stops, goes on, and pushes again; read afterwards, because one process has the store."""
    if reason := reason_to_skip(tmp_path_factory.mktemp("probe")):
        pytest.skip(reason)
    folder = write_checkpoint(tmp_path_factory.mktemp("exported") / "gru")
    with LoopbackHub(tmp_path_factory.mktemp("hub"), mode="xet") as hub:
        with Pusher(hub) as push:
            hub.fail("GET", "/xet-write-token/", status=403, times=-1)
            refused = push(folder, "user/gru", "--onnx")
            hub.heal()
            first = push(folder, "user/gru", "--resume")
            again = push(folder, "user/gru", "--onnx")
            (folder / "README.md").write_text(CARD + "\nMore.\n")
            write_checksums(folder)
            hub.fail("POST", "/commit/", status=403)
            stopped = push(folder, "user/gru", "--onnx", "--create_pr")
            resumed = push(folder, "user/gru", "--resume")
        yield hub, folder, (refused, first, again, stopped, resumed)


def test_one_commit_then_nothing_to_do_then_a_pull_request(pushed):
    hub, folder, runs = pushed
    refused, _, again, stopped, _ = runs
    assert [done.status for done in runs] == [1, 0, 0, 1, 0], runs
    assert "403" in refused.error and "--resume" in refused.error and "403" in stopped.error
    assert len(hub.commits("user/gru")) == 2 and "nothing to do" in again.stdout
    assert hub.requests("GET", "/xet-write-token/") and not hub.requests("PUT") and not hub.requests("POST", "/lfs/")
    for name in ("model.safetensors", "model.onnx", "modeling_gru.py"):
        assert hub.files("user/gru")[name] == (folder / name).read_bytes()
    assert hub.files("user/gru", "refs/pr/1")["README.md"].endswith(b"More.\n")


def test_the_verification_reads_the_store(pushed):
    hub, _, (_, first, *_) = pushed
    assert "verified 31 files" in first.stdout and hub.requests("GET", "/xet-read-token/")
