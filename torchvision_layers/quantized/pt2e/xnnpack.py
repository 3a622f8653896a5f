"""The quantizer of XNNPACK, which executorch brings."""

import importlib
from typing import Any

__all__ = ["quantizer"]


def quantizer(is_per_channel: bool, is_qat: bool) -> Any:
    """Its quantizer, whose configuration is symmetric."""
    module = _module()
    config = module.get_symmetric_quantization_config(is_per_channel=is_per_channel, is_qat=is_qat)
    return module.XNNPACKQuantizer().set_global(config)


def _module() -> Any:
    try:
        return importlib.import_module("executorch.backends.xnnpack.quantizer.xnnpack_quantizer")
    except ImportError as error:
        raise ImportError('backend="xnnpack" needs executorch: pip install executorch') from error
