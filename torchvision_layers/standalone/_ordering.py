"""The order of statements in a file: what is used before what uses it, the model last."""

from ._collecting import Collection, Unit
from ._sources import Definition

__all__ = ["ordered"]


def ordered(collection: Collection, roots: list[Definition]) -> list[Unit]:
    """The statements, those of a module together and in their order there, as far as loading the file allows."""
    modules: dict[str, list[Unit]] = {}
    for unit in sorted(collection.units.values(), key=lambda unit: unit.statement.lineno):
        modules.setdefault(unit.module.name, []).append(unit)
    every: list[Unit] = []
    seen: set[str] = set()

    def visit(module: str) -> None:
        if module in seen:
            return
        seen.add(module)
        for unit in modules[module]:
            for needed in _needed(collection, unit, only_eager=False):
                visit(needed.module.name)
        every.extend(modules[module])

    for root in roots:
        visit(root.module)
    for module in sorted(modules):  # of statements that only change something
        visit(module)
    result: dict[int, Unit] = {}
    pending: set[int] = set()

    def emit(unit: Unit) -> None:
        if id(unit) in result or id(unit) in pending:
            return
        pending.add(id(unit))
        for needed in _needed(collection, unit, only_eager=True):
            emit(needed)
        result[id(unit)] = unit

    for unit in every:
        emit(unit)
    return list(result.values())


def _needed(collection: Collection, unit: Unit, only_eager: bool) -> list[Unit]:
    definitions = [
        use.origin
        for use in unit.uses
        if isinstance(use.origin, Definition) and (use.reference.is_eager or not only_eager)
    ]
    found = [needed for d in [*definitions, *unit.changed] for needed in collection.definitions[d]]
    return [needed for needed in found if needed is not unit]
