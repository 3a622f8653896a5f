"""Tables of the benchmark page, from the JSON files that the benchmark scripts write."""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from measure import Ratio

__all__ = [
    "accuracy",
    "extras",
    "formats",
    "growth",
    "import_time",
    "layers",
    "load",
    "models",
    "onnx",
    "runtimes",
    "segmentation",
    "versions",
]

NONE = "–"


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def layers(report: dict[str, Any]) -> str:
    """One row per case: our layer in inference (folded, if it folds) and in training, with targets; its peers."""
    return _table(report, ("layer; input; baseline", "inference", "training", "others"), map(_layer, report["rows"]))


def _layer(row: dict[str, Any]) -> tuple[str, ...]:
    candidates = dict(row["candidates"])
    del candidates[row["baseline"]]
    ours = candidates.pop("ours")
    training = ours["training"]
    if "folded" in candidates:  # the target in inference applies to it
        ours, candidates = candidates.pop("folded"), {"ours, not folded": {**ours, "training": None}, **candidates}
    others = [
        f"{name} {_ratio(other['inference'])}" + (f" / {_ratio(other['training'])}" if other["training"] else "")
        for name, other in candidates.items()
    ]
    options = "".join(f", ``{name}={value}``" for name, value in row["options"].items())
    size = "×".join(map(str, row["shape"]))
    case = [f"``{row['layer']}``{options}", f"{size}, {row['format'].replace('_', ' ')}", f"``{row['baseline']}``"]
    figures = (
        _with_target(ours["inference"], row["target"]["inference"]),
        _with_target(training, row["target"]["training"]),
    )
    return _lines(case), *figures, _lines(others or [NONE])


def models(report: dict[str, Any]) -> str:
    """One row per int8 model, with times relative to torchvision's."""
    rows = []
    for row in report["rows"]:
        case = [f"``{row['model']}``", f"{row['backend']}, images: {row['images']}"]
        decibels = " / ".join(f"{value:.1f}" for value in row["decibels"])
        rows.append((_lines(case), _with_target(row["ours"], row["target"]), _ratio(row["float"]), decibels))
    return _table(report, ("model", "ours", "float", "dB, ours / theirs"), rows)


def runtimes(report: dict[str, Any]) -> str:
    """For each number of threads and size of the input: one row per runtime, one column per model."""
    rows = report["rows"]
    names, models = (list(dict.fromkeys(row[key] for row in rows)) for key in ("runtime", "model"))
    groups: dict[tuple[int, int, int], dict[tuple[str, str], dict[str, Any]]] = {}
    for row in rows:
        group = groups.setdefault((row["threads"], row["images"], row["size"]), {})
        group[row["runtime"], row["model"]] = row
    lines = ["; ".join(f"{name}: {value}" for name, value in report["conditions"].items()), ""]
    for (threads, images, size), group in groups.items():
        cells = ([name, *(_figures(group.get((name, model))) for model in models)] for name in names)
        lines += [f"Images: {images} of {size} × {size}, threads: {threads}", ""]
        lines += _list_table(["runtime", *(f"``{model}``" for model in models)], cells)
    return "\n".join(lines)


def growth(report: dict[str, Any]) -> str:
    """One row per model and runtime, one column per size of the input."""
    rows = report["rows"]
    cases = list(dict.fromkeys((row["images"], row["size"]) for row in rows))
    groups: dict[tuple[str, str], dict[tuple[int, int], str]] = {}
    for row in rows:
        cells = groups.setdefault((row["model"], row["runtime"]), {})
        if "reason" not in row:
            cells[row["images"], row["size"]] = _lines([f"{row['growth']:.2f}", _ratio(row["time"])])
    lines = [
        [f"``{model}``, {runtime}", *(cells.get(case, NONE) for case in cases)]
        for (model, runtime), cells in groups.items()
    ]
    return _table(report, ["model, runtime", *(f"{images} of {size}²" for images, size in cases)], lines)


def accuracy(record: dict[str, Any]) -> str:
    """For each model, one row per tool; then the reasons of those without figures, and the conditions."""
    head = ["tool", "dB", "agreement", "divergence", "MB", "time", "s"]
    lines: list[str] = []
    conditions: dict[str, list[str]] = {}
    for model, cells in record.items():
        rows = [(_tool(name), *_accuracies(cell)) for name, cell in cells.items() if "reason" not in cell]
        lines += [f"``{model}``", "~" * (len(model) + 4), "", *_list_table(head, rows)]
        for name, cell in cells.items():
            if "reason" in cell:
                lines += [f"* no figures of {_tool(name)}: ``{cell['reason'].replace('`', chr(39))}``", ""]
            text = "; ".join(f"{key}: {value}" for key, value in cell["conditions"].items())
            conditions.setdefault(text, []).append(model)
    lines += [f"* {', '.join(dict.fromkeys(models))}: {text}" for text, models in conditions.items()]
    return "\n".join([*lines, ""])


def formats(record: dict[str, Any]) -> str:
    """One row per file, in groups of one model."""
    rows, before = [], ""
    for key, cell in record["rows"].items():
        model, _, file = key.partition(": ")
        cells = ["" if model == before else f"``{model}``", f"``{file}``", f"{cell['megabytes']:.1f}"]
        if "time" in cell:
            shares = [f"{cell[name]:.0%}" for name in ("agreement", "same as the model")]
            cells += [f"{cell['decibels']:.0f}", *shares, f"{cell['time']:.2f}"]
        rows.append([*cells, *[NONE] * (7 - len(cells))])
        before = model
    head = ["model", "file", "MB", "dB", "same class as float", "same class as the model", "time"]
    return _table(record, head, rows)


def onnx(report: dict[str, Any]) -> str:
    """One row per model."""
    rows = [[f"``{row['model']}``", _with_target(row["ours"], row["target"])] for row in report["rows"]]
    return _table(report, ["model", "time, relative to onnxruntime's own file"], rows)


def quantizing(report: dict[str, Any]) -> str:
    """One row per model and engine, one column per calibration set."""
    rows = report["rows"]
    sets = list(dict.fromkeys((row["batches"], row["images"]) for row in rows))
    groups: dict[tuple[str, str], dict[tuple[int, int], str]] = {}
    for row in rows:
        cell = _with_target(row["ours"], row["target"]) if row["ours"] else NONE
        groups.setdefault((row["model"], row["engine"]), {})[row["batches"], row["images"]] = cell
    lines = [[f"``{model}``", engine, *(cells[each] for each in sets)] for (model, engine), cells in groups.items()]
    return _table(report, ["model", "engine", *(f"{batches} × {images} images" for batches, images in sets)], lines)


def segmentation(results: dict[str, Any]) -> str:
    """One row per model, with the mean over seeds and, in float, the range."""
    rows = []
    for name, figures in results["models"].items():
        iou = figures["float"]
        cells = [f"``{name}``", f"{figures['parameters'][0]:,}", f"{mean(iou):.3f}, {min(iou):.3f}–{max(iou):.3f}"]
        cells += [f"{mean(figures[f'int8, {engine}']):.3f}" for engine in ("eager", "pt2e")]
        rows.append([*cells, f"{mean(figures['seconds']):.0f} s"])
    runs = len(next(iter(results["models"].values()))["float"])
    head = ["model", "parameters", "mean IoU, lowest–highest", "int8, eager", "int8, pt2e", "training"]
    conditions = f"{results['machine'].capitalize()}, torch {results['torch']}, {runs} seeds."
    return "\n".join([conditions, "", *_list_table(head, rows)])


def versions(record: dict[str, Any]) -> str:
    """One row per Python, one column per version of torch; then the reasons of those that do not work."""
    pairs = {tuple(key.split(", ")): cell for key, cell in record["pairs"].items()}
    pythons, torches = (sorted({pair[i] for pair in pairs}, key=_numbers) for i in (0, 1))
    reasons: dict[str, list[str]] = {}
    rows = []
    for python in pythons:
        row = [f"Python {python}"]
        for torch in torches:
            cell = pairs.get((python, torch))
            failed = {name: text for name, text in (cell or {"steps": {}})["steps"].items() if text != "passed"}
            if cell and not failed:
                row.append(
                    f"{cell['versions']['torch'].split('+')[0]}, {cell['versions']['torchvision'].split('+')[0]}"
                )
            else:
                row.append(NONE)
            for step, text in list(failed.items())[:1]:
                reasons.setdefault(f"{step}: ``{text.replace('`', chr(39))}``", []).append(f"{python} with {torch}")
        rows.append(row)
    lines = _list_table(["", *(f"torch {torch}" for torch in torches)], rows)
    return "\n".join([*lines, *(f"* {', '.join(places)}: {reason}" for reason, places in reasons.items()), ""])


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def extras(record: dict[str, Any]) -> str:
    """One line per outcome, with the extras that have it."""
    outcomes: dict[str, list[str]] = {}
    for name, cell in record["extras"].items():
        outcomes.setdefault(cell["outcome"], []).append(name if name == "all together" else f"``{name}``")
    return "\n".join([*(f"* {outcome}: {', '.join(names)}" for outcome, names in outcomes.items()), ""])


def import_time(report: dict[str, Any]) -> str:
    """The median, and the modules that take longest."""
    low, high = report["quartiles"]
    figure = f"{report['milliseconds']:.1f} ms, quartiles {low:.1f} and {high:.1f}; target {report['target']} ms."
    head = ["; ".join(f"{name}: {value}" for name, value in report["conditions"].items()), "", figure, ""]
    rows = ([f"``{name}``", f"{own:.1f} ms"] for name, own in report["modules"])
    return "\n".join([*head, *_list_table(["module", "time of its own"], rows)])


def _tool(name: str) -> str:
    """The column of our own tools in bold."""
    return f"**{name}**" if name.startswith(("eager ", "pt2e ", "onnx-qdq")) else name


def _accuracies(cell: dict[str, Any]) -> tuple[str, ...]:
    accuracy = f"{cell['decibels']:.1f}", f"{cell['agreement']:.1%}", f"{cell['divergence']:.4f}"
    return *accuracy, f"{cell['megabytes']:.1f}", _ratio(cell["time"]), f"{cell['seconds']:.0f}"


def _figures(row: dict[str, Any] | None) -> str:
    """Time, memory and growth; a dash if the runtime cannot run the model."""
    if row is None or "reason" in row:
        return NONE
    memory = NONE if row["memory"] is None else f"{row['memory']:.2f}"
    return _lines([_ratio(row["time"]), memory, f"{row['growth']:.2f}"])


def _ratio(ratio: dict[str, Any] | None) -> str:
    """A ratio as the scripts print it."""
    return NONE if ratio is None else str(Ratio(ratio["ratio"], *ratio["quartiles"]))


def _with_target(ratio: dict[str, Any] | None, target: float | None) -> str:
    return _ratio(ratio) if target is None else f"{_ratio(ratio)} ({target:.2f})"


def _lines(parts: Sequence[str]) -> str:
    """A table cell of several lines."""
    return "\n       ".join(f"| {part}" for part in parts)


def _table(report: dict[str, Any], head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The table, after a line with the machine and versions of the measurement."""
    lines = ["; ".join(f"{name}: {value}" for name, value in report["conditions"].items()), ""]
    return "\n".join([*lines, *_list_table(head, rows)])


def _list_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in (head, *rows):
        lines += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(row)]
    return [*lines, ""]
