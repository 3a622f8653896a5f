"""ONNX, in float or in int8, for ONNX Runtime and other runtimes."""

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._metadata import NAME
from .._subject import Subject
from .program import export_subject

__all__ = ["MAX_WEIGHT_BYTES", "deserialize", "serialize"]

#: A protocol buffer holds 2 GB, and the graph takes part of it.
MAX_WEIGHT_BYTES = 2**31 - 2**24
_AXES = ("batch", "depth", "height", "width")


def serialize(subject: Subject, metadata: str) -> bytes:
    exported = torch.onnx.export(
        export_subject(subject),
        dynamo=True,
        verbose=False,
        optimize=True,
        input_names=["input"],
        output_names=["output"],
    )
    assert exported is not None
    model = exported.model_proto
    _remove_traces(model)
    _name_axes(model)
    _duplicate_zero_points(model)
    model.metadata_props.add(key=NAME, value=metadata)
    importlib.import_module("onnx").checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _remove_traces(model: Any) -> None:
    """Removes the exporter's notes about the source code, which contain paths of this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output):
        del part.metadata_props[:]


def _name_axes(model: Any) -> None:
    """Gives the variable sizes of the input descriptive names, wherever they appear."""
    dims = model.graph.input[0].type.tensor_type.shape.dim
    axes = (_AXES[0], None, *_AXES[len(_AXES) - len(dims) + 2 :]) if 2 <= len(dims) <= 5 else ()
    names = {dim.dim_param: axis for dim, axis in zip(dims, axes, strict=False) if dim.dim_param and axis}
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


def deserialize(content: bytes, path: Path) -> tuple[Callable[[Tensor], Tensor], str]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Threads that wait in a loop take the cores from torch's threads.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not has_vnni():
        # Without VNNI, two products are added in 16 bits, which overflows unless weights are made unsigned.
        options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map.get(NAME)
    if metadata is None:
        raise ValueError(f"{path} was not written by deploy.export: it has no {NAME}")
    return lambda x: torch.from_numpy(session.run(["output"], {"input": x.numpy()})[0]), metadata


def has_vnni() -> bool:
    """Whether this processor adds 8-bit products in 32 bits; ``True`` if it is not an x86 processor."""
    capabilities = torch.cpu.get_capabilities()
    is_x86 = capabilities.get("architecture") == "x86_64"
    return not is_x86 or bool(capabilities.get("avx512_vnni") or capabilities.get("avx_vnni"))
