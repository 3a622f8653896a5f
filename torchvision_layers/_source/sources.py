"""The origin of a name: an external module, or a definition whose source can be copied."""

import builtins
import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

from .module import ImportedName, Module, read

__all__ = ["OURS", "Definition", "External", "Origin", "Sources"]

OURS = "torchvision_layers"

_MODULE_NAMES = {"__doc__", "__name__"}
# torch itself depends on typing_extensions.
_AVAILABLE = {*sys.stdlib_module_names, "torch", "typing_extensions"}


@dataclass(frozen=True)
class External:
    """An imported name: ``from module import name``, or ``import module`` if ``name`` is ``None``."""

    module: str
    name: str | None


@dataclass(frozen=True)
class Definition:
    """A name that a module binds itself, in this package or in the model's."""

    module: str
    name: str

    @property
    def is_ours(self) -> bool:
        return self.module.partition(".")[0] == OURS

    @property
    def value(self) -> object:
        """The value in the loaded module."""
        return getattr(sys.modules[self.module], self.name, None)


Origin: TypeAlias = Definition | External


class Sources:
    """The modules whose code can be copied: this package, and the package or folder of the module ``root``."""

    def __init__(self, root: ModuleType) -> None:
        self.root = root

    def module(self, name: str) -> Module:
        return read(importlib.import_module(name))

    def is_available(self, module: str) -> bool:
        """Whether a module belongs to torch or the standard library."""
        return module.partition(".")[0] in _AVAILABLE and not self._is_own(module)

    def resolve(self, module: Module, names: tuple[str, ...]) -> tuple[Origin, int] | None:
        """Finds the origin of a dotted name in a module.

        Returns the origin and how many of ``names`` lead to it, or ``None`` for a builtin.

        Errors: ``ValueError`` if no source defines the name.
        """
        first = names[0]
        if first in module.definitions:
            return Definition(module.name, first), 1
        if first in module.imports:
            return self._imported(module, names)
        for star in module.stars:
            if hasattr(importlib.import_module(star), first):
                return self._member(module, star, names)
        if hasattr(builtins, first) or first in _MODULE_NAMES:
            return None
        is_dynamic = hasattr(sys.modules[module.name], first)
        reason = "creates it at run time" if is_dynamic else "does not define it"
        raise ValueError(f"{first} must be defined in source, module {module.name} {reason}")

    def _is_own(self, module: str) -> bool:
        top, own = module.partition(".")[0], self.root.__name__.partition(".")[0]
        if top in (OURS, own):
            return True
        here, there = (getattr(loaded, "__file__", None) for loaded in (self.root, sys.modules.get(top)))
        is_script = "." not in self.root.__name__ and not hasattr(self.root, "__path__")
        if here is None or there is None or not is_script:
            return False
        folder = Path(here).resolve().parent
        return "site-packages" not in folder.parts and folder in Path(there).resolve().parents

    def _imported(self, module: Module, names: tuple[str, ...]) -> tuple[Origin, int]:
        imports = module.imports[names[0]]
        last = imports[-1]
        if last.name is not None:
            return self._member(module, last.module, (last.name, *names[1:]))
        if self._is_own(last.module):
            return self._below(module, last.module.partition(".")[0], names, 1)
        dotted = ".".join(names) + "."
        loaded = [one.module for one in imports if dotted.startswith(one.module + ".")]
        return External(max(loaded, key=len, default=last.module), None), 1

    def _member(self, user: Module, source: str, names: tuple[str, ...]) -> tuple[Origin, int]:
        """The origin of ``names[0]``, an attribute of the module ``source``, or of what follows it in ``names``."""
        if not self._is_own(source):
            return External(source, names[0]), 1
        module = self.module(source)
        imports = module.imports.get(names[0], [ImportedName(source, names[0])])
        is_bound = names[0] in module.definitions or imports[-1] != ImportedName(source, names[0])
        if not is_bound and f"{source}.{names[0]}" in sys.modules:
            return self._below(user, f"{source}.{names[0]}", names, 1)
        resolved = self.resolve(module, names)
        if resolved is None:
            raise ValueError(f"{names[0]} must be defined in source, in module {source} it is a builtin")
        return resolved

    def _below(self, user: Module, source: str, names: tuple[str, ...], used: int) -> tuple[Origin, int]:
        """The origin of ``names``, of whose parts the first ``used`` lead to the module ``source``."""
        if len(names) == used:
            raise ValueError(f"module {user.name} must not use a module as a value, got {source}")
        origin, more = self._member(user, source, names[used:])
        return origin, used + more
