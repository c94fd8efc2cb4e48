"""The time that training has taken, over all its resumes, and the end of it."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from .rescale import largest


class TimeLimit(TrainerCallback, ExportableState):
    """Counts the minutes of training (evaluations and saving included) and stops it after a step once they are over.

    There it is evaluated and saved as `eval_strategy` and `save_strategy` have it elsewhere. An evaluation that was
    not due must leave no trace in the training (`unscheduled` says so): a resume with more time goes on as if nothing
    had stopped it, but that the best checkpoint may be the one of the stop, which early stopping compares later ones
    with. The minutes are part of the checkpoint;
    those between the last one and a crash are not counted. Without `max_minutes` it only counts.
    """

    def __init__(self) -> None:
        self.before, self.unscheduled = 0.0, False
        self.stopped_after: float | None = None
        self._start: float | None = None

    @property
    def minutes(self) -> float:
        """Training so far, with what the checkpoint that it was resumed from had."""
        return self.before + (0.0 if self._start is None else (time.perf_counter() - self._start) / 60)

    def state(self) -> dict[str, Any]:
        """For `trainer_state.json`."""
        return {"args": {}, "attributes": {"before": self.minutes}}

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks.get(type(self).__name__) if state.global_step else None
        self.before = saved["attributes"]["before"] if saved else 0.0
        self._start, self.stopped_after, self.unscheduled = time.perf_counter(), None, False
        if args.max_minutes is not None and self.before >= args.max_minutes:
            self.stopped_after, control.should_training_stop = self.before, True

    def on_step_end(self, args, state, control, **kwargs):
        if args.max_minutes is None or state.global_step >= state.max_steps:
            return
        minutes = largest(self.minutes, args.device)
        if minutes < args.max_minutes:
            return
        self.stopped_after, control.should_training_stop = minutes, True
        if args.eval_strategy == IntervalStrategy.STEPS:
            self.unscheduled = not control.should_evaluate
            control.should_evaluate = True
        elif args.eval_strategy == IntervalStrategy.EPOCH:  # Trainer ends the epoch here, and evaluates
            self.unscheduled = state.epoch != int(state.epoch)
        if args.save_strategy == SaveStrategy.STEPS:
            control.should_save = True

    def on_train_end(self, args, state, control, **kwargs):
        self.before, self._start, self.unscheduled = self.minutes, None, False
