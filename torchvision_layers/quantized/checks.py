"""Checks on models that both engines make."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .._utils.inputs import Inputs
from .._utils.modules import copy_module
from .._utils.outputs import largest, outputs_of
from .._utils.structure import flatten
from .finite import describe_origin
from .pairs import overflows
from .state_kinds import FLOAT_STATE, holds_float_weights, int8_weight
from .wrapper import QuantizableWrapper, Stage

__all__ = [
    "check_finite_state",
    "check_float32_parameters",
    "check_int8_state",
    "check_norms_train",
    "check_not_converted",
    "check_repeatable",
    "check_same_as_model",
    "check_same_results",
    "first_of",
]

_OTHER_LAYERS = (
    "the layers of an int8 model depend on its backend and may depend on weights, so quantize the float model with "
    "those that it had, or move it by deploy.export"
)


def check_not_converted(model: nn.Module) -> None:
    """Raises ``ValueError`` for a model that an engine prepared or converted, or that contains one."""
    for path, module in model.named_modules() if isinstance(model, nn.Module) else ():
        if isinstance(module, QuantizableWrapper) and module.stage is not Stage.FLOAT:
            raise ValueError(f"{path or 'model'} is prepared or converted already; start from the float model")


def check_norms_train(model: nn.Module) -> None:
    """Raises ``ValueError`` for batch norms that stay in eval mode while the layers beside them train."""
    frozen = {
        path: module
        for path, module in copy_module(model).train().named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (not module.training or _is_eval_alone(model, path))
    }
    if frozen:
        raise ValueError(
            f"batch norms must be in training mode to be trained, {', '.join(list(frozen)[:3])} "
            f"{'stays' if len(frozen) == 1 else 'stay'} in eval mode: {_advice(model, frozen)}"
        )


def _advice(model: nn.Module, frozen: Mapping[str, nn.Module]) -> str:
    """How to prepare a model whose norms ``frozen`` stay in eval mode."""
    classes = {nn.BatchNorm2d: "nn.BatchNorm2d", nn.SyncBatchNorm: "nn.SyncBatchNorm"}
    found = [name for cls, name in classes.items() if any(isinstance(norm, cls) for norm in frozen.values())]
    if not all(isinstance(norm, tuple(classes)) for norm in frozen.values()):
        return "only BatchNorm2d can keep its statistics: call model.train(), which must switch the others too"
    # Only a method train() that keeps norms in eval mode shows which norms it keeps.
    is_set = any(model.get_submodule(path).training for path in frozen)
    matched = found[0] if len(found) == 1 else f"({', '.join(found)})"
    return (
        f"to keep their statistics, pass tnn.replace({'model.train()' if is_set else 'model'}, lambda path, m: "
        f"isinstance(m, {matched}) and not m.training, tnn.FrozenBatchNorm2d)"
    )


def _is_eval_alone(model: nn.Module, path: str) -> bool:
    """Whether a module is in eval mode, but a layer beside it is not, as around a model that was in eval mode."""
    parent, module = model.get_submodule(path.rpartition(".")[0]), model.get_submodule(path)
    return not module.training and any(child.training and not child._modules for child in parent.children())


def check_int8_state(model: QuantizableWrapper, state_dict: Mapping[str, Any], strict: bool) -> None:
    """Raises unless ``state_dict`` has what each int8 layer of ``model`` needs, before anything is loaded.

    Errors: ``ValueError`` if it has weights in float or, for x86, weights whose products overflow there, and
    ``RuntimeError`` if it is of other layers or of another backend, or lacks keys.
    """
    own = model.state_dict()
    ours, theirs = _owners(own), _owners(state_dict)
    packed = [key for key, value in own.items() if int8_weight(value) is not None]
    weights = {key: int8_weight(value) for key, value in state_dict.items()}
    if packed and all(weight is None for weight in weights.values()) and holds_float_weights(state_dict):
        raise ValueError(FLOAT_STATE)
    _check_backend(model.backend, packed, weights)
    int8_ours, int8_theirs = _owners(packed), _owners(key for key, weight in weights.items() if weight is not None)
    missing = {path for path in int8_ours - int8_theirs if path not in theirs or f"{path}.weight" in state_dict}
    besides = (int8_theirs - int8_ours) & ours
    if strict:
        missing, besides = missing | (ours - theirs), besides | (theirs - ours)
    missing, besides = missing - {""}, besides - {""}  # keys of the model itself
    if besides or (missing and strict):
        raise RuntimeError(
            f"state_dict must be of the layers of this model, got one with {_listed(besides)} besides, and "
            f"without {_listed(missing)}: {_OTHER_LAYERS}"
        )
    # Int8 modules of torch cannot load a part of their state.
    classes = {path: type(model.get_submodule(f"{model.child}.{path}".rstrip("."))) for path in int8_ours}
    of_torch = {path for path, cls in classes.items() if cls.__module__.startswith("torch.")}
    _check_keys(own, of_torch, state_dict, strict)
    for path, other in _shared(model.get_submodule(model.child)):
        for key in (key for key in state_dict if key.startswith(f"{path}.")):
            same = other + key.removeprefix(path)
            if same in state_dict and not _is_same(state_dict[key], state_dict[same]):
                raise RuntimeError(
                    f"state_dict must be of the layers of this model, where {path} and {other} are one, got one with "
                    f"different values for {key} and {same}: {_OTHER_LAYERS}"
                )
    modules = dict(model.named_modules())
    for key, weight in weights.items() if model.backend == "x86" else ():
        is_packed_for_onednn = hasattr(modules.get(f"{model.child}.{key.rpartition('.')[0]}"), "kernel_class")
        if weight is not None and overflows(weight.int_repr(), is_packed_for_onednn):
            raise ValueError(
                f"{key} has weights made for another backend, whose products overflow on x86: quantize the float model "
                "with the backend of the state, such as backend='onednn'"
            )


def _check_backend(backend: str, packed: list[str], weights: Mapping[str, Tensor | None]) -> None:
    """Raises ``RuntimeError`` if linear layers have the form of another backend."""
    for key in packed:
        path, _, name = key.rpartition(".")
        is_packed, path = name == "_packed_params", path.removesuffix("._packed_params")
        other = f"{path}.weight" if is_packed else f"{path}._packed_params._packed_params"
        if key not in weights and weights.get(other) is not None:
            others = "'onednn'" if is_packed else "'x86' or 'qnnpack'"
            raise RuntimeError(
                f"state_dict must be that of a model for backend={backend!r}, got the form of {others} for {path}: "
                f"quantize the float model with the backend of the state, {others}"
            )


def _check_keys(own: Mapping[str, Any], whole: set[str], state_dict: Mapping[str, Any], strict: bool) -> None:
    """Raises ``RuntimeError`` for missing or unexpected keys; unless ``strict``, only for those of layers ``whole``."""
    missing = [key for key in own if key not in state_dict and (strict or _owners([key]) <= whole)]
    unexpected = [key for key in state_dict if key not in own and strict]
    lines = [
        f"{kind} key(s) in state_dict: {', '.join(map(repr, keys))}"
        for kind, keys in (("Missing", missing), ("Unexpected", unexpected))
        if keys
    ]
    if lines:
        rule = "the keys of this model" if strict else "all keys of int8 layers, also with strict=False"
        raise RuntimeError("\n\t".join([f"state_dict must have {rule}:", *lines]))
    if getattr(state_dict, "_metadata", None) is None and any(isinstance(own[key], tuple) for key in own):
        raise RuntimeError(
            "state_dict must have the attribute _metadata of the saved state, which holds the versions of packed "
            "weights: copy a state by copy.copy(state), because dict(state) loses it"
        )


def _shared(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Two paths of each module that has several."""
    first: dict[nn.Module, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if first.setdefault(module, path) != path:
            yield first[module], path


def _is_same(value: Any, other: Any) -> bool:
    if isinstance(value, tuple):
        return isinstance(other, tuple) and all(map(_is_same, value, other))
    if not isinstance(value, Tensor) or not isinstance(other, Tensor):
        return bool(value == other)
    if value.is_quantized and other.is_quantized:
        value, other = value.dequantize(), other.dequantize()
    return torch.equal(value, other)


def _owners(keys: Iterable[str]) -> set[str]:
    """The paths of the modules that have the parameters and buffers ``keys``."""
    return {key.rpartition(".")[0].removesuffix("._packed_params") for key in keys}


def _listed(paths: set[str]) -> str:
    """The first paths, in order."""
    shown = ", ".join(sorted(paths)[:3])
    return f"{shown} and {len(paths) - 3} more" if len(paths) > 3 else shown or "none"


def first_of(batches: Iterator[Inputs]) -> Inputs:
    """The first of ``batches``; raises ``ValueError`` if there is none."""
    first = next(batches, None)
    if first is None:
        raise ValueError("batches must hold at least one batch, got none")
    return first


def check_float32_parameters(model: nn.Module) -> None:
    """Raises unless each parameter is float32 and has values: ``TypeError`` or ``ValueError`` with its path."""
    for path, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta:
            raise ValueError(
                f"model must hold its weights to be quantized, {path} is on the meta device: call "
                "model.to_empty(device='cpu') and load a state_dict"
            )
    for path, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise TypeError(f"model must be float32 to be quantized, {path} is {parameter.dtype}: call model.float()")


def check_finite_state(model: nn.Module) -> None:
    """Raises ``ValueError`` with the paths of parameters and of running statistics that are not finite."""
    statistics = ((path, buffer) for path, buffer in model.named_buffers() if ".running_" in f".{path}")
    paths = [
        path
        for path, tensor in chain(model.named_parameters(), statistics)
        if tensor.is_floating_point() and not bool(tensor.isfinite().all())
    ]
    if paths:
        raise ValueError(
            f"model must have finite parameters and statistics to be converted, {_listed(set(paths))} "
            f"{'has' if len(paths) == 1 else 'have'} NaN or infinity: training diverged, continue from an earlier "
            "state with a lower learning rate"
        )


def check_same_results(
    output: Any, expected: Any, message: str, model: nn.Module | None = None, inputs: Inputs | None = None
) -> None:
    """Raises ``RuntimeError`` with ``message`` if an engine changed what the float model computes.

    Args:
        output: the output of the changed model.
        expected: the output of the float model.
        message: what to say if they differ by more than rounding.
        model: the float model, if differences that it makes of rounding itself are accepted. Default: ``None``, the
            largest difference is a thousandth of the largest value.
        inputs: the inputs of both, if there is a model.
    """
    (tensors, template), (expected_tensors, expected_template) = flatten(output), flatten(expected)
    if not expected_tensors:
        raise TypeError(f"model must return at least one tensor, it returns {_describe(expected)}")
    if template != expected_template:
        raise RuntimeError(message)
    moved: list[Tensor] | None = None
    for i, (tensor, original) in enumerate(zip(tensors, expected_tensors, strict=True)):
        if not bool(torch.isfinite(original).all()):
            origin = "" if model is None or inputs is None else describe_origin(model, inputs)
            raise ValueError(f"model must give finite outputs, for the first batch it gives NaN or infinity{origin}")
        if tensor.shape != original.shape or tensor.dtype != original.dtype:
            raise RuntimeError(message)
        if not original.is_floating_point() and not original.is_complex():  # rounding may change an index or a mask
            is_same = not original.numel() or float((tensor == original).double().mean()) >= 0.99
        else:
            difference = largest(tensor - original)
            is_same = difference <= 1e-3 * (largest(original) + 1e-6)
            if not is_same and model is not None and inputs is not None:
                moved = _nudged_outputs(model, inputs, expected_tensors) if moved is None else moved
                is_same = difference <= 4 * largest(moved[i] - original)
        if not is_same:
            raise RuntimeError(message)


def check_same_as_model(output: Any, model: nn.Module, inputs: Inputs, message: str) -> None:
    """Like :func:`check_same_results` with what ``model`` returns for ``inputs``, and says if the model is random."""
    expected = inputs.map(Tensor.clone).run(model)  # a forward may write into its input
    try:
        check_same_results(output, expected, message, model, inputs)
    except RuntimeError as error:
        try:
            check_repeatable(model, inputs, expected)
        except RuntimeError as reason:
            raise reason from error
        raise


def check_repeatable(model: nn.Module, inputs: Inputs, expected: Any) -> None:
    """Raises ``RuntimeError`` unless another run on the same inputs returns what was ``expected``."""
    message = (
        "model must return the same result for the same input in eval mode: its forward draws random numbers, or "
        "changes its own state"
    )
    check_same_results(inputs.map(Tensor.clone).run(model), expected, message)


def _nudged_outputs(model: nn.Module, inputs: Inputs, expected: list[Tensor]) -> list[Tensor]:
    """The outputs for inputs that are moved by some units in the last place; ``expected`` if they are random anyway."""
    if not all(map(torch.equal, outputs_of(model, inputs), expected)):
        return expected
    generator = torch.Generator().manual_seed(0)

    def move(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor * (1 + 2**-20 * torch.randn(tensor.shape, generator=generator).to(tensor))

    return outputs_of(model, inputs.map(move))


def _describe(output: object) -> str:
    return "None" if output is None else f"a {type(output).__name__} without any"
