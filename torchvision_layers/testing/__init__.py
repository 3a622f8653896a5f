"""The checks that every layer of this package passes, for layers of your own: :func:`check_layer`."""

from ._cell import Cell
from ._check import LayerCheckError, Report, check_layer
from ._row import NA, Outcome, Row, Status, Tier, cells_of, row, run_cell
from ._rows import GROUPS, ROWS
from ._spec import BadArguments, BadInput, Geometry, LayerSpec, Misuse, Reference, Sample, XFail

__all__ = [
    "GROUPS",
    "NA",
    "ROWS",
    "BadArguments",
    "BadInput",
    "Cell",
    "Geometry",
    "LayerCheckError",
    "LayerSpec",
    "Misuse",
    "Outcome",
    "Reference",
    "Report",
    "Row",
    "Sample",
    "Status",
    "Tier",
    "XFail",
    "cells_of",
    "check_layer",
    "row",
    "run_cell",
]
