"""Settings of a run: one frozen dataclass for each part of the code that reads some.

A field has the name of its command-line option and keeps its default in scripts that lack the option.
"""

from argparse import Namespace
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import get_type_hints

import torch
from typing_extensions import Self

# A run can be resumed only with equal values of these; others (workers, paths, logs) may change.
FIXED = (
    "dataset", "image_size", "normalization", "auto_augment", "random_erase", "epochs", "opt", "lr", "momentum",
    "weight_decay",
    "lr_scheduler", "lr_step_size", "lr_gamma", "lr_min", "lr_warmup_epochs", "lr_warmup_method",
    "lr_warmup_decay", "label_smoothing", "mixup_alpha", "cutmix_alpha", "clip_grad_norm", "model_ema",
    "model_ema_steps", "model_ema_decay", "amp", "sync_bn", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Base class: reads the fields from parsed arguments."""

    @classmethod
    def from_args(cls, args: Namespace) -> Self:
        return cls(**{field.name: getattr(args, field.name) for field in fields(cls) if hasattr(args, field.name)})


@dataclass(frozen=True)
class ModelSettings(Settings):
    """Name and size of a reference model."""

    model: str
    width_mult: float = 1.0
    depth_mult: float = 1.0

    @property
    def arguments(self) -> dict[str, float]:
        """The keyword arguments of ``build_model`` that set the size."""
        return {"width_mult": self.width_mult, "depth_mult": self.depth_mult}


@dataclass(frozen=True)
class DataSettings(Settings):
    """The dataset, and how to load it."""

    dataset: str
    data_path: str | None = None
    image_size: int = 64
    normalization: str = "dataset"
    batch_size: int = 32
    workers: int = 0
    on_bad_image: str = "stop"
    auto_augment: str | None = None
    random_erase: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class OptimizationSettings(Settings):
    """Optimizer, learning rate schedule, and moving average of the weights."""

    epochs: int
    opt: str
    lr: float
    momentum: float
    weight_decay: float
    lr_scheduler: str
    lr_step_size: int
    lr_gamma: float
    lr_min: float
    lr_warmup_epochs: int
    lr_warmup_method: str
    lr_warmup_decay: float
    model_ema: bool
    model_ema_steps: int
    model_ema_decay: float


@dataclass(frozen=True)
class EpochSettings(Settings):
    """The steps of an epoch."""

    label_smoothing: float = 0.0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    clip_grad_norm: float | None = None
    amp: str | None = None
    channels_last: bool = False
    model_ema_steps: int = 1
    lr_warmup_epochs: int = 0
    seed: int = 0
    print_freq: int = 0
    use_deterministic_algorithms: bool = False

    def is_deterministic(self, device: torch.device) -> bool:
        """Whether operators that may give different results when repeated raise an error."""
        return self.use_deterministic_algorithms or device.type == "cpu"


@dataclass(frozen=True)
class ComputeSettings(Settings):
    """Device, precision and parallelism."""

    device: str | None
    amp: str | None
    channels_last: bool
    compile: bool
    sync_bn: bool
    fsdp: bool


@dataclass(frozen=True)
class CheckpointSettings(Settings):
    """Weights to start from, and checkpoints to write."""

    weights: str | None
    resume: str | None
    checkpoint_steps: int


@dataclass(frozen=True)
class LogSettings(Settings):
    """Output directory and logs."""

    output_dir: str | None
    tensorboard: bool


@dataclass(frozen=True)
class TrainingSettings:
    """All settings of ``train.py``."""

    model: ModelSettings
    data: DataSettings
    optimization: OptimizationSettings
    epoch: EpochSettings
    compute: ComputeSettings
    checkpoints: CheckpointSettings
    logs: LogSettings

    @classmethod
    def from_args(cls, args: Namespace) -> Self:
        return cls(**{name: group.from_args(args) for name, group in get_type_hints(cls).items()})

    @property
    def values(self) -> dict[str, object]:
        """Every option and its value."""
        return {name: value for group in asdict(self).values() for name, value in group.items()}

    @property
    def output_dir(self) -> Path:
        return Path(self.logs.output_dir or f"outputs/{self.model.model}")

    def fixed(self, world_size: int, training_images: int) -> dict[str, object]:
        """The values that a checkpoint must share with a run that resumes it."""
        values = self.values
        # The schedule depends on the batch size over all processes and on the number of images.
        sizes = {"images in a batch": self.data.batch_size * world_size, "training images": training_images}
        return {**{name: values[name] for name in FIXED}, **sizes}


@dataclass(frozen=True)
class ModelCard:
    """Identifies a trained model, in checkpoints and in exported files."""

    model_name: str
    dataset: str
    image_size: int
    classes: list[str]
    normalization: str = "dataset"
