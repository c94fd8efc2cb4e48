"""Stock `push_to_hub` and the stock Trainer, with the real client: what arrives is enough for a stranger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.torch import load_file
from strangers import assert_same, load_as_stranger, pickles_in

from export.exporting import PLAIN, SHIPPED, SOURCE
from hf_seqmodels.models import ARCHITECTURES
from loopback_hub.hub_process import WRITER, LoopbackHub, run_client
from loopback_hub.probe import require

HERE = Path(__file__).parent
STRATEGIES = ("end", "every_save", "checkpoint", "all_checkpoints")
each_plain = pytest.mark.parametrize("case", PLAIN, ids=str)


class Pushed(NamedTuple):
    """The Hub after the pushes, what the clients said, where they left things, and what a stranger found."""

    hub: LoopbackHub
    models: dict
    resumed: dict
    folder: Path
    found: dict


@pytest.fixture(scope="module", params=["lfs", pytest.param("xet", marks=pytest.mark.slow)])
def pushed(request, tmp_path_factory):
    """One process pushes everything and resumes two runs; another one, a stranger, loads it all."""
    folder = tmp_path_factory.mktemp("stock")
    with LoopbackHub(folder / "hub", require(request.param)) as hub:
        said = json.loads(run_client(HERE / "client_stock.py", hub, folder).stdout.splitlines()[-1])
        models, resumed = said["models"], said["resumed"]
        name, pull = models.pop("pull request")
        jobs = [(f"user/{case.architecture}", None, folder / case.architecture) for case in PLAIN]
        jobs += [(f"user/{name}", revision, folder / f"{name}-dev") for revision in ("dev", pull)]
        jobs += [(f"user/stock-{name}", None, folder / f"stock-{name}") for name in STRATEGIES]
        yield Pushed(hub, models, resumed, folder, load_as_stranger(hub, jobs))


@each_plain
def test_push_to_hub_sends_the_code_once(pushed, case):
    """Every modelling file, byte for byte; nothing that can run when it is loaded; and a second push is no commit."""
    repository = f"user/{case.architecture}"
    files = pushed.hub.files(repository)
    assert {name for name in files if name.endswith(".py")} == SHIPPED[case.architecture]
    assert all(files[name] == (SOURCE / name).read_bytes() for name in SHIPPED[case.architecture])
    assert len(json.loads(files["config.json"])["auto_map"]) == 1 + len(ARCHITECTURES[case.architecture].models)
    assert "model.safetensors" in files and pickles_in(files) == []
    said = pushed.models[case.architecture]
    assert said["again"] and ("tokenizer.json" in files) == said["reads_tokens"]
    assert len(pushed.hub.commits(repository)) == 2 + said["reads_tokens"]
    assert pushed.hub.repository(repository).private


@each_plain
def test_a_stranger_loads_what_was_pushed(pushed, case):
    found = pushed.found[f"user/{case.architecture}@main"]
    assert_same(found)
    assert "largest error" in found and ("tokens" in found) == pushed.models[case.architecture]["reads_tokens"]


@pytest.mark.parametrize("revision", ["dev", "refs/pr/1"])
def test_a_stranger_loads_another_revision(pushed, revision):
    (name,) = [name for name in pushed.found if name.endswith(f"@{revision}")]
    assert_same(pushed.found[name])
    repository = name.partition("@")[0]
    weights = [pushed.hub.files(repository, where)["model.safetensors"] for where in ("main", revision)]
    assert weights[0] != weights[1], "main has not moved"


def test_the_token_is_nowhere_but_in_the_header(pushed):
    assert pushed.hub.carriers_of(WRITER) == []
    assert WRITER.encode() not in b"".join(
        b"".join(pushed.hub.files(name).values()) for name in pushed.hub.repositories()
    )


# ---- the stock Trainer ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_stranger_loads_what_the_stock_trainer_pushed(pushed, strategy):
    assert_same(pushed.found[f"user/stock-{strategy}@main"])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_stock_trainer_commits_as_its_strategy_says(pushed, strategy):
    titles = [commit.title for commit in pushed.hub.commits(f"user/stock-{strategy}")][::-1]
    steps = [f"Training in progress, step {step}" for step in (2, 4)]
    with_checkpoints = [title for step in steps for title in (step, f"{step}, checkpoint")]
    between = {"end": [], "every_save": steps}.get(strategy, with_checkpoints)
    assert titles[0] == "initial commit" and titles[-1] == "End of training"
    # A push in the background may find what the next save has written already; that one then has nothing to add.
    assert titles[1:-1] == [title for title in between if title in titles]
    assert bool(titles[1:-1]) == (strategy != "end")
    assert pushed.hub.repository(f"user/stock-{strategy}").private


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_a_run_goes_on_from_the_checkpoint_on_the_hub(pushed, strategy):
    """From an empty cache, and ends where an uninterrupted run ends."""
    assert pushed.resumed[strategy] == 6
    whole, resumed = (
        load_file(pushed.folder / name / "model.safetensors") for name in ("whole", f"resumed-{strategy}")
    )
    assert whole.keys() == resumed.keys()
    assert all(bool((whole[name] == resumed[name]).all()) for name in whole)
