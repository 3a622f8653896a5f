"""The order of statements in a file: definitions come before their uses, the model last."""

from collections.abc import Sequence

from .collecting import Collection, Unit
from .sources import Definition

__all__ = ["sort_units"]


def sort_units(collection: Collection, roots: Sequence[Definition]) -> list[Unit]:
    """Orders statements such that the file loads, as far as possible by module and as in the source."""
    modules: dict[str, list[Unit]] = {}
    for unit in sorted(collection.units.values(), key=lambda unit: unit.index):
        modules.setdefault(unit.module.name, []).append(unit)
    by_module: list[Unit] = []
    visited: set[str] = set()

    def visit(module: str) -> None:
        if module in visited:
            return
        visited.add(module)
        for unit in modules[module]:
            for other in _needed(collection, unit, only_eager=False):
                visit(other.module.name)
        by_module.extend(modules[module])

    for module in [
        *(root.module for root in roots),
        *sorted(modules),
    ]:  # the latter for modules that only change others
        visit(module)
    result: dict[int, Unit] = {}
    started: set[int] = set()

    def emit(unit: Unit) -> None:
        if id(unit) in started:
            return
        started.add(id(unit))
        for other in _needed(collection, unit, only_eager=True):
            emit(other)
        result[id(unit)] = unit

    for unit in by_module:
        emit(unit)
    return list(result.values())


def _needed(collection: Collection, unit: Unit, only_eager: bool) -> list[Unit]:
    uses = [use for use in unit.uses if use.reference.is_eager or not only_eager]
    definitions = [*(use.origin for use in uses if isinstance(use.origin, Definition)), *unit.targets]
    return [other for d in definitions for other in collection.definitions[d] if other is not unit]
