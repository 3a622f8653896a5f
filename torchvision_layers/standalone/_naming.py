"""What each thing is called in a file that holds definitions of several modules."""

import sys
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from ._collecting import Collection, Use
from ._sources import Definition, External

__all__ = ["ImportKey", "Key", "key_of", "name_all"]


class ImportKey(NamedTuple):
    """What is imported, however a module calls it: ``import torch.nn as nn`` is ``from torch import nn``."""

    module: str
    name: str | None
    #: Whether it binds the first part of a dotted module.
    is_dotted: bool


Key: TypeAlias = Definition | ImportKey


def key_of(origin: External | Definition) -> Key:
    """What has one name, however many modules use it, and whatever they call it."""
    if isinstance(origin, Definition):
        return origin
    top = origin.module.partition(".")[0]
    if origin.name is None and origin.alias == top:
        return ImportKey(top, None, True)
    dotted = f"{origin.module}.{origin.name}"
    source, module = sys.modules.get(origin.module), sys.modules.get(dotted)
    is_module = module is not None and getattr(source, origin.name or "", None) is module
    return ImportKey(dotted, None, False) if is_module else ImportKey(origin.module, origin.name, False)


def name_all(collection: Collection, root: Definition) -> dict[Key, str]:
    """A name for everything in the file; where two have the same, the one that is further from the model is renamed.

    Errors: ``ValueError`` where the model itself has the name of something that must keep it.
    """
    uses = [use for unit in collection.units.values() for use in unit.uses]
    by_key: dict[Key, list[Use]] = {}
    for use in uses:
        by_key.setdefault(key_of(use.origin), []).append(use)
    models = [d for d in collection.definitions if not d.is_ours and d != root]
    ours = [d for d in collection.definitions if d.is_ours and d != root]
    imported: dict[Key, External] = {key_of(use.origin): use.origin for use in uses if isinstance(use.origin, External)}
    fixed = [key for key in imported if isinstance(key, ImportKey) and key.is_dotted]
    free = [key for key in imported if key not in fixed]
    taken = set(collection.builtins)
    names: dict[Key, str] = {}
    if root.name in taken:
        raise ValueError(f"the model must not have the name of a builtin that it uses, got {root.name!r}")
    order: list[Key] = [root, *fixed, *models, *free, *ours]
    for key in order:
        wanted = key.name if isinstance(key, Definition) else imported[key].alias
        candidates = [wanted, *_others(key, wanted)]
        if key in fixed or key == root:
            candidates = [wanted]
        name = next((c for c in candidates if c not in taken and not _is_hidden(c, by_key.get(key, []))), None)
        if name is None:
            raise ValueError(f"{wanted} must be the name of one thing in the file, got several of this name")
        names[key] = name
        taken.add(name)
    _check_globals(collection, names)
    return names


def _is_hidden(name: str, uses: Iterable[Use]) -> bool:
    """Whether a use that is to be rewritten stands where the name means something else."""
    return any(name in use.reference.hidden for use in uses if use.count > 1 or use.reference.names[0] != name)


def _others(key: Key, wanted: str) -> Iterable[str]:
    """Other names, by the modules that the thing is of: ``check_of_scaling``, ``BlockOfResidual``."""
    parts = [part.strip("_") for part in key.module.split(".")]
    for count in range(1, len(parts) + 1):
        module = "_".join(parts[-count:])
        if wanted.isupper():
            yield f"{wanted}_OF_{module.upper()}"
        elif wanted.lstrip("_")[:1].isupper():
            yield f"{wanted}Of{module.title().replace('_', '')}"
        else:
            yield f"{wanted}_of_{module}"


def _check_globals(collection: Collection, names: dict[Key, str]) -> None:
    for unit in collection.units.values():
        for name in unit.found.globals:
            if names.get(Definition(unit.module.name, name), name) != name:
                raise ValueError(f"a name that a function declares global must be free in the file, got {name}")
