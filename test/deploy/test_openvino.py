"""Models of OpenVINO: two files, read by OpenVINO alone, with every convolution on integers."""

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers._utils.amx import without_amx
from torchvision_layers._utils.atomic import atomic_path
from torchvision_layers.deploy.formats import openvino as openvino_format
from torchvision_layers.deploy.formats.openvino import _core
from torchvision_layers.testing._checks._quantization import decibels

from ..interpreter import Interpreter
from ._support import CLASSES, FunctionModule, example, float_model, relative_error

openvino = pytest.importorskip("openvino", reason="an extra")


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def int8_model() -> nn.Module:
    return quantized.quantize(float_model(), [example()], engine="pt2e", backend="onnxruntime")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[nn.Module, deploy.Exported]]:
    folder = tmp_path_factory.mktemp("openvino")
    models = {"float": float_model(), "int8": int8_model()}
    options = {
        "classes": CLASSES,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.6, 0.7],
        "about": {"log": [None, "ä\n\"<'>"]},
    }
    return {
        name: (model, deploy.export(model, example(), folder / f"{name}.xml", format="openvino", **options))
        for name, model in models.items()
    }


def copy_files(exported: deploy.Exported, folder: Path) -> Path:
    for suffix in (".xml", ".bin"):
        (folder / "model").with_suffix(suffix).write_bytes(exported.path.with_suffix(suffix).read_bytes())
    return folder / "model.xml"


@pytest.mark.parametrize(("name", "tolerance"), [("float", 1e-5), ("int8", 0.05)])
def test_file_agrees_with_model(name: str, tolerance: float, files: dict) -> None:
    model, exported = files[name]
    assert exported.difference < tolerance
    assert exported.size == sum(exported.path.with_suffix(s).stat().st_size for s in (".xml", ".bin"))
    loaded = deploy.load(exported.path, threads=1)
    assert loaded.format == "openvino"
    assert loaded.metadata["classes"] == CLASSES
    assert loaded.metadata["std"] == [0.5, 0.6, 0.7]
    assert loaded.metadata["about"] == {"log": [None, "ä\n\"<'>"]}
    for i in range(6):  # more sizes than it compiles for
        x = torch.randn(i, 3, 16 + i, 16)
        assert relative_error(loaded(x), model(x)) < tolerance or i == 0
        assert loaded(x).shape == (i, 5)
        assert torch.equal(loaded(x), loaded(x.to(memory_format=torch.channels_last)))


def test_weights_have_eight_bits(files: dict) -> None:
    sizes = {name: exported.path.with_suffix(".bin").stat().st_size for name, (_, exported) in files.items()}
    assert sizes["int8"] < 0.5 * sizes["float"]


ALONE = """
import json, sys
for name in ("torchvision_layers", "torchao", "onnx", "onnxruntime"):
    sys.modules[name] = None  # from here on, importing it raises
import openvino, torch

core, outputs = openvino.Core(), []
model = core.read_model(sys.argv[1])
compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
for x in torch.load(sys.argv[2], weights_only=True):
    outputs.append(torch.from_numpy(compiled({"input": x.numpy()})["output"]))
metadata = model.get_rt_info(["metadata.json"]).astype(str)
torch.save((outputs, json.loads(metadata)), sys.argv[3])
"""


@pytest.mark.parametrize("name", ["float", "int8"])
def test_file_runs_without_package(name: str, files: dict, interpreter: Interpreter, tmp_path: Path) -> None:
    _, exported = files[name]
    inputs = [example(), torch.randn(1, 3, 23, 18)]
    torch.save(inputs, tmp_path / "inputs.pt")
    result = interpreter.run(ALONE, str(exported.path), str(tmp_path / "inputs.pt"), str(tmp_path / "outputs.pt"))
    assert result.returncode == 0, result.stderr
    outputs, metadata = torch.load(tmp_path / "outputs.pt", weights_only=True)
    loaded = deploy.load(exported.path)
    assert metadata == loaded.metadata
    for x, output in zip(inputs, outputs, strict=True):
        assert relative_error(output, loaded(x)) < 0.01


class Branches(nn.Module):
    """A concatenation, a mean, and sums with and without an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = tnn.ConvNormAct(3, 8, stride=2, activation_layer=nn.Hardswish)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.join = nn.Conv2d(16, 8, 5, padding=2, groups=8)
        self.block = tnn.InvertedResidual(8, 8, 1, 2, se_layer=tnn.SqueezeExcitation)
        self.residual = tnn.BasicBlock(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.join(torch.cat([self.left(x), nn.functional.max_pool2d(self.right(x), 3, 1, 1)], 1)) + x
        return self.head(self.residual(self.block(x)).mean((2, 3)))


def executed(path: Path) -> list[tuple[str, str]]:
    """The operators of the graph that OpenVINO runs, with the kernel of each."""
    core = _core()  # more than one could leave a signal handler without a stack
    with without_amx():  # a limit on instructions is read once in a process
        compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    infos = [operator.get_rt_info() for operator in compiled.get_runtime_model().get_ordered_ops()]
    return [(info["layerType"].astype(str), info["primitiveType"].astype(str)) for info in infos]


def test_every_convolution_runs_in_int8(tmp_path: Path) -> None:
    """The places that ``backend="onnxruntime"`` quantizes are those that OpenVINO needs."""
    torch.manual_seed(0)
    model = Branches()
    for _ in range(3):
        model(torch.randn(4, 3, 32, 32))
    model.eval()
    batch = torch.randn(4, 3, 32, 32)
    int8 = quantized.quantize(model, [batch], engine="pt2e", backend="onnxruntime")
    path = deploy.export(int8, batch, tmp_path / "model.xml", format="openvino").path
    kernels = [kernel for operator, kernel in executed(path) if operator in ("Convolution", "FullyConnected")]
    assert len(kernels) == sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())
    assert all(kernel.endswith("I8") for kernel in kernels), Counter(kernels)
    expected, output = model(batch), deploy.load(path)(batch)
    assert 10 * torch.log10(expected.square().sum() / (expected - output).square().sum()) > 25


def test_signals_are_handled_after_programs_are_deleted(files: dict) -> None:
    """OpenVINO gives signal handlers another stack, which must not be freed while they use it."""
    programs = [deploy.load(files["float"][1].path, threads=1) for _ in range(3)]
    for program in programs:
        program(example())
    while programs:
        programs.pop(0)
    received: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda signum, frame: received.append(signum))
    try:
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert received == [signal.SIGINT]


def test_float_file_runs_in_float(files: dict) -> None:
    assert not any(kernel.endswith("I8") for _, kernel in executed(files["float"][1].path))


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.depth = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 4, 3)

        def forward(self, image: Tensor, depth: Tensor) -> dict[str, object]:
            return {"mask": self.image(image) + self.depth(depth), "features": [image * 2, depth]}

    model, image, depth = Model().eval(), example(), example()[:, :1]
    path = deploy.export(model, {"image": image, "depth": depth}, tmp_path / "m.xml", format="openvino").path
    output = deploy.load(path)(depth=depth, image=image)
    assert list(output) == ["mask", "features"]
    torch.testing.assert_close(output, model(image, depth), rtol=1e-4, atol=1e-5)


def test_branch_on_sizes_is_kept(tmp_path: Path) -> None:
    model = FunctionModule(lambda self, x: self.conv(x) * (2 if x.shape[2] % 3 == 0 else 1), conv=nn.Conv2d(3, 4, 3))
    x = torch.randn(2, 3, 18, 18)
    loaded = deploy.load(deploy.export(model, x, tmp_path / "m.xml", format="openvino").path)
    assert relative_error(loaded(x), model(x)) < 1e-5
    with pytest.raises(ValueError, match=r"input must have sizes with .*3.*, got \[2, 3, 19, 18\]"):
        loaded(torch.randn(2, 3, 19, 18))


def test_calls_from_several_threads(files: dict) -> None:
    loaded = deploy.load(files["float"][1].path, threads=1)
    inputs = [torch.randn(1 + i % 3, 3, 16, 16) for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        outputs = list(pool.map(loaded, inputs))
    assert all(torch.equal(output, loaded(x)) for x, output in zip(inputs, outputs, strict=True))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda xml, weights: weights.unlink(), "model.xml needs the file model.bin with its weights beside it"),
        (lambda xml, weights: weights.write_bytes(weights.read_bytes()[:-1]), "damaged or from another model"),
        (lambda xml, weights: weights.write_bytes(bytes(weights.stat().st_size)), "damaged or from another model"),
        (lambda xml, weights: xml.write_bytes(xml.read_bytes()[:-1]), "cut off"),
        (lambda xml, weights: xml.write_bytes(xml.read_bytes().replace(b'"Gemm', b'"Gemn', 1) + b" "), "cut off"),
        (lambda xml, weights: xml.write_bytes(xml.read_bytes().replace(b"opset1", b"opset9", 1)), "was altered"),
    ],
)
def test_damaged_files(damage: Callable[[Path, Path], object], message: str, files: dict, tmp_path: Path) -> None:
    path = copy_files(files["float"][1], tmp_path)
    damage(path, path.with_suffix(".bin"))
    with pytest.raises(ValueError, match=message):
        deploy.load(path)


def test_link_to_file(files: dict, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(files["float"][1].path)
    assert deploy.load(tmp_path / "link").format == "openvino"


def test_both_files_or_none(files: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = copy_files(files["float"][1], tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    rename = os.rename

    def fail(old: str | Path, new: str | Path) -> None:
        if Path(new).name == "model.xml" and not str(old).endswith(".earlier"):
            raise PermissionError("no rename")
        rename(old, new)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(PermissionError):
        deploy.export(float_model(seed=1), example(), path, format="openvino")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    monkeypatch.undo()
    deploy.export(float_model(seed=1), example(), path, format="openvino")
    assert sorted(os.listdir(tmp_path)) == ["model.bin", "model.xml"]
    assert (tmp_path / "model.bin").read_bytes() != before["model.bin"]
    assert relative_error(deploy.load(path)(example()), float_model(seed=1)(example())) < 1e-5


def test_error_after_first_rename_removes_new_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "model.xml", [".bin"]) as temporary:
            temporary.write_text("new")
            temporary.with_suffix(".bin").write_text("new")
            monkeypatch.setattr(Path, "exists", lambda self: False)
            (tmp_path / "model.xml").mkdir()
            (tmp_path / "model.xml" / "other").write_text("")

    with pytest.raises(OSError, match="model.xml"):
        write()
    assert os.listdir(tmp_path) == ["model.xml"]


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_text("weights of another tool")
    with pytest.raises(ValueError, match="path must leave other files alone, .*model.bin, which exists: rename one"):
        deploy.export(float_model(), example(), tmp_path / "model.xml", format="openvino")
    assert (tmp_path / "model.bin").read_text() == "weights of another tool"
    with pytest.raises(ValueError, match=r"path must end in \.xml for format='openvino'"):
        deploy.export(float_model(), example(), tmp_path / "model.bin", format="openvino")


def test_missing_package(files: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    message = r'format=.openvino. needs openvino: pip install "torchvision_layers\[openvino\]"'
    with pytest.raises(ImportError, match=message):
        deploy.export(float_model(), example(), tmp_path / "model.xml", format="openvino")
    with pytest.raises(ImportError, match=message):
        deploy.load(files["float"][1].path)
    assert os.listdir(tmp_path) == []


def test_graph_names_no_path_of_this_machine(files: dict) -> None:
    text = files["int8"][1].path.read_text()
    assert str(Path.cwd()) not in text


def test_narrow_images_in_int8(tmp_path: Path) -> None:
    """On AMX, oneDNN's kernels read memory that nothing has written if a stride leaves one column."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 7, 2, 3)).eval()
    x, path = torch.randn(2, 3, 20, 20), tmp_path / "model.xml"
    int8 = quantized.quantize(model, [x], engine="pt2e", backend="onnxruntime")
    deploy.export(int8, x, path, format="openvino")
    for size in ((20, 2), (9, 1)):
        narrow = torch.randn(2, 3, *size)
        assert decibels(int8(narrow), deploy.load(path)(narrow)) > 40


def test_amx_that_cannot_be_excluded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, path = torch.randn(2, 3, 8, 8), tmp_path / "model.xml"
    deploy.export(nn.Conv2d(3, 4, 3).eval(), x, path, format="openvino")
    monkeypatch.setattr(openvino_format, "uses_amx", lambda: True)
    monkeypatch.setattr(openvino_format, "_kernels", lambda compiled: ["brgconv_avx512_amx_i8"])
    with pytest.raises(RuntimeError, match="set ONEDNN_MAX_CPU_ISA=AVX512_CORE_FP16"):
        deploy.load(path)(x)
