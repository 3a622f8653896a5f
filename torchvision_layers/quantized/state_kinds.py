"""Which stage of a model a state dict is of."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["FLOAT_STATE", "check_prepared_state", "holds_float_weights", "int8_weight"]

FLOAT_STATE = (
    "state_dict must be that of an int8 model, got weights in float: load them into the float model, and quantize that"
)


def int8_weight(value: Any) -> Tensor | None:
    """The weight in an entry of the state of int8 modules; ``None`` for other entries."""
    weight = value[0] if isinstance(value, tuple) else value  # torch saves linear weights with their biases
    return weight if isinstance(weight, Tensor) and weight.dtype is torch.qint8 else None


def holds_float_weights(state_dict: Mapping[str, Any]) -> bool:
    """Whether a state has weights in float."""
    return any(
        key.endswith("weight") and isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1
        for key, value in state_dict.items()
    )


def check_prepared_state(state_dict: Mapping[str, Any], strict: bool) -> None:
    """Errors: ``ValueError`` for the state of an int8 model or, if ``strict``, of a float model."""
    start = "state_dict must be that of a prepared model, got that of"
    if "activation_scales" in state_dict or any(int8_weight(value) is not None for value in state_dict.values()):
        raise ValueError(f"{start} an int8 model, which cannot be trained: load what was saved before convert")
    is_prepared = any("activation_post_process" in key or "fake_quant" in key for key in state_dict)
    if strict and not is_prepared and holds_float_weights(state_dict):
        raise ValueError(f"{start} a float model: load it into the float model, and give that to prepare_qat")
