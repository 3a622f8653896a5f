"""Any model, with its edges and its layers made quantizable."""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from typing_extensions import Self

from ._chains import calls
from ._checking import check_module
from ._engines import eager
from ._int8 import largest_pairs, running_on
from ._kernels import Kernel, is_unit, kernel
from ._observed import DeQuantStub, QuantStub
from ._post_ops import PostOp
from ._prefixes import add_child, remove_child
from ._straight import trace_lines
from ._twin import make_twins

__all__ = ["QuantizableModel", "quantizable"]


class QuantizableModel(nn.Module):
    """A model between a stub that quantizes its input and one that dequantizes its output.

    Made by :func:`quantizable`. The keys of its ``state_dict`` are those of ``model``; ``entry.*`` joins them when the
    stub has a scale.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        for name in ("entry", "exit"):
            if hasattr(model, name):
                raise ValueError(f"model must not have a child called {name!r}, the name of a stub")
        self.entry = QuantStub()
        self.model = model
        self.exit = DeQuantStub()
        #: Backend that it is prepared for, then the one that its int8 weights are packed for.
        self.prepared_for = ""
        self.packed_for = ""
        #: What convolutions are to compute as well once they are int8.
        self.post_ops = list[PostOp]()
        #: Shape of the inputs seen since it was prepared, without the batch, for trying the int8 model.
        self.image_shape: tuple[int, ...] = ()
        #: Whether batch statistics and ranges stay as they are in training.
        self.is_frozen = False
        #: Class of each module as it was before it became quantizable, by path.
        self.classes_before = {path: type(module).__name__ for path, module in model.named_modules()}
        self.train(model.training)
        self.register_state_dict_post_hook(_remove_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)

    def forward(self, input: Tensor) -> Tensor:
        if self.packed_for != "" and input.shape[0] == 0:
            # Of an empty batch some int8 kernels lose a dimension, and qnnpack's hardsigmoid ends the process.
            sizes = list(input.shape)
            sizes[0] = 1
            return self._run(torch.zeros(sizes, dtype=input.dtype))[:0]
        return self._run(input)

    def _run(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting() or not self.packed_for:
            output = self.model(self.entry(input))
            if not torch.jit.is_scripting():
                self._look_at(input, output)
            return self.exit(output)
        with running_on(self.packed_for):
            return self.exit(self.model(self.entry(input)))

    @torch.jit.unused
    def _look_at(self, input: Tensor, output: Tensor) -> None:
        if isinstance(output, (dict, list, tuple)):
            raise TypeError(f"model must return one tensor, it returns a {type(output).__name__}")
        if self.prepared_for:
            self.image_shape = tuple(input.shape[1:])

    def train(self, mode: bool = True) -> Self:
        """As in ``nn.Module``; what is frozen stays frozen, and an int8 model cannot be trained."""
        if mode and self.packed_for:
            raise RuntimeError("an int8 model cannot be trained; train the model from prepare_qat and convert it")
        super().train(mode)
        if self.is_frozen:
            eager().freeze(self)
        return self

    @torch.jit.unused
    def _packing(self) -> AbstractContextManager[None]:
        return running_on(self.packed_for) if self.packed_for else nullcontext()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        with self._packing(), warnings.catch_warnings():
            # torch copies int8 tensors by storages that it deprecates.
            warnings.filterwarnings("ignore", message="TypedStorage is deprecated", category=UserWarning)
            copied.__setstate__(copy.deepcopy(self.__dict__, memo))
        trace_lines(copied)
        return copied

    def __reduce__(self) -> Any:
        if not self.prepared_for:
            return super().__reduce__()
        raise TypeError(
            "a prepared or int8 model cannot be pickled as a whole: save its state_dict(), or torch.jit.script(model)"
        )

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """As in ``nn.Module``; int8 weights are packed for the backend of this model.

        Errors: ``ValueError`` for weights that were made for a backend of more bits.
        """
        if self.packed_for == "x86":
            for key, value in state_dict.items():
                weight = value[0] if isinstance(value, tuple) else value  # torch saves projections with their biases
                if isinstance(weight, Tensor) and weight.dtype is torch.qint8 and _overflows(weight):
                    raise ValueError(f"{key} has weights made for another backend, whose products x86 cannot add")
        with self._packing():
            keys = super().load_state_dict(state_dict, strict, assign)
        if self.is_frozen:  # though the state may be of a time before
            eager().freeze(self)
        return keys


def _overflows(weight: Tensor) -> bool:
    """Whether two weights of a channel are larger together than x86 can take without VNNI."""
    return int(largest_pairs(weight.int_repr().to(torch.int16)).max()) > 128


def _remove_prefix(
    module: nn.Module, state_dict: "OrderedDict[str, Any]", prefix: str, local_metadata: dict[str, Any]
) -> None:
    remove_child(state_dict, prefix, "model")


def _add_prefix(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    add_child(state_dict, prefix, "model", ("entry", "exit"))


def quantizable(model: nn.Module, *, allow_float: bool = False) -> QuantizableModel:
    """A copy of ``model`` in which every layer of ours is its twin and the edges carry stubs.

    Results, parameters and ``state_dict`` keys are those of ``model``, which is left as it is.

    Args:
        model: takes one tensor and returns one.
        allow_float: leaves in float what int8 is not known to run, layers of ours without a twin among it, instead of
            raising. Default: ``False``.

    Errors: ``TypeError`` that names path and class of a layer of ours without a twin, of a module that int8 is not
    known to run, or of one whose ``forward`` concatenates tensors.

    Examples::

        >>> model = nn.Sequential(tnn.ConvNormAct(3, 8), nn.Flatten(), nn.Linear(512, 2))
        >>> quantizable(model)(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 2])
    """
    check_module(model)
    if isinstance(model, QuantizableModel):
        return copy.deepcopy(model)
    wrapper = QuantizableModel(copy.deepcopy(model))
    make_twins(wrapper.model, allow_float)
    _check_known(wrapper.model, "", allow_float)
    return wrapper


def _check_known(module: nn.Module, path: str, allow_float: bool) -> None:
    if is_unit(module) or kernel(module) is Kernel.ISLAND:
        return
    if kernel(module) is Kernel.UNKNOWN:
        if allow_float:
            return
        raise TypeError(
            f"{path or 'model'} is a {type(module).__name__}, which int8 is not known to run; "
            "pass allow_float=True to leave it in float"
        )
    if calls(module).joins:
        raise TypeError(
            f"{path or 'model'} concatenates tensors in its forward, which int8 does in the range of the first; "
            "use torch.ao.nn.quantized.FloatFunctional().cat there"
        )
    for name, child in module.named_children():
        _check_known(child, f"{path}.{name}".lstrip("."), allow_float)
