"""A module as it is written: what each of its statements binds, imports or changes."""

import ast
import inspect
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from types import ModuleType

__all__ = ["Imported", "Module", "bound_by", "read"]

_COMPOUND = (ast.For, ast.While, ast.If, ast.Try, ast.With)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


@dataclass(frozen=True)
class Imported:
    """Where a name comes from: ``from module import name``, or a module itself."""

    module: str
    name: str | None = None


@dataclass
class Module:
    """The source of a module, its top level sorted by what it does."""

    runtime: ModuleType
    text: str
    docstring: str = ""
    #: Statements that bind a name, in their order.
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, list[Imported]] = field(default_factory=dict)
    #: Modules of which everything is imported.
    stars: list[str] = field(default_factory=list)
    #: Statements that bind nothing but change what is bound, each with the names of that.
    changes: list[tuple[ast.stmt, set[str]]] = field(default_factory=list)
    #: Whether annotations are not evaluated.
    is_future: bool = False

    @property
    def name(self) -> str:
        return self.runtime.__name__


@lru_cache(maxsize=128)
def read(runtime: ModuleType) -> Module:
    """The module as it is written.

    Errors: ``ValueError`` where there is no source, or none that this Python reads.
    """
    try:
        with tokenize.open(inspect.getsourcefile(runtime) or runtime.__name__) as file:
            text = file.read()
        tree = ast.parse(text)
    except (OSError, TypeError, SyntaxError) as error:
        raise ValueError(f"the source of module {runtime.__name__} must be readable, it is not: {error}") from error
    module = Module(runtime, text, ast.get_docstring(tree) or "")
    for before, statement in zip([None, *tree.body], tree.body, strict=False):
        if before is not None and before.end_lineno == statement.lineno:
            where = f"line {statement.lineno} of module {module.name}"
            raise ValueError(f"each statement must have lines of its own, got two on {where}")
        _sort(module, statement)
    return module


def _sort(module: Module, statement: ast.stmt) -> None:
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            target = alias.name if alias.asname else alias.name.partition(".")[0]
            imported = Imported(alias.name)
            module.imports.setdefault(alias.asname or target, []).append(imported)
    elif isinstance(statement, ast.ImportFrom):
        _sort_from(module, statement)
    elif isinstance(statement, ast.If) and _is_name(statement.test, "TYPE_CHECKING"):
        for inner in statement.body:
            _sort(module, inner)
    elif not _is_idle(statement):
        names = set(bound_by([statement]))
        if "__all__" in names:
            return
        for name in names:
            module.definitions.setdefault(name, []).append(statement)
        if isinstance(statement, (ast.AugAssign, *_COMPOUND)) or not names:
            module.changes.append((statement, _changed(statement)))


def _sort_from(module: Module, statement: ast.ImportFrom) -> None:
    if statement.module == "__future__":
        module.is_future |= any(alias.name == "annotations" for alias in statement.names)
        return
    source = statement.module or ""
    if statement.level:
        package = module.name if hasattr(module.runtime, "__path__") else module.name.rpartition(".")[0]
        parts = package.split(".")[: len(package.split(".")) - statement.level + 1]
        source = ".".join([*parts, source] if source else parts)
    for alias in statement.names:
        if alias.name == "*":
            module.stars.append(source)
        else:
            module.imports.setdefault(alias.asname or alias.name, []).append(Imported(source, alias.name))


def _is_name(test: ast.expr, name: str) -> bool:
    return (isinstance(test, ast.Name) and test.id == name) or (isinstance(test, ast.Attribute) and test.attr == name)


def _is_idle(statement: ast.stmt) -> bool:
    """Whether nothing comes of a statement when the module is imported: a docstring, or what runs it as a script."""
    if isinstance(statement, ast.If):
        return isinstance(statement.test, ast.Compare) and _is_name(statement.test.left, "__name__")
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _changed(statement: ast.stmt) -> set[str]:
    """Names of what a statement may change: that of its target, or all that it calls something with.

    A name may be in a string as well (``torch.fx.wrap``).
    """
    if isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Delete)):
        targets: list[ast.expr] = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
        while any(isinstance(target, (ast.Attribute, ast.Subscript)) for target in targets):
            targets = [getattr(target, "value", target) for target in targets]
        return {target.id for target in targets if isinstance(target, ast.Name)}
    found = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        found |= {str(a.value) for a in statement.value.args if isinstance(a, ast.Constant)}
    return found


def bound_by(statements: list[ast.stmt]) -> Iterator[str]:
    """Names that statements bind in their own scope."""
    pending: list[ast.AST] = list(statements)
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, (ast.Store, ast.Del)):
            yield node.id
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.partition(".")[0]
        elif isinstance(node, (ast.ExceptHandler, ast.MatchAs, ast.MatchStar)) and node.name:
            yield node.name
        elif isinstance(node, ast.MatchMapping) and node.rest:
            yield node.rest
        if isinstance(node, ast.comprehension):
            pending += [node.iter, *node.ifs]  # its targets live within
        elif not isinstance(node, _SCOPES):
            pending += ast.iter_child_nodes(node)
