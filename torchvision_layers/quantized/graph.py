"""Any model as an exported graph on its way to int8."""

import copy
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from typing_extensions import Self

from ._engines import pt2e
from ._exporting import fixed_sizes, norm_hosts
from ._graph_nodes import ranges, set_ranges
from ._graph_passes import set_mode
from ._prefixes import add_child, remove_child

__all__ = ["QuantizableGraph"]

_RANGES = ("activation_scales", "activation_zero_points")


class QuantizableGraph(nn.Module):
    """A model as a graph of operators, with observers, with fake quantization, or in int8.

    Made by :func:`quantize` and :func:`prepare_qat` with ``engine="pt2e"``. Batches and images may have other sizes
    than the example, where the ``forward`` of the model does not fix them.

    In int8 it holds the weights and the rounding of int8 but computes in float, slower than the model. It is fast once
    compiled: ``torch.compile(graph)`` with ``torch._inductor.config.freezing = True``, under ``torch.no_grad()``.

    The keys of its ``state_dict`` are those of the model, as far as training keeps them, and those of the observers. In
    int8 they are the weights and their scales, in the names of torchao, with ``activation_scales`` and
    ``activation_zero_points`` for the activations in the order of the graph. It loads into a graph that was quantized
    from the same architecture.
    """

    def __init__(self, body: fx.GraphModule, model: nn.Module) -> None:
        super().__init__()
        self.body = body
        #: Backend that it is prepared for, then the one that its int8 weights are for.
        self.prepared_for = ""
        self.packed_for = ""
        #: Whether convolutions and projections may stay in float.
        self.allows_float = False
        #: Whether batch statistics and ranges stay as they are in training.
        self.is_frozen = False
        #: Class of each module of the model, by path.
        self.classes_before = {path: type(module).__name__ for path, module in model.named_modules()}
        leaves = {path: module for path, module in model.named_modules() if not module._modules}
        #: Paths of the modules without children, and of those with weights among them.
        self.leaves = tuple(leaves)
        self.weighted = {path for path, module in leaves.items() if module._parameters}
        #: Paths of the modules that the forward calls.
        self.called: frozenset[str] = body.meta["called"]
        #: Path of the convolution or projection before each batch norm.
        self.norm_hosts = norm_hosts(body)
        #: Sizes of the input that the graph holds for, ``None`` for any.
        self.input_sizes = fixed_sizes(body)
        self.training = model.training
        self.register_state_dict_post_hook(_to_keys)
        self.register_load_state_dict_pre_hook(_from_keys)
        self.register_load_state_dict_post_hook(_freeze_again)

    def forward(self, input: Tensor) -> Tensor:
        self._check(input)
        if self.packed_for and input.shape[0] == 0:
            # Guards of an export may exclude it, where a forward joins the batch with another dimension.
            return self.body(input.new_zeros((1, *input.shape[1:])))[:0]
        try:
            return self.body(input)
        except AssertionError as error:  # of the guards that the export put there
            raise ValueError(f"input must have sizes that the forward of the model is made for: {error}") from error

    def _check(self, input: Tensor) -> None:
        if not isinstance(input, Tensor) or input.dtype != torch.float32:
            kind = input.dtype if isinstance(input, Tensor) else type(input).__name__
            raise TypeError(f"input must be a float32 tensor, got {kind}")
        if input.dim() != len(self.input_sizes):
            raise ValueError(f"input must have {len(self.input_sizes)} dimensions, got {input.dim()}")
        for i, size in enumerate(self.input_sizes):
            if size is not None and input.shape[i] != size:
                raise ValueError(f"input must have size {size} in dimension {i}, got {input.shape[i]}")

    def train(self, mode: bool = True) -> Self:
        """As in ``nn.Module``; what is frozen stays frozen, and an int8 model cannot be trained."""
        if mode and self.packed_for:
            raise RuntimeError("an int8 model cannot be trained; train the model from prepare_qat and convert it")
        for module in self.modules():
            module.training = mode
        set_mode(self.body, mode, mode and not self.is_frozen)
        if self.is_frozen:
            pt2e().disable_observers(self.body)
        return self

    def __copy__(self) -> Self:
        copied = self.__class__.__new__(self.__class__)
        copied.__setstate__(self.__dict__.copy())
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        copied.__setstate__(copy.deepcopy(self.__dict__, memo))
        return copied

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError(
            "a graph cannot be pickled; give its state_dict() to torch.save and load it into a graph made from the "
            "same architecture, or give torch.export.export(graph, (input,)) to torch.export.save"
        )


def _freeze_again(module: QuantizableGraph, incompatible_keys: object) -> None:
    if module.is_frozen:  # whatever the state says, which holds a switch for each observer
        pt2e().disable_observers(module.body)


def _to_keys(module: QuantizableGraph, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    remove_child(state_dict, prefix, "body")
    if module.packed_for:
        # They are numbers in the nodes of the graph, which no state dict holds by itself.
        state_dict.update({prefix + name: value for name, value in ranges(module.body.graph).items()})


def _from_keys(
    module: QuantizableGraph,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: dict[str, Any],
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    if module.packed_for:
        held = ranges(module.body.graph)
        given = {name: state_dict.pop(prefix + name, None) for name in _RANGES}
        missing_keys.extend(prefix + name for name in _RANGES if given[name] is None)
        if all(isinstance(given[name], Tensor) and given[name].shape == held[name].shape for name in _RANGES):
            set_ranges(module.body, *given.values())
        elif not any(value is None for value in given.values()):
            error_msgs.append(f"{prefix}activation_scales must have {len(held['activation_scales'])} values")
    add_child(state_dict, prefix, "body")
