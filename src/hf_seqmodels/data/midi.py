"""Piano rolls as MIDI files, and back.

A roll has no clock: a step of the JSB chorales is a quarter note, and so is a step in the files written here. What
sounds in two steps running is one held note, since a roll does not tell it from one struck again.
"""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import mido
import numpy as np

from .music import HIGHEST, KEYS, LOWEST

TICKS = 480  # in a quarter note, which is a step
TEMPO = 100  # quarter notes a minute
VELOCITY, PERCUSSION = 80, 9
MOST_STEPS = 100_000  # that are read


def write_midi(roll: np.ndarray, path: str | Path, tempo: float = TEMPO) -> None:
    """Write a roll (T, 88) as one track of a piano, which lasts T quarter notes, silence at its end included.

    Args:
        tempo: quarter notes, which are steps, a minute.
    """
    roll = np.asarray(roll) > 0
    silent = np.zeros((1, KEYS), dtype=bool)
    sounding, before = np.concatenate([roll, silent]), np.concatenate([silent, roll])
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=mido.bpm2tempo(tempo))])
    written = 0  # steps that the track has reached
    for step in range(len(sounding)):
        # Keys are let go before others are struck.
        for kind, keys in (("note_off", before & ~sounding), ("note_on", sounding & ~before)):
            for key in np.flatnonzero(keys[step]):
                delta, written = (step - written) * TICKS, step
                track.append(mido.Message(kind, note=int(key) + LOWEST, velocity=VELOCITY, time=delta))
    track.append(mido.MetaMessage("end_of_track", time=(len(roll) - written) * TICKS))
    mido.MidiFile(ticks_per_beat=TICKS, tracks=[track]).save(path)


def read_midi(path: str | Path) -> np.ndarray:
    """The roll (T, 88) float32 of a MIDI file, one step for each quarter note.

    A note sounds from the step nearest to its beginning to the step nearest to its end, and in one step at least.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no MIDI file, one whose time is not counted in quarter notes, percussion, a pitch that a piano has
            not, no step or too many.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no MIDI file at '{path}'; check the path")
    try:
        midi = mido.MidiFile(file=io.BytesIO(file.read_bytes()), clip=True)
        tracks = [_timed(track, place) for place, track in enumerate(midi.tracks)]
    except Exception as error:  # mido has errors of many kinds for broken files
        raise ValueError(f"'{path}' is no MIDI file ({type(error).__name__}: {error}); give another") from None
    if not 0 < midi.ticks_per_beat < 0x8000:
        raise ValueError(f"'{path}' counts time in frames; a step is a quarter note, so give a file that has them")
    now, notes = 0, []
    struck: dict[tuple[int, int, int], int] = {}
    for now, place, message in sorted(itertools.chain(*tracks), key=lambda found: found[0]):
        if message.type not in ("note_on", "note_off"):
            continue
        _check_note(message, path)
        key = (place, message.channel, message.note)  # two hands may hold the same key
        if key in struck:
            notes.append((message.note, struck.pop(key), now))
        if message.type == "note_on" and message.velocity:
            struck[key] = now
    notes += [(note, start, now) for (_, _, note), start in struck.items()]
    return _roll_of(notes, now, midi.ticks_per_beat, path)


def _timed(track: mido.MidiTrack, place: int) -> list[tuple[int, int, mido.Message]]:
    """(tick, track, message), in their order."""
    ticks = itertools.accumulate(message.time for message in track)
    return [(tick, place, message) for tick, message in zip(ticks, track, strict=True)]


def _check_note(message: mido.Message, path: str | Path) -> None:
    if message.channel == PERCUSSION:
        raise ValueError(f"'{path}' has percussion (channel 10), which has no pitches; take it out")
    if not LOWEST <= message.note <= HIGHEST:
        raise ValueError(
            f"'{path}' has pitch {message.note}; a piano's keys are MIDI's {LOWEST} to {HIGHEST}; transpose it"
        )


def _step(tick: int, ticks: int) -> int:
    """The nearest step; from the middle between two the later one, so that two eighths share each step."""
    return (2 * tick + ticks) // (2 * ticks)


def _roll_of(notes: list[tuple[int, int, int]], end: int, ticks: int, path: str | Path) -> np.ndarray:
    """Notes as (pitch, begin, end) in ticks → (T, 88)."""
    spans = [(note, _step(start, ticks), _step(stop, ticks)) for note, start, stop in notes]
    length = max([_step(end, ticks), *(max(stop, start + 1) for _, start, stop in spans)])
    if not 1 <= length <= MOST_STEPS:
        raise ValueError(f"'{path}' has {length:,} quarter notes; 1 to {MOST_STEPS:,} are read; give another file")
    roll = np.zeros((length, KEYS), dtype=np.float32)
    for note, start, stop in spans:
        roll[start : max(stop, start + 1), note - LOWEST] = 1
    return roll
