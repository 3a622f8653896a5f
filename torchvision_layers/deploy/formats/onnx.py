"""ONNX, in float or in int8, for ONNX Runtime and other runtimes."""

import importlib
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..._utils.inputs import Inputs
from ...quantized.pt2e.writes import is_write, memory_owner
from .._metadata import NAME, parse
from .._signature import Signature
from .._subject import Subject
from ..lowering.cleaning import make_functional
from .onnx_attention import make_four_dimensional
from .onnx_pools import pool_translations
from .onnx_rewriting import rewrite
from .onnx_sizes import MESSAGE, add_size_checks
from .program import export_subject, root_cause, rules_to_check, with_program

__all__ = ["MAX_WEIGHT_BYTES", "deserialize", "restrict", "serialize", "to_model"]

#: A protocol buffer holds 2 GB, and the graph takes part of it.
MAX_WEIGHT_BYTES = 2**31 - 2**24
#: In front of the names of inputs and outputs until no other value has the same name.
_MARK = "torchvision_layers."


def restrict(subject: Subject) -> Subject:
    """The subject with its program, and with fixed image sizes if an export for all of them would be slow."""
    return with_program(subject, partial(export_subject, has_flat_output=True))


def serialize(subject: Subject, metadata: str) -> bytes:
    model = to_model(subject)
    model.metadata_props.add(key=NAME, value=metadata)
    return bytes(model.SerializeToString())


def to_model(subject: Subject) -> Any:
    """The model as an ONNX message without metadata. Errors: ``RuntimeError`` if torch cannot convert it."""
    signature = subject.signature
    inputs = [spec.name for spec in signature.inputs]
    program = subject.program
    assert program is not None
    _simplify(program.graph)
    make_four_dimensional(program.graph)
    translations = pool_translations(program.graph)
    try:
        exported = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            optimize=True,
            custom_translation_table=translations or None,
            input_names=[f"{_MARK}{name}" for name in inputs],
            output_names=[f"{_MARK}{name}" for name in signature.outputs],
        )
    except Exception as error:  # the exporter raises types of its own
        reason = root_cause(error)
        missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", reason)
        reason = f"its exporter has no form of {missing[1]}" if missing else reason
        raise RuntimeError(f"torch cannot convert the model to ONNX, use format='pt2': {reason}") from error
    assert exported is not None
    model = exported.model_proto
    _rename_values(model.graph, {*inputs, *signature.outputs})
    _remove_traces(model)
    _name_axes(model, signature)
    add_size_checks(model.graph, rules_to_check(program, subject), inputs)
    rewrite(model, has_integer_biases=subject.backend != "tensorrt")
    _duplicate_zero_points(model)
    try:
        importlib.import_module("onnx").checker.check_model(model, full_check=True)
    except Exception as error:  # it has types of its own
        raise RuntimeError(
            f"torch converts the model to ONNX wrongly, use format='pt2': {root_cause(error)}"
        ) from error
    return model


def _simplify(graph: torch.fx.Graph) -> None:
    """Replaces operators that the exporter decomposes, which takes half of its time if sizes are variable, in place."""
    clamp, hardtanh = torch.ops.aten.clamp.default, torch.ops.aten.hardtanh.default
    outputs = graph.output_node().all_input_nodes
    for node in list(graph.nodes):
        # The signature of the program knows the inputs and outputs of the graph by their names.
        if is_write(node) and memory_owner(node).op == "call_function" and node.args[0] not in outputs:
            make_functional(graph, node)
        if node.target is hardtanh:
            node.target, node.args = clamp, (*node.args, *(-1.0, 1.0)[len(node.args) - 1 :])


def _rename_values(graph: Any, names: set[str]) -> None:
    """Takes the mark off the names of inputs and outputs; other values with such a name get another one."""

    def rename(name: str) -> str:
        return name.removeprefix(_MARK) if name.startswith(_MARK) else f"{name}_value" if name in names else name

    for part in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        part.name = rename(part.name)
    for node in graph.node:
        node.input[:] = map(rename, node.input)
        node.output[:] = map(rename, node.output)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):  # the branches of a condition read values around it
                _rename_values(inner, names)


def _remove_traces(model: Any) -> None:
    """Removes the exporter's notes about the source code, which contain paths of this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]


def _name_axes(model: Any, signature: Signature) -> None:
    """Gives the variable sizes of the inputs descriptive names, wherever they appear."""
    names: dict[str, str] = {}
    for spec, value in zip(signature.inputs, model.graph.input, strict=True):
        for size, dim in zip(spec.shape, value.type.tensor_type.shape.dim, strict=True):
            if dim.dim_param and isinstance(size, str):
                names.setdefault(dim.dim_param, size)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.dim_param)


def _duplicate_zero_points(model: Any) -> None:
    """Gives each dequantization of weights its own zero point; onnxruntime fails to make shared ones unsigned."""
    graph = model.graph
    initializers = {initializer.name: initializer for initializer in graph.initializer}
    used = set[str]()
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 3 and node.input[0] in initializers:
            name = node.input[2]
            if name in used and name in initializers:
                node.input[2] = f"{name}_of_{node.output[0]}"
                graph.initializer.add().CopyFrom(initializers[name])
                graph.initializer[-1].name = node.input[2]
            used.add(name)


def deserialize(
    content: bytes, path: Path, threads: int | None = None, providers: Sequence[Any] = ("CPUExecutionProvider",)
) -> tuple[Callable[..., Any], str]:
    import onnxruntime

    available = onnxruntime.get_available_providers()
    for provider in providers:
        name = provider if isinstance(provider, str) else provider[0]
        if name not in available:
            raise ValueError(f"providers for {path} must be among {', '.join(available)} here, got {name!r}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    # Threads that wait in a loop take the cores from torch's threads.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(content, options, providers=list(providers))
    metadata = session.get_modelmeta().custom_metadata_map.get(NAME)
    if metadata is None:
        raise ValueError(f"{path} was not written by deploy.export: it has no {NAME}")
    facts = parse(metadata, path)
    quantization = facts["quantization"]
    if quantization is not None and quantization.get("needs_vnni", True) and not has_vnni():
        # Two products are added in 16 bits, which overflows unless weights are made unsigned.
        options.add_session_config_entry("session.x64quantprecision", "1")
        session = onnxruntime.InferenceSession(content, options, providers=list(providers))
    signature = Signature.from_json(facts)

    def run(*args: Any, **kwargs: Any) -> Any:
        tensors = Inputs(args, kwargs).tensors()
        feed = {spec.name: tensor.numpy() for spec, tensor in zip(signature.inputs, tensors, strict=True)}
        try:
            outputs = session.run(signature.outputs, feed)
        except Exception as error:  # of onnxruntime, with the name of the node
            rule = re.search(rf"{MESSAGE}([^']*)", str(error))
            if rule is None:
                raise
            shapes = [list(tensor.shape) for tensor in tensors]
            raise ValueError(f"{MESSAGE}{rule[1]}, got {', '.join(map(str, shapes))}") from error
        return signature.restore([torch.from_numpy(array) for array in outputs])

    return run, metadata


def has_vnni() -> bool:
    """Whether this processor adds 8-bit products in 32 bits; ``True`` if it is not an x86 processor."""
    capabilities = torch.cpu.get_capabilities()
    is_x86 = capabilities.get("architecture") == "x86_64"
    return not is_x86 or bool(capabilities.get("avx512_vnni") or capabilities.get("avx_vnni"))
