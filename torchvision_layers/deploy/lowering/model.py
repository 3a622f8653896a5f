"""Lowered models."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..._utils.empty_batches import has_no_images, run_without_images
from ..._utils.inputs import Inputs
from ..._utils.structure import rebuild
from ...quantized.finite import check_not_nan
from ...quantized.pt2e.signature import Signature
from .bfloat16 import check_bfloat16
from .int8_kernels import check_exact_products
from .kernels import check_onednn
from .program import Program

__all__ = ["LoweredModel", "accepts_sizes", "check_inputs", "state_of"]


class LoweredModel(nn.Module):
    """A model for inference as a program of oneDNN's operators, made by :func:`lower`.

    It is called like the model, in any memory format, and returns the same structure. It records no gradients and
    ignores autocasting. ``print`` shows its steps. Its parameters and buffers have the keys of the folded model, except
    for weights that folding computed. They are packed for the CPU when the model runs first, and again after
    ``load_state_dict``; copies and pickles contain no packed weights.
    """

    def __init__(
        self,
        program: Program,
        state: Mapping[str, Tensor],
        signature: Signature,
        output_template: Any,
        threads: int | None,
    ) -> None:
        super().__init__()
        self._program = program
        self._signature = signature
        self._output_template = output_template
        self._threads = threads
        self._check_sizes = program.guards.function()
        self._is_int8 = bool(program.scales)
        self._run: Callable[..., tuple[Any, ...]] | None = None
        #: The shapes and dtypes of the last call with nothing but tensors, which need no second check.
        self._accepted_layout: tuple[Any, ...] | None = None
        for path, tensor in state.items():
            _register(self, path, tensor)
        if self._is_int8:
            self.register_buffer("activation_scales", torch.tensor(program.scales, dtype=torch.float64))
        self.training = False
        self.register_load_state_dict_pre_hook(_check_scales)
        self.register_load_state_dict_post_hook(_forget_packed_weights)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the model.

        Errors: ``TypeError`` or ``ValueError`` for inputs that differ from the example in anything but values and
        variable sizes, for NaN in inputs of an int8 model, and for activations that are not finite before a kernel that
        makes numbers of NaN.
        """
        layout = None if kwargs else _layout(args)
        if layout is None or layout != self._accepted_layout:
            inputs = Inputs(args, kwargs)
            if has_no_images(inputs):
                self._signature.flatten(inputs)  # to check them
                return run_without_images(inputs, lambda images: images.run(self.forward))
            tensors = check_inputs(self, inputs)
            is_flat = len(tensors) == len(args) and all(map(is_, tensors, args))
            self._accepted_layout = layout if is_flat else None
            args = tuple(tensors)
        if self._is_int8:
            check_not_nan(Inputs(args))
        # Autograd takes time even without gradients.
        with torch.no_grad(), torch._C._AutoDispatchBelowAutograd(), _without_autocast(), _threads(self._threads):
            outputs = (self._run or self._bind())(*args)
        return rebuild(self._output_template, outputs)

    def train(self, mode: bool = True) -> Self:
        """Errors: ``RuntimeError`` in training mode."""
        if mode:
            raise RuntimeError("a lowered model cannot be trained: train the model that it was lowered from")
        return self

    def _bind(self) -> Callable[..., tuple[Any, ...]]:
        check_onednn()
        if self._is_int8:
            check_exact_products()
        if self._program.is_bfloat16:
            check_bfloat16()
        self._run = run = self._program.bind(state_of(self))
        return run

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        probe = fn(torch.empty(0))
        if probe.dtype != torch.float32 or probe.device.type != "cpu":
            raise TypeError(
                "a lowered model runs in float32 on the CPU only: convert the model that it was lowered from"
            )
        self._run = None
        super()._apply(fn, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_run": None, "_check_sizes": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._check_sizes = self._program.guards.function()

    def __repr__(self) -> str:
        lines = "\n".join(f"  {line}" for line in str(self._program).splitlines())
        return f"{type(self).__name__}(\n{lines}\n)"


def accepts_sizes(model: LoweredModel, inputs: Inputs) -> bool:
    """Whether the program takes inputs of these sizes."""
    try:
        check_inputs(model, inputs)
    except ValueError:
        return False
    return True


def check_inputs(model: LoweredModel, inputs: Inputs) -> list[Tensor]:
    """The tensors of the inputs. It is no method, because a child of the model may have any name."""
    tensors = model._signature.flatten(inputs)
    for name, tensor in zip(model._program.names, tensors, strict=True):
        if tensor.device.type != "cpu":
            raise ValueError(f"{name} must be on the CPU, got {tensor.device}")
    model._check_sizes(*tensors)
    return tensors


def state_of(model: LoweredModel) -> dict[str, Tensor]:
    """The parameters and buffers of the program, by path."""
    tensors = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return {path: tensor.detach() for path, tensor in tensors}


def _layout(args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The properties that the checks of inputs depend on; ``None`` if the inputs are not all plain tensors."""
    if not all(type(arg) is Tensor for arg in args):
        return None
    return tuple((arg.shape, arg.dtype, arg.device) for arg in args)


def _without_autocast() -> AbstractContextManager[object]:
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()


def _register(model: nn.Module, path: str, tensor: Tensor) -> None:
    """Adds a parameter or buffer to the module at its path, which is made if there is none."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in model._modules:
            model.add_module(parent, nn.Module())
        model = model.get_submodule(parent)
        model.training = False
    if isinstance(tensor, nn.Parameter):
        model.register_parameter(name, tensor)
    else:
        model.register_buffer(name, tensor)


def _check_scales(
    model: LoweredModel,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    scales = state_dict.get(f"{prefix}activation_scales")
    own = model._buffers.get("activation_scales")
    if own is not None and isinstance(scales, Tensor) and not torch.equal(scales.float(), own.float()):
        error_msgs.append(
            f"{prefix}activation_scales must be those of the program, which are constants of its steps: lower the "
            "graph that the state comes from"
        )


def _forget_packed_weights(model: LoweredModel, incompatible_keys: object) -> None:
    model._run = None


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if number is None or number == before:
        yield
        return
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
