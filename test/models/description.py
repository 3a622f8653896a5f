"""A drawn model, described by the lines of Python that define it."""

from dataclasses import dataclass

__all__ = ["Image", "Model", "ModuleClass"]


@dataclass(frozen=True)
class Image:
    """An input of the model."""

    name: str
    channels: int


@dataclass(frozen=True)
class ModuleClass:
    """A class with a ``forward``."""

    name: str
    #: Parameters of ``forward`` after ``self``.
    parameters: tuple[str, ...]
    #: Statements of ``__init__`` that create parameters and children.
    members: tuple[str, ...]
    #: Statements of ``forward``.
    statements: tuple[str, ...]
    #: The expression that ``forward`` returns.
    output: str


@dataclass(frozen=True)
class Model:
    """Classes, with that of the model at the end, inputs and a state."""

    classes: tuple[ModuleClass, ...]
    inputs: tuple[Image, ...]
    #: Names of functions in ``states.py`` that change the state of a new model, in this order.
    states: tuple[str, ...] = ()
    #: Seed of the weights and of the inputs.
    seed: int = 0
    #: Height and width of the images that calibrate, and further sizes that the model must take.
    sizes: tuple[tuple[int, int], ...] = ((16, 16),)
    #: Whether inputs are passed by name.
    has_keywords: bool = False
