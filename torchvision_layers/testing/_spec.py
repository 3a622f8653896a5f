"""The specification of a layer: samples, invalid arguments and inputs, quantizable twin, known failures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn

__all__ = ["BadArguments", "BadInput", "InvalidInput", "LayerSpec", "Reference", "Sample", "ShapeExample", "XFail"]

#: A function of input, weights by ``state_dict`` key, and whether the layer is training; NumPy, float64.
Reference: TypeAlias = Callable[[np.ndarray, Mapping[str, np.ndarray], bool], np.ndarray]


@dataclass(frozen=True)
class Sample:
    """Arguments of a layer, and the shape of its input: one floating-point tensor, which maps to one tensor.

    A layer with several inputs or outputs needs an ``adapter``.

    The sizes in ``shape`` should differ pairwise. Equal sizes hide a swap of height and width, and ``torch.export``
    may tie them to each other.
    """

    #: A short name.
    id: str
    #: Arguments of the constructor.
    kwargs: Mapping[str, Any]
    #: Shape of the input. Dimension 0 is the batch, at least 2.
    shape: tuple[int, ...]
    #: The independent result. The check ``reference`` does not apply if it is ``None``.
    reference: Reference | None = None
    #: Whether the layer draws random numbers in training, when no reference applies.
    is_random: bool = False
    #: Whether ``forward`` reads ``training``, its own or a child's. ``train_eval_flag`` does not apply if ``None``.
    reads_mode: bool | None = None
    #: Dimensions of the input that may have any size. Default: all except dimension 1, the channels.
    dynamic_dims: tuple[int, ...] | None = None
    #: Classes of modules that an int8 model of the eager engine runs as a float fallback.
    islands: tuple[type[nn.Module], ...] = ()
    #: Whether such a model runs the whole layer as a float fallback.
    is_island: bool = False
    #: Puts the layer into a module that maps one tensor to one tensor. Checks and ``reference`` then see that module.
    adapter: Callable[[nn.Module], nn.Module] | None = None

    def __post_init__(self) -> None:
        if len(self.shape) < 1 or self.shape[0] < 2:
            raise ValueError(f"shape must begin with a batch of at least 2, got {self.shape}")
        if any(not 0 <= dim < len(self.shape) for dim in self.dynamic_dims or ()):
            raise ValueError(f"dynamic_dims must be dimensions of shape {self.shape}, got {self.dynamic_dims}")

    def adapt(self, layer: nn.Module) -> nn.Module:
        """The layer as a module that maps one tensor to one tensor."""
        return layer if self.adapter is None else self.adapter(layer)

    @property
    def free_dims(self) -> tuple[int, ...]:
        if self.dynamic_dims is not None:
            return self.dynamic_dims
        return tuple(dim for dim in range(len(self.shape)) if dim != 1)


class InvalidInput(Enum):
    """Kinds of invalid arguments and inputs that layers of some library accept silently."""

    GROUPS = "channels not divisible by groups"
    CHANNELS = "fewer than 1 channel"
    PROBABILITY = "a probability outside [0, 1], or NaN"
    BLOCK_SIZE = "a block that is even, empty or larger than the image"
    RANK = "a wrong number of dimensions"
    WIDTH = "a wrong number of channels or features"
    HEADS = "channels not divisible by heads"
    EVEN_KERNEL = "an even kernel that should keep the size"
    DIVISIBILITY = "a height or width that is not divisible as required"
    CHOICE = "an unknown mode or name, or an object that is not a layer"
    DTYPE = "a wrong dtype"
    RESIDUAL = "a skip and a branch of different shapes"
    EPS = "a negative eps, or NaN"
    WINDOW = "a kernel, stride or dilation below 1, or too many of them"
    NO_PIXELS = "no pixels, or one value for a statistic"
    KEYWORD = "a misspelled keyword"


@dataclass(frozen=True)
class BadArguments:
    """Arguments that the constructor must reject, applied over those of the first sample."""

    kind: InvalidInput
    kwargs: Mapping[str, Any]
    error: type[Exception]
    #: A pattern in the message, which should name the argument, the rule and the value.
    message: str


@dataclass(frozen=True)
class BadInput:
    """An input that the call must reject, for a layer built from the first sample with ``kwargs`` over it."""

    kind: InvalidInput
    #: A shape, a tensor, or any object.
    input: tuple[int, ...] | Tensor | object
    error: type[Exception]
    message: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    training: bool = False
    #: Further inputs of the call, in the same forms.
    others: Sequence[tuple[int, ...] | Tensor | object] = ()


@dataclass(frozen=True)
class ShapeExample:
    """Arguments, the shape of an input, and the output shape by the documented formula.

    ``out_shape=None`` means that the call must reject the input, with a ``ValueError`` or torch's ``RuntimeError``.
    """

    kwargs: Mapping[str, Any]
    shape: tuple[int, ...]
    out_shape: tuple[int, ...] | None


@dataclass(frozen=True)
class XFail:
    """A known failure of a check, for a reason outside the layer. Strict: a pass is a failure."""

    reason: str
    link: str


@dataclass(frozen=True)
class LayerSpec:
    """A layer, and everything that its checks need."""

    cls: Callable[..., nn.Module]
    samples: Sequence[Sample]
    bad_arguments: Sequence[BadArguments] = ()
    bad_inputs: Sequence[BadInput] = ()
    #: Its quantizable twin, a class with ``from_float`` and ``fuse_model``.
    twin: type[nn.Module] | None = None
    #: A hypothesis strategy that draws a :class:`ShapeExample`. The check ``out_shape`` does not apply if ``None``.
    shape_strategy: Any = None
    #: By check id, or by ``"id[variant]"`` for one variant.
    xfails: Mapping[str, XFail] = field(default_factory=dict)

    @property
    def name(self) -> str:
        cls = self.cls.func if isinstance(self.cls, partial) else self.cls
        return getattr(cls, "__name__", type(cls).__name__)

    @property
    def status(self) -> str:
        """``"stable"``, ``"experimental"``, or ``"proposed"`` for a layer of another package."""
        package = getattr(self.cls, "__module__", "").removeprefix("torchvision_layers.").split(".")[0]
        return {"layers": "stable", "experimental": "experimental"}.get(package, "proposed")
