"""The figures of the page on benchmarks: tables of what the scripts have written as JSON."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["layers", "load", "models"]

NONE = "–"


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def layers(report: dict[str, Any]) -> str:
    """Of each case ours in inference (folded, where it folds) and in training, what we aim for, and its peers."""
    head = ("layer", "input", "layout", "bound", "inference", "aim", "training", "aim", "others")
    return _with_conditions(report, [head, *map(_layer, report["rows"])])


def _layer(row: dict[str, Any]) -> tuple[str, ...]:
    options = "".join(f", ``{name}={value}``" for name, value in row["options"].items())
    found = dict(row["candidates"])
    del found[row["bound"]]
    ours = found.pop("ours")
    training = ours["training"]
    if "folded" in found:  # what is aimed at in inference
        ours, found = found.pop("folded"), {"ours, not folded": {**ours, "training": None}, **found}
    others = [
        f"{name} {_ratio(other['inference'])}" + (f" / {_ratio(other['training'])}" if other["training"] else "")
        for name, other in found.items()
    ]
    return (
        f"``{row['layer']}``{options}",
        "×".join(map(str, row["shape"])),
        row["format"],
        f"``{row['bound']}``",
        _ratio(ours["inference"]),
        _aim(row["aim"]["inference"]),
        _ratio(training),
        _aim(row["aim"]["training"]),
        ", ".join(others) or NONE,
    )


def models(report: dict[str, Any]) -> str:
    """Int8 models, as multiples of the time of torchvision's."""
    head = ("model", "backend", "images", "ours", "aim", "float", "dB ours", "dB torchvision's")
    rows = [
        (
            f"``{row['model']}``",
            row["backend"],
            str(row["images"]),
            _ratio(row["ours"]),
            _aim(row["aim"]),
            _ratio(row["float"]),
            *(f"{value:.1f}" for value in row["decibels"]),
        )
        for row in report["rows"]
    ]
    return _with_conditions(report, [head, *rows])


def _ratio(found: dict[str, Any] | None) -> str:
    """As the scripts print it: with ``~`` where its quartiles lie further apart than a tenth of it."""
    if found is None:
        return NONE
    low, high = found["quartiles"]
    return f"{'~' if high - low > found['ratio'] / 10 else ''}{found['ratio']:.2f}"


def _aim(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _with_conditions(report: dict[str, Any], rows: Iterable[Sequence[str]]) -> str:
    """The table, after a line on what it was found on."""
    lines = ["; ".join(f"{name}: {value}" for name, value in report["conditions"].items()), ""]
    lines += [".. list-table::", "   :header-rows: 1", ""]
    for row in rows:
        lines += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(row)]
    return "\n".join([*lines, ""])
