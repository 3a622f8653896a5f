"""Any model as a module whose layers can become int8."""

import copy
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from typing_extensions import Self

from ..._utils.empty_batches import has_no_images, run_without_images
from ..._utils.failed_runs import advising_example, explaining_int8
from ..._utils.graph_modules import make_ordinary_
from ..._utils.inputs import Inputs, positional_names, takes_one_input
from ..._utils.model_checks import check_not_lazy, check_unwrapped
from ..._utils.plain.model import make_plain_
from ..._utils.structure import Place, map_tensors, places
from ..checks import check_int8_state
from ..finite import check_not_nan
from ..layers.base import make_twins
from ..layers.observed import DeQuantStub, QuantStub
from ..precision import in_float32
from ..wrapper import QuantizableWrapper, Stage
from .excluded import exclude_
from .first_run import FirstRun
from .flat_sequential import trace_flat_sequentials
from .float_forwards import mark_float_forwards
from .hooks import adapt_hooks_, leave_hooked_in_float_
from .int8_modules import use_backend
from .post_ops import PostOp
from .problems import check_names, raise_problems
from .repeated_calls import unsplit_modules
from .rewriting import rewrite_forwards
from .stubs import through_stubs
from .support import is_unit

__all__ = ["QuantizableModel", "make_quantizable_", "quantizable", "unwrapped"]


class QuantizableModel(QuantizableWrapper):
    """A model between a stub that quantizes its input and a stub that dequantizes its output.

    Created by :func:`quantizable`. The keys of its ``state_dict`` are those of ``model``, and ``entry.*`` once the
    input has a scale, with ``entries.*`` for further inputs.

    Errors: ``ValueError`` if ``model`` has a child named ``entry`` or ``entries``, whose keys would collide.
    """

    engine = "eager"
    child = "model"
    takes_int8 = True
    takes_float32_only = True
    other_keys = {"quant": "entry", "quants": "entries"}  # noqa: RUF012  # a ClassVar of the base class

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        for name in self.other_keys.values():
            if hasattr(model, name):
                raise ValueError(f"model must not have a child named {name!r}, the state_dict key of quantized inputs")
        self.quant = QuantStub()
        #: A stub for each floating-point input after the first.
        self.quants = nn.ModuleList()
        #: The places of the inputs that have stubs.
        self.places = list[Place]()
        self.model = model
        self.dequant = DeQuantStub()
        #: The operations that convolutions compute as well once they are int8.
        self.post_ops = list[PostOp]()
        #: The shapes of the last inputs since the model was prepared, for a trial run of the int8 model.
        self.trial_inputs: Inputs | None = None
        #: The names of the arguments of the model's ``forward``, which may be wrapped later.
        self.input_names = positional_names(model.forward)
        self.train(model.training)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # TorchScript needs a fixed name for the input, but callers know the one in the forward of the model.
        if kwargs and not args and [*kwargs] == [*self.input_names]:
            args, kwargs = tuple(kwargs.values()), {}
        return super().__call__(*args, **kwargs)

    def forward(self, input: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            return self._call(Inputs((input,)))
        if self.stage == "int8" and input.shape[0] == 0:  # TorchScript does not know the enum
            sizes = list(input.shape)
            sizes[0] = 1
            return self.dequant(self.model(self.quant(torch.zeros(sizes, dtype=input.dtype))))[:0]
        return self.dequant(self.model(self.quant(input)))

    @torch.jit.unused
    def _call(self, inputs: Inputs) -> Any:
        if self.stage is Stage.FLOAT:
            return self._run(inputs)
        if self.stage is Stage.PREPARED:
            is_first = self.trial_inputs is None
            self.trial_inputs = inputs.map(lambda tensor: tensor.detach().to("meta"))
            self.remember(inputs)
            with in_float32(), advising_example(self.model, inputs) if is_first else nullcontext():
                return self._run(inputs)
        check_not_nan(inputs)
        with explaining_int8(self.model, inputs), in_float32(), use_backend(self.backend):
            # On an empty batch some int8 kernels lose a dimension, and qnnpack's hardsigmoid ends the process.
            return run_without_images(inputs, self._run) if has_no_images(inputs) else self._run(inputs)

    @torch.jit.unused
    def _run(self, inputs: Inputs) -> Any:
        # Int8 convolutions return channels_last memory, also for inputs for which those in float would not.
        is_contiguous = all(map(Tensor.is_contiguous, inputs.tensors()))
        is_prepared = self.stage is not Stage.FLOAT
        inputs = through_stubs(inputs, [self.quant, *self.quants], self.places, is_prepared)

        def dequantize(output: Tensor) -> Tensor:
            if self.stage is Stage.INT8 and not output.is_quantized:
                return output
            return self.dequant(output.contiguous() if is_contiguous and output.is_quantized else output)

        return map_tensors(dequantize, inputs.run(self.model))

    @torch.jit.unused
    def observe_inputs(self, inputs: Inputs) -> None:
        """Adds stubs for the inputs after the first, before the model is prepared."""
        found = zip(places((inputs.args, inputs.kwargs)), inputs.tensors(), strict=True)
        self.places = [place for place, tensor in found if tensor.is_floating_point()]
        self.quants.extend(QuantStub() for _ in range(len(self.places) - 1 - len(self.quants)))
        self.trial_inputs = inputs.map(lambda tensor: tensor.detach().to("meta"))

    @torch.jit.unused
    def _freeze(self) -> None:
        from .torch_ao.preparing import freeze

        freeze(self)

    @torch.jit.unused
    def _packing(self) -> AbstractContextManager[None]:
        return use_backend(self.backend) if self.stage is Stage.INT8 else nullcontext()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        clone = self.__class__.__new__(self.__class__)
        memo[id(self)] = clone
        with self._packing(), warnings.catch_warnings():
            # torch copies int8 tensors through a storage class that it deprecates.
            warnings.filterwarnings("ignore", message="TypedStorage is deprecated", category=UserWarning)
            clone.__setstate__(copy.deepcopy(self.__dict__, memo))
        trace_flat_sequentials(clone)
        return clone

    def __prepare_scriptable__(self) -> nn.Module:
        from .torch_ao.amx_convs import without_checks

        return without_checks(self)

    def __reduce__(self) -> Any:
        if self.stage is not Stage.FLOAT:
            raise TypeError(
                "a prepared or int8 model cannot be pickled as a whole: save its state_dict(), or "
                "torch.jit.script(model)"
            )
        if any(hasattr(module, "is_rewritten") for module in self.modules()):
            raise TypeError(
                "a model with rewritten forwards cannot be pickled as a whole: pickle the float model instead"
            )
        return super().__reduce__()

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> _IncompatibleKeys:
        """As in ``nn.Module``; int8 weights are packed for the backend of this model.

        Errors: ``ValueError`` if this model is for x86 and the weights were made for a backend without its bound, and
        ``RuntimeError`` if it has other layers: a block called twice becomes two if its results differ much in size.
        """
        if self.stage is Stage.INT8:
            check_int8_state(self, state_dict, strict)
        with self._packing():
            keys = super().load_state_dict(state_dict, strict, assign)
        if self.is_frozen:  # even if the state was saved before freezing
            self._freeze()
        return keys


class MultipleQuantizableModel(QuantizableModel):
    """A :class:`QuantizableModel` for a ``forward`` that takes several inputs; not for TorchScript."""

    __call__ = nn.Module.__call__

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._call(Inputs(args, kwargs).in_order(self.input_names))


def unwrapped(model: nn.Module) -> nn.Module:
    """The module whose ``forward`` receives the inputs: ``model``, or the model inside a :class:`QuantizableModel`."""
    return model.model if isinstance(model, QuantizableModel) else model


def quantizable(model: nn.Module, *, allow_float: bool = False) -> QuantizableModel:
    """A copy of ``model`` in which every layer of this package is its twin, with stubs at input and output.

    Tensor operations in each ``forward`` that can be traced become modules, named after the operation. Any other
    ``forward`` will run in float, with the layers that it calls in int8. Results, parameters and ``state_dict`` keys
    are those of ``model``, which is not changed.

    Args:
        model: any model. Its inputs and outputs may be tensors in tuples, lists, dicts and dataclasses.
        allow_float: keeps convolutions and linear layers that cannot become int8 in float, layers of this package
            without a twin included, instead of raising. Default: ``False``.

    Errors: ``TypeError`` with the path, class and source line of each convolution or linear layer that cannot become
    int8, of each ``forward`` that computes with a weight of its own, and of each layer of this package without a twin.

    Examples::

        >>> model = nn.Sequential(tnn.ConvNormAct(3, 8), nn.Flatten(), nn.Linear(512, 2))
        >>> quantizable(model)(torch.rand(1, 3, 8, 8)).shape
        torch.Size([1, 2])
    """
    return make_quantizable_(copy.deepcopy(check_unwrapped("model", model)), allow_float, will_train=True)


def make_quantizable_(
    model: nn.Module,
    allow_float: bool,
    will_train: bool,
    run: FirstRun | None = None,
    excluded: Mapping[str, str] | None = None,
) -> QuantizableModel:
    """Like :func:`quantizable`, without the copy.

    Args:
        model: the model to change.
        allow_float: as in :func:`quantizable`.
        will_train: whether the result must hold in training mode as well as in eval mode.
        run: what ``model`` did on one batch, if a batch is known.
        excluded: the modules to leave in float by path, each with what excludes it. Default: ``None``.
    """
    excluded = excluded or {}
    for module in model.modules():
        # Left by FX mode or torch.ao, which would quantize what has one and skip what has None.
        module.__dict__.pop("qconfig", None)
    make_ordinary_(model)
    if isinstance(model, QuantizableModel):
        _make_plain_(model.model, will_train, run)
        exclude_(model.model, excluded)
        return model
    check_not_lazy("model", model)
    check_names(model)
    wrapper = (QuantizableModel if takes_one_input(model) else MultipleQuantizableModel)(model)
    paths = {path for path, _ in wrapper.model.named_modules()}
    without_kernel = make_twins(wrapper.model)
    untrainable = _make_plain_(wrapper.model, will_train, run)
    exclude_(wrapper.model, excluded)
    without_kernel |= leave_hooked_in_float_(wrapper.model, run.changed_by_hooks, allow_float) if run else {}
    adapt_hooks_(wrapper.model)
    for path, module in wrapper.model.named_modules():
        if path not in paths and not is_unit(module):
            wrapper.classes_before[path] = type(module).__name__
    if allow_float:
        for path in set[str]().union(*run.read_layers.values()) if run else ():
            wrapper.model.get_submodule(path).stays_in_float = True  # type: ignore[assignment]  # a plain attribute
    problems = rewrite_forwards(wrapper.model, allow_float, will_train, run)
    mark_float_forwards(wrapper.model, run)
    for module in unsplit_modules(wrapper.model, run) if run else ():
        without_kernel[module] = (
            "which a forward in float calls several times, with results of very different sizes, for which int8 has "
            "one scale; give each call a layer of its own, with the same weight, or pass allow_float=True to leave it "
            "in float"
        )
        if allow_float:
            module.stays_in_float = True  # type: ignore[assignment]  # a plain attribute
    if not allow_float:
        problems |= run.problems if run else {}
        raise_problems(wrapper.model, problems, untrainable.values(), without_kernel)
    return wrapper


def _make_plain_(model: nn.Module, will_train: bool, run: FirstRun | None) -> dict[str, nn.Module]:
    """Makes layers plain, in place, as far as their state and training allow, and keeps ``run`` true for the result.

    Returns the layers by path that only training left alone.
    """
    classes = {path: type(module) for path, module in model.named_modules()}
    left_alone = make_plain_(model, will_train=will_train, keeps_keys=will_train, splits_padding=True)
    if run is not None:
        after = {path: type(module) for path, module in model.named_modules()}
        for path, cls in classes.items():
            if after.get(path) is not cls:
                run.forget(path)
    return left_alone
