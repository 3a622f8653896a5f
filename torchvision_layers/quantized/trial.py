"""One of the int8 models among which a tolerance chooses."""

from dataclasses import dataclass

__all__ = ["Trial"]


@dataclass(frozen=True)
class Trial:
    """An int8 model that :func:`quantize` made to keep a tolerance."""

    #: Paths of the modules that it left in float in addition to those that were excluded.
    left_out: tuple[str, ...]
    #: Signal over error of the outputs in dB, or what the function returned.
    value: float
    #: Share of the multiplications of convolutions and linear layers that run in float.
    float_share: float
