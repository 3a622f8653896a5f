"""Names of promoted layers under their old path, for one minor release."""

import warnings
from typing import Any

from ...layers.global_response_norm import GlobalResponseNorm
from ...layers.stochastic_depth_schedule import stochastic_depth_schedule
from ...layers.universal_inverted_bottleneck import UniversalInvertedBottleneck
from ...layers.weight_standardization import SWSConv2d, WSConv2d

__all__ = ["promoted"]

_PROMOTED = {
    "GlobalResponseNorm": GlobalResponseNorm,
    "SWSConv2d": SWSConv2d,
    "UniversalInvertedBottleneck": UniversalInvertedBottleneck,
    "WSConv2d": WSConv2d,
    "stochastic_depth_schedule": stochastic_depth_schedule,
}


def promoted(name: str, module: str) -> Any:
    """The layer or function that was ``name`` in ``module``, with a warning that gives its new path.

    Errors: ``AttributeError``, as for any module, if no layer of this name was promoted.
    """
    if name not in _PROMOTED:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    warnings.warn(
        f"{module}.{name} will be removed in 0.2: {name} is stable, use torchvision_layers.nn.{name}",
        FutureWarning,
        stacklevel=3,  # the line that reads the name
    )
    return _PROMOTED[name]
