"""The text of a pull request, its checklist filled in from what came out of the matrix."""

from collections import Counter
from collections.abc import Mapping

__all__ = ["pull_request"]

#: What a reviewer asks, and the rows of the matrix that answer it.
_ROWS = {
    "torch.fx": ("fx",),
    "TorchScript": ("script",),
    "torch.export": ("export",),
    "values and accuracy unchanged": ("reference", "golden"),
    "gradients": ("gradcheck", "grads_reach"),
    "arguments and inputs checked": ("errors", "unknown_keyword", "wrong_width"),
    "channels_last, empty batches, types": ("channels_last", "empty_batch", "dtypes"),
}


def pull_request(
    layer: str,
    summary: str,
    files: Mapping[str, str],
    record: Mapping[str, Mapping[str, str]],
    samples: int,
    refusals: int,
    is_replacement: bool,
    models: list[str],
) -> str:
    """Markdown to begin a pull request with.

    Args:
        layer: name of the layer.
        summary: first line of its docstring.
        files: what becomes of each file, by its path.
        record: outcome of each cell of the matrix, by row.
        samples: ways to build the layer in the test.
        refusals: bad arguments and inputs in the test.
        is_replacement: whether torchvision publishes the class already.
        models: files of torchvision with a class of that name.
    """
    verb = "Replace" if is_replacement else "Add"
    lines = [f"# {verb} `ops.{layer}`", "", summary, "", "## Files", ""]
    lines += [f"- `{file}`: {what}" for file, what in files.items()]
    lines += ["", "## Checklist", ""]
    lines += [
        _item(True, f"docs: `{layer}` is in `docs/source/ops.rst`"),
        _item(True, f"tests: {samples} ways to build it, {refusals} bad arguments and inputs, in `test/test_ops.py`"),
        _item(True, _defaults(is_replacement)),
    ]
    lines += [_row_item(title, rows, record) for title, rows in _ROWS.items()]
    if models:
        lines += ["", f"Classes of this name in models, which this does not touch: {_listed(models)}."]
    lines += [
        "",
        "The items from fx on are results of the matrix of checks of `torchvision_layers`, in which the layer was "
        "developed; a cell is one way to build the layer in one variant of a check.",
    ]
    return "\n".join(lines) + "\n"


def _defaults(is_replacement: bool) -> str:
    if is_replacement:
        return "defaults kept: arguments, their order and defaults are those of the class before; new ones come after"
    return "defaults kept: the layer is new, nothing else changes"


def _row_item(title: str, rows: tuple[str, ...], record: Mapping[str, Mapping[str, str]]) -> str:
    """One item, checked where every cell passed that applies, and some did."""
    cells = [(row, place, text) for row in rows for place, text in record.get(row, {}).items()]
    counts = Counter(text.partition(":")[0] for _, _, text in cells)
    missing = [row for row in rows if row not in record]
    applying = len(cells) - counts["not applicable"]
    notes = [f"{counts['passed']} of {applying} cells passed"]
    notes += [f"no record of {_listed(missing)}"] if missing else []
    reasons = Counter(text for _, _, text in cells if text.startswith("not applicable"))
    notes += [f"{count} {reason}" for reason, count in reasons.items()]
    notes += [f"`{row}` on {place} {text}" for row, place, text in cells if text[:6] not in ("passed", "not ap")]
    is_good = not missing and applying > 0 and counts["passed"] == applying
    return _item(is_good, f"{title} ({_listed(list(rows))}): {'; '.join(notes)}")


def _item(is_done: bool, text: str) -> str:
    return f"- [{'x' if is_done else ' '}] {text}"


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
