"""Which tensors TensorRT needs in int8: NVIDIA's rules for the placement of quantization in a graph."""

from collections.abc import Container, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from .constants import constant_nodes
from .nodes import (
    ADDITIONS,
    AVERAGES,
    BATCH_NORM,
    CLAMPS,
    CONCATENATIONS,
    CONVS,
    KEEP_RANGE,
    LINEAR,
    MATMULS,
    MAX_POOLS,
    PRODUCTS,
    UNFOLDABLE_NORM,
    is_call,
    is_zero_padding,
    operands,
)
from .weights import constant_products

__all__ = ["Placement", "placements"]

_aten = torch.ops.aten
_NORMS = {BATCH_NORM, UNFOLDABLE_NORM}
_AVERAGES = AVERAGES | {
    _aten.adaptive_avg_pool1d.default,
    _aten.adaptive_avg_pool3d.default,
    _aten.avg_pool1d.default,
    _aten.avg_pool3d.default,
}
_MAX_POOLS = MAX_POOLS | {_aten.max_pool1d.default, _aten.max_pool3d.default}
#: Operators that only move values. They may be between a layer and a sum that its kernel computes.
_MOVES = KEEP_RANGE - AVERAGES - CONCATENATIONS - MAX_POOLS


@dataclass(frozen=True)
class Placement:
    """The tensors that are rounded to int8 before and after a node."""

    #: The tensors that the node reads in int8, without a weight.
    inputs: tuple[fx.Node, ...]
    #: The weight, which has a scale for each channel.
    weight: fx.Node | None = None
    #: Whether all inputs and the output have one scale.
    has_one_scale: bool = False
    #: Whether the output is rounded, to steps of its own unless there is one scale.
    rounds_output: bool = False


def placements(graph: fx.Graph, skipped: Container[fx.Node]) -> dict[fx.Node, Placement]:
    """The placement of each node that runs on int8 in TensorRT.

    Inputs of layers with weights are rounded, their outputs are not: the kernel of a layer also computes norms and
    activations that follow it, and a sum with another tensor, which must then be in int8. Pools, concatenations, and
    sums and products without a layer run on int8 if only int8 reads their results.

    Args:
        graph: an exported graph.
        skipped: nodes that stay in float.
    """
    return _Placing(graph, skipped).found


class _Placing:
    def __init__(self, graph: fx.Graph, skipped: Container[fx.Node]) -> None:
        self.constants = constant_nodes(graph)
        self.depths: dict[fx.Node, int] = {}
        self.found: dict[fx.Node, Placement] = {}
        products = set(constant_products(graph))
        for node in graph.nodes:
            self.depths[node] = 1 + max((self.depths[source] for source in node.all_input_nodes), default=0)
            if node in skipped:
                continue
            if is_call(node, CONVS | LINEAR):
                input, weight = operands(node)
                self.found[node] = Placement((input,), weight)
            elif node in products and is_call(node, MATMULS):
                self.found[node] = Placement(tuple(operands(node)))
        for node in reversed(graph.nodes):
            if node.op == "call_function" and node not in skipped and node not in self.found:
                placement = self._place(node)
                if placement is not None and all(reader in self.found for reader in self._readers(node)):
                    self.found[node] = placement

    def _place(self, node: fx.Node) -> Placement | None:
        """The placement of a node without a weight, if only int8 reads its result."""
        if not _is_float(node):
            return None
        if is_call(node, ADDITIONS | PRODUCTS):
            terms = self._tensors(node)
            if len(terms) < 2 or self._activated(node) is not None:
                return None
            return Placement(self._identities(*terms) if is_call(node, ADDITIONS) else terms)
        if is_call(node, CONCATENATIONS):
            tensors = tuple(dict.fromkeys(node.args[0]))  # type: ignore[arg-type]  # a list of nodes
            if _is_move(node) or not self.constants.isdisjoint(tensors) or not all(map(_is_float, tensors)):
                return None
            return Placement(tensors, has_one_scale=True, rounds_output=_is_read(node))
        if is_call(node, _MAX_POOLS):
            return Placement((node.args[0],), has_one_scale=True, rounds_output=_is_read(node))  # type: ignore[arg-type]
        if is_call(node, _AVERAGES) or _is_global_mean(node):
            return Placement((node.args[0],), rounds_output=_is_read(node))  # type: ignore[arg-type]
        return None

    def _tensors(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The numbers among the first two arguments that depend on the input of the model."""
        arguments = [argument for argument in node.args[:2] if isinstance(argument, fx.Node)]
        return tuple(argument for argument in arguments if argument not in self.constants and _is_float(argument))

    def _identities(self, first: fx.Node, second: fx.Node) -> tuple[fx.Node, ...]:
        """The terms of a sum that are rounded: all except one that comes from a layer whose kernel adds the other."""
        layers = [term for term in (first, second) if self._comes_from_layer(term)]
        if not layers:
            return first, second
        # The shortcut of a residual block has fewer operators. The kernel that runs last adds.
        fused = max(layers, key=lambda term: self.depths[term])
        return tuple(term for term in (first, second) if term is not fused)

    def _comes_from_layer(self, term: fx.Node) -> bool:
        """Whether a layer with a weight and operators that its kernel also computes lead to a term and nowhere else."""
        users = 1
        while len(term.users) == users:
            if term in self.found and self.found[term].weight is not None:
                return True
            activated = self._activated(term)
            if activated is not None:
                users, term = 2, activated
            elif self._is_unary(term) or _is_move(term) or is_call(term, _NORMS | _MAX_POOLS):
                users, term = 1, term.all_input_nodes[0]
            else:
                return False
        return False

    def _activated(self, node: fx.Node) -> fx.Node | None:
        """The tensor that a product is an activation of, such as ``x * sigmoid(x)``; ``None`` for other nodes."""
        if not is_call(node, PRODUCTS):
            return None
        for gate, input in (node.args[:2], node.args[1::-1]):
            while gate is not input and self._is_unary(gate):
                gate = self._tensors(gate)[0]  # type: ignore[arg-type]
            if gate is input and isinstance(input, fx.Node) and node.args[0] is not node.args[1]:
                return input
        return None

    def _is_unary(self, node: object) -> bool:
        """Whether the node computes each value from one of another tensor, and from constants."""
        if not isinstance(node, fx.Node) or not isinstance(node.target, torch._ops.OpOverload):
            return False
        return torch.Tag.pointwise in node.target.tags and len(self._tensors(node)) == 1

    def _readers(self, node: fx.Node) -> Iterator[fx.Node]:
        """The ops that compute with the node, directly or after it is moved, normalized or activated."""
        for user in node.users:
            is_moved = _is_move(user) or is_call(user, CLAMPS | _NORMS) or is_zero_padding(user)
            if is_moved or self._is_unary(user) or self._activated(user) is not None:
                yield from self._readers(user)
            elif user.op != "output" and isinstance(user.meta.get("val"), (Tensor, list, tuple)):
                yield user


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_move(node: fx.Node) -> bool:
    """Whether the node only moves or selects values, like a concatenation of a single tensor."""
    return is_call(node, _MOVES) or (is_call(node, CONCATENATIONS) and len(node.args[0]) == 1)  # type: ignore[arg-type]


def _is_read(node: fx.Node) -> bool:
    """Whether an operator reads the node; the output of the model stays in float."""
    return not all(user.op == "output" for user in node.users)


def _is_global_mean(node: fx.Node) -> bool:
    """Whether the node is the mean over all pixels of images, which is pooling in another spelling."""
    if not is_call(node, {_aten.mean.dim}):
        return False
    source = node.args[0]
    assert isinstance(source, fx.Node)
    rank = source.meta["val"].dim()
    dims = node.args[1] if len(node.args) > 1 else None
    return rank > 2 and isinstance(dims, (list, tuple)) and sorted(dim % rank for dim in dims) == list(range(2, rank))
