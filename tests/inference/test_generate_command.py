"""`hf-seqmodels generate`: music as MIDI files, text, and options that do not fit in one line."""

from __future__ import annotations

from pathlib import Path

import mido
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from hf_seqmodels import LSTMConfig, LSTMForCausalLM, LSTMForTimeSeriesPrediction, TransformerConfig
from hf_seqmodels.config import parse
from hf_seqmodels.data import build_character_tokenizer, to_roll
from hf_seqmodels.data.midi import read_midi, write_midi
from hf_seqmodels.generate import main
from hf_seqmodels.models import ARCHITECTURES
from hf_seqmodels.run import run
from music_cases import ROLLS, make_pieces, music_argv, write_music

# ---- rolls and MIDI -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.02, 0.5, 0.0])
def test_a_roll_survives_the_way_there_and_back(tmp_path, density):
    """Both ends of the keyboard, notes through many steps, silence at the beginning, inside and at the end."""
    roll = (np.random.default_rng(0).random((50, 88)) < density).astype(np.float32)
    roll[:2] = roll[20:23] = roll[-3:] = 0
    write_midi(roll, tmp_path / "a.mid")
    assert np.array_equal(read_midi(tmp_path / "a.mid"), roll)


def test_steps_are_quarter_notes_and_what_goes_on_is_held(tmp_path):
    write_midi(to_roll([[60, 64], [60], [], [60]]), tmp_path / "a.mid", tempo=120)
    midi = mido.MidiFile(tmp_path / "a.mid")
    assert midi.length == pytest.approx(4 * 0.5)
    played = [(m.type, m.note, m.time) for m in midi.tracks[0] if m.type.startswith("note")]
    assert played == [
        ("note_on", 60, 0), ("note_on", 64, 0), ("note_off", 64, 480), ("note_off", 60, 480),
        ("note_on", 60, 480), ("note_off", 60, 480),
    ]  # fmt: skip


def test_reads_what_others_write(tmp_path):
    """Notes off the grid, two tracks, a note struck with velocity 0 that ends it, and one never let go."""
    file, message = mido.MidiFile(ticks_per_beat=96), mido.Message
    one = [message("note_on", note=60, time=10), message("note_on", note=60, velocity=0, time=180)]
    other = [message("note_on", note=72, channel=1, time=96), mido.MetaMessage("end_of_track", time=290)]
    file.tracks += [mido.MidiTrack(one), mido.MidiTrack(other)]
    file.save(tmp_path / "a.mid")
    assert np.array_equal(read_midi(tmp_path / "a.mid"), to_roll([[60], [60, 72], [72], [72]]))


def test_two_tracks_may_hold_the_same_key_and_eighths_share_steps(tmp_path):
    message = mido.Message
    held = [message("note_on", note=60), message("note_off", note=60, time=4 * 96)]
    short = [message("note_on", note=60), message("note_off", note=60, time=96), message("note_on", note=64, time=96)]
    file = mido.MidiFile(ticks_per_beat=96)
    file.tracks += [mido.MidiTrack(held), mido.MidiTrack(short)]
    file.save(tmp_path / "held.mid")
    assert np.array_equal(read_midi(tmp_path / "held.mid"), to_roll([[60], [60], [60, 64], [60, 64]]))
    eighths = mido.MidiTrack()
    for note in range(60, 68):
        eighths += [message("note_on", note=note), message("note_off", note=note, time=48)]
    file = mido.MidiFile(ticks_per_beat=96)
    file.tracks.append(eighths)
    file.save(tmp_path / "eighths.mid")
    assert np.array_equal(read_midi(tmp_path / "eighths.mid"), to_roll([[60], [61, 62], [63, 64], [65, 66], [67]]))


def broken_files() -> dict[str, tuple[bytes | mido.MidiTrack, str]]:
    def track(**options):
        return mido.MidiTrack([mido.Message("note_on", **options), mido.MetaMessage("end_of_track", time=480)])

    return {
        "empty": (b"", "is no MIDI file"),
        "text": (b"not a MIDI file", "is no MIDI file"),
        "cut": (b"MThd\x00\x00\x00\x06\x00\x01\x00\x01\x01\xe0MTrk\x00\x00\x00\xff\x00", "is no MIDI file"),
        "frames": (b"MThd\x00\x00\x00\x06\x00\x01\x00\x00\xe7\x28", "counts time in frames"),
        "low": (track(note=20), "pitch 20; a piano's keys are MIDI's 21 to 108"),
        "drums": (track(note=40, channel=9), "has percussion"),
        "long": (track(note=60, time=2**27), "has 279,621 quarter notes"),
        "silent": (mido.MidiTrack(), "has 0 quarter notes"),
    }


@pytest.mark.parametrize("name", broken_files())
def test_bad_files_are_refused_in_one_line(tmp_path, name):
    content, message = broken_files()[name]
    if isinstance(content, bytes):
        (tmp_path / "a.mid").write_bytes(content)
    else:
        mido.MidiFile(ticks_per_beat=480, tracks=[content]).save(tmp_path / "a.mid")
    with pytest.raises(ValueError, match=message) as error:
        read_midi(tmp_path / "a.mid")
    assert "\n" not in str(error.value)


# ---- music ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("music")
    argv = music_argv(write_music(folder / "data"), folder / "run", "--num_train_epochs", "60")
    run(parse([*argv, "--learning_rate", "3e-2"]), quiet=True)
    return folder


def test_music_goes_on_from_a_piece_of_the_data(trained, tmp_path, capsys):
    out = tmp_path / "a.mid"
    argv = [str(trained / "run"), "--prompt", "test:1", "--output", str(out), "--steps", "12"]
    assert main(argv) == 0
    piece = make_pieces(3, seed=2)[1]["pitches"]
    roll = read_midi(out)
    assert len(roll) == len(piece) + 12 and np.array_equal(roll[: len(piece)], to_roll(piece))
    told = capsys.readouterr().out
    assert f"{len(piece)} steps of prompt and 12 written, with {roll[len(piece) :].sum() / 12:.2f} keys a step" in told
    assert roll[len(piece) :].any() and not roll[:, :20].any(), "it learned where the voices are"
    # The same seed, the same music; another seed, another piece; and a part of the prompt.
    assert main([*argv[:-3], str(tmp_path / "b.mid"), "--steps", "12"]) == 0
    assert main([*argv[:-3], str(tmp_path / "c.mid"), "--steps", "12", "--seed", "1"]) == 0
    assert main([*argv[:-3], str(tmp_path / "d.mid"), "--steps", "3", "--prompt_steps", "2"]) == 0
    assert (tmp_path / "b.mid").read_bytes() == out.read_bytes() != (tmp_path / "c.mid").read_bytes()
    assert np.array_equal(read_midi(tmp_path / "d.mid")[:2], to_roll(piece[:2]))
    assert len(read_midi(tmp_path / "d.mid")) == 5


def test_music_without_a_prompt_and_from_a_file(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([str(trained / "run"), "--steps", "4"]) == 0
    assert np.array_equal(read_midi("run.mid")[0], to_roll([[48, 55, 64, 72]])[0]) and len(read_midi("run.mid")) == 5
    assert main([str(trained / "run"), "--steps", "4"]) == 2  # the name is taken
    assert "'run.mid' is there already" in capsys.readouterr().err
    assert (
        main([str(trained / "run"), "--steps", "4", "--prompt", "run.mid", "--output", "on.mid", "--tempo", "60"]) == 0
    )
    assert np.array_equal(read_midi("on.mid")[:5], read_midi("run.mid")) and mido.MidiFile("on.mid").length == 9


def test_temperature_divides_the_log_odds(tmp_path):
    """A model without memory, whose bias alone says how likely each key is."""
    torch.manual_seed(0)
    model = LSTMForTimeSeriesPrediction(LSTMConfig(hidden_size=4, **ROLLS))
    with torch.no_grad():
        for parameter in model.parameter_projection.parameters():
            parameter.fill_(-2.0 if parameter.ndim == 1 else 0.0)
        next(p for p in model.parameter_projection.parameters() if p.ndim == 1)[40] = 2.0
    model.save_pretrained(tmp_path / "model")
    rates = {}
    for temperature in ("0", "1", "4"):
        out = tmp_path / f"{temperature}.mid"
        argv = [str(tmp_path / "model"), "--output", str(out), "--steps", "500", "--temperature", temperature]
        assert main(argv) == 0
        rates[temperature] = read_midi(out)[1:].mean(0)
    assert rates["0"][40] == 1 and rates["0"].sum() == 1
    for temperature in (1, 4):
        expected = torch.sigmoid(torch.tensor([2.0, -2.0]) / temperature).tolist()
        found = rates[str(temperature)]
        assert found[40] == pytest.approx(expected[0], abs=0.05)
        assert np.delete(found, 40).mean() == pytest.approx(expected[1], abs=0.01)


@pytest.mark.parametrize("architecture", ["seq_attention_rnn", "seq_transformer_decoder"])
def test_other_architectures_write_music(tmp_path, architecture):
    """Their caches hold keys and values, not one state."""
    options = {"num_attention_heads": 2} if "transformer" in architecture else {}
    entry = ARCHITECTURES[architecture]
    model = entry.models["time-series-prediction"](entry.config(hidden_size=8, **options, **ROLLS))
    model.save_pretrained(tmp_path / "model")
    assert main([str(tmp_path / "model"), "--output", str(tmp_path / "a.mid"), "--steps", "6"]) == 0
    assert len(read_midi(tmp_path / "a.mid")) == 7


# ---- text -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writer(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "model"
    tokenizer = build_character_tokenizer(["abcdef ghij"])
    torch.manual_seed(0)
    model = LSTMForCausalLM(LSTMConfig(vocab_size=len(tokenizer), hidden_size=8, pad_token_id=0, eos_token_id=2))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_text_goes_on_from_the_prompt(writer, tmp_path, capsys):
    argv = [str(writer), "--prompt", "abc", "--max_new_tokens", "9", "--temperature", "0"]
    assert main(argv) == 0
    text = capsys.readouterr().out[:-1]
    model, tokenizer = LSTMForCausalLM.from_pretrained(writer), AutoTokenizer.from_pretrained(writer)
    ids = tokenizer("abc", return_tensors="pt").input_ids
    for _ in range(9):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
        if ids[0, -1] == 2:
            break
    assert text == tokenizer.decode(ids[0], skip_special_tokens=True) and text.startswith("abc")
    assert main([*argv, "--output", str(tmp_path / "text.txt")]) == 0
    assert (tmp_path / "text.txt").read_text() == text and f"{len(text)} characters" in capsys.readouterr().out


def test_text_is_drawn_by_seed_and_begins_without_a_prompt(writer, capsys):
    drawn = []
    for seed in ("0", "0", "1"):
        assert main([str(writer), "--max_new_tokens", "30", "--seed", seed]) == 0
        drawn.append(capsys.readouterr().out)
    assert drawn[0] == drawn[1] != drawn[2]


# ---- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "argv", "message"),
    [
        ("text", ["--steps", "4"], "--steps is for music, and "),
        ("text", ["--tempo", "90"], "--tempo is for music"),
        ("music", ["--max_new_tokens", "4"], "--max_new_tokens is for text, and "),
        ("music", ["--steps", "0"], "--steps 0 is out of range: it must be 1 to 100,000"),
        ("music", ["--tempo", "nan"], "--tempo nan is out of range"),
        ("music", ["--temperature", "-1"], "--temperature -1.0 is out of range"),
        ("music", ["--seed", "-1"], "--seed -1 is out of range"),
        ("music", ["--prompt", "test:3"], "the split has 3 pieces, 0 to 2"),
        ("music", ["--prompt", "dev:0"], "--prompt dev:0: the split must be one of train, validation, test"),
        ("music", ["--prompt", "gone.mid"], "no MIDI file at 'gone.mid'"),
        ("music", ["--prompt_steps", "2"], "--prompt_steps says how much of --prompt is read"),
        ("music", ["--data", "x"], "--data is where a --prompt SPLIT:ROW is read from"),
        ("music", ["--prompt", "gone.mid", "--data_dir", "/x"], "--data_dir is where a --prompt SPLIT:ROW is read"),
        ("music", ["--prompt", "test:0", "--prompt_steps", "99"], "--prompt_steps 99 is more than the"),
        ("music", ["--output", "no/such/folder/a.mid"], "the folder of --output"),
        ("nothing", [], "is no folder here and no name of a repository"),
        ("absent", [], "'absent' is no folder here and cannot be had from the Hub; check the name ("),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_in_one_line(trained, writer, tmp_path, monkeypatch, capsys, kind, argv, message):
    monkeypatch.chdir(tmp_path)
    model = {"text": writer, "music": trained / "run", "nothing": tmp_path / "nothing", "absent": "absent"}[kind]
    assert main([str(model), *argv]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1 and not list(tmp_path.iterdir())


def test_models_of_other_kinds_are_refused(tmp_path, capsys):
    series = LSTMForTimeSeriesPrediction(LSTMConfig(hidden_size=4, num_features=2))
    both = ARCHITECTURES["seq_transformer"].models["seq2seq-lm"](
        TransformerConfig(vocab_size=9, hidden_size=8, num_attention_heads=2)
    )
    for model, message in ((series, "draws no piano rolls"), (both, "writes neither text nor music")):
        model.save_pretrained(tmp_path / "model")
        assert main([str(tmp_path / "model")]) == 2
        assert message in capsys.readouterr().err
