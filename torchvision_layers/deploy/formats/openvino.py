"""Models of OpenVINO, in float or in int8: a graph in XML, and its weights in a file beside it.

They are made from ONNX, because OpenVINO converts no int8 programs of torch.export.
"""

import functools
import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..._utils.amx import LIMIT, uses_amx, without_amx
from ..._utils.inputs import Inputs
from .._metadata import NAME, parse
from .._signature import Signature
from .._subject import Subject
from . import onnx
from .program import rules_to_check
from .size_rules import check_rules

__all__ = ["WEIGHTS", "deserialize", "serialize"]

#: The suffix of the file with the weights.
WEIGHTS = ".bin"
_CHECKSUM = "weights_sha256"
# OpenVINO removes the checks of sizes from the graph if it compiles it for all sizes.
_RULES = "size_rules"


@functools.cache
def _core() -> Any:
    """One for the process.

    Each one that compiles a model replaces the stack of signal handlers until it is deleted. If they are not deleted in
    reverse order, OpenVINO 2026.4 leaves a stack that is freed, and the next signal, such as Ctrl-C, kills the process.
    """
    import openvino

    return openvino.Core()


def serialize(subject: Subject, metadata: str) -> tuple[bytes, bytes]:
    """The graph, with the checksum of the weights, and the weights."""
    import openvino

    content = onnx.to_model(subject).SerializeToString()
    try:
        model = _core().read_model(content, b"")
    except Exception as error:  # it raises plain RuntimeErrors, over many lines
        reason = str(error).strip().splitlines()[-1]
        other = "onnx" if subject.engine is None else "onnx-qdq"
        raise RuntimeError(f"OpenVINO cannot read the model, use format={other!r} or 'pt2': {reason}") from error
    assert subject.program is not None
    model.set_rt_info(metadata, [NAME])
    model.set_rt_info(json.dumps(rules_to_check(subject.program, subject)), [_RULES])
    placeholder = "0" * 64
    model.set_rt_info(placeholder, [_CHECKSUM])
    with tempfile.TemporaryDirectory() as folder:
        graph, weights = Path(folder) / "model.xml", Path(folder) / "model.bin"
        openvino.serialize(model, graph, weights)
        values = weights.read_bytes()
        text = graph.read_bytes().replace(_entry(placeholder), _entry(hashlib.sha256(values).hexdigest()))
    return text, values


def _entry(checksum: str) -> bytes:
    return f'<{_CHECKSUM} value="{checksum}"'.encode()


def deserialize(content: bytes, path: Path, threads: int | None = None) -> tuple[Callable[..., Any], str]:
    """The model in a file and the file with its weights beside it.

    Errors: ``ValueError`` if the weights are missing, or are those of another model.
    """
    model = _core().read_model(content, _read_weights(content, path))
    if not (model.has_rt_info([NAME]) and model.has_rt_info([_RULES])):
        raise ValueError(f"{path} was not written by deploy.export: it has no {NAME} or no {_RULES}")
    metadata, rules = (str(model.get_rt_info([name]).astype(str)) for name in (NAME, _RULES))
    return _Program(model, Signature.from_json(parse(metadata, path)), json.loads(rules), threads), metadata


class _Program:
    """Runs a model, compiled for the sizes of each call, which takes a second and makes it 1.1 to 1.5 times as fast.

    Calls with more than four combinations of sizes run a model that is compiled for all sizes.
    """

    _MAX_COMPILED = 4

    def __init__(self, model: Any, signature: Signature, rules: list[str], threads: int | None) -> None:
        self._model = model
        self._signature = signature
        self._rules = rules
        self._threads = threads or torch.get_num_threads()
        self._lock = threading.Lock()
        # A compiled model for each combination of sizes, and its requests that no thread uses now.
        self._by_sizes: dict[tuple[torch.Size, ...], tuple[Any, list[Any]]] = {}
        self._for_all: tuple[Any, list[Any]] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        signature, tensors = self._signature, Inputs(args, kwargs).tensors()
        names, shapes = [spec.name for spec in signature.inputs], tuple(tensor.shape for tensor in tensors)
        check_rules(self._rules, names, shapes)
        compiled, idle = self._compiled(shapes)
        request = idle.pop() if idle else compiled.create_infer_request()
        feed = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        outputs = request.infer(feed, share_inputs=True)
        idle.append(request)
        return signature.restore([torch.from_numpy(outputs[name]) for name in signature.outputs])

    def _compiled(self, shapes: tuple[torch.Size, ...]) -> tuple[Any, list[Any]]:
        with self._lock:
            if shapes in self._by_sizes:
                return self._by_sizes[shapes]
            if len(self._by_sizes) == self._MAX_COMPILED:
                return self._compiled_for_all()
            names = [spec.name for spec in self._signature.inputs]
            try:
                model = self._model.clone()
                model.reshape({name: list(shape) for name, shape in zip(names, shapes, strict=True)})
                self._by_sizes[shapes] = self._compile(model), []
            except RuntimeError:  # OpenVINO 2026.4 fails for some models, as with few channels, but not for all sizes
                self._by_sizes[shapes] = self._compiled_for_all()
            return self._by_sizes[shapes]

    def _compiled_for_all(self) -> tuple[Any, list[Any]]:
        if self._for_all is None:
            self._for_all = self._compile(self._model), []
        return self._for_all

    def _compile(self, model: Any) -> Any:
        # By default, OpenVINO computes in bfloat16 or float16 on CPUs that have them, and pins its threads to cores,
        # where they wait for those of torch.
        properties = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": self._threads,
            "ENABLE_CPU_PINNING": False,
        }
        with without_amx():  # its oneDNN has the same defects as that of torch
            compiled = _core().compile_model(model, "CPU", properties)
        if uses_amx() and any("amx" in name for name in _kernels(compiled)):
            raise RuntimeError(
                "OpenVINO's int8 kernels on AMX are wrong at some sizes, and cannot be excluded after a model ran in "
                f"this process without deploy.load: set {LIMIT} in the environment before Python starts"
            )
        return compiled


def _kernels(compiled: Any) -> list[str]:
    """The names of the kernels of a compiled model."""
    infos = (op.get_rt_info() for op in compiled.get_runtime_model().get_ops())
    return [str(info["primitiveType"].astype(str)) for info in infos if "primitiveType" in info]


def _read_weights(content: bytes, path: Path) -> bytes:
    beside = Path(os.path.realpath(path)).with_suffix(WEIGHTS)
    if not beside.is_file():
        raise ValueError(f"{path} needs the file {beside.name} with its weights beside it")
    weights = beside.read_bytes()
    match = re.search(rf'<{_CHECKSUM} value="([0-9a-f]{{64}})"'.encode(), content)
    if match is None or match[1].decode() != hashlib.sha256(weights).hexdigest():
        raise ValueError(
            f"{path} needs the weights that it was written with, {beside} is damaged or from another model"
        )
    return weights
