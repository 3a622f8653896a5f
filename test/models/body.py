"""A ``forward`` while it is drawn: its statements, its children, and the images that its variables hold."""

from dataclasses import dataclass, field

from .choices import Choices
from .description import ModuleClass
from .shapes import Map, Sizes

__all__ = ["Body", "Child"]


@dataclass(frozen=True)
class Child:
    """A child that can be called again, because it keeps the sizes and channels of its input."""

    name: str
    #: The channels that it takes; ``None`` for any.
    channels: int | None
    #: Whether it has a kernel, which needs images of some size.
    has_kernel: bool = False


@dataclass
class Body:
    """Collects the lines of one class."""

    choices: Choices
    name: str
    maps: list[Map]
    #: Classes that are complete; those of blocks precede those that use them.
    classes: list[ModuleClass]
    #: How many classes contain this one.
    level: int = 0
    members: list[str] = field(default_factory=list)
    statements: list[str] = field(default_factory=list)
    children: list[Child] = field(default_factory=list)
    #: Names of variables that share memory with another variable that is still read.
    _names: dict[str, int] = field(default_factory=dict)

    def pick(self) -> Map:
        """A variable, most often the last."""
        return self.choices.pick_from([*[self.maps[-1]] * 12, *reversed(self.maps[:-1])])

    def others(self, x: Map) -> list[Map]:
        """Variables that can be added to ``x``, the latest first."""
        return [other for other in reversed(self.maps) if other.is_like(x)]

    def unused(self, name: str) -> str:
        """A name for a variable or child that begins with ``name``."""
        self._names[name] = self._names.get(name, 0) + 1
        return f"{name}{self._names[name]}"

    def add_member(self, name: str, code: str) -> str:
        """Creates ``self.name`` in ``__init__`` and returns the expression that reads it."""
        attribute = self.unused(name)
        self.members.append(f"self.{attribute} = {code}")
        return f"self.{attribute}"

    def do(self, statement: str) -> None:
        self.statements.append(statement)

    def let(self, code: str, channels: int, sizes: Sizes) -> Map:
        """Assigns an expression to a new variable, the last from now on."""
        value = Map(self.unused("x"), channels, sizes)
        self.do(f"{value.name} = {code}")
        self.maps.append(value)
        return value

    def renew(self, x: Map) -> None:
        """Makes ``x`` the last variable, after a statement that changed it."""
        self.maps.remove(x)
        self.maps.append(x)

    def finish(self, parameters: tuple[str, ...], output: str) -> ModuleClass:
        """The class, which is added to ``classes``."""
        cls = ModuleClass(self.name, parameters, tuple(self.members), tuple(self.statements), output)
        self.classes.append(cls)
        return cls
