"""Training: a `transformers.Trainer` that counts tokens right and says what it really ran on."""

from .optim import build_optimizer, build_scheduler
from .pushing import PushFailed
from .trainer import SeqTrainer, TrainingDiverged

__all__ = ["PushFailed", "SeqTrainer", "TrainingDiverged", "build_optimizer", "build_scheduler"]
