"""The text of a pull request, with a checklist filled in from the recorded results of the checks."""

from collections import Counter
from collections.abc import Mapping, Sequence

__all__ = ["pull_request"]

#: The items of the checklist, and the checks that show each.
_CHECKS = {
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
    cases: int,
    record: Mapping[str, Mapping[str, str]],
    *,
    is_replacement: bool,
    models: Sequence[str],
) -> str:
    """The description of a pull request, in Markdown.

    Args:
        layer: name of the layer.
        summary: first sentence of its docstring.
        cases: number of cases in its tests.
        record: result of each case, by check.
        is_replacement: whether torchvision has a public class of that name.
        models: files of torchvision's models that define a class of that name.
    """
    defaults = "the layer is new, nothing else changes"
    if is_replacement:
        defaults = "existing arguments keep their order and defaults, new ones come after them"
    lines = [
        f"# {'Replace' if is_replacement else 'Add'} `ops.{layer}`",
        "",
        summary,
        "",
        "## Checklist",
        "",
        f"- [x] docs: `{layer}` is in `docs/source/ops.rst`",
        f"- [x] tests: {cases} cases in `test/test_ops.py`",
        f"- [x] defaults kept: {defaults}",
        *(_item(title, checks, record) for title, checks in _CHECKS.items()),
        "",
        "The results from torch.fx on are those of the checks of `torchvision_layers`, where the layer was developed. "
        "A case is one way to build the layer, in one variant of a check.",
    ]
    if models:
        lines += ["", f"This change leaves classes of the same name in models alone: {_join(models)}."]
    return "\n".join(lines) + "\n"


def _item(title: str, checks: Sequence[str], record: Mapping[str, Mapping[str, str]]) -> str:
    """An item of the checklist, ticked if some cases apply and all of these passed."""
    results = {f"`{check}` on {case}": result for check in checks for case, result in record.get(check, {}).items()}
    skips = Counter(result for result in results.values() if result.startswith("not applicable"))
    failures = [f"{case} {result}" for case, result in results.items() if result not in {"passed", *skips}]
    missing = [check for check in checks if check not in record]
    total = len(results) - skips.total()
    notes = [f"{total - len(failures)} of {total} cases passed"]
    notes += [f"no record of {_join(missing)}"] if missing else []
    notes += [f"{count} {reason}" for reason, count in skips.items()]
    mark = "x" if total and not failures and not missing else " "
    return f"- [{mark}] {title} ({_join(checks)}): {'; '.join([*notes, *failures])}"


def _join(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
