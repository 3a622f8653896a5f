"""The conformance record: the outcome of each case as JSON in the docs, and the tables of the docs page."""

import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from torchvision_layers.testing import GROUPS, Case, Check, LayerSpec, Outcome, Status, Tier, cases_of

from ._support import write
from .golden_check import golden
from .specs import SPECS

__all__ = [
    "ALL_CHECKS",
    "ALL_GROUPS",
    "HEAVIEST",
    "HEAVY",
    "JSON",
    "OUTCOMES",
    "TABLE",
    "all_cases",
    "as_text",
    "is_slow",
    "load",
    "load_devices",
    "render",
    "save",
    "updated",
]

DOCS = Path(__file__).parents[2] / "docs" / "source"
JSON = DOCS / "conformance.json"
TABLE = DOCS / "conformance.rst"

#: The public checks, and those that need files of this repository. Those of GPUs are in the records of GPUs only.
ALL_GROUPS: dict[str, tuple[Check, ...]] = {
    **{name: checks for name, checks in GROUPS.items() if name != "GPUs"},
    "Values": (*GROUPS["Values"], golden),
}
ALL_CHECKS: tuple[Check, ...] = tuple(check for checks in ALL_GROUPS.values() for check in checks)

#: Checks that compile or export, which takes long and depends little on sample and variant: at every change they run
#: on the first sample of each layer, in their first variant.
HEAVY = ("compile", "export", "onnx", "pt2e_ptq", "pt2e_qat")

#: Checks of a layer that take seconds because its output has other sizes than its input, which torch solves
#: symbolically. They run in ``make test-all`` only; test_spatial_attention.py compiles and exports it at every change.
HEAVIEST = {"MultiHeadedSpatialAttention": ("compile", "export", "pt2e_io", "pt2e_qat")}

#: Outcomes of a run, written at its end.
OUTCOMES = pytest.StashKey[list[tuple[str, Outcome]]]()

#: The key of the record with the records of other devices, by their names. Other keys are layers, on a CPU.
DEVICES = "devices"

#: By layer, check id and case id.
Record = dict[str, dict[str, dict[str, str]]]


def all_cases(checks: Iterable[Check] = ALL_CHECKS) -> Iterable[tuple[LayerSpec, Check, str]]:
    for spec in SPECS:
        for check in checks:
            for case in cases_of(spec, check):
                yield spec, check, case.id


def is_slow(check: Check, case: Case) -> bool:
    """Whether a case runs in ``make test-all`` only."""
    is_first = case.sample is case.spec.samples[0]
    if check.id in HEAVIEST.get(case.spec.name, ()):
        return True
    if check.id in HEAVY:
        return not (is_first and case.variant == check.variants[0])
    return check.tier is Tier.NIGHTLY or (case.variant in ("onednn", "qnnpack") and not is_first)


def as_text(outcome: Outcome) -> str:
    return f"{outcome.status.value}: {outcome.reason}" if outcome.reason else outcome.status.value


@functools.cache
def _load() -> dict[str, Any]:
    return json.loads(JSON.read_text(encoding="utf-8")) if JSON.exists() else {}


def load() -> Record:
    """The record of the CPU."""
    return {layer: checks for layer, checks in _load().items() if layer != DEVICES}


def load_devices() -> dict[str, Record]:
    """The records of other devices by name."""
    return _load().get(DEVICES, {})


def save(outcomes: Iterable[tuple[str, Outcome]], device: str | None = None) -> None:
    """Write new outcomes to the record of the CPU, or of the device with this name, and render the page."""
    record, devices = load(), load_devices()
    if device is None:
        record = updated(record, outcomes)
    else:
        checks = (*ALL_CHECKS, *GROUPS["GPUs"])
        devices = dict(sorted({**devices, device: updated(devices.get(device, {}), outcomes, checks)}.items()))
    content = {**record, DEVICES: devices} if devices else record
    write(JSON, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write(TABLE, render(record, devices))


def updated(record: Record, outcomes: Iterable[tuple[str, Outcome]], checks: Iterable[Check] = ALL_CHECKS) -> Record:
    """The record with new outcomes, in order, without removed cases."""
    new = {(layer, outcome.check_id, outcome.case_id): as_text(outcome) for layer, outcome in outcomes}
    result: Record = {}
    for spec, check, case_id in all_cases(checks):
        text = new.get((spec.name, check.id, case_id), record.get(spec.name, {}).get(check.id, {}).get(case_id))
        if text is not None:
            result.setdefault(spec.name, {}).setdefault(check.id, {})[case_id] = text
    return result


def status_of(text: str) -> Status:
    return Status(text.split(":")[0])


def _mark(cases: Mapping[str, str]) -> str:
    """The symbol for a layer in a check."""
    statuses = {status_of(text) for text in cases.values()}
    if not statuses:
        return "not run yet"
    if Status.XFAILED in statuses:
        return "×"
    return "–" if statuses == {Status.NOT_APPLICABLE} else "✓"


def _table(lines: list[list[str]]) -> list[str]:
    """A simple reStructuredText table; the first line is its header."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rule = "  ".join("=" * width for width in widths)
    head, *body = ["  ".join(case.ljust(width) for case, width in zip(line, widths, strict=True)) for line in lines]
    return [line.rstrip() for line in (rule, head, rule, *body, rule)] + [""]


def _exceptions(record: Record) -> list[str]:
    """Cases that did not pass, by check and reason, with their layers, and with case ids unless all cases agree."""
    layers: dict[tuple[str, str], list[str]] = {}
    for layer, checks in record.items():
        for check, cases in checks.items():
            for text in dict.fromkeys(text for text in cases.values() if text != Status.PASSED.value):
                ids = [case_id for case_id, other in cases.items() if other == text]
                suffix = "" if len(ids) == len(cases) else f" ({', '.join(ids)})"
                layers.setdefault((check, text), []).append(f"``{layer}``{suffix}")
    order = {check.id: i for i, check in enumerate((*ALL_CHECKS, *GROUPS["GPUs"]))}
    return [
        line
        for (check, text), names in sorted(layers.items(), key=lambda item: order[item[0][0]])
        for line in (f"``{check}``, {text}", f"    {', '.join(names)}")
    ]


def _totals(record: Record) -> str:
    statuses = Counter(
        status_of(text) for checks in record.values() for cases in checks.values() for text in cases.values()
    )
    failed = f", {statuses[Status.FAILED]} failed" if statuses[Status.FAILED] else ""
    return (
        f"{statuses[Status.PASSED]} cases passed, {statuses[Status.NOT_APPLICABLE]} do not apply, "
        f"{statuses[Status.XFAILED]} failed for a reason outside the layer{failed}."
    )


def _missing(record: Record) -> str:
    """How many cases have no outcome, which only those of ``make test-all`` may lack."""
    count = sum(id not in record.get(spec.name, {}).get(check.id, {}) for spec, check, id in all_cases())
    return f" {count} cases of ``make test-all`` have not run yet." if count else ""


def _devices(devices: Mapping[str, Record]) -> list[str]:
    """A section for each device other than the CPU: its totals, and the cases that did not pass."""
    lines = []
    for name, record in devices.items():
        lines += ["", name, "-" * len(name), "", _totals(record), "", *_exceptions(record)]
    return lines


def render(record: Record, devices: Mapping[str, Record]) -> str:
    """The page: one table per subject, the requirement of each check, and the cases that did not pass."""
    page = [
        "Conformance",
        "===========",
        "",
        ".. ``make table`` generates this page from conformance.json; a test fails if it is out of date.",
        "",
        f"{len(record)} layers, {sum(len(spec.samples) for spec in SPECS)} samples, {len(ALL_CHECKS)} checks: "
        f"{_totals(record)}{_missing(record)}",
        "",
        "✓ passed in all cases that apply, – does not apply, × failed as expected in some; the reasons are below.",
        "",
    ]
    ids = ", ".join(f"``{id}``" for id in HEAVY)
    page += [f"``make test`` runs one case per layer in {ids}, and one with qnnpack; ``make test-all`` runs all.", ""]
    for group, checks in ALL_GROUPS.items():
        lines = [
            [f"``{layer}``", *(_mark(cases.get(check.id, {})) for check in checks)] for layer, cases in record.items()
        ]
        page += [group, "-" * len(group), "", *_table([["layer", *(check.id for check in checks)], *lines])]
        for check in checks:
            nightly = " Runs in ``make test-all`` only." if check.tier is Tier.NIGHTLY else ""
            page += [f"``{check.id}``", f"    {check.summary}{nightly}"]
        page += [""]
    page += ["Cases that did not pass", "-----------------------", "", *_exceptions(record)]
    return "\n".join(page + _devices(devices)) + "\n"
