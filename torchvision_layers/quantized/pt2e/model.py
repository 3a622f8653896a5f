"""Any model as an exported graph that can become int8."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ..._utils.inputs import Inputs, takes_one_input
from ..._utils.structure import rebuild
from ..finite import check_not_nan, may_give_nan
from ..precision import in_float32
from ..state_kinds import FLOAT_STATE
from ..wrapper import QuantizableWrapper, Stage
from .export import ExportedModel
from .nodes import qparams, set_qparams
from .passes import set_mode
from .rounding_checks import RoundingChecks

__all__ = ["QuantizableGraph", "make_graph"]

_QPARAMS = ("activation_scales", "activation_zero_points")


class QuantizableGraph(QuantizableWrapper):
    """A model as a graph of operators, with observers, with fake quantization, or in int8.

    Created by :func:`quantize` and :func:`prepare_qat` with ``engine="pt2e"``. Batches and images may have other sizes
    than the example, unless the ``forward`` of the model fixes them.

    An int8 graph holds int8 weights and rounds like int8, but computes in float, slower than the float model. It is
    fast once compiled: ``torch.compile(graph)`` with ``torch._inductor.config.freezing = True``, under
    ``torch.no_grad()``.

    The keys of its ``state_dict`` are those of the model, as far as training keeps them, and those of the observers.
    In int8 they are the weights and their scales, under torchao's names, with ``activation_scales`` and
    ``activation_zero_points`` for the activations in the order of the graph. The state loads into a graph that was
    quantized from the same architecture.
    """

    engine = "pt2e"
    child = "body"

    def __init__(self, exported: ExportedModel, model: nn.Module) -> None:
        super().__init__(model)
        self.body = exported.graph_module
        #: Whether convolutions and linear layers may stay in float.
        self.allows_float = False
        #: Whether the model does something else for a single image, which the graph therefore rejects.
        self.rejects_single = False
        leaves = {path: module for path, module in model.named_modules() if not module._modules}
        #: Paths of the modules without children, and of those with parameters among them.
        self.leaves = frozenset(leaves)
        self.weighted = {path for path, module in leaves.items() if module._parameters}
        self.called_paths = exported.called_paths
        self.norm_inputs = exported.norm_inputs
        self.signature = exported.signature
        self.output_template = exported.output_template
        self.batch_dims = exported.batch_dims
        #: The number of images that it was exported with.
        self.images = exported.images
        self.takes_few_images = exported.images == 2
        self.training = model.training
        self.register_state_dict_post_hook(_save_qparams)
        self.register_load_state_dict_pre_hook(_load_qparams)
        self.register_load_state_dict_post_hook(_freeze_again)

    def forward(self, input: Any) -> Any:
        return self.call(Inputs((input,)))

    def call(self, inputs: Inputs) -> Any:
        """The output for these inputs."""
        tensors = self.signature.flatten(inputs)
        if self.stage is not Stage.FLOAT:
            check_not_nan(inputs)
        if self.stage is Stage.PREPARED and not torch.compiler.is_compiling():
            self.remember(inputs)
        batches = [tensor.shape[dim] for tensor, dims in zip(tensors, self.batch_dims[0], strict=True) for dim in dims]
        is_empty = self.stage is Stage.INT8 and 0 in batches
        if is_empty:
            # Guards of the export may exclude an empty batch if a forward merges the batch with another dimension.
            tensors = _resized(tensors, self.batch_dims[0], self.images)
        elif self.rejects_single and 1 in batches:
            raise ValueError(
                "input must have at least two images: the forward of the model treats a single one differently, so the "
                "graph cannot run it"
            )
        try:
            # A compiled graph follows the autocast of its caller.
            with nullcontext() if torch.compiler.is_compiling() else self._running(is_empty):
                outputs = self.body(*tensors)
        except AssertionError as error:  # from guards that the export put there
            raise ValueError(f"input must have sizes that the forward of the model supports: {error}") from error
        if is_empty:
            outputs = _resized(outputs, self.batch_dims[1], 0)
        return rebuild(self.output_template, outputs)

    @contextmanager
    def _running(self, is_empty: bool) -> Iterator[None]:
        names = (str(node.target).partition(".")[2].partition(".")[0] for node in self.body.graph.nodes)
        is_checked = self.stage is Stage.INT8 and not is_empty and any(map(may_give_nan, names))
        with in_float32(), RoundingChecks() if is_checked else nullcontext():
            yield

    def first_images(self, inputs: Inputs, count: int) -> Inputs:
        if not self.takes_few_images or not inputs.can_be_cut():
            return inputs
        tensors = self.signature.flatten(inputs)
        places = [(i, dim) for i, dims in enumerate(self.batch_dims[0]) for dim in dims]
        if len({tensors[i].shape[dim] for i, dim in places}) == 1:
            for i, dim in places:
                tensors[i] = tensors[i].narrow(dim, 0, min(count, tensors[i].shape[dim]))
        return self.signature.rebuild(tensors)

    def _set_mode(self, mode: bool) -> None:
        for module in self.modules():
            module.training = mode
        set_mode(self.body, mode, mode and not self.is_frozen)

    def _freeze(self) -> None:
        from .torchao import disable_observers

        disable_observers(self.body)

    def __copy__(self) -> Self:
        clone = self.__class__.__new__(self.__class__)
        clone.__setstate__(self.__dict__.copy())
        return clone

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        clone = self.__class__.__new__(self.__class__)
        memo[id(self)] = clone
        clone.__setstate__(copy.deepcopy(self.__dict__, memo))
        return clone

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "a graph cannot be pickled; give its state_dict() to torch.save and load it into a graph made from the "
            "same architecture, or give torch.export.export(graph, (input,)) to torch.export.save"
        )


class MultipleQuantizableGraph(QuantizableGraph):
    """A :class:`QuantizableGraph` of a ``forward`` with several arguments."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.call(Inputs(args, kwargs))


def make_graph(exported: ExportedModel, model: nn.Module) -> QuantizableGraph:
    """The exported ``model`` with the arguments of its own ``forward``."""
    return (QuantizableGraph if takes_one_input(model) else MultipleQuantizableGraph)(exported, model)


def _resized(values: Sequence[Any], dims: list[list[int]], size: int) -> list[Any]:
    """Tensors of zeros with another size in each of ``dims``; values without such dimensions are kept."""
    return [
        value.new_zeros([size if dim in changed else old for dim, old in enumerate(value.shape)]) if changed else value
        for value, changed in zip(values, dims, strict=True)
    ]


def _freeze_again(module: QuantizableGraph, incompatible_keys: object) -> None:
    if module.is_frozen:  # even if the state, which holds a switch for each observer, was saved before freezing
        module._freeze()


def _save_qparams(
    module: QuantizableGraph, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    if module.stage is Stage.INT8:
        # They are numbers in the nodes of the graph, which no state dict contains by itself.
        state_dict.update({prefix + name: value for name, value in qparams(module.body.graph).items()})


def _load_qparams(
    module: QuantizableGraph,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    if module.stage is not Stage.INT8:
        return
    current = qparams(module.body.graph)
    # The base class has put the name of the child in front of every key by now.
    values = {name: state_dict.pop(f"{prefix}{module.child}.{name}", None) for name in _QPARAMS}
    if strict and all(value is None for value in values.values()):
        raise ValueError(FLOAT_STATE)
    missing_keys.extend(prefix + name for name in _QPARAMS if values[name] is None)
    if all(isinstance(values[name], Tensor) and values[name].shape == current[name].shape for name in _QPARAMS):
        set_qparams(module.body, *values.values())
    elif not any(value is None for value in values.values()):
        error_msgs.append(f"{prefix}activation_scales must have {len(current['activation_scales'])} values")
