"""The plain form of a layer: modules of torch that compute the same, found by running the layer."""

import warnings
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.ops
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..modules import has_hooks
from ..tensor_writes import TensorWrites
from .recording import light_copy, record_steps
from .weighted import find_plain_weighted

__all__ = ["PlainForm", "plain_form"]

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
#: Functions that scale or shift their input by constants.
_AFFINE = {"add", "add_", "addcmul", "div", "div_", "mul", "mul_", "multiply", "sub", "sub_", "true_divide"}
_STATISTICS = {"weight", "bias", "running_mean", "running_var"}


@dataclass(frozen=True)
class PlainForm:
    """Modules that compute, one after another, what a layer computes in eval mode."""

    #: The modules by name, children of the layer among them.
    modules: "OrderedDict[str, nn.Module]"
    #: The name of the module that takes the place of the layer's own computation.
    main: str
    #: Whether they train as the layer does, with its parameters and buffers.
    can_train: bool
    #: Shapes of small inputs.
    examples: list[tuple[int, ...]]

    def as_module(self) -> nn.Module:
        """The modules as one."""
        return self.modules[self.main] if len(self.modules) == 1 else nn.Sequential(self.modules)

    def keys(self) -> set[str]:
        """The keys of the ``state_dict`` without the name of the main module."""
        return {key.removeprefix(f"{self.main}.") for key in nn.Sequential(self.modules).state_dict()}


def plain_form(module: nn.Module) -> PlainForm | None:
    """The plain form of a layer that pads, computes its weight, or calls its children before or after its own function.

    ``None`` if the layer does anything else, or something else for inputs of other sizes. The steps are found from
    runs without values on inputs of many sizes, and the results are compared on random values.
    """
    if not _may_have_one(module):
        return None
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are about the inputs, which are ours
        for input in _inputs(module):
            try:
                form = _plain_form(module, input)
                if form is not None and _computes_same(module, form, input.dtype):
                    return form
            except Exception:  # a user's forward may raise anything for an input that it does not expect
                continue
    return None


def _may_have_one(module: nn.Module) -> bool:
    if "forward" in vars(module) or any(has_hooks(m) for m in module.modules()):
        return False
    tensors = [*module._parameters.values(), *module._buffers.values()]
    return parametrize.is_parametrized(module) or any(tensor is not None for tensor in tensors)


def _inputs(module: nn.Module) -> Iterator[Tensor]:
    """Inputs without values, of the shapes that the layer may accept."""
    tensors = [*module.parameters(), *module.buffers()]
    dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float32)

    def empty(channels: int, dims: int) -> Tensor:
        return torch.empty(2, channels, *[64] * dims, dtype=dtype, device="meta")

    mean = getattr(module, "running_mean", None)
    if isinstance(mean, Tensor):
        expected = ((1, 0), (2,), (3,), (2,))
        dims = next((d for c, d in zip(_NORMS, expected, strict=True) if isinstance(module, c)), (2, 1, 0, 3))
        yield from (empty(len(mean), d) for d in dims)
        return
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        weight = next((tensor for tensor in tensors if tensor.dim() > 1), None)
    if weight is None or not 2 <= weight.dim() <= 5:
        return
    per_group, outputs = weight.shape[1], len(weight)
    groups = [g for g in range(1, outputs + 1) if outputs % g == 0]
    for number in dict.fromkeys((getattr(module, "in_channels", 0), *(per_group * g for g in groups), outputs)):
        if isinstance(number, int) and number > 0:
            yield empty(number, weight.dim() - 2)


def _plain_form(module: nn.Module, input: Tensor) -> PlainForm | None:
    if isinstance(getattr(module, "running_mean", None), Tensor):
        return _plain_norm(module, input)
    found = find_plain_weighted(module, input)
    if found is None:
        return None
    main = _free_name(module, "linear" if isinstance(found.layer, nn.Linear) else "conv")
    modules = OrderedDict((name, module.get_submodule(name)) for name in found.before)
    if found.padding is not None:
        modules[_free_name(module, "pad")] = found.padding
    modules[main] = found.layer
    modules.update((name, module.get_submodule(name)) for name in found.after)
    if len(modules) < len(found.before) + len(found.after) + 1:  # a child runs twice
        return None
    return PlainForm(modules, main, found.can_train, found.examples)


def _plain_norm(module: Any, input: Tensor) -> PlainForm | None:
    recording = record_steps(light_copy(module, "meta").eval(), input)
    if recording is None or recording.writes:
        return None
    targets = [step.target for step in recording.steps]
    own = [target for target in targets if not isinstance(target, str)]
    children = targets[len(own) :]
    is_norm = own == [F.batch_norm] or all(getattr(f, "__name__", "") in _AFFINE for f in own)
    if not own or not is_norm or any(not isinstance(child, str) for child in children):
        return None
    cls = next((c for c in _NORMS if isinstance(module, c)), None)
    names = {name for name, tensor in module._parameters.items() if tensor is not None}
    buffers = {name for name, tensor in module._buffers.items() if tensor is not None}
    norm: Any
    if cls is None and buffers == _STATISTICS and not names and input.dim() == 4:
        norm = torchvision.ops.FrozenBatchNorm2d(len(module.running_mean), getattr(module, "eps", 1e-5))
    elif {*names, *buffers} - {"num_batches_tracked"} <= _STATISTICS and "weight" not in buffers:
        cls = cls or _NORMS[max(input.dim() - 3, 0)]
        norm = cls(
            len(module.running_mean), getattr(module, "eps", 1e-5), getattr(module, "momentum", 0.1), bool(names)
        )
        norm.track_running_stats = getattr(module, "track_running_stats", True)
    else:
        return None
    for name in _STATISTICS:
        setattr(norm, name, getattr(module, name, None))
    if hasattr(norm, "num_batches_tracked"):
        norm.num_batches_tracked = getattr(module, "num_batches_tracked", None)
    main = _free_name(module, "norm")
    modules = OrderedDict({main: norm, **{name: module.get_submodule(name) for name in children}})
    if len(modules) < len(children) + 1:
        return None
    image = len(input.shape[2:])
    examples = [(batch, input.shape[1], *sizes[:image]) for batch, *sizes in ((3, 6, 5, 4), (4, 3, 4, 5))]
    form = PlainForm(modules, main, True, examples)
    copied = light_copy(module, "meta").train()
    with TensorWrites(dict(copied.named_parameters())) as writes, torch.no_grad():
        copied(input)
    can_train = not writes.found and _computes_same(module, form, input.dtype, training=True)
    return form if can_train else replace(form, can_train=False)


def _free_name(module: nn.Module, name: str) -> str:
    return name if name not in module._modules else _free_name(module, f"{name}_1")


def _computes_same(module: nn.Module, form: PlainForm, dtype: torch.dtype, training: bool = False) -> bool:
    """Compares results, buffers and what is left in the input, on random values."""
    tensor = next(iter([*module.parameters(), *module.buffers()]))
    own, plain = (light_copy(m).train(training) for m in (module, form.as_module()))
    for seed, shape in enumerate(form.examples):
        input = 4**seed * torch.randn(shape, dtype=dtype).to(tensor.device)
        outputs, inputs = [], [input.clone(), input.clone()]
        for m, own_input in zip((own, plain), inputs, strict=True):
            torch.default_generator.manual_seed(seed)  # children may draw random numbers
            with torch.no_grad():
                outputs.append(m(own_input))
        buffers = zip(own.buffers(), plain.buffers(), strict=True) if training else ()
        if not all(_are_close(*pair) for pair in (outputs, inputs, *buffers)):
            return False
    return True


def _are_close(first: Tensor, second: Tensor) -> bool:
    if (first.shape, first.dtype) != (second.shape, second.dtype) or not first.is_floating_point():
        return torch.equal(first, second)
    tolerance = 64 * torch.finfo(first.dtype).eps * float(first.abs().max())
    return float((first - second).abs().max()) <= tolerance
