"""What of the trainer is about the optimizer: building it, its schedule, its averages, and when it stops."""

from __future__ import annotations

from typing import Any

from transformers import EarlyStoppingCallback, Trainer
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import has_length

from ..arguments import ConfigError, SeqTrainingArguments
from .limit import TimeLimit
from .nt_asgd import NTASGD
from .optim import build_optimizer, build_scheduler
from .rescale import Rescale


class Optimizing(Trainer):
    """`transformers.Trainer` with the optimizers and schedules of `optim.py`, and a limit on its time.

    - An optimizer or a schedule with a method `evaluated` is told the loss of every evaluation that is due.
    - Where the optimizer averages, the averages are evaluated, saved and kept, and training goes on without them.

    Args:
        rescale_to: length of a window for which the learning rate is meant; a step with longer or shorter ones has a
            higher or lower one (see [`Rescale`]). None: all steps have that of the schedule.
        The rest as in `transformers.Trainer`.
    """

    args: SeqTrainingArguments

    def __init__(self, *args: Any, rescale_to: int | None = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._steps_per_epoch: int | None = None
        self._rescale = None if rescale_to is None else Rescale(rescale_to)
        if self._rescale is not None:
            self.add_callback(self._rescale)
        self.add_callback(TimeLimit())

    def create_optimizer(self, model=None):
        """The optimizer of `build_optimizer`, unless one was passed in."""
        if self.optimizer is None:
            trained: Any = self.model if model is None else model
            self.optimizer = build_optimizer(trained, self.args)
        return self.optimizer

    def set_initial_training_values(self, args, dataloader):
        """As in the stock Trainer; the schedule will ask for the steps of an epoch."""
        values = super().set_initial_training_values(args, dataloader)
        self._steps_per_epoch = values[1] if has_length(dataloader) else None
        return values

    def create_scheduler(self, num_training_steps: int, optimizer=None):
        """The schedule of `build_scheduler`, unless one was passed in."""
        if self.lr_scheduler is None:
            optimizer = optimizer or self.create_optimizer()
            scheduler = build_scheduler(optimizer, self.args, num_training_steps, self._steps_per_epoch)
            self.lr_scheduler = scheduler  # type: ignore[assignment]
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As in the stock Trainer; the length of the batch is noted."""
        if self._rescale is not None:
            self._rescale.read(inputs)
        return super().training_step(model, inputs, num_items_in_batch)

    def _run_epoch(self, *args, **kwargs):
        if not self.control.should_training_stop:  # a resumed run may have no time left
            super()._run_epoch(*args, **kwargs)
        self._show_averages()  # this may have been the last epoch, and they are the model

    def _evaluate(self, trial, ignore_keys_for_eval, skip_scheduler=False):
        """As in the stock Trainer; optimizer and schedule hear the loss, unless the evaluation was not due."""
        skip_scheduler = skip_scheduler or self._clock.unscheduled
        waited = [stopper.early_stopping_patience_counter for stopper in self._stoppers]
        metrics = super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)
        if self._clock.unscheduled:
            for stopper, count in zip(self._stoppers, waited, strict=True):
                stopper.early_stopping_patience_counter = count
        listeners: tuple[Any, ...] = () if skip_scheduler else (self._bare_optimizer, self.lr_scheduler)
        for listener in listeners:
            if hasattr(listener, "evaluated"):
                listener.evaluated(_loss(metrics))
        return metrics

    def _load_callback_state(self):
        """As in the stock Trainer, which forgets how long early stopping has waited unless told otherwise."""
        super()._load_callback_state()
        held: Any = self.state.stateful_callbacks
        saved = held.get(EarlyStoppingCallback.__name__, [])
        states = saved if isinstance(saved, list) else [saved]
        for stopper, state in zip(self._stoppers, states, strict=False):
            for name, value in state.get("attributes", {}).items():
                setattr(stopper, name, value)

    def _save_checkpoint(self, model, trial):
        self._show_averages()
        states: Any = self.state.stateful_callbacks
        for callback in self.callback_handler.callbacks:  # Trainer fails over those that a resumed checkpoint had not
            if isinstance(callback, ExportableState):
                states.setdefault(type(callback).__name__, {})
        super()._save_checkpoint(model, trial)

    def _show_averages(self) -> None:
        optimizer: Any = self.optimizer
        if hasattr(optimizer, "eval"):
            optimizer.eval()

    @property
    def _bare_optimizer(self) -> Any:
        """Without the wrapper that accelerate puts around it."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    @property
    def _stoppers(self) -> list[EarlyStoppingCallback]:
        callbacks = self.callback_handler.callbacks
        return [callback for callback in callbacks if isinstance(callback, EarlyStoppingCallback)]

    @property
    def _clock(self) -> TimeLimit:
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, TimeLimit))

    def pace(self) -> dict[str, Any]:
        """Minutes of training with those before a resume, those after which the limit stopped it, and averages."""
        found: dict[str, Any] = {"training_minutes": round(self._clock.minutes, 3)}
        if self._clock.stopped_after is not None:
            found["stopped_after_minutes"] = round(self._clock.stopped_after, 3)
        if isinstance(self._bare_optimizer, NTASGD):
            found["averaged_iterates"] = self._bare_optimizer.averaged
        return found


def _loss(metrics: dict[str, float]) -> float:
    if "eval_loss" not in metrics:
        raise ConfigError("nt_asgd and plateau follow the loss of one evaluation set: give one, with labels")
    return metrics["eval_loss"]
