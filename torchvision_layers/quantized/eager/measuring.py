"""Errors of the modules of an int8 model, measured beside the float model."""

import copy
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..._utils.inputs import Inputs
from ..._utils.structure import flatten, map_tensors
from ..layers.observed import QuantStub
from ..lockstep import iterated
from ..measurement import Int8Range, Measurement, OutputMeasurement
from ..precision import in_float32
from ..report_row import ReportRow
from ..wrapper import Stage
from .int8_modules import computed_in_float
from .model import QuantizableModel
from .post_ops import ConvolutionAndOperation
from .report import rows_with_modules

__all__ = ["make_reference_", "measure"]


class _Call(NamedTuple):
    """One call of a module of the float model."""

    path: str
    inputs: Inputs
    output: Any


def make_reference_(prepared: QuantizableModel, int8: QuantizableModel) -> QuantizableModel:
    """Makes a prepared model compute in float, in place, with the modules of ``int8`` under the same paths."""
    for path, buffer in prepared.named_buffers():
        if path.rpartition(".")[2] in ("observer_enabled", "fake_quant_enabled"):
            buffer.zero_()
    for module in list(prepared.modules()):
        if isinstance(module._modules.get("activation_post_process"), nn.Module):
            module._modules["activation_post_process"] = nn.Identity()
    for op in int8.post_ops:
        parent = prepared.get_submodule(op.parent)
        convolution, operation = parent.get_submodule(op.convolution), parent.get_submodule(op.operation)
        parent.set_submodule(op.convolution, nn.Identity())
        parent.set_submodule(op.operation, ConvolutionAndOperation(convolution, operation))
    prepared.stage = Stage.FLOAT
    return prepared.cpu().eval()


def measure(
    int8: QuantizableModel, reference: QuantizableModel, batches: Iterator[Inputs]
) -> tuple[list[ReportRow], OutputMeasurement]:
    """The rows of ``int8`` with their errors on the batches, and the errors of its outputs.

    Both models run side by side and hand over the output of each module at once, so no more than a few outputs are in
    memory at a time.

    Args:
        int8: the int8 model; it stays as it is.
        reference: from :func:`make_reference_`.
        batches: the inputs.
    """
    if int8.backend != "qnnpack":  # oneDNN caches kernels for the first sizes that it meets
        int8 = copy.deepcopy(int8)
    rows = [*_input_rows(int8), *rows_with_modules(int8)]
    paths = {module: path for path, module in int8.named_modules()}
    measured = {
        module: Measurement() for row, module in rows if not row.fused_with and not hasattr(module, "is_unused")
    }
    modules = {paths[module]: _find(reference, paths[module]) for module in measured}
    outputs = OutputMeasurement()
    for batch in batches:
        with iterated(partial(_run, reference, modules, batch)) as calls, torch.no_grad():
            queue = _Queue(calls)

            def compare(
                module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any, queue: "_Queue" = queue
            ) -> None:
                call = queue.next_of(paths[module])
                _add(measured[module], module, Inputs(args, kwargs), output, modules[call.path], call)

            handles = [module.register_forward_hook(compare, with_kwargs=True) for module in measured]
            try:
                output = batch.map(Tensor.clone).run(int8)
                outputs.add(flatten(queue.next_of("").output)[0], flatten(output)[0])
            except RuntimeError:
                deque(calls, maxlen=0)  # what the float model raises says more
                raise
            finally:
                for handle in handles:
                    handle.remove()
    return [measured[module].fill(row) if module in measured else row for row, module in rows], outputs


def _input_rows(int8: QuantizableModel) -> list[tuple[ReportRow, nn.Module]]:
    stubs = [stub for stub in (int8.quant, *int8.quants) if not isinstance(stub, QuantStub)]  # the others do nothing
    return [
        (ReportRow(f"(input {i})" if len(stubs) > 1 else "(input)", "", "Quantize", "int8", "is an input"), stub)
        for i, stub in enumerate(stubs)
    ]


def _find(reference: nn.Module, path: str) -> nn.Module:
    try:
        return reference.get_submodule(path)
    except AttributeError as error:
        raise ValueError(
            f"model must be the model that int8 was made from, it has no {path.removeprefix('model.')}"
        ) from error


@torch.no_grad()
def _run(reference: nn.Module, modules: dict[str, nn.Module], batch: Inputs, give: Callable[[_Call], None]) -> None:
    """Gives each call of the modules, then the output of the model as that of a module with an empty path."""

    def give_call(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any, path: str) -> None:
        give(_Call(path, Inputs(args, kwargs), output))

    handles = [
        module.register_forward_hook(partial(give_call, path=path), with_kwargs=True)
        for path, module in modules.items()
    ]
    try:
        with in_float32():
            give(_Call("", batch, batch.map(Tensor.clone).run(reference)))
    finally:
        for handle in handles:
            handle.remove()


class _Queue:
    """The calls of the float model, in the order in which the int8 model asks for them."""

    def __init__(self, calls: Iterator[_Call]) -> None:
        self._calls = calls
        self._early: dict[str, deque[_Call]] = defaultdict(deque)

    def next_of(self, path: str) -> _Call:
        """The next call of the module at ``path``."""
        if self._early[path]:
            return self._early[path].popleft()
        for call in self._calls:
            if call.path == path:
                return call
            # The model continues, and may write into these tensors.
            inputs, output = call.inputs.map(Tensor.clone), map_tensors(Tensor.clone, call.output)
            self._early[call.path].append(call._replace(inputs=inputs, output=output))
        raise ValueError(f"model must be the model that int8 was made from, it does not call {path} as often")


def _add(
    measurement: Measurement, module: nn.Module, inputs: Inputs, output: Any, reference: nn.Module, call: _Call
) -> None:
    """Adds a call of an int8 module, and the same call of the float module."""
    for exact, tensor in zip(flatten(call.output)[0], flatten(output)[0], strict=True):
        if not exact.is_floating_point():
            continue
        if not tensor.is_quantized:
            measurement.add(exact, tensor, None)
            continue
        int8_range = Int8Range.of(tensor)
        measurement.add(exact, tensor.dequantize(), int8_range)
        ranges = [Int8Range.of(input) for input in inputs.tensors() if input.is_quantized]
        try:
            own = computed_in_float(module, call.inputs.tensors())
        except RuntimeError:  # qnnpack cannot unpack weights of three dimensions
            continue
        if own is None and int8_range in ranges and isinstance(output, Tensor):
            # It hands on the range of its input, so the error of that range belongs to an earlier module.
            exact = call.inputs.map(partial(_round_floats, int8_range)).run(reference.forward)
        measurement.add_own(exact, int8_range.rounded(exact if own is None else own))


def _round_floats(int8_range: Int8Range, tensor: Tensor) -> Tensor:
    return int8_range.rounded(tensor) if tensor.is_floating_point() else tensor
