"""The two engines, each loaded when it is first asked for: what one needs may be absent where the other runs."""

from types import ModuleType

__all__ = ["eager"]


def eager() -> ModuleType:
    """The engine on torch's eager mode quantization. ``ImportError`` where this torch has none any more."""
    try:
        from . import _eager
    except ImportError as error:
        raise ImportError(
            f"fusing and engine='eager' need torch.ao.quantization, which cannot be imported here ({error}); "
            "engine='pt2e' does without both"
        ) from error
    return _eager
