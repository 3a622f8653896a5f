"""Runs an exported file without this package: ``python run_file.py FORMAT FILE FOLDER ROUNDS``.

It reads ``images.pt`` and ``float.pt2`` in FOLDER, and writes the logits of the file, and its time relative to the
float program, to ``result.pt`` there.
"""

import importlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

for name in ("torchvision_layers", "torchao"):
    sys.modules[name] = None  # type: ignore[assignment]  # from here on, importing it raises

Call = Callable[[Tensor], Tensor]


def torchscript(path: str) -> Call:
    torch.backends.quantized.engine = "x86"
    return torch.jit.load(path)


def pt2(path: str) -> Call:
    importlib.import_module("torch.ao.quantization.fx._decomposed")
    return torch.export.load(path).module()


def aoti(path: str) -> Call:
    return torch._inductor.aoti_load_package(path)


def onnx(path: str) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    return lambda x: torch.from_numpy(session.run(["output"], {"input": x.numpy()})[0])


def openvino(path: str) -> Call:
    import openvino

    model = openvino.Core().read_model(path)
    model.reshape({"input": list(SHAPE)})
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    return lambda x: torch.from_numpy(compiled({"input": x.numpy()})["output"])


def litert(path: str) -> Call:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    (source,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(x: Tensor) -> Tensor:
        scale, zero_point = source["quantization"]
        if scale:
            x = torch.clamp(torch.round(x / scale) + zero_point, -128, 127).to(torch.int8)
        interpreter.set_tensor(source["index"], x.numpy())
        interpreter.invoke()
        y = torch.from_numpy(interpreter.get_tensor(result["index"]))
        scale, zero_point = result["quantization"]
        return (y.float() - zero_point) * scale if scale else y

    return run


def executorch(path: str) -> Call:
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(path)
    method = program.load_method("forward")
    return lambda x: method.execute([x])[0]


READERS: dict[str, Callable[[str], Call]] = {
    "torchscript": torchscript,
    "pt2": pt2,
    "aoti": aoti,
    "onnx": onnx,
    "onnx-qdq": onnx,
    "openvino": openvino,
    "litert": litert,
    "executorch": executorch,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    format, path, folder, rounds = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    torch.set_num_threads(1)
    images = torch.load(folder / "images.pt", weights_only=True)
    SHAPE = images[:1].shape
    with torch.no_grad():
        call, reference = READERS[format](path), pt2(str(folder / "float.pt2"))
        logits = torch.cat([call(image[None]).clone() for image in images])
        ratios = []
        for i in range(rounds + 3):
            seconds = []
            for function in (call, reference):
                start = time.perf_counter()
                function(images[:1])
                seconds.append(time.perf_counter() - start)
            if i >= 3:
                ratios.append(seconds[0] / seconds[1])
    torch.save({"logits": logits, "time": statistics.median(ratios)}, folder / "result.pt")
