"""The conformance checks of this package, for your own layers: :func:`check_layer`."""

from ._case import Case
from ._check import Check, NotApplicable, Outcome, Status, Tier, cases_of, check, run_case
from ._check_layer import LayerCheckError, Report, check_layer
from ._checks import CHECKS, GROUPS
from ._spec import BadArguments, BadInput, InvalidInput, LayerSpec, Reference, Sample, ShapeExample, XFail

__all__ = [
    "CHECKS",
    "GROUPS",
    "BadArguments",
    "BadInput",
    "Case",
    "Check",
    "InvalidInput",
    "LayerCheckError",
    "LayerSpec",
    "NotApplicable",
    "Outcome",
    "Reference",
    "Report",
    "Sample",
    "ShapeExample",
    "Status",
    "Tier",
    "XFail",
    "cases_of",
    "check",
    "check_layer",
    "run_case",
]
