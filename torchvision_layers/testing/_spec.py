"""What the matrix needs to know of a layer: its samples, what it must refuse, its twin, its exemptions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn

__all__ = ["BadArguments", "BadInput", "Geometry", "LayerSpec", "Misuse", "Reference", "Sample", "XFail"]

#: Called with input, weights by key of the ``state_dict`` and whether in training; NumPy, float64.
Reference: TypeAlias = Callable[[np.ndarray, Mapping[str, np.ndarray], bool], np.ndarray]


@dataclass(frozen=True)
class Sample:
    """One way to build a layer, and an input for it: one floating-point tensor, which gives one tensor.

    The sizes in ``shape`` should differ pairwise: equal ones let a layer mix up height and width unseen, and let
    ``torch.export`` tie them to one another.
    """

    #: A name, short.
    id: str
    #: Arguments of the constructor.
    kwargs: Mapping[str, Any]
    #: Shape of the input; dimension 0 is the batch, of at least two.
    shape: tuple[int, ...]
    #: The independent result; ``None`` leaves the row ``reference`` out.
    reference: Reference | None = None
    #: Whether it draws random numbers in training, where no reference holds.
    is_random: bool = False
    #: Whether ``forward`` looks at ``training``, its own or a child's; ``None`` leaves the row ``train_eval_flag`` out.
    reads_mode: bool | None = None
    #: Dimensions of the input that may have any size; by default all but the channels, dimension 1.
    dynamic_dims: tuple[int, ...] | None = None
    #: Kinds of modules that an int8 model of the eager engine keeps in float islands.
    islands: tuple[type[nn.Module], ...] = ()
    #: Whether such a model keeps the layer as a whole in a float island.
    is_island: bool = False

    def __post_init__(self) -> None:
        if len(self.shape) < 1 or self.shape[0] < 2:
            raise ValueError(f"shape must begin with a batch of at least 2, got {self.shape}")
        if any(not 0 <= dim < len(self.shape) for dim in self.dynamic_dims or ()):
            raise ValueError(f"dynamic_dims must be dimensions of shape {self.shape}, got {self.dynamic_dims}")

    @property
    def free_dims(self) -> tuple[int, ...]:
        if self.dynamic_dims is not None:
            return self.dynamic_dims
        return tuple(dim for dim in range(len(self.shape)) if dim != 1)


class Misuse(Enum):
    """Kinds of bad arguments and inputs that layers of any library were seen to accept."""

    GROUPS = "channels not divisible by groups"
    CHANNELS = "a width below 1"
    PROBABILITY = "a probability outside [0, 1], or NaN"
    BLOCK_SIZE = "a block that is even, empty or larger than the image"
    RANK = "an input of another rank"
    WIDTH = "an input of another width"
    HEADS = "a width not divisible by heads"
    EVEN_KERNEL = "an even kernel that should keep the size"
    DIVISIBILITY = "a height or width not divisible as needed"
    CHOICE = "an unknown mode or name, or something that is no layer"
    DTYPE = "an input of another type"
    RESIDUAL = "a skip and a branch of different shapes"
    EPS = "a negative eps, or NaN"
    WINDOW = "a kernel, stride or dilation below 1, or too many of them"
    NO_PIXELS = "no pixel, or one value for a statistic"
    KEYWORD = "a misspelt keyword"


@dataclass(frozen=True)
class BadArguments:
    """Arguments, over those of the first sample, that the constructor must refuse."""

    kind: Misuse
    kwargs: Mapping[str, Any]
    error: type[Exception]
    #: A pattern found in the message: it should name the argument, the rule and the value.
    message: str


@dataclass(frozen=True)
class BadInput:
    """An input, to a layer made as the first sample with ``kwargs`` over it, that the call must refuse."""

    kind: Misuse
    #: A shape, a tensor, or anything else.
    input: tuple[int, ...] | Tensor | object
    error: type[Exception]
    message: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    training: bool = False


@dataclass(frozen=True)
class Geometry:
    """Arguments, the shape of an input and the shape that the formula in the docs gives for the output.

    ``out_shape=None`` says that the call must refuse the input, with a ``ValueError`` or torch's own ``RuntimeError``.
    """

    kwargs: Mapping[str, Any]
    shape: tuple[int, ...]
    out_shape: tuple[int, ...] | None


@dataclass(frozen=True)
class XFail:
    """A check that is known to fail, for a reason outside of the layer. Strict: that it passes is a failure."""

    reason: str
    link: str


@dataclass(frozen=True)
class LayerSpec:
    """A layer and all that its row of the matrix is made from."""

    cls: Callable[..., nn.Module]
    samples: Sequence[Sample]
    bad_arguments: Sequence[BadArguments] = ()
    bad_inputs: Sequence[BadInput] = ()
    #: Its quantizable twin, a class with ``from_float`` and ``fuse_model``.
    twin: type[nn.Module] | None = None
    #: A strategy of hypothesis that draws a :class:`Geometry`; ``None`` leaves the row ``out_shape`` out.
    geometries: Any = None
    #: By id of a row, or ``"id[variant]"`` for one variant of it.
    exempt: Mapping[str, XFail] = field(default_factory=dict)

    @property
    def name(self) -> str:
        cls = self.cls.func if isinstance(self.cls, partial) else self.cls
        return getattr(cls, "__name__", type(cls).__name__)

    @property
    def status(self) -> str:
        """Where the layer stands: ``"stable"``, ``"experimental"``, or ``"proposed"`` for one from elsewhere."""
        room = getattr(self.cls, "__module__", "").removeprefix("torchvision_layers.").split(".")[0]
        return {"layers": "stable", "experimental": "experimental"}.get(room, "proposed")
