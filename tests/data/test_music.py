"""Piano rolls: what is read, refused and how it is batched; the score of a run is the metric of the data."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from hf_seqmodels import GRUConfig, GRUForTimeSeriesPrediction
from hf_seqmodels.arguments import ConfigError
from hf_seqmodels.config import parse
from hf_seqmodels.data import PianoRollCollator, load_piano_rolls, to_pitches, to_roll
from hf_seqmodels.loading import load_data
from hf_seqmodels.metrics import load_metric
from hf_seqmodels.run import main, run
from hf_seqmodels.training.batches import BatchOrder, FilledDataset
from music_cases import ROLLS, make_pieces, music_argv, write_music, write_split


def test_a_roll_has_a_one_where_a_key_sounds():
    roll = to_roll([[21, 108], [], [60]])
    assert roll.shape == (3, 88) and roll.dtype == np.float32
    assert np.argwhere(roll).tolist() == [[0, 0], [0, 87], [2, 39]]
    assert to_pitches(roll) == [[21, 108], [], [60]]


def test_reads_every_piece(tmp_path):
    folder = write_music(tmp_path / "music")
    rolls, skipped = load_piano_rolls(str(folder))
    assert skipped == {"train": 0, "validation": 0, "test": 0}
    for seed, (split, count) in enumerate({"train": 10, "validation": 5, "test": 3}.items()):
        assert list(rolls[split]["pitches"]) == [piece["pitches"] for piece in make_pieces(count, seed)]
    assert load_piano_rolls("music", str(tmp_path), {"test": "validation"})[0]["test"].num_rows == 5


def test_pieces_of_one_step_are_left_out_and_counted(tmp_path, capsys):
    short = {"id": 7, "n_steps": 1, "pitches": [[60]]}
    folder = write_music(tmp_path / "music", train=[short, *make_pieces(6), short])
    rolls, skipped = load_piano_rolls(str(folder))
    assert skipped == {"train": 2, "validation": 0, "test": 0} and rolls["train"].num_rows == 6
    record = run(parse(music_argv(folder, tmp_path / "run", "--max_steps", "1", "--disable_tqdm", "true")))
    assert record["data"]["skipped"] == skipped and record["data"]["windows"]["train"] == 6
    assert record["data"]["longest"]["train"] == max(piece["n_steps"] for piece in make_pieces(6))
    assert "examples left out: train 2, validation 0, test 0" in capsys.readouterr().out


def piece(pitches, n_steps=None):
    return {"id": 30, "n_steps": len(pitches) if n_steps is None else n_steps, "pitches": pitches}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (piece([[60], [20]]), r"train.parquet: row 2 \(id 30\), step 1 has pitch 20; .* 21 to 108"),
        (piece([[109], [60]]), r"step 0 has pitch 109"),
        (piece([[60], [60]], n_steps=3), r"train.parquet: row 2 \(id 30\) has n_steps=3 and 2 steps"),
        (piece([]), r"row 2 \(id 30\) has no steps"),
        (piece([[60], [64, 64]]), r"step 1 has a pitch twice: \[64, 64\]"),
        (piece([[60], None]), r"step 1 is missing; a silent step is an empty list"),
    ],
)
def test_bad_pieces_are_named(tmp_path, wrong, message):
    folder = write_music(tmp_path / "music", train=[*make_pieces(2), wrong])
    with pytest.raises(ValueError, match=message) as error:
        load_piano_rolls(str(folder))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("pitches", "kind"),
    [([[60.5], [61.0]], "double"), ([["C4"], ["D4"]], "string"), ([60, 61], "int64"), (60, "int64")],
)
def test_pitches_of_another_kind_are_refused(tmp_path, pitches, kind):
    folder = write_music(tmp_path / "music", validation=[{"id": 0, "n_steps": 2, "pitches": pitches}])
    with pytest.raises(ValueError, match=rf"validation.parquet: column 'pitches' holds .*{kind}.*, which are whole"):
        load_piano_rolls(str(folder))


def test_pieces_longer_than_the_positions_are_refused_before_anything_runs(tmp_path, capsys):
    longest = max(len(one["pitches"]) for rows in load_piano_rolls(str(write_music(tmp_path / "music")))[0].values()
                  for one in rows)  # fmt: skip
    learned = ["--num_attention_heads", "2", "--positions", "learned", "--max_steps", "1", "--disable_tqdm", "true"]

    def train(positions):
        options = [*learned, "--max_position_embeddings", str(positions)]
        name = f"run{positions}"
        argv = music_argv(tmp_path / "music", tmp_path / name, *options, model_type="seq_transformer_decoder")
        return main(argv), (tmp_path / name).exists()

    assert train(longest - 1) == (2, False)
    told = (
        f"pieces have up to {longest} steps and the model {longest - 1} positions; use --positions rotary, or --max_"
    )
    assert told in capsys.readouterr().err
    assert train(longest) == (0, True)


def test_what_is_missing_is_named(tmp_path):
    folder = write_music(tmp_path / "music")
    write_split(folder, "test", [{"id": 0, "n_steps": 2}])
    with pytest.raises(ValueError, match=r"test.parquet: there is no column 'pitches'"):
        load_piano_rolls(str(folder))
    (folder / "test.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no split 'test'"):
        load_piano_rolls(str(folder))
    write_split(folder, "test", [piece([[60]]), piece([[]])])
    with pytest.raises(ValueError, match=r"test.parquet: none of 2 pieces has two steps"):
        load_piano_rolls(str(folder))


def test_pieces_are_cut_for_training_and_every_step_is_predicted_once(tmp_path, capsys):
    folder = write_music(tmp_path / "music")
    whole = load_data(parse(music_argv(folder, tmp_path / "run")))
    data = load_data(parse(music_argv(folder, tmp_path / "run", "--length", "4")))
    assert data.hash == whole.hash and data.windows["test"].to_list() == whole.windows["test"].to_list()
    for piece in whole.windows["train"]:
        parts = [row["pitches"] for row in data.windows["train"] if row["id"] == piece["id"]]
        assert [step for part in parts for step in part[1:]] == piece["pitches"][1:]
        assert all(one[-1] == following[0] for one, following in pairwise(parts))
        assert all(2 <= len(part) <= 4 for part in parts) and parts[0][0] == piece["pitches"][0]
    long = sum(len(piece["pitches"]) > 4 for piece in whole.windows["train"])
    assert data.cut == {"train": long} and 0 < long < 10 and not whole.cut
    record = run(parse(music_argv(folder, tmp_path / "run", "--length", "4", "--disable_tqdm", "true")))
    assert record["targets"] == 2 * sum(len(piece["pitches"]) - 1 for piece in whole.windows["train"])
    assert record["data"]["cut"] == {"train": long} and f"examples cut: train {long}" in capsys.readouterr().out
    assert record["data"]["longest"]["train"] == 4
    with pytest.raises(ConfigError, match="length=1 leaves nothing to predict"):
        load_data(parse(music_argv(folder, tmp_path / "other", "--length", "1")))


@pytest.mark.parametrize("changed", [{"context_loss": "true"}, {"distribution_output": "normal"}])
def test_a_model_with_another_loss_is_refused(tmp_path, changed):
    argv = music_argv(write_music(tmp_path / "music"), tmp_path / "run")
    config = parse([*argv, *(part for name, value in changed.items() for part in (f"--{name}", value))])
    with pytest.raises(ConfigError, match=f"{next(iter(changed))}=.* does not fit piano rolls; it must be"):
        load_data(config)


# ---- batches ----------------------------------------------------------------------------------------------------


def test_collator_divides_and_pads():
    pieces = [{"pitches": [[21], [22], [23]]}, {"pitches": [[108], []]}, {"pitches": [[60]]}]
    batch = PianoRollCollator()(pieces)
    assert {name: tuple(part.shape) for name, part in batch.items()} == {
        "past_values": (3, 1, 88), "future_values": (3, 2, 88), "attention_mask": (3, 3),
    }  # fmt: skip
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert batch["past_values"][:, 0].nonzero().tolist() == [[0, 0], [1, 87], [2, 39]]
    assert batch["future_values"].nonzero().tolist() == [[0, 0, 1], [0, 1, 2]]
    with pytest.raises(ValueError, match="a row has no steps"):
        PianoRollCollator()([{"pitches": []}])
    assert PianoRollCollator()([pieces[2]])["future_values"].shape == (1, 1, 88)  # padding, with nothing to predict


def scored_by_hand(model, pieces) -> tuple[float, int]:
    """Σ over all predicted steps of the binary cross-entropy of 88 keys, piece by piece in float64, and the steps."""
    summed, steps = 0.0, 0
    for one in pieces:
        roll = to_roll(one["pitches"]).astype(np.float64)
        with torch.no_grad():
            (logits,) = model.eval()(past_values=torch.from_numpy(roll[None]).float()).params
        # Parameters at step t are those of step t given the steps before it.
        p = 1 / (1 + np.exp(-logits[0, 1:].double().numpy()))
        summed -= (roll[1:] * np.log(p) + (1 - roll[1:]) * np.log1p(-p)).sum()
        steps += len(roll) - 1
    return summed, steps


def test_the_loss_of_a_batch_is_the_metric():
    torch.manual_seed(0)
    model, pieces = GRUForTimeSeriesPrediction(GRUConfig(hidden_size=8, **ROLLS)).eval(), make_pieces(7)
    batch = PianoRollCollator()(pieces)
    summed, steps = scored_by_hand(model, pieces)
    assert int(model.count_targets(**batch)) == steps == sum(one["n_steps"] - 1 for one in pieces)
    assert model(**batch).loss.item() == pytest.approx(summed / steps, rel=1e-6)
    # Another first step is another condition and no target.
    batch["past_values"] = 1 - batch["past_values"]
    assert int(model.count_targets(**batch)) == steps


def test_a_run_is_scored_over_all_steps_of_all_pieces(tmp_path):
    """Batches of 2, 2 and 1 pieces of different lengths; a mean of batch means would be another number."""
    data = load_data(config := parse(music_argv(write_music(tmp_path / "m"), tmp_path / "run")))
    config.training.per_device_eval_batch_size = 2
    record = run(config, data, quiet=True)
    model = GRUForTimeSeriesPrediction.from_pretrained(tmp_path / "run")
    for split in ("validation", "test"):
        summed, steps = scored_by_hand(model, data.windows[split])
        found = record["metrics"][split]
        assert found["nll"] == found["loss"] == pytest.approx(summed / steps, rel=1e-6)
        assert found["predicted_steps"] == steps
    assert record["targets"] == 2 * sum(len(one["pitches"]) - 1 for one in data.windows["train"])
    assert record["batch_order"]["steps"] == 6


def test_metric_adds_before_it_divides():
    metric = load_metric("nll_per_step")
    assert metric.compute(predictions=[10.0, 2.0], references=[1, 3]) == {"nll": 3.0}
    with pytest.raises(ValueError, match="must be ≥ 0, and one above 0"):
        metric.compute(predictions=[1.0], references=[0])


# ---- the digest -------------------------------------------------------------------------------------------------


def digest(steps: list[list[list[dict]]]) -> str:
    order = BatchOrder()
    for step in steps:
        for number, rows in enumerate(step):
            order.add(PianoRollCollator()(rows), starts_step=number == 0)
    return order.flush(lambda sums: sums)


def test_digest_of_rolls():
    a, b = make_pieces(4), make_pieces(4, seed=1)
    base = digest([[a], [b]])
    assert digest([[a[:1], a[1:]], [b]]) == base  # other padding
    assert digest([[a[::-1]], [b]]) == base
    assert digest([[b], [a]]) != base
    later = [dict(a[0], pitches=[*a[0]["pitches"][:-1], [90]]), *a[1:]]  # only the last step differs
    assert digest([[later], [b]]) != base
    blank = FilledDataset(a)[len(a)]
    assert len(blank["pitches"]) == 1 and digest([[[*a, blank]], [b, [blank]]]) == base
    longer = [dict(a[0], pitches=[*a[0]["pitches"], []]), *a[1:]]  # a silent step is no padding
    assert digest([[longer], [b]]) != base
