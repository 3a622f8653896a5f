"""Why a model cannot run on its inputs: what the first layer takes, beside what it gets."""

import inspect
import linecache
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .checks import check_float32
from .inputs import Inputs
from .modules import copy_module

__all__ = ["advising_example", "check_first_layer", "explaining", "explaining_int8"]

_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)
_PACKAGE = Path(__file__).parents[1]


class _ReachedError(Exception):
    """A run got to the first layer with a weight."""

    def __init__(self, module: nn.Module, tensor: Tensor) -> None:
        super().__init__()
        self.module, self.tensor = module, tensor


@contextmanager
def explaining(model: nn.Module, seen: Sequence[tuple[str, Inputs]]) -> Iterator[None]:
    """Replaces the error of a run on inputs that the model cannot take by one that names them.

    Args:
        model: the float model that runs.
        seen: inputs with the names that errors give them; the last one runs. It is read when an error occurs.
    """
    try:
        yield
    except _ERRORS as error:
        is_foreign = not _is_of_package(error)
        if not seen or not (is_foreign or error.__cause__ is not None):
            raise
        name, inputs = seen[-1]
        check_first_layer(model, name, inputs, error, takes_unbatched=not is_foreign)
        if is_foreign:
            _check_run(model, name, inputs, error)
        raise


@contextmanager
def explaining_int8(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """The same for a model with int8 layers, which take float32 tensors on the CPU."""
    try:
        yield
    except _ERRORS as error:
        for value in [*inputs.args, *inputs.kwargs.values()]:
            # Beside tensors, a forward may take constants, whose errors name them.
            if not (inputs.tensors() and isinstance(value, (complex, float, int, str, type(None)))):
                _check_on_cpu(value, error)
        check_first_layer(model, "input", inputs, error)
        raise


@contextmanager
def advising_example(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """The same for the first run of a model that was prepared for training without an example."""
    try:
        yield
    except (*_ERRORS, AttributeError, NotImplementedError) as error:
        if _is_of_package(error):
            raise
        check_first_layer(model, "input", inputs, error)
        raise RuntimeError(
            "the model was prepared without an example, and cannot run on these inputs: if the float model can, pass "
            "an example, prepare_qat(model, example), which shows what its forward does"
        ) from error


def check_first_layer(
    model: nn.Module, name: str, inputs: Inputs, error: Exception, takes_unbatched: bool = False
) -> None:
    """Raises an error if the first layer with a weight does not take what it gets of ``inputs``.

    Args:
        model: the model; only what comes before that layer runs.
        name: what errors call the inputs.
        inputs: the inputs.
        error: what a run raised; the cause of the new error.
        takes_unbatched: accepts inputs of a convolution without a batch dimension, as torch does. Default: ``False``.
    """
    first = _first_layer(model, inputs)
    if first is None:
        if len(inputs.args) == 1 and isinstance(inputs.args[0], Mapping):
            keys, forward = ", ".join(map(repr, inputs.args[0])), inspect.signature(model.forward)
            raise TypeError(
                f"{name} must hold the inputs of forward{forward}; its keys are {keys}: rename them, or pass "
                "(input, target)"
            ) from error
        return
    path = next(path for path, module in model.named_modules() if module is first.module)
    layer = f"{path or 'model'} ({type(first.module).__name__})"
    _check_dtype(first, name, layer, error)
    _check_shape(first, name, layer, error, takes_unbatched)


def _first_layer(model: nn.Module, inputs: Inputs) -> _ReachedError | None:
    def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            raise _ReachedError(module, args[0])

    layers = [m for m in model.modules() if hasattr(m, "in_channels") and hasattr(m, "kernel_size")]
    layers += [module for module in model.modules() if hasattr(module, "in_features")]
    handles = [layer.register_forward_pre_hook(stop) for layer in layers if not list(layer.children())]
    try:
        with torch.no_grad():
            inputs.map(Tensor.clone).run(model)
    except _ReachedError as reached:
        return reached
    except Exception:  # before the first layer; a forward may raise anything
        return None
    finally:
        for handle in handles:
            handle.remove()
    return None


def _check_dtype(first: _ReachedError, name: str, layer: str, error: Exception) -> None:
    weight, tensor = getattr(first.module, "weight", None), first.tensor
    if not isinstance(weight, Tensor):  # int8
        if not (tensor.is_floating_point() or tensor.is_quantized):
            _check_float32(name, tensor, error)
        return
    if tensor.device != weight.device:
        raise ValueError(
            f"{name} must be on the device of the model, {weight.device} for {layer}, got {tensor.device}: move it "
            f"with .to({str(weight.device)!r})"
        ) from error
    if tensor.dtype != weight.dtype and tensor.dtype == torch.float32:
        raise TypeError(
            f"model must be float32 for such inputs, {layer} is {weight.dtype}: call model.float()"
        ) from error
    if tensor.dtype != weight.dtype and weight.dtype == torch.float32:
        _check_float32(name, tensor, error)


def _check_shape(first: _ReachedError, name: str, layer: str, error: Exception, takes_unbatched: bool) -> None:
    module, shape = first.module, list(first.tensor.shape)
    kernel_size: Any = getattr(module, "kernel_size", None)
    if not isinstance(kernel_size, tuple):
        features: Any = module.in_features if hasattr(module, "in_features") else None
        if isinstance(features, int) and shape[-1:] != [features]:
            raise ValueError(
                f"{name} must give {features} features in the last dimension to {layer}, got shape {shape} there: pass "
                "inputs of the size that the model was built for"
            ) from error
        return
    dims = len(kernel_size) + 2
    channels: Any = module.in_channels
    if len(shape) == dims - 1 and not takes_unbatched:
        raise ValueError(
            f"{name} must be a batch of {dims} dimensions for {layer}, got shape {shape}: pass batches of several "
            "inputs, or add the dimension with .unsqueeze(0)"
        ) from error
    if len(shape) == dims and shape[1] != channels:
        order = [0, dims - 1, *range(1, dims - 1)]
        remedies = {
            shape[-1] == channels: f": the channels are last, move them with .permute({', '.join(map(str, order))})",
            (shape[1], channels) == (1, 3): f": repeat the channel with .expand(-1, 3{', -1' * (dims - 2)})",
            (shape[1], channels) == (4, 3): ": drop the alpha channel with [:, :3]",
        }
        remedy = remedies.get(True, "")
        raise ValueError(
            f"{name} must have {channels} channels in dimension 1 for {layer}, got shape {shape}{remedy}"
        ) from error


def _check_on_cpu(value: object, error: Exception) -> None:
    if isinstance(value, Tensor) and value.device.type != "cpu":
        raise ValueError(f"input must be on the CPU, got {value.device}: move it with .cpu()") from error
    if not isinstance(value, (Tensor, Mapping, Sequence)) or (isinstance(value, Tensor) and value.is_floating_point()):
        _check_float32("input", value, error)


def _check_float32(name: str, value: object, error: Exception) -> None:
    try:
        check_float32(name, value)
    except TypeError as explained:
        raise explained from error


def _check_run(model: nn.Module, name: str, inputs: Inputs, error: Exception) -> None:
    """Raises the error of the float model, with the shapes of its inputs, if it cannot run either."""
    shapes = ", ".join(str(list(tensor.shape)) for tensor in inputs.tensors())
    try:
        with torch.no_grad():
            inputs.map(Tensor.clone).run(copy_module(model).eval())
    except _ERRORS as raised:
        if type(raised) in _ERRORS:
            raise type(raised)(f"model must run on {name}, of shape {shapes}: {raised}") from error


def _is_of_package(error: Exception) -> bool:
    """Whether a statement of the package raises the error, and so explains it, rather than a forward or torch."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    if traceback is None:
        return False
    path = traceback.tb_frame.f_code.co_filename
    is_statement = linecache.getline(path, traceback.tb_lineno).lstrip().startswith("raise")
    return is_statement and Path(path).is_relative_to(_PACKAGE)
