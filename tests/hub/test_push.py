"""Our push and the loopback hub: what goes, one commit, nothing to do, branches, tags, pull requests, collections."""

import hashlib
import json
import shutil

import pytest
from pushing import CARD, Pusher, write_checkpoint

from hf_seqmodels.hub.files import write_checksums
from hf_seqmodels.hub.publish import main
from loopback_hub.hub_process import OTHER, READER, UNKNOWN, WRITER, LoopbackHub, run_client

STAYS = {"model.onnx", "train.log"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with LoopbackHub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def push(hub):
    with Pusher(hub) as push:
        yield push


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("exported") / "gru")


@pytest.fixture
def folder(original, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(original, tmp_path / "gru")


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_prints_exactly_what_would_go_and_calls_nobody(hub, push, original):
    hub.forget_requests()
    dry = push(original, "user/dry", "--dry_run", "--tag", "v1", token=None, env={"HF_HUB_OFFLINE": "1"})
    assert dry.status == 0 and hub.requests() == [] and "user/dry" not in hub.repositories()
    real = push(original, "user/dry")
    sent = hub.files("user/dry")
    assert real.status == 0, real.stderr
    told = {
        line.split()[2]: (line.split()[0], int(line.split()[1].replace(",", "")))
        for line in dry.stdout.partition("goes:")[2].partition("stays:")[0].splitlines()
        if line
    }
    assert told == {name: (hashlib.sha256(data).hexdigest(), len(data)) for name, data in sent.items()}
    stays = dry.stdout.partition("stays:")[2].splitlines()[1:3]
    assert {line.split(":")[0].strip() for line in stays} == STAYS
    for word in ("user/dry (private", "branch main", "tag         v1", "nothing was sent; there is no token"):
        assert word in dry.stdout


def test_one_commit_private_then_nothing_to_do_and_the_folder_is_as_it_was(hub, push, original):
    before = contents(original)
    first = push(original, "user/once")
    assert first.status == 0, first.stderr
    assert hub.repository("user/once").private
    assert [commit.title for commit in hub.commits("user/once")] == ["Push once with hf-seqmodels", "initial commit"]
    assert set(hub.files("user/once")) == set(before) - STAYS
    assert "one commit" in first.stdout and "left out train.log" in first.stdout

    hub.forget_requests()
    second = push(original, "user/once")
    assert second.status == 0 and "nothing to do" in second.stdout and "verified 30 files" in second.stdout
    assert len(hub.commits("user/once")) == 2 and not hub.requests("PUT") and not hub.requests("POST", "/commit/")
    assert contents(original) == before


def test_checksums_that_arrive_hold_for_what_arrived(hub, push, original):
    assert push(original, "user/sums").status == 0
    sent = hub.files("user/sums")
    lines = [line.split("  ") for line in sent["SHA256SUMS"].decode().splitlines()]
    assert {name: digest for digest, name in lines} == {
        name: hashlib.sha256(data).hexdigest() for name, data in sent.items() if name != "SHA256SUMS"
    }
    assert push(original, "user/sums", "--onnx").status == 0
    sent = hub.files("user/sums")
    assert sent["model.onnx"] == b"\0onnx" and sent["SHA256SUMS"] == (original / "SHA256SUMS").read_bytes()


def test_what_an_earlier_push_left_goes_with_a_word_and_what_others_put_there_stays(hub, push, folder):
    (folder / "loss_curve.png").write_bytes(b"\0png")
    write_checksums(folder)
    assert "delete" not in push(folder, "user/stale").stdout
    stays = {
        "notes.md",
        "sub/model.safetensors",
        "model.fp16.safetensors",
        "model-ema.safetensors",
        "model_old.safetensors",
    }
    goes = ["loss_curve.png", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    hub.put("user/stale", dict.fromkeys([*stays, *goes[1:]], b"{}"))
    (folder / "loss_curve.png").unlink()
    write_checksums(folder)

    dry = push(folder, "user/stale", "--dry_run")
    told = [line.split(": ")[1].split(",")[0] for line in dry.stdout.splitlines() if line.startswith("deletes there")]
    assert dry.status == 0 and told == goes and dry.stdout.endswith("dry run: nothing was sent\n")
    assert len(hub.commits("user/stale")) == 3

    done = push(folder, "user/stale")
    assert done.status == 0 and len(hub.commits("user/stale")) == 4
    kept = set(hub.files("user/stale"))
    assert stays <= kept and not kept & set(goes)
    assert [line for line in done.stdout.splitlines() if line.startswith("deleted ")] == [f"deleted {x}" for x in goes]
    assert [line.split()[1] for line in done.stderr.splitlines() if line.startswith("deletes ")] == goes
    assert "delete" not in push(folder, "user/stale").stdout


def test_a_dry_run_that_cannot_look_says_so(hub, push, original):
    assert push(original, "user/unsent", "--dry_run").stdout.endswith("dry run: nothing was sent\n"), "it is not there"
    assert "user/unsent" not in hub.repositories()
    unknown = push(original, "user/unsent", "--dry_run", token=UNKNOWN)
    assert unknown.status == 0 and "(401)" in unknown.stdout.splitlines()[-1]
    assert unknown.stdout.endswith("what it would delete there is not known\n")


def test_public_only_when_asked(hub, push, original):
    assert push(original, "user/open", "--public").status == 0
    assert not hub.repository("user/open").private
    refused = push(original, "user/open")
    assert refused.status == 2 and "public already" in refused.error
    assert push(original, "org/team").status == 0 and hub.repository("org/team").private


def test_branch_tag_and_message(hub, push, original, folder):
    assert push(original, "user/named", "--tag", "v1", "--message", "First try").status == 0
    (folder / "README.md").write_text(CARD + "\nMore.\n")
    write_checksums(folder)
    done = push(folder, "user/named", "--branch", "longer/training", "--tag", "v2")
    assert done.status == 0, done.stderr
    assert hub.commits("user/named")[0].title == "First try" and len(hub.commits("user/named")) == 2
    assert hub.files("user/named", "longer/training")["README.md"] == (CARD + "\nMore.\n").encode()
    assert hub.files("user/named", "v1")["README.md"] == hub.files("user/named", "main")["README.md"] == CARD.encode()
    assert hub.commits("user/named", "v2")[0].sha == hub.commits("user/named", "longer/training")[0].sha
    assert push(original, "user/named", "--tag", "v1").status == 0, "it names this commit already"
    moved = push(folder, "user/named", "--tag", "v1")
    assert moved.status == 2 and "tags do not move" in moved.error
    assert len(hub.commits("user/named")) == 2


def test_a_pull_request_leaves_main_alone(hub, push, original, folder):
    assert push(original, "user/proposed", "--public").status == 0
    (folder / "README.md").write_text(CARD + "\nBetter.\n")
    write_checksums(folder)
    done = push(folder, "user/proposed", "--create_pr", token=OTHER)
    assert done.status == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{hub.endpoint}/user/proposed/discussions/1"
    assert hub.files("user/proposed", "refs/pr/1")["README.md"].endswith(b"Better.\n")
    assert hub.files("user/proposed")["README.md"] == CARD.encode() and len(hub.commits("user/proposed")) == 2
    nothing = push(folder, "user/absent", "--create_pr")
    assert nothing.status == 2 and "nothing to propose to" in nothing.error


def test_a_collection_holds_the_models_of_one_data_set(hub, push, original):
    for name in ("user/first", "user/second", "user/second"):
        done = push(original, name, "--collection")
        assert done.status == 0, done.stderr
    (slug, found), *others = hub.collections().items()
    assert not others and found["title"] == "pydoc_topics: sequence models" and found["private"]
    assert [item["id"] for item in found["items"]] == ["user/first", "user/second"]
    assert push(original, "user/third", "--collection", slug).status == 0
    assert [item["id"] for item in hub.collections()[slug]["items"]][2:] == ["user/third"]
    assert push(original, "user/fourth", "--collection", "Small ones").status == 0
    assert sorted(each["title"] for each in hub.collections().values())[0] == "Small ones"
    wrong = push(original, "user/fifth", "--collection", "user/none-" + "0" * 24)
    assert wrong.status == 2 and "no collection" in wrong.error and "user/fifth" not in hub.repositories()


# ---- refused before anything is created --------------------------------------------------------------------------


def spoil_pickle(folder):
    (folder / "training_args.bin").write_bytes(b"\x80\x04.")


def spoil_weights(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def spoil_truncated(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-4])
    write_checksums(folder)


def spoil_config(folder):
    (folder / "config.json").unlink()


def spoil_licence(folder):
    (folder / "README.md").write_text(CARD.replace("apache-2.0", "my-own"))
    write_checksums(folder)


def spoil_card(folder):
    (folder / "README.md").unlink()
    write_checksums(folder)


def spoil_sums(folder):
    (folder / "SHA256SUMS").unlink()


def spoil_unlisted(folder):
    (folder / "more.json").write_text("{}")


def spoil_secret(folder):
    (folder / "notes.txt").write_text(f"login with {OTHER}")
    write_checksums(folder)


def spoil_link(folder):
    (folder / "hosts.txt").symlink_to("/etc/hostname")


def spoil_index(folder):
    index = {"weight_map": {"a": "../../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_checksums(folder)


SPOILED = {
    spoil_pickle: "training_args.bin",
    spoil_weights: "model.safetensors differs",
    spoil_truncated: "truncated",
    spoil_config: "config.json",
    spoil_licence: "my-own",
    spoil_card: "README.md",
    spoil_sums: "SHA256SUMS",
    spoil_unlisted: "more.json",
    spoil_secret: "notes.txt",
    spoil_link: "hosts.txt",
    spoil_index: "shard",
}


@pytest.mark.parametrize("spoil", SPOILED, ids=lambda spoil: spoil.__name__)
def test_a_spoiled_folder_is_named_and_nobody_is_called(hub, push, folder, spoil):
    spoil(folder)
    hub.forget_requests()
    done = push(folder, "user/spoiled")
    assert done.status == 2 and SPOILED[spoil] in done.error, done
    assert OTHER not in done.stderr + done.stdout
    assert hub.requests() == [] and "user/spoiled" not in hub.repositories()


@pytest.mark.parametrize(
    "repo_id",
    [
        "gru",
        "../gru",
        "user/..",
        "user/../gru",
        "user/a..b",
        "user/a--b",
        "user/gru.git",
        "user/a b",
        "a/b/c",
        "user/",
    ],
)
def test_names_of_repositories(hub, push, original, repo_id):
    hub.forget_requests()
    done = push(original, repo_id)
    assert done.status == 2 and repo_id in done.error and hub.requests() == []


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--branch", "refs/pr/1"), "refs/pr/1"),
        (("--branch", "a..b"), "a..b"),
        (("--tag", "v 1"), "v 1"),
        (("--tag", "v1", "--create_pr"), "pull request"),
        (("--collection", "x" * 61), "61 letters"),
        (("--message", f"by {WRITER}"), "--message holds your Hugging Face token"),
        (("--tag", WRITER), "--tag holds your Hugging Face token"),
        (("--resume",), "stopped here"),
        (("--resume", "--dry_run"), "not allowed with"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_options_that_cannot_be(hub, push, original, options, word):
    hub.forget_requests()
    done = push(original, "user/options", *options)
    assert done.status == 2 and word in done.error and WRITER not in done.stderr and hub.requests() == []


@pytest.mark.parametrize(
    ("token", "repo_id", "words"),
    [
        (None, "user/gru", ("no token", "hf auth login")),
        (UNKNOWN, "user/gru", ("401", "hf auth login")),
        (READER, "user/gru", ("may only read", "write access")),
        (WRITER, "other/gru", ("'other'", "'user'")),
    ],
    ids=["none", "unknown", "reads", "of-somebody-else"],
)
def test_tokens_that_will_not_do(hub, push, original, token, repo_id, words):
    hub.forget_requests()
    done = push(original, repo_id, token=token)
    assert done.status == 2 and all(word in done.error for word in words), done
    assert [call.path for call in hub.requests()] == ([] if token is None else ["/api/whoami-v2"])
    assert token is None or token not in done.stdout + done.stderr


def test_a_card_that_only_the_hub_refuses_stops_before_a_repository_is_made(hub, push, original):
    hub.fail("POST", "/api/validate-yaml", status=400)
    done = push(original, "user/card")
    hub.heal()
    assert done.status == 2 and "README.md" in done.error and "user/card" not in hub.repositories()


# ---- a stranger, and the token ------------------------------------------------------------------------------------

STRANGER = """\
import sys
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
own = load_file(sys.argv[1])
for revision in ("main", "v1"):
    model = AutoModelForCausalLM.from_pretrained("user/gift", revision=revision, trust_remote_code=True)
    AutoTokenizer.from_pretrained("user/gift", revision=revision, trust_remote_code=True)
    state = model.state_dict()
    assert own and all(state[name].equal(tensor) for name, tensor in own.items())
assert "hf_seqmodels" not in sys.modules
print("identical")
"""


def test_a_stranger_gets_the_same_weights(hub, push, original):
    assert push(original, "user/gift", "--tag", "v1").status == 0
    assert run_client(STRANGER, hub, original / "model.safetensors").stdout.splitlines()[-1] == "identical"


def test_the_token_is_in_no_body_and_no_file(hub, push, original):
    hub.forget_requests()
    done = push(original, "user/canary", "--onnx", "--tag", "v1", "--collection", "Canaries")
    assert done.status == 0 and WRITER not in done.stdout + done.stderr
    assert hub.carriers_of(WRITER) == [] and len(hub.requests()) > 60
    written = [path for path in hub.root.rglob("*") if path.is_file()]
    assert not [path for path in written if WRITER.encode() in path.read_bytes()]
    assert not [call for call in hub.requests("PUT") if "authorization" in call.headers]


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    text = capsys.readouterr().out
    assert ended.value.code == 0
    for word in ("--dry_run", "--resume", "private unless", "hf-seqmodels push exported/lstm user/lstm-pydoc"):
        assert word in text
