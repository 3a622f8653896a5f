"""Where a name comes from: torch, the standard library, or a definition that a standalone file takes along."""

import builtins
import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from torch import nn

from ._module import Imported, Module, read

__all__ = ["Definition", "External", "Sources"]

OURS = "torchvision_layers"
_BASES = f"{OURS}.standalone._bases"
_TWINS = f"{OURS}.standalone._twins"

#: What stands in a file for what would bring a whole package along.
SUBSTITUTES = {
    "torchvision.ops.FrozenBatchNorm2d": (_BASES, "FixedStatistics"),
    "torchvision.ops.Permute": (_BASES, "Reordering"),
    "torchvision.ops.StochasticDepth": (_BASES, "RandomDepth"),
    "torchvision.ops.stochastic_depth": (_BASES, "stochastic_depth"),
    f"{OURS}.quantized._observed.Addition": (_TWINS, "Addition"),
    f"{OURS}.quantized._observed.DeQuantStub": (_TWINS, "DeQuantStub"),
    f"{OURS}.quantized._observed.Multiplication": (_TWINS, "Multiplication"),
    f"{OURS}.quantized._observed.QuantStub": (_TWINS, "QuantStub"),
    f"{OURS}.quantized._twin.QuantizableLayer": (_TWINS, "QuantizableLayer"),
}

_OWN_NAMES = {"__doc__", "__name__"}
# torch itself needs the last.
_GIVEN = {*sys.stdlib_module_names, "torch", "typing_extensions"}
_ROOMS = ("layers", "nn", "experimental", "_utils", "quantized", "standalone")


class External(NamedTuple):
    """A name of torch or the standard library: ``from module import name``, or for ``None`` ``import module``."""

    module: str
    name: str | None
    #: How it is called where it is used.
    alias: str


class Definition(NamedTuple):
    """A name that a module of ours or of the model's binds itself."""

    module: str
    name: str

    @property
    def is_ours(self) -> bool:
        return self.module.partition(".")[0] == OURS

    @property
    def value(self) -> object:
        """What the name stands for in the module as it is loaded."""
        return getattr(sys.modules[self.module], self.name, None)


class Sources:
    """The modules that a file may take definitions from: ours, and those of the package or folder of the model."""

    def __init__(self, root: ModuleType) -> None:
        self.root = root
        self.read: dict[str, Module] = {}

    def module(self, name: str) -> Module:
        if name not in self.read:
            self.read[name] = read(importlib.import_module(name))
        return self.read[name]

    def resolve(self, module: Module, names: tuple[str, ...]) -> tuple[External | Definition, int] | None:
        """What the first of ``names`` mean in a module, and how many they are; ``None`` for a builtin.

        Errors: ``ValueError`` for what cannot be found in a source, or must not be in a file.
        """
        first = names[0]
        if first in module.definitions:
            return self._defined(Definition(module.name, first)), 1
        if first in module.imports:
            return self._imported(module, names)
        for star in module.stars:
            if hasattr(importlib.import_module(star), first):
                return self._attribute(module, star, names, first)
        if hasattr(builtins, first) or first in _OWN_NAMES:
            return None
        why = "made when it runs" if hasattr(module.runtime, first) else "not defined there"
        raise ValueError(f"{first} of module {module.name} must be in its source, it is {why}")

    def is_given(self, module: str) -> bool:
        """Whether a module is of torch or the standard library."""
        top = module.partition(".")[0]
        return top in _GIVEN and not self._is_own(module)

    def _is_own(self, module: str) -> bool:
        top, own = module.partition(".")[0], self.root.__name__.partition(".")[0]
        if top in (OURS, own):
            return True
        here, there = (getattr(found, "__file__", None) for found in (self.root, sys.modules.get(top)))
        is_script = "." not in self.root.__name__ and not hasattr(self.root, "__path__")
        if here is None or there is None or not is_script:
            return False
        folder = Path(here).resolve().parent
        return "site-packages" not in folder.parts and folder in Path(there).resolve().parents

    def _imported(self, module: Module, names: tuple[str, ...]) -> tuple[External | Definition, int]:
        first, found = names[0], module.imports[names[0]]
        last = found[-1]
        if last.name is not None:
            if last.module == module.name:  # a module below this package
                return self._below(module, f"{last.module}.{last.name}", names, 1)
            return self._attribute(module, last.module, (last.name, *names[1:]), first)
        top = last.module.partition(".")[0]
        if not self.is_given(last.module):
            return self._below(module, top if first == top else last.module, names, 1)
        if first != top:  # import a.b as c
            return External(last.module, None, first), 1
        dotted = ".".join(names) + "."
        loaded = [one.module for one in found if dotted.startswith(one.module + ".")]
        return External(max(loaded, key=len) if loaded else last.module, None, first), 1

    def _attribute(
        self, user: Module, source: str, names: tuple[str, ...], alias: str
    ) -> tuple[External | Definition, int]:
        """What ``from source import names[0]`` gives, which ``user`` calls ``alias``."""
        if source.partition(".")[0] == "torchvision":
            return self._of_torchvision(user, source, names)
        if self.is_given(source):
            return External(source, names[0], alias), 1
        if not self._is_own(source):
            raise ValueError(f"module {user.name} must need torch only, it imports {names[0]} of {source}")
        self._check_room(user, source)
        module = self.module(source)
        is_bound = names[0] in module.definitions or names[0] in module.imports
        is_itself = module.imports.get(names[0], [None])[-1] == Imported(source, names[0])
        if is_bound and not is_itself:
            found = self.resolve(module, names)
            assert found is not None
            return found
        if f"{source}.{names[0]}" in sys.modules:
            return self._below(user, f"{source}.{names[0]}", names, 1)
        found = self.resolve(module, names)
        if found is None:
            raise ValueError(f"{names[0]} of module {source} must be in its source, it is a builtin")
        return found

    def _below(self, user: Module, source: str, names: tuple[str, ...], used: int) -> tuple[External | Definition, int]:
        """What ``names``, of which the first ``used`` lead to the module ``source``, mean."""
        if len(names) == used:
            raise ValueError(f"module {user.name} must read names from module {source}, it uses it as a value")
        origin, more = self._attribute(user, source, names[used:], names[used])
        return origin, used + more

    def _of_torchvision(self, user: Module, source: str, names: tuple[str, ...]) -> tuple[External | Definition, int]:
        for count in range(1, len(names) + 1):
            dotted = ".".join([source, *names[:count]])
            if dotted in SUBSTITUTES and user.name.partition(".")[0] == OURS:
                return self._defined(Definition("torchvision.ops", names[count - 1])), count
        raise ValueError(f"module {user.name} must need torch only, it uses {'.'.join([source, *names])}")

    def _defined(self, definition: Definition) -> Definition | External:
        dotted = ".".join(definition)
        if dotted in SUBSTITUTES:
            source, name = SUBSTITUTES[dotted]
            found = self.resolve(self.module(source), (name,))
            assert found is not None
            return found[0]
        value = definition.value
        is_twin = isinstance(value, type) and issubclass(value, nn.Module)
        if definition.module.startswith(f"{OURS}.quantized.") and not is_twin:
            raise ValueError(f"{dotted} must not be used by the model, it works with the package only")
        return definition

    def _check_room(self, user: Module, source: str) -> None:
        parts = source.split(".")
        if parts[0] == OURS and len(parts) > 1 and parts[1] not in _ROOMS:
            raise ValueError(f"module {user.name} must do without {source}, which works with the package only")
