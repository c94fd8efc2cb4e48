"""The trainer: `transformers.Trainer` with our optimizer, exact token means, and a record of what really ran."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
)
from transformers.loss.loss_utils import ForCausalLMLoss

from ..arguments import ConfigError, SeqTrainingArguments
from ..data import StreamDataset, StreamedText
from ..metrics import load_metric
from .batches import BatchOrder, BatchSampler, FilledDataset, has_rolls
from .micro_batch import Fitting
from .optimizing import Optimizing
from .probing import LossKind
from .progress import LogFile, Progress
from .pushing import Pushing
from .resume import check_checkpoint, newest_checkpoint
from .stateful import CarriedState, StreamSampler, check_rows
from .streamed import streamed_loader
from .watch import Watch, check_processes, wrapper_name


class TrainingDiverged(RuntimeError):
    """The loss or a weight is NaN or infinite: one line that names the step."""


class SeqTrainer(Optimizing, Fitting, Pushing):
    """Trains any model of transformers whose loss takes `num_items_in_batch`; others train as in the stock Trainer
    (`set_loss_kind` says of those that take it and ignore it).

    - The training loss is the mean over all targets of the global batch, for any accumulation and process count.
      Targets are labels that are not −100; heads whose targets are others (rows, steps, pixels) have a method
      `count_targets(**batch)`, which is asked. With these, but for piano rolls, several processes repeat samples in an
      epoch's last batch if it is not full, as in the stock Trainer.
    - The evaluation loss is the mean over all targets of the data set (not of batch means), in nats; causal language
      models also get `eval_bits_per_token`.
    - The processes, the wrapper and the device are compared with what was asked for.
    - A loss that is not finite stops the run within one step, and broken weights are never saved.
    - Nothing is written but the model, its tokenizer and the checkpoints; the model card is not the Trainer's.
    - Optimizers, schedules and the limit on time are those of [`Optimizing`].
    - What is pushed holds no pickle, and no push fails unheard (see [`Pushing`]).

    Args:
        log_file: every logged line is appended to it as JSON, by the first process only.
        quiet: no progress bar and no printed lines.
        rescale_to: as in [`Optimizing`].
        The rest as in `transformers.Trainer`.

    Raises:
        ConfigError: another number of processes than asked for, or (from `train`) another wrapper or device.
    """

    args: SeqTrainingArguments
    model: PreTrainedModel

    def __init__(
        self,
        model: PreTrainedModel,
        args: SeqTrainingArguments,
        log_file: Path | None = None,
        quiet: bool = False,
        **kwargs: Any,
    ):
        if quiet:
            args.disable_tqdm = True
        if args.n_gpu > 1:
            args._n_gpu = 1  # one process trains on one GPU; nn.DataParallel would divide batches behind our back
        args.dataloader_pin_memory = args.dataloader_pin_memory and args.device.type == "cuda"
        self._config_use_cache = getattr(model.config, "use_cache", None)
        super().__init__(model=model, args=args, **kwargs)
        self._count_targets = None if self.compute_loss_func else getattr(self.model, "count_targets", None)
        if self._count_targets is not None:
            self.model_accepts_loss_kwargs = True  # said to be False to trainers that could not count
        self._set_use_cache(self._config_use_cache)  # the stock constructor turns it off in the config that is saved
        self._loss_shifts_labels = self.shifts_labels  # the stock test knows class names only, and not GPT-2's
        check_processes(self.accelerator.num_processes, args)
        if quiet:
            self.remove_callback(PrinterCallback)
        elif not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(Progress())
        if args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(args.early_stopping_patience, args.early_stopping_threshold))
        if log_file is not None:
            self.add_callback(LogFile(log_file))
        self.add_callback(Watch(self, quiet))
        self.batch_order = BatchOrder()
        self._starts_step, self.resumed_at_step = True, 0
        self.notes: dict[str, Any] = {}  # what else the record says: a fallback, another micro-batch
        self._last_loss: tuple[int, torch.Tensor] | None = None
        self._targets, self.step_seconds = torch.zeros((), dtype=torch.int64, device=args.device), 0.0
        # Sums of long evaluations want 64 bits; Apple's GPUs have no such numbers.
        exact = torch.float32 if args.device.type == "mps" else torch.float64
        self._mean_loss = False  # of the targets of a batch, whatever number it is given
        self._evaluated = torch.zeros(2, dtype=exact, device=args.device)
        self.evaluated = (0.0, 0)  # summed loss and number of targets of the last evaluation
        self._micro = 0  # number of the micro-batch within its step
        self.carried = CarriedState(self.model) if args.carry_state else None
        self.carried_in_evaluation = CarriedState(self.model) if args.carry_state else None
        self._has_rolls = any(has_rolls(dataset) for dataset in (self.train_dataset, self.eval_dataset))
        if self._fills and isinstance(self.train_dataset, Sized):
            self.train_dataset = FilledDataset(self.train_dataset)
        if args.push_to_hub:
            self.init_hf_repo()

    # ---- batches ------------------------------------------------------------------------------------------------

    @property
    def _fills(self) -> bool:
        """Whether samples without targets even out the last batch: they cost nothing in a sum, but upset a mean."""
        several = self.accelerator.num_processes > 1 and not isinstance(self.train_dataset, StreamDataset)
        return several and self.model_accepts_loss_kwargs and (self._count_targets is None or self._has_rolls)

    def _sampler(self, dataset: Any, batch_size: int, seed: int | None) -> BatchSampler | None:
        if not isinstance(dataset, Sized):
            return None
        fill = -len(dataset) % (batch_size * self.accelerator.num_processes) if self._fills else 0
        return BatchSampler(len(dataset), fill, seed, epoch=lambda: int(self.state.epoch or 0))

    def _get_train_sampler(self, train_dataset=None):
        if isinstance(self.train_dataset, StreamDataset):
            micro_batches = self.args.gradient_accumulation_steps * self.accelerator.num_processes
            check_rows(self.train_dataset, self._train_batch_size * micro_batches)
            return StreamSampler(len(self.train_dataset), epoch=lambda: int(self.state.epoch or 0))
        if self.args.train_sampling_strategy != "random":
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return self._sampler(
            self.train_dataset if train_dataset is None else train_dataset, self._train_batch_size, seed
        )

    def _get_eval_sampler(self, eval_dataset):
        if isinstance(eval_dataset, StreamDataset):
            check_rows(eval_dataset, self.args.eval_batch_size * self.accelerator.num_processes)
        return self._sampler(eval_dataset, self.args.eval_batch_size, seed=None)

    def get_train_dataloader(self):
        """As in the stock Trainer; what is read as it comes is divided over the processes in a way of its own."""
        if isinstance(self.train_dataset, StreamedText):
            return streamed_loader(self, self.train_dataset)
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset=None):
        """As in the stock Trainer; with several processes the last batch is evened out without targets."""
        if eval_dataset is None or isinstance(eval_dataset, str):
            held = self.eval_dataset
            eval_dataset = held[eval_dataset] if isinstance(held, dict) and eval_dataset is not None else held
        if self._fills and isinstance(eval_dataset, Sized):
            eval_dataset = FilledDataset(eval_dataset)
        return super().get_eval_dataloader(eval_dataset)

    # ---- training -----------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint=None, *args, **kwargs):
        """As in the stock Trainer.

        Raises:
            ConfigError: nothing to resume from (or more than tensors), or the model is not wrapped as asked for.
            TrainingDiverged: the loss or a weight is not finite.
            PushFailed: training is done, and a push on the way failed.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = newest_checkpoint(self._folder)
            if resume_from_checkpoint is None:
                raise ConfigError(f"there is no checkpoint in '{self._folder}' to resume from")
        if resume_from_checkpoint:
            check_checkpoint(Path(resume_from_checkpoint))
            self.batch_order.load(Path(resume_from_checkpoint))
            if self.carried is not None:
                place = self.accelerator.process_index, self.accelerator.num_processes
                sizes = self.args.gradient_accumulation_steps, self._train_batch_size
                self.carried.load(Path(resume_from_checkpoint), *place, *sizes)
        with self._without_cache():
            output = super().train(resume_from_checkpoint, *args, **kwargs)
        self._check_loss()
        self.batch_order.flush(self._add_across_processes)
        self.raise_failed_pushes()
        return output

    def _run_epoch(self, *args, **kwargs):
        """Nothing, where a resumed run has all its steps already: the stock trainer would take one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """One micro-step: the batch is counted into the digest, the loss checked (one step later, to save a sync)."""
        self.batch_order.add(inputs, self._starts_step)
        if self._starts_step and num_items_in_batch is not None:
            self._targets += num_items_in_batch.sum().to(torch.int64)
        self._micro = 0 if self._starts_step else self._micro + 1
        self._starts_step = self.accelerator.sync_gradients
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.carried is not None:
            self.carried.detach()
        self._check_loss()
        self._last_loss = (self.state.global_step + 1, loss)
        return loss

    def _get_num_items_in_batch(self, batch_samples, device):
        """As in the stock Trainer, which knows only labels: of all micro-batches of a step, and of all processes."""
        if self._count_targets is None or not batch_samples:
            return super()._get_num_items_in_batch(batch_samples, device)
        count = sum(self._count_targets(**batch) for batch in batch_samples).to(device)
        return self._add_across_processes(count) if self.args.average_tokens_across_devices else count

    @property
    def _folder(self) -> str:
        return str(self.args.output_dir)

    def _check_loss(self) -> None:
        if self._last_loss is None:
            return
        (step, loss), self._last_loss = self._last_loss, None
        if not torch.isfinite(loss).all():
            raise TrainingDiverged(
                f"step {step}: the loss is {loss.item()}; lower learning_rate (it is {self.args.learning_rate}) or "
                f"max_grad_norm (it is {self.args.max_grad_norm}); nothing was saved after step {self._last_saved()}"
            )

    def _check_weights(self) -> None:
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise TrainingDiverged(
                    f"step {self.state.global_step}: weight {name} is not finite; lower learning_rate (it is "
                    f"{self.args.learning_rate}); nothing was saved after step {self._last_saved()}"
                )

    def _last_saved(self) -> int:
        newest = newest_checkpoint(self._folder)
        return int(newest.rpartition("-")[2]) if newest else 0

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        """As in the stock Trainer, after a check that the last loss was finite."""
        self._check_loss()
        super().log(logs, *args, **kwargs)

    def _add_across_processes(self, sums: torch.Tensor) -> torch.Tensor:
        return self.accelerator.reduce(sums, reduction="sum")

    # ---- evaluation ---------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None, **kwargs):
        """In training the stock loss; in evaluation the summed loss is kept for `evaluation_loop`."""
        if "starts" in inputs:
            carried = self.carried if model.training else self.carried_in_evaluation
            if carried is None:
                inputs = {name: value for name, value in inputs.items() if name != "starts"}
            else:
                inputs = carried.attach(inputs, self._micro if model.training else 0)
        counts = self._count_targets is not None  # then several processes repeat samples, which a sum would hold twice
        whole = self.accelerator.num_processes == 1 or self._fills
        means = self._mean_loss and self.accelerator.num_processes == 1
        sums = whole if counts else (self.model_accepts_loss_kwargs or means) and "labels" in inputs
        if model.training or not sums:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch, **kwargs)
        count = {} if means else {"num_items_in_batch": torch.ones((), device=self.args.device)}
        outputs = model(**inputs, **count)
        targets = self._count_targets(**inputs) if self._count_targets is not None else self._count_labels(inputs)
        summed = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
        if means:  # of no targets it is NaN
            summed = torch.where(targets > 0, summed * targets, 0.0)
        self._evaluated += torch.stack([summed.detach(), targets]).to(self._evaluated)
        loss = summed / targets.clamp(min=1)
        return (loss, outputs) if return_outputs else loss

    def set_loss_kind(self, kind: LossKind) -> None:
        """Say what the model's loss is, where its `forward` alone does not show it."""
        self.model_accepts_loss_kwargs = kind is LossKind.COUNTED
        self._mean_loss = kind is LossKind.MEAN

    def _count_labels(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        shifted = inputs.get("shift_labels")
        labels = inputs["labels"] if shifted is None else shifted
        labels = labels[..., 1:] if shifted is None and self.shifts_labels else labels
        return labels.ne(-100).sum()

    @property
    def shifts_labels(self) -> bool:
        """Whether the loss shifts the labels, so that the first one of a row is no target."""
        if self._count_targets is not None:
            return False
        model = self.accelerator.unwrap_model(self.model)
        return model.loss_function is ForCausalLMLoss and not model.config.is_encoder_decoder

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """As in the stock Trainer; the loss is the mean over all targets, and training's random numbers stay."""
        self._check_loss()
        devices = [torch.cuda.current_device()] if self.args.device.type == "cuda" else []
        with self._without_cache(), torch.random.fork_rng(devices=devices):  # data loaders draw a seed each
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, dataloader, description, *args, **kwargs):
        """The stock loop, with the loss replaced by summed loss / number of targets over all processes."""
        self._evaluated.zero_()
        if self.carried_in_evaluation is not None:
            self.carried_in_evaluation.reset()
        output = super().evaluation_loop(dataloader, description, *args, **kwargs)
        summed, targets = self.accelerator.reduce(self._evaluated, reduction="sum").tolist()
        self.evaluated = (summed, int(targets))
        if targets:
            prefix = kwargs.get("metric_key_prefix", "eval")
            found = {"loss": summed / targets}
            if self.shifts_labels:
                scores = load_metric("bits_per_token").compute(predictions=[summed], references=[int(targets)])
                found |= {"bits_per_token": scores["bits_per_token"], "tokens": int(targets)}
            assert output.metrics is not None
            output.metrics.update({f"{prefix}_{name}": value for name, value in found.items()})
        return output

    # ---- saving -------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model, trial):
        self._check_loss()
        self._check_weights()
        self.batch_order.flush(self._add_across_processes)
        folder = Path(self._folder) / f"checkpoint-{self.state.global_step}"
        if self.carried is not None:
            self.carried.save(folder, self.accelerator.process_index)
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            self.batch_order.save(folder)
        super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Model and tokenizer, by the first process; the config says `use_cache` as it was before training."""
        self._check_weights()
        during = getattr(self.model.config, "use_cache", None)
        self._set_use_cache(self._config_use_cache)
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            self._set_use_cache(during)

    def _set_use_cache(self, value: bool | None) -> None:
        if value is not None:
            self.model.config.use_cache = value

    @contextlib.contextmanager
    def _without_cache(self) -> Iterator[None]:
        """Training and evaluation need no state from the model."""
        before = getattr(self.model.config, "use_cache", None)
        self._set_use_cache(None if before is None else False)
        try:
            yield
        finally:
            self._set_use_cache(before)

    # ---- what really ran ----------------------------------------------------------------------------------------

    def wrapper(self) -> str:
        """The class around the model in training, or "none"."""
        return wrapper_name(self.model, self.model_wrapped)

    def record(self) -> dict[str, Any]:
        """World size, wrapper, device, precision, speed, the digest of the batches learned from, and `pace()`.

        `step_seconds` is the time inside the steps of this process's `train`: no evaluation, saving or data loading.
        After a resume `targets` and `step_seconds` count the steps since `resumed_at_step`, the digest all of them.
        """
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        return {
            "world_size": self.accelerator.num_processes,
            "wrapper": self.wrapper(),
            "backend": torch.distributed.get_backend() if distributed else None,
            "device": str(self.args.device.type),
            "mixed_precision": self.accelerator.mixed_precision,
            "batch_order": self.batch_order.record(),
            "targets": int(self._targets),
            "step_seconds": round(self.step_seconds, 3),
            "targets_per_second": round(int(self._targets) / self.step_seconds, 1) if self.step_seconds else None,
            **self.pace(),
            **({"resumed_at_step": self.resumed_at_step} if self.resumed_at_step else {}),
            **self.notes,
        }
