"""The name of each definition and import in a file that combines several modules."""

from collections.abc import Iterable

from .._source.collecting import Collection, Use
from .._source.sources import Definition, External, Origin

__all__ = ["name_all"]


def name_all(collection: Collection, root: Definition) -> dict[Origin, str]:
    """Names everything in the file. If two things share a name, the one further from the model is renamed.

    Errors: ``ValueError`` if the model has the name of a builtin or module that the file uses, or no name is free.
    """
    uses: dict[Origin, list[Use]] = {}
    for unit in collection.units.values():
        for use in unit.uses:
            uses.setdefault(use.origin, []).append(use)
    imports = [origin for origin in uses if isinstance(origin, External)]
    modules = [origin for origin in imports if origin.name is None]
    definitions = [definition for definition in collection.definitions if definition != root]
    order: list[Origin] = [
        *modules,
        *(definition for definition in definitions if not definition.is_ours),
        *(origin for origin in imports if origin.name is not None),
        *(definition for definition in definitions if definition.is_ours),
    ]
    names: dict[Origin, str] = {root: root.name}
    used_names = collection.builtins | {_top(origin) for origin in modules}
    if root.name in used_names:
        raise ValueError(f"the model must not have the name of a builtin or module that it uses, got {root.name}")
    used_names.add(root.name)
    for origin in order:
        if origin in modules:
            name, candidates = _top(origin), [_top(origin)]
        else:
            name = origin.name if isinstance(origin, Definition) else uses[origin][0].alias
            candidates = [c for c in (name, *_alternatives(origin.module, name)) if c not in used_names]
        free = next((c for c in candidates if not _is_hidden(c, uses.get(origin, []))), None)
        if free is None:
            raise ValueError(f"{name} of module {origin.module} must not have the name of a local variable beside it")
        names[origin] = free
        used_names.add(free)
    return names


def _top(origin: Origin) -> str:
    return origin.module.partition(".")[0]


def _is_hidden(name: str, uses: Iterable[Use]) -> bool:
    """Whether a local variable of this name is visible to a use that would be renamed."""
    return any(use.reference.hides(name) for use in uses if use.reference.names[: use.count] != (name,))


def _alternatives(module: str, name: str) -> Iterable[str]:
    """Names that include the module: ``check_of_scaling``, ``BlockOfResidual``."""
    parts = [part.strip("_") for part in module.split(".")]
    for count in range(1, len(parts) + 1):
        suffix = "_".join(parts[-count:])
        if name.isupper():
            yield f"{name}_OF_{suffix.upper()}"
        elif name.lstrip("_")[:1].isupper():
            yield f"{name}Of{suffix.title().replace('_', '')}"
        else:
            yield f"{name}_of_{suffix}"
