"""The files run with torch or onnxruntime alone, if this package and torchao cannot be imported."""

import json
from pathlib import Path

import pytest
import torch

from torchvision_layers import deploy

from ..interpreter import Interpreter
from ._support import CASES, FAST, example

RUN = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
blocked = ("torchvision_layers", "torchao")
for name in blocked:
    sys.modules[name] = None  # from here on, importing it raises
import torch

torch.set_num_threads(1)

def torchscript(path):
    extra = {"metadata.json": ""}
    model = torch.jit.load(path, _extra_files=extra)
    return model, extra["metadata.json"]

def pt2(path):
    importlib.import_module("torch.ao.quantization.fx._decomposed")
    extra = {"metadata.json": ""}
    return torch.export.load(path, extra_files=extra).module(), extra["metadata.json"]

def aoti(path):
    model = torch._inductor.aoti_load_package(path)
    return model, model.get_metadata()["metadata.json"]

def onnx(path):
    import onnxruntime
    session = onnxruntime.InferenceSession(path)
    run = lambda x: torch.from_numpy(session.run(["output"], {"input": x.numpy()})[0])
    return run, session.get_modelmeta().custom_metadata_map["metadata.json"]

readers = {"torchscript": torchscript, "pt2": pt2, "aoti": aoti, "onnx": onnx, "onnx-qdq": onnx}
inputs = torch.load(sys.argv[2], weights_only=True)
results = {}
for name, (format, path) in json.loads(sys.argv[1]).items():
    model, metadata = readers[format](path)
    with torch.no_grad():
        results[name] = ([model(x) for x in inputs], json.loads(metadata))
assert not [m for m in sys.modules if m.split(".")[0] in blocked and sys.modules[m] is not None]
torch.save(results, sys.argv[3])
"""


def run_without_package(interpreter: Interpreter, case_file, names: list[str], folder: Path) -> dict:
    inputs = [example(), torch.randn(1, 3, 23, 18), torch.randn(6, 3, 17, 40)]
    torch.save(inputs, folder / "inputs.pt")
    files = {name: (CASES[name].format, str(case_file(name).path)) for name in names}
    arguments = [json.dumps(files), str(folder / "inputs.pt"), str(folder / "results.pt")]
    result = interpreter.run(RUN, *arguments, cwd=folder)
    assert result.returncode == 0, result.stderr
    results = torch.load(folder / "results.pt", weights_only=True)
    return {name: (inputs, *results[name]) for name in names}


@pytest.fixture(scope="module")
def results(interpreter: Interpreter, case_file, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return run_without_package(interpreter, case_file, FAST, tmp_path_factory.mktemp("results"))


def check(case_file, name: str, result: tuple) -> None:
    inputs, outputs, metadata = result
    loaded = deploy.load(case_file(name).path)
    assert metadata == loaded.metadata
    for x, output in zip(inputs, outputs, strict=True):
        torch.testing.assert_close(output, loaded(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", FAST)
def test_file_runs(name: str, case_file, results: dict) -> None:
    check(case_file, name, results[name])


@pytest.mark.slow
def test_compiled_float_file_runs(interpreter: Interpreter, case_file, tmp_path: Path) -> None:
    check(case_file, "aoti", run_without_package(interpreter, case_file, ["aoti"], tmp_path)["aoti"])


COMPILE = """
import sys
sys.modules["torchvision_layers"] = None
import torch
import torch.ao.quantization.fx._decomposed
import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer
from torch._inductor.utils import run_and_get_code

torch._inductor.config.freezing = True
compiled = torch.compile(torch.export.load(sys.argv[1]).module())
with torch.no_grad():
    output, (code,) = run_and_get_code(compiled, torch.load(sys.argv[2], weights_only=True))
assert "qconv" in code and "qlinear" in code, code
torch.save(output, sys.argv[3])
"""


@pytest.mark.slow
def test_int8_program_compiles_to_int8_kernels(interpreter: Interpreter, case_file, tmp_path: Path) -> None:
    """As on the page about deployment: torchao holds the patterns of the kernels."""
    paths = [case_file("pt2-int8").path, tmp_path / "input.pt", tmp_path / "output.pt"]
    torch.save(example(), paths[1])
    result = interpreter.run(COMPILE, *map(str, paths))
    assert result.returncode == 0, result.stderr
    expected = deploy.load(paths[0])(example())
    difference = float((torch.load(paths[2], weights_only=True) - expected).abs().max())
    assert difference <= 0.05 * float(expected.abs().max())
