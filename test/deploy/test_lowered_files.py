"""Files of lowered programs: their kernels in torch alone, what they accept, and how loading fails."""

import io
import json
import platform
import re
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.deploy.integrity.checksum import Container, append_checksum
from torchvision_layers.deploy.lowering import int8_kernels

from ..interpreter import Interpreter
from ._support import FunctionModule, example, float_model
from .test_empty_batches import Pixels
from .test_malicious_files import in_model, rewrite

RUN = """
import os, sys
os.environ["ONEDNN_VERBOSE"] = "1"
sys.modules["torchvision_layers"] = sys.modules["torchao"] = None  # from here on, importing them raises
import torch
with torch.no_grad():
    module = torch.export.load(sys.argv[1]).module()
    for _ in range(2):
        print("call", flush=True)
        output = module(torch.load(sys.argv[2]))
torch.save(output, sys.argv[3])
"""


def executed(output: str, kind: str) -> list[str]:
    """The kernel and the tensors of each primitive of a kind that oneDNN ran, by its own report."""
    lines = [line.split(",") for line in output.splitlines() if line.startswith("onednn_verbose")]
    start = next(line.index("exec") for line in lines if "exec" in line)
    return [",".join(line[start + 3 : start + 6]) for line in lines if line[start : start + 3] == ["exec", "cpu", kind]]


@pytest.mark.parametrize("name", ["lowered", "lowered-int8"])
def test_kernels_in_torch_alone(name: str, case_file, interpreter: Interpreter, tmp_path: Path) -> None:
    """Convolutions run in int8, none in float, and the weights are packed when the file is loaded, not in each call."""
    path, x = case_file(name).path, example()
    torch.save(x, tmp_path / "x.pt")
    result = interpreter.run(RUN, str(path), str(tmp_path / "x.pt"), str(tmp_path / "output.pt"))
    assert result.returncode == 0, result.stderr
    assert torch.equal(torch.load(tmp_path / "output.pt"), deploy.load(path)(x))
    loading, _, second = result.stdout.split("call\n")
    convs = executed(second, "convolution")
    assert len(convs) >= 5
    if name == "lowered-int8":
        assert all("src:u8" in conv and "wei:s8" in conv for conv in convs), convs
        assert not any("src:f32" in product for product in executed(second, "matmul"))
    weights = [line for line in executed(loading, "reorder") if "dst:s8" in line or "dst:f32" in line]
    assert len(weights) >= len(convs)
    assert not any("src:s8" in line for line in executed(second, "reorder"))


OTHER_PROCESSOR = """
import os, sys
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
import torch
from torchvision_layers import deploy
x, expected = torch.load(sys.argv[3])
with torch.no_grad():
    for loaded in (deploy.load(sys.argv[1]), torch.export.load(sys.argv[1]).module()):
        torch.testing.assert_close(loaded(x), expected, rtol=0, atol=1e-5)
try:
    deploy.load(sys.argv[2])
    print("int8 runs")
except ValueError as error:
    print(error)
"""


def test_other_processors_pack_for_themselves(case_file, interpreter: Interpreter, tmp_path: Path) -> None:
    """A processor with other layouts runs the float file; without VNNI, the int8 file raises an error."""
    paths = [case_file(name).path for name in ("lowered", "lowered-int8")]
    torch.save((example(), deploy.load(paths[0])(example())), tmp_path / "x.pt")
    root = Path(deploy.__file__).parents[2]
    result = interpreter.run(OTHER_PROCESSOR, *map(str, paths), str(tmp_path / "x.pt"), cwd=root)
    assert result.returncode == 0, result.stderr
    if platform.machine().lower() in ("x86_64", "amd64"):
        assert f"{paths[1]} cannot run here: lowered int8 models need a CPU" in result.stdout


def is_lowered(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        model = next(name for name in names if name.endswith("models/model.json")) if "code" not in str(names) else ""
        return bool(model) and b"_pointwise" in archive.read(model)


def test_default_format(tmp_path: Path) -> None:
    path, x = tmp_path / "m", example()
    model = float_model(blocks=False)
    graph = quantized.quantize(model, [x], engine="pt2e", backend="x86")
    eager = quantized.quantize(model, [x], engine="eager", backend="x86")
    for converted, format in (
        (model, "pt2"),
        (graph, "pt2"),
        (eager, "torchscript"),
        (nn.Sequential(eager, nn.Softmax(1)).eval(), "torchscript"),
        (deploy.lower(model, x), "pt2"),
    ):
        exported = deploy.export(converted, x, path)
        loaded = deploy.load(path)
        assert (exported.format, loaded.format, is_lowered(path)) == (format, format, format == "pt2")
        torch.testing.assert_close(loaded(x), converted(x), rtol=0, atol=0.02)
    for arguments in ({"format": "pt2"}, {"lowered": False}):
        deploy.export(model, x, path, **arguments)
        assert not is_lowered(path)
    with pytest.raises(
        TypeError, match="format='pt2' with lowered=True does not support a model that is int8 of engine='eager'"
    ):
        deploy.export(eager, x, path, lowered=True)
    with pytest.raises(
        TypeError, match=r"0 is a QuantizableGraph.*; or pass lowered=False, to write the model as it is"
    ):
        deploy.export(nn.Sequential(graph).eval(), x, path)


def test_images_of_any_size(tmp_path: Path) -> None:
    """Features shrink to single pixels, and to several, whatever they were in the example."""
    torch.manual_seed(0)
    layers = [tnn.ConvNormAct(3, 8, stride=4), tnn.BasicBlock(8, 8), tnn.BasicBlock(8, 8, stride=2)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    for size in (4, 16):
        path = deploy.export(model, torch.randn(2, 3, size, size), tmp_path / "m.pt2").path
        loaded, program = deploy.load(path), torch.export.load(path).module()
        for shape in ((1, 3, 4, 4), (3, 3, 16, 9), (2, 3, 33, 40)):
            x = torch.randn(shape)
            with torch.no_grad():
                expected = model(x)
                for output in (loaded(x), program(x)):
                    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


class Statistics(nn.Module):
    """Returns results of operators with several outputs, numbers that depend on sizes, and constants."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("flags", torch.tensor([True, False]))
        self.eval()

    def forward(self, x: Tensor) -> dict[str, object]:
        y = self.conv(x)
        first, second = y.split(2, 1)
        values, indices = y.flatten(2).topk(2)
        size = {"pixels": x.shape[2] * x.shape[3], "none": None, "half": 0.5}
        parts = second, [y.flip(1), first.to(torch.float64)]
        return {
            "values": values,
            "indices": indices,
            "parts": parts,
            "size": size,
            "flags": self.flags & True,
        }


def test_outputs_of_many_kinds(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Statistics(), torch.randn(2, 3, 8, 6)
    path = deploy.export(model, x, tmp_path / "m.pt2").path
    for images in (x, torch.randn(1, 3, 9, 7)):
        expected, output = model(images), deploy.load(path)(images)
        assert output["size"] == expected["size"]
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["lowered", "lowered-int8"])
def test_threads(name: str, case_file) -> None:
    loaded = deploy.load(case_file(name).path)
    inputs = [torch.randn(1 + i % 3, 3, 16 + i, 16, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    expected = [loaded(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for output, value in zip(pool.map(deploy.load(loaded.path), inputs * 4), expected * 4, strict=True):
            assert torch.equal(output, value)


def test_processors_that_cannot_run_a_file(case_file, monkeypatch: pytest.MonkeyPatch) -> None:
    path = case_file("lowered-int8").path
    monkeypatch.setattr(int8_kernels, "_has_exact_products", lambda: False)
    remedy = "a file that deploy.export writes with lowered=False or format='onnx' can"
    with pytest.raises(ValueError, match=rf"cannot run here: .*such as x86 with VNNI; here they overflow.*{remedy}"):
        deploy.load(path)
    assert deploy.load(case_file("lowered").path)(example()).shape == (3, 5)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    for name in ("lowered", "lowered-int8"):
        with pytest.raises(ValueError, match=rf"cannot run here: .*operators of oneDNN, which this build.*{remedy}"):
            deploy.load(case_file(name).path)


def nodes(model: dict) -> list[dict]:
    return model["graph_module"]["graph"]["nodes"]


def first_layer(model: dict) -> dict:
    return next(node for node in nodes(model) if node["target"].startswith("torch.ops.mkldnn"))


def in_pickle(old: bytes, new: bytes) -> Callable[[dict[str, bytes]], None]:
    """Replaces a name in the first pickle that packs a weight, with the length before it."""

    def change(records: dict[str, bytes]) -> None:
        name = next(name for name in records if name.startswith("data/weights/") and records[name][:2] == b"PK")
        with zipfile.ZipFile(io.BytesIO(records[name])) as archive:
            inner = {key: archive.read(key) for key in archive.namelist()}
        pickled = next(key for key in inner if key.endswith("data.pkl"))
        assert old in inner[pickled]
        inner[pickled] = inner[pickled].replace(old, new)
        output = io.BytesIO()
        with zipfile.ZipFile(output, "w") as archive:
            for key, value in inner.items():
                archive.writestr(key, value)
        records[name] = output.getvalue()

    return change


PACK = b"\x2e\x00\x00\x00ops.mkldnn._reorder_convolution_weight.default"
ATTACKS = {
    "operator": in_model(lambda model: first_layer(model).update(target="torch.ops.aten.save.default")),
    "function": in_model(lambda model: first_layer(model).update(target="torch.os.getcwd")),
    "rules": lambda records: records.update({"extra/rules.json": json.dumps(["exit()"]).encode()}),
    "global": in_pickle(b"cimportlib\nimport_module", b"cos\nmkdir"),
    "module": in_pickle(b"\x05\x00\x00\x00torch", b"\x02\x00\x00\x00os"),
    "name": in_pickle(PACK, b"\x09\x00\x00\x00os.system"),
    "other operator": in_pickle(PACK, b"\x0d\x00\x00\x00ops.aten.save"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_malicious_files(attack: str, case_file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt2"
    path.write_bytes(rewrite(case_file("lowered").path.read_bytes(), ATTACKS[attack]))
    with pytest.raises(ValueError, match="evil.pt2|a rule must contain"):
        deploy.load(path)(example())
    assert [item.name for item in tmp_path.iterdir()] == ["evil.pt2"]


def test_other_versions_of_torch(case_file, tmp_path: Path) -> None:
    content, path = case_file("lowered").path.read_bytes(), tmp_path / "other.pt2"
    operator = in_model(lambda model: first_layer(model).update(target="torch.ops.mkldnn.absent.default"))
    path.write_bytes(rewrite(content, operator))
    with pytest.raises(ValueError, match=r"cannot run here: this version of torch has no operator mkldnn\.absent"):
        deploy.load(path)
    path.write_bytes(rewrite(content, in_model(lambda model: model["schema_version"].update(major=9))))
    with pytest.raises(ValueError, match=re.escape(f"{path} cannot be loaded here: ") + ".*torch.export.load"):
        deploy.load(path)


def test_records_are_not_compressed(case_file, tmp_path: Path) -> None:
    output, path = io.BytesIO(), tmp_path / "compressed.pt2"
    with zipfile.ZipFile(case_file("lowered").path) as archive, zipfile.ZipFile(output, "w") as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name), zipfile.ZIP_DEFLATED)
    path.write_bytes(append_checksum(output.getvalue(), Container.ZIP))
    with pytest.raises(
        ValueError, match=r"compressed\.pt2 was not written by deploy\.export: its record .* compressed"
    ):
        deploy.load(path)


def test_programs_that_torch_changes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = torch.export.load

    class Other:
        def __init__(self, content: object) -> None:
            self.program = load(content)

        def module(self) -> nn.Module:
            module = self.program.module()
            return FunctionModule(lambda self, x: module(x) + 1)

    monkeypatch.setattr(torch.export, "load", Other)
    with pytest.raises(RuntimeError, match="torch.export changes the lowered program, please report the model"):
        deploy.export(float_model(), example(), tmp_path / "m.pt2")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_int8_of_every_kind_of_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for conv, shape in ((nn.Conv1d, (2, 3, 9)), (nn.Conv2d, (2, 3, 9, 9)), (nn.Conv3d, (2, 3, 5, 5, 5))):
        linear = nn.Linear((shape[2] - 2) ** (len(shape) - 2), 5)
        model = nn.Sequential(conv(3, 8, 3), nn.ReLU(), conv(8, 4, 1), nn.Flatten(2), linear).eval()
        x = torch.randn(shape)
        int8 = quantized.quantize(model, [x], engine="pt2e", backend="x86")
        path = deploy.export(int8, x, tmp_path / "m.pt2").path
        with torch.no_grad():
            assert torch.equal(deploy.load(path)(x), torch.export.load(path).module()(x))
            assert torch.equal(deploy.load(path)(x), deploy.lower(int8, x)(x))


def test_weights_that_are_not_packed_never_reach_a_kernel(tmp_path: Path) -> None:
    """OneDNN's linear layers end the process then; the export tries images that are larger than the example."""

    x = torch.rand(4, 3, 16, 16)
    int8 = quantized.quantize(Pixels().eval(), [x], engine="pt2e", backend="x86")
    loaded = deploy.load(deploy.export(int8, x, tmp_path / "model.pt2", format="pt2", lowered=True).path)
    torch.testing.assert_close(loaded(x), int8(x), rtol=0, atol=1e-5)
