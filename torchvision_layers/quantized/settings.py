"""The arguments of ``quantize`` and ``prepare_qat`` that the public functions hand to an engine."""

from dataclasses import dataclass, field

from .._utils.checks import check_bool
from .ranges import RangeRule

__all__ = ["BACKENDS", "ROUNDINGS", "Settings", "check_vnni"]

#: How weights are rounded.
ROUNDINGS = ("nearest", "gptq")
#: The backends of each engine; a machine may lack some.
BACKENDS = {
    "eager": ("x86", "onednn", "qnnpack"),
    "pt2e": ("x86", "litert", "onnxruntime", "tensorrt", "xnnpack"),
}


@dataclass(frozen=True)
class Settings:
    """Arguments of :func:`quantize <torchvision_layers.quantized.quantize>`, which documents them.

    Args:
        backend: a backend of the engine, never ``"auto"``.
        allow_float: as given.
        dynamic_sizes: as given.
        per_channel: as given.
        excluded: the modules to leave in float by path, each with the entry of ``exclude`` that names it.
        ranges: as given, ``"percentile"`` as an object.
        rounding: as given.
        progress: as given.
        vnni: as given.
    """

    backend: str
    allow_float: bool = False
    dynamic_sizes: bool | None = None
    per_channel: bool = True
    excluded: dict[str, str] = field(default_factory=dict)
    ranges: RangeRule = "histogram"
    rounding: str = "nearest"
    progress: bool = False
    vnni: bool = False


def check_vnni(vnni: bool, engine: str, backend: str) -> bool:
    """Returns ``vnni``; raises ``ValueError`` if it is ``True`` for a backend that has no choice."""
    if check_bool("vnni", vnni) and (engine, backend) != ("pt2e", "onnxruntime"):
        raise ValueError(
            "vnni must be False except for engine='pt2e' with backend='onnxruntime', because other backends either "
            f"always or never need VNNI, got True with engine={engine!r} and backend={backend!r}"
        )
    return vnni
