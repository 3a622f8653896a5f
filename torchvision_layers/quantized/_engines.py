"""The two engines, each loaded when it is first asked for: what one needs may be absent where the other runs."""

import importlib
from types import ModuleType

__all__ = ["eager", "pt2e"]


def eager() -> ModuleType:
    """The engine on torch's eager mode quantization.

    Errors: ``ImportError`` where this torch has no such quantization.
    """
    try:
        return importlib.import_module("._eager", __package__)
    except ImportError as error:
        raise ImportError(
            f"fusing and engine='eager' need torch.ao.quantization, which cannot be imported here ({error}); "
            "engine='pt2e' does without both"
        ) from error


def pt2e() -> ModuleType:
    """The engine on exported graphs.

    Errors: ``ImportError`` where torchao is not installed.
    """
    try:
        return importlib.import_module("._pt2e", __package__)
    except ImportError as error:
        raise ImportError(
            f"engine='pt2e' needs torchao, which cannot be imported here ({error}): "
            'pip install "torchvision_layers[pt2e]"'
        ) from error
