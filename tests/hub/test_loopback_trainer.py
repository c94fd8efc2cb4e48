"""SeqTrainer and `hf-seqmodels train` push: no pickle, no token, nothing unfinished, and no failure in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load
from strangers import assert_same, load_as_stranger, pickles_in

from hf_seqmodels.hub.files import MAY_LEAVE_ENDINGS, MAY_LEAVE_NAMES, check_checksums
from hf_seqmodels.training.pushing import PUSHED
from loopback_hub.hub_process import WRITER, LoopbackHub, run_client
from loopback_hub.probe import require

HERE = Path(__file__).parent
MODEL = {"config.json", "model.safetensors", "modeling_gru.py", "shared_base.py", "tokenizer.json"}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Hub, what happened in each scene of client_seq_trainer.py, the folder of the runs, and all that was printed."""
    folder = tmp_path_factory.mktemp("scenes")
    with LoopbackHub(folder / "hub") as hub:
        hub.fail("POST", "user/background/commit", 403)
        hub.fail("POST", "user/patient/preupload", 429, headers={"Retry-After": "0"})
        hub.fail("POST", "user/patient/commit", 503)
        hub.fail("POST", "user/patient/commit", "drop")
        hub.fail("POST", "user/refused/commit", 413, times=-1)
        hub.fail("POST", "user/slow/preupload", "delay", seconds=1.0)
        hub.put("user/open", {"notes.md": b"mine"})
        # The token is an option of the run; the process is logged in nowhere.
        done = run_client(HERE / "client_seq_trainer.py", hub, folder / "out", WRITER, token=None)
        yield hub, json.loads(done.stdout.splitlines()[-1]), folder / "out", done


def titles(hub: LoopbackHub, name: str, revision: str = "main") -> list[str]:
    return [commit.title for commit in hub.commits(name, revision)][::-1]


def test_every_save_pushes_each_checkpoint_and_the_end(scenes):
    hub, happened, out, _ = scenes
    assert happened["every_save"] == {"trained": ["fine", ""], "saved": ["fine", ""]}
    steps = [f"Training in progress, step {step}" for step in (2, 4)]
    assert titles(hub, "user/every_save") == ["initial commit", *steps], (
        "the end is the last checkpoint: no new commit"
    )
    for commit in hub.commits("user/every_save")[:-1]:
        assert commit.files.keys() >= MODEL, "each can be loaded by a stranger"
        assert not commit.files.keys() & {"trainer_state.json", "training_args.bin"}
    assert hub.files("user/every_save")["model.safetensors"] == (out / "every_save/model.safetensors").read_bytes()
    assert hub.repository("user/every_save").private


def test_end_pushes_once_and_to_the_branch_that_was_named(scenes):
    hub, happened, _, _ = scenes
    assert happened["end"] == {"trained": ["fine", ""], "pushed": ["fine", ""]}
    assert titles(hub, "user/end") == ["initial commit"]
    assert titles(hub, "user/end", "dev") == ["initial commit", "End of training"]
    assert hub.files("user/end", "dev").keys() >= MODEL


def test_the_command_line_pushes_a_run_with_its_card(scenes, tmp_path):
    hub, happened, out, done = scenes
    assert happened["command_line"] == {"command_line": 0, "wrong_strategy": 2}
    (line,) = [line for line in done.stderr.splitlines() if "hf-seqmodels train: error: " in line]
    assert "hub_strategy=checkpoint would upload" in line
    assert not (out / "wrong_strategy").exists() and "user/wrong_strategy" not in hub.repositories()
    assert hub.repository("user/command_line").private
    assert titles(hub, "user/command_line") == ["initial commit", "End of training"]
    files = hub.files("user/command_line")
    assert {*MODEL, "README.md", "SHA256SUMS", "result.json", "config.yaml", "golden.safetensors"} <= files.keys()
    assert files["model.safetensors"] == (out / "command_line/model.safetensors").read_bytes()
    assert b"bits_per_token" in files["README.md"]
    for name, content in files.items():
        assert str(out).encode() not in content, f"{name} tells a path of this machine"
        (tmp_path / name).write_bytes(content)
    assert check_checksums(tmp_path) == []


def test_a_stranger_loads_every_state(scenes):
    hub, _, out, _ = scenes
    jobs = [("user/every_save", None, out / "every_save"), ("user/command_line", None, out / "command_line")]
    for name, commit in (
        ("every_save", hub.commits("user/every_save")[1]),
        ("end", hub.commits("user/end", "dev")[0]),
    ):
        folder = out / f"state-{name}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(commit.files["model.safetensors"].content())
        jobs.append((f"user/{name}", commit.sha, folder))
    found = load_as_stranger(hub, jobs)
    assert len(found) == 4
    for name, each in found.items():
        own = {} if "command_line" not in name else {"tokens": [5, 6]}  # it has another tokenizer
        assert_same(each | own)


def test_a_failure_in_the_background_is_loud_and_harms_nothing(scenes):
    hub, happened, out, done = scenes
    (kind, message), steps = happened["background"]["trained"], happened["background"]["steps"]
    assert (kind, steps) == ("PushFailed", 4), "training went on to its end"
    assert message.startswith("pushing to 'user/background' failed (in the background): 403")
    assert "\n" not in message and str(out / "background") in message
    assert "pushing to 'user/background' failed" in done.stderr, "it was logged when it happened"
    assert (out / "background/checkpoint-4/model.safetensors").is_file()
    assert happened["background"]["pushed"] == ["fine", ""]
    assert hub.files("user/background").keys() >= MODEL


def test_no_room_for_a_copy_is_a_failed_push_and_training_goes_on(scenes):
    hub, happened, out, done = scenes
    (kind, message), steps = happened["full"]["trained"], happened["full"]["steps"]
    assert (kind, steps) == ("PushFailed", 4) and "(Training in progress, step 2): " in message
    assert str(out / "nowhere") in message and "(and 1 more)" in message and "\n" not in message
    kind, message = happened["full"]["broken"]
    assert kind == "PushFailed" and "vocab.json" in message and happened["full"]["left"] == []
    assert done.stderr.count("pushing to 'user/full' failed (Training") == 3, "each was logged when it happened"
    assert hub.files("user/full") == {}


def test_the_last_push_of_a_run_starts_from_a_known_commit_and_is_verified(scenes):
    hub, _, _, done = scenes
    (call,) = hub.requests("POST", "user/command_line/commit")
    last, first = hub.commits("user/command_line")
    assert json.loads(call.body.splitlines()[0])["value"]["parentCommit"] == first.sha
    read = {call.route.partition(f"/resolve/{last.sha}/")[2] for call in hub.requests("GET", "command_line/resolve")}
    assert read == set(hub.files("user/command_line"))
    assert f"push: committed {last.sha}; verifying" in done.stderr


def test_a_busy_hub_is_asked_again(scenes):
    hub, happened, _, _ = scenes
    assert happened["patient"] == {"trained": ["fine", ""], "pushed": ["fine", ""]}
    assert not hub.repository("user/patient").private, "it was asked to be public"
    assert titles(hub, "user/patient") == ["initial commit", "End of training"]
    tried = [call.status for call in hub.requests("POST", "user/patient/commit")]
    assert tried == [503, "drop", 200]


def test_a_last_push_that_is_refused_is_loud_and_local_files_are_whole(scenes):
    hub, happened, out, _ = scenes
    assert happened["refused"]["trained"] == ["fine", ""]
    kind, message = happened["refused"]["saved"]
    assert kind == "PushFailed" and "413" in message and "\n" not in message
    assert hub.files("user/refused") == {}
    assert {path.name for path in (out / "refused").iterdir()} >= MODEL
    assert len(hub.requests("POST", "user/refused/commit")) == 1, "a refusal is not asked again"


def test_what_is_pushed_is_the_checkpoint_even_after_it_was_deleted(scenes):
    hub, happened, out, _ = scenes
    assert happened["slow"] == {"trained": ["fine", ""]}
    assert titles(hub, "user/slow")[1:] == [f"Training in progress, step {step}" for step in (1, 2, 3, 4)]
    weights = [commit.files["model.safetensors"].sha256 for commit in hub.commits("user/slow")[:-1]]
    assert len(set(weights)) == 4, "each commit has the weights of its own step"
    assert [path.name for path in (out / "slow").glob("checkpoint-*")] == ["checkpoint-4"]


def test_nothing_is_pushed_after_divergence(scenes):
    hub, happened, _, _ = scenes
    assert [kind for kind, _ in happened["diverged"].values()] == ["TrainingDiverged"] * 2
    assert titles(hub, "user/diverged") == ["initial commit", "Training in progress, step 1"]
    weights = load(hub.files("user/diverged")["model.safetensors"])
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_what_cannot_be_pushed_is_refused_before_anything_starts(scenes):
    hub, happened, _, _ = scenes
    rules = {
        "checkpoint": "hub_strategy=checkpoint would upload the optimizer's state, a pickle; use every_save or end",
        "all_checkpoints": "hub_strategy=all_checkpoints would upload the optimizer's state, a pickle; use every_save",
        "name": "hub_model_id: ",
        "token": "push_to_hub needs a token: log in with `hf auth login`",
        "unknown token": "push_to_hub: 'user/forbidden' cannot be opened: ",
        "processes": "2 processes were asked for",
        "another's": "push_to_hub: 'other/forbidden' cannot be opened: ",
        "public": "push_to_hub: 'user/open' is public already; --hub_private_repo false ",
    }
    assert happened["forbidden"].keys() == rules.keys()
    for name, (kind, message) in happened["forbidden"].items():
        assert kind == "ConfigError", name
        assert message.startswith(rules[name]) and "\n" not in message, message
    assert not any("forbidden" in name for name in hub.repositories())
    assert hub.files("user/open") == {"notes.md": b"mine"}


def test_no_pickle_and_no_token_ever_left(scenes):
    hub, _, out, done = scenes
    for name in hub.repositories():
        for commit in hub.repository(name).commits.values():
            assert pickles_in(commit.files) == []
    assert len(hub.requests("POST", "/commit/")) > 10
    assert hub.carriers_of(WRITER) == []
    assert WRITER not in done.stdout + done.stderr
    # Checkpoints keep the stock pickle of the arguments, and with it the token: it must not be in there either.
    holding = [path for path in out.rglob("*") if path.is_file() and WRITER.encode() in path.read_bytes()]
    assert holding == []


def test_the_kinds_of_files_are_those_of_our_push():
    assert set(PUSHED) == {f"*{ending}" for ending in MAY_LEAVE_ENDINGS} | MAY_LEAVE_NAMES


@pytest.mark.slow
def test_xet_mode(tmp_path):
    with LoopbackHub(tmp_path / "hub", require("xet")) as hub:
        script, out = HERE / "client_seq_trainer.py", tmp_path / "out"
        run_client(script, hub, out, WRITER, "every_save", "end", token=None)
        assert titles(hub, "user/every_save")[1:] == [f"Training in progress, step {step}" for step in (2, 4)]
        assert hub.commits("user/end", "dev")[0].files["model.safetensors"].xet
        assert_same(load_as_stranger(hub, [("user/every_save", None, out / "every_save")])["user/every_save@main"])


# ---- failures of the command line -------------------------------------------------------------------------------
TRAIN = """
import json, sys
from hf_seqmodels.cli import main
print(json.dumps([main(["train", *argv]) for argv in json.loads(sys.argv[1])]))
"""
OPTIONS = {"config": "lm/gru", "hidden_size": 8, "max_steps": 2, "per_device_train_batch_size": 2, "save_steps": 1}
OPTIONS |= {"save_strategy": "steps", "eval_strategy": "steps", "eval_steps": 1, "push_to_hub": "true"}


@pytest.mark.slow
def test_failures_of_the_command_line_end_in_status_1(tmp_path):
    """A checkpoint's push fails and the last one arrives; the last one fails, or arrives damaged: all loud."""
    runs = {"between": {"hub_always_push": "true"}, "last": {"hub_strategy": "end"}, "flip": {"hub_strategy": "end"}}
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.fail("POST", "user/between/commit", 403)
        hub.fail("POST", "user/last/commit", 403, times=-1)
        hub.fail("GET", "user/flip/resolve/.*/config.json", "flip")
        argv = []
        for name, own in runs.items():
            options = OPTIONS | own | {"hub_model_id": f"user/{name}", "output_dir": tmp_path / name}
            argv.append([f"--{option}={value}" for option, value in options.items()])
        done = run_client(TRAIN, hub, json.dumps(argv))
        assert json.loads(done.stdout.splitlines()[-1]) == [1, 1, 1]
        lines = [line for line in done.stderr.splitlines() if "hf-seqmodels train: error: pushing to" in line]
        assert len(lines) == 3 and "in the background" in lines[0]
        assert "(End of training): could not push to user/last: the token may not do that (403)" in lines[1]
        assert "(End of training): 'config.json' came back" in lines[2] and "--resume" not in done.stderr
        assert not list(hub.root.rglob("hf_seqmodels/pushes/*.json")), "nothing to go on with: the folder is gone"
        assert titles(hub, "user/between")[-1] == "End of training" and hub.files("user/last") == {}
        for name in runs:
            assert {"model.safetensors", "result.json"} <= {path.name for path in (tmp_path / name).iterdir()}
