"""Tools that quantize a model after training: functions from a float model and batches to an int8 model."""

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from runtimes import Call, lowered
from torch import Tensor, nn

from torchvision_layers import deploy, quantized

__all__ = ["NNCF", "QUANTIZERS", "Int8", "session", "write_by_onnxruntime"]


class Int8(NamedTuple):
    """A quantized model."""

    call: Call
    #: Size of its file, or of its state if the tool writes none, in bytes.
    size: int


Build = Callable[[nn.Module, Sequence[Tensor]], Int8]


def eager(model: nn.Module, batches: Sequence[Tensor], backend: str, rounding: str) -> Int8:
    int8 = quantized.quantize(model, batches, backend=backend, rounding=rounding, progress=False)
    return Int8(int8, size_of(int8.state_dict()))


def pt2e(model: nn.Module, batches: Sequence[Tensor], rounding: str) -> Int8:
    int8 = quantized.quantize(model, batches, engine="pt2e", backend="x86", rounding=rounding, progress=False)
    return Int8(lowered(int8, batches[0]), size_of(int8.state_dict()))


def onnx_qdq(
    model: nn.Module, batches: Sequence[Tensor], rounding: str, vnni: bool = False, backend: str = "onnxruntime"
) -> Int8:
    """Quantized by this package, in a file that runs in onnxruntime."""
    options = {"backend": backend, "rounding": rounding, "vnni": vnni}
    int8 = quantized.quantize(model, batches, engine="pt2e", progress=False, **options)
    with tempfile.TemporaryDirectory() as folder:
        exported = deploy.export(int8, batches[0], Path(folder) / "model.onnx", format="onnx-qdq")
        return Int8(deploy.load(exported.path), exported.size)


def use_onnxruntime(model: nn.Module, batches: Sequence[Tensor], method: str) -> Int8:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        write_by_onnxruntime(model, batches, method, path)
        loaded, size = session(str(path)), path.stat().st_size
    name = loaded.get_inputs()[0].name
    return Int8(lambda x: torch.from_numpy(loaded.run(None, {name: x.numpy()})[0]), size)


def write_by_onnxruntime(model: nn.Module, batches: Sequence[Tensor], method: str, path: Path) -> None:
    """Writes a file with onnxruntime's static quantizer, from the folded model."""
    from onnxruntime import quantization as ort  # the import prints warnings

    class Reader(ort.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(batches)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        source, prepared = (str(Path(folder) / f"{stem}.onnx") for stem in ("float", "prepared"))
        deploy.export(deploy.fold(model), batches[0], source, format="onnx")
        ort.shape_inference.quant_pre_process(source, prepared, skip_symbolic_shape=True)  # fails on constants
        name = session(prepared).get_inputs()[0].name
        ort.quantize_static(
            prepared,
            str(path),
            Reader(),
            per_channel=True,
            activation_type=ort.QuantType.QUInt8,
            calibrate_method=ort.CalibrationMethod[method],
        )


def session(path: str, optimized: str = "") -> Any:
    """A file in onnxruntime, with as many threads as torch has.

    Writes the graph that it runs to ``optimized``, if that is not empty.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.optimized_model_filepath = optimized
    options.log_severity_level = 3  # no warning that the optimized file fits this machine only
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def fx_mode(model: nn.Module, batches: Sequence[Tensor], backend: str) -> Int8:
    """Torch's FX mode by itself, with its default configuration."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    prepared = prepare_fx(model, get_default_qconfig_mapping(backend), (batches[0],))
    for batch in batches:
        prepared(batch)
    int8 = convert_fx(prepared)
    return Int8(int8, size_of(int8.state_dict()))


def use_torchao(model: nn.Module, batches: Sequence[Tensor]) -> Int8:
    """Torchao by itself, with the default configuration of its quantizer for x86, compiled."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(model, (batches[0],), strict=False).module(), quantizer)
    for batch in batches:
        prepared(batch)
    int8 = convert_pt2e(prepared)
    read = {node.target for node in int8.graph.nodes if node.op == "get_attr"}  # the state also has the float weights
    size = size_of({name: value for name, value in int8.state_dict().items() if name in read})
    torch._inductor.config.freezing = True  # read on the first call
    return Int8(torch.compile(int8, dynamic=False), size)


def use_nncf(model: nn.Module, batches: Sequence[Tensor], **options: Any) -> Int8:
    """NNCF on OpenVINO, on the folded model."""
    import nncf  # in an environment of its own
    import openvino

    network = openvino.convert_model(deploy.fold(model), example_input=batches[0][:1])
    network.reshape([-1, *batches[0].shape[1:]])
    images = [image[None].numpy() for batch in batches for image in batch]
    int8 = nncf.quantize(network, nncf.Dataset(images), subset_size=len(images), **options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.xml"
        openvino.save_model(int8, str(path), compress_to_fp16=False)
        size = sum(file.stat().st_size for file in (path, path.with_suffix(".bin")))
    program = openvino.Core().compile_model(
        int8,
        "CPU",
        {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": "f32",  # operations in float would be in bfloat16 where the CPU has it
        },
    )
    return Int8(lambda x: torch.from_numpy(program(x.numpy())[0]), size)


def size_of(state: dict[str, Any]) -> int:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.tell()


#: NNCF has an environment of its own.
NNCF: dict[str, Build] = {
    "NNCF": use_nncf,
    "NNCF, accurate bias correction": partial(use_nncf, fast_bias_correction=False),
}

#: By name; those of this package first.
QUANTIZERS: dict[str, Build] = {
    "eager onednn": partial(eager, backend="onednn", rounding="nearest"),
    "eager onednn, gptq": partial(eager, backend="onednn", rounding="gptq"),
    "eager x86": partial(eager, backend="x86", rounding="nearest"),
    "eager x86, gptq": partial(eager, backend="x86", rounding="gptq"),
    "pt2e x86": partial(pt2e, rounding="nearest"),
    "pt2e x86, gptq": partial(pt2e, rounding="gptq"),
    "onnx-qdq": partial(onnx_qdq, rounding="nearest"),
    "onnx-qdq, gptq": partial(onnx_qdq, rounding="gptq"),
    "onnx-qdq, VNNI": partial(onnx_qdq, rounding="nearest", vnni=True),
    "onnx-qdq, VNNI, gptq": partial(onnx_qdq, rounding="gptq", vnni=True),
    "onnx-qdq, TensorRT": partial(onnx_qdq, rounding="nearest", backend="tensorrt"),
    "onnxruntime, MinMax": partial(use_onnxruntime, method="MinMax"),
    "onnxruntime, Percentile": partial(use_onnxruntime, method="Percentile"),
    "FX onednn": partial(fx_mode, backend="onednn"),
    "FX x86": partial(fx_mode, backend="x86"),
    "torchao": use_torchao,
    **NNCF,
}
