"""ONNX, in float or in int8, for onnxruntime and others."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ._kinds import Kind, check_exportable_graph, kind_of
from ._metadata import NAME, input_shape_in
from ._program import export_program
from ._sealing import seal_onnx, sealed_content

__all__ = ["check", "check_int8", "read", "write"]

# A protocol buffer holds 2 GB; the graph itself takes a part of it.
_LIMIT = 2**31 - 2**24
_AXES = ("batch", "depth", "height", "width")


def check(model: nn.Module) -> None:
    check_exportable_graph(model)
    if kind_of(model) is Kind.PT2E:
        raise TypeError("model is int8 of engine='pt2e': use format='onnx-qdq'")
    _check_size(model)


def check_int8(model: nn.Module) -> None:
    check_exportable_graph(model)
    if kind_of(model) is Kind.FLOAT:
        raise TypeError(
            "model is float: quantize it first with engine='pt2e' for format='onnx-qdq', or use format='onnx'"
        )
    _check_size(model)


def _check_size(model: nn.Module) -> None:
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if size > _LIMIT:
        raise ValueError(f"model has {size / 1e9:.1f} GB of weights, an ONNX file holds 2 GB: use format='pt2'")


def write(model: nn.Module, example: Tensor, path: Path, metadata: str) -> None:
    onnx = _optional("onnx")
    _optional("onnxscript")
    program = export_program(model, example, input_shape_in(metadata))
    exported = torch.onnx.export(
        program, dynamo=True, verbose=False, optimize=True, input_names=["input"], output_names=["output"]
    )
    assert exported is not None
    proto = exported.model_proto
    _without_traces(proto)
    _name_axes(proto)
    _share_no_zero_points(proto)
    proto.metadata_props.add(key=NAME, value=metadata)
    onnx.checker.check_model(proto, full_check=True)
    path.write_bytes(seal_onnx(proto.SerializeToString()))


def _without_traces(proto: Any) -> None:
    """Takes off what the exporter notes of the sources, with paths of the machine that exports."""
    graph = proto.graph
    for held in (proto, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del held.metadata_props[:]


def _name_axes(proto: Any) -> None:
    """Gives the sizes of the input names that say what they are, wherever they stand."""
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    axes = (_AXES[0], None, *_AXES[len(_AXES) - len(dims) + 2 :]) if 2 <= len(dims) <= 5 else ()
    names = {dim.dim_param: axis for dim, axis in zip(dims, axes, strict=False) if dim.dim_param and axis}
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda word: names.get(word[0], word[0]), dim.dim_param)


def _share_no_zero_points(proto: Any) -> None:
    """Gives each dequantization of weights a zero point of its own; onnxruntime fails to make shared ones unsigned."""
    graph = proto.graph
    held = {initializer.name: initializer for initializer in graph.initializer}
    taken = set[str]()
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and len(node.input) == 3 and node.input[0] in held:
            name = node.input[2]
            if name in taken and name in held:
                node.input[2] = f"{name}_of_{node.output[0]}"
                graph.initializer.add().CopyFrom(held[name])
                graph.initializer[-1].name = node.input[2]
            taken.add(name)


def read(path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    onnxruntime = _optional("onnxruntime")
    content = sealed_content(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait for work in a loop take the cores from torch's.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not has_vnni():
        # Without it two products are added in sixteen bits, which overflows unless weights are made unsigned.
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    text = session.get_modelmeta().custom_metadata_map.get(NAME)
    if text is None:
        raise ValueError(f"{path} was not written by deploy.export: it has no {NAME}")
    return lambda x: torch.from_numpy(session.run(["output"], {"input": x.numpy()})[0]), text


def has_vnni() -> bool:
    """Whether this processor adds products of eight bits in thirty-two, as far as it is asked."""
    known = torch.cpu.get_capabilities()
    return known.get("architecture") != "x86_64" or bool(known.get("avx512_vnni") or known.get("avx_vnni"))


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f'this format needs {name}, which is not installed: pip install "torchvision_layers[onnx]"'
        ) from error
