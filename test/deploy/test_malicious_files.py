"""Files with code that would run raise an error, although their checksums are valid."""

import contextlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.deploy.integrity.checksum import Container, append_checksum

from ._support import FunctionModule, example


def rewrite(content: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    """The zip file with its records changed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    records = {name.partition("/")[2]: value for name, value in records.items()}
    change(records)
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as archive:
        for name, value in records.items():
            archive.writestr(f"archive/{name}", value)
    return append_checksum(output.getvalue(), Container.ZIP)


def in_model(edit: Callable[[dict], None]) -> Callable[[dict[str, bytes]], None]:
    def change(records: dict[str, bytes]) -> None:
        model = json.loads(records["models/model.json"])
        edit(model)
        records["models/model.json"] = json.dumps(model).encode()

    return change


def in_config(name: str) -> Callable[[dict[str, bytes]], None]:
    def change(records: dict[str, bytes]) -> None:
        path = f"data/{name}/model_{name}_config.json"
        config = json.loads(records[path])
        payload = next(iter(json.loads(records["data/weights/model_weights_config.json"])["config"].values()))
        config["config"]["x"] = payload | {"use_pickle": True}
        records[path] = json.dumps(config).encode()

    return change


EVIL = "__import__('os').mkdir('ran')"


def first_node(model: dict) -> dict:
    return model["graph_module"]["graph"]["nodes"][0]


def first_size(model: dict) -> dict:
    values = model["graph_module"]["graph"]["tensor_values"]
    return next(s["as_expr"] for v in values.values() for s in v["sizes"] if "as_expr" in s)


def call_system(model: dict) -> None:
    argument = {"name": "command", "arg": {"as_string": "mkdir ran"}, "kind": 1}
    output = {"as_tensor": {"name": "ran"}}
    meta = first_node(model)["outputs"][0]["as_tensor"]["name"]
    values = model["graph_module"]["graph"]["tensor_values"]
    values["ran"] = values[meta]
    node = first_node(model) | {"target": "torch.os.system", "inputs": [argument], "outputs": [output], "name": "ran"}
    model["graph_module"]["graph"]["nodes"].insert(0, node)


def set_signature(key: str, value: object) -> Callable[[dict], None]:
    return lambda model: model["graph_module"]["module_call_graph"][0]["signature"].update({key: value})


SPEC = '[1, {"type": "builtins.dict", "context": "[\\"a=print(1)\\"]", "children_spec": []}]'
ATTACKS: dict[str, Callable[[dict[str, bytes]], None]] = {
    "guard": in_model(lambda model: model["guards_code"].append(EVIL)),
    "size": in_model(lambda model: first_size(model).update(expr_str=EVIL)),
    "function": in_model(call_system),
    "library": in_model(lambda model: first_node(model).update(target="torch.ops.load_library")),
    "operator": in_model(lambda model: first_node(model).update(target="_operator.methodcaller")),
    "name": in_model(lambda model: first_node(model).update(name=f'x"+{EVIL}+"')),
    "structure": in_model(set_signature("in_spec", SPEC)),
    "inputs": lambda records: records.update({"data/sample_inputs/model.pt": b"cos\nsystem\n"}),
    "weights": in_config("weights"),
    "constants": in_config("constants"),
    "old weights": lambda records: records.update({"data/weights/model.pt": b"x"}),
    "object": lambda records: records.update({"data/constants/custom_obj_0": b"x"}),
    "machine code": lambda records: records.update({"data/aotinductor/other/x.so": b"x"}),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_malicious_program_does_not_run(
    attack: str, case_file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt2"
    path.write_bytes(rewrite(case_file("pt2").path.read_bytes(), ATTACKS[attack]))
    with pytest.raises(ValueError, match=r"evil\.pt2"):
        deploy.load(path)(example())
    assert os.listdir(tmp_path) == ["evil.pt2"]


@pytest.mark.parametrize("attack", ["guard", "size"])
def test_torch_runs_malicious_program(attack: str, case_file, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the test above would prove nothing."""
    monkeypatch.chdir(tmp_path)
    content = rewrite(case_file("pt2").path.read_bytes(), ATTACKS[attack])
    with contextlib.suppress(Exception):  # the result is not a size or a tensor
        torch.export.load(io.BytesIO(content)).module()(example())
    assert os.listdir(tmp_path) == ["ran"]


def test_rewritten_program_loads(case_file, tmp_path: Path) -> None:
    path = tmp_path / "same.pt2"
    path.write_bytes(rewrite(case_file("pt2").path.read_bytes(), lambda records: None))
    assert torch.equal(deploy.load(path)(example()), deploy.load(case_file("pt2").path)(example()))


def sizes_of_many_kinds(self, x):
    """Produces sums, products, remainders and guards of sizes in the program."""
    assert x.shape[2] % 4 == 0
    height, width = x.shape[2], x.shape[3]
    y = nn_pool(x[:, :, : height // 2 + 1, : max(width - 1, 3)])
    y = torch.nn.functional.interpolate(y, size=(2 * height, width + height), mode="nearest")
    return self.conv(y.reshape(x.shape[0], x.shape[1], -1, height)).mean((2, 3))


def nn_pool(x):
    return torch.nn.functional.adaptive_avg_pool2d(x, (4, 4))


@pytest.mark.parametrize("operator", ["aten.from_file.default", "aten.save.default", "image.write_file.default"])
def test_program_that_opens_files(operator: str, case_file, tmp_path: Path) -> None:
    path = tmp_path / "evil.pt2"
    change = in_model(lambda model: first_node(model).update(target=f"torch.ops.{operator}"))
    path.write_bytes(rewrite(case_file("pt2").path.read_bytes(), change))
    with pytest.raises(ValueError, match=rf"evil\.pt2 calls a function that is not an operator of torch.*{operator}"):
        deploy.load(path)


def test_harmless_guards_and_expressions_load(tmp_path: Path) -> None:
    model = FunctionModule(sizes_of_many_kinds, conv=tnn.ConvNormAct(3, 4))
    exported = deploy.export(model, example(), tmp_path / "model.pt2", format="pt2")
    with zipfile.ZipFile(exported.path) as archive:
        text = archive.read("archive/models/model.json").decode()
    assert "FloorDiv" in text or "//" in text
    assert json.loads(text)["guards_code"]
    assert deploy.load(exported.path).metadata["input_shape"] == [None, 3, None, None]


def test_unusual_module_names_load(tmp_path: Path) -> None:
    model = torch.nn.Sequential()
    model.add_module("stage 1/conv-norm", tnn.ConvNormAct(3, 4))
    model.add_module("torch", tnn.ConvNormAct(4, 4))
    deploy.export(model.eval(), example(), tmp_path / "model.pt2", format="pt2")


@pytest.mark.parametrize("equation", ["bchw,bcij->bhi", "B C H W, B C I J -> B H I", "...h->...", "bchw,bcij"])
def test_equations_of_einsum_load(equation: str, tmp_path: Path) -> None:
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return torch.einsum(equation, *[y, y][: 1 + equation.count(",")])

    model = FunctionModule(forward, conv=tnn.ConvNormAct(3, 4))
    path = deploy.export(model, example(), tmp_path / "model.pt2", format="pt2").path
    with torch.no_grad():
        torch.testing.assert_close(deploy.load(path)(example()), model(example()))


class Saves(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, "ran")
        return x


def test_script_that_writes_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="code that no model needs.*save"):
        deploy.export(Saves().eval(), example(), tmp_path / "model.pt", format="torchscript")
    assert "model.pt" not in os.listdir(tmp_path)


@pytest.mark.parametrize(
    "code",
    [
        *("torch.save(x)", "torch.from_file (x)", "x.save('ran')", "ops.aten.save(x)", "ops.image.write_file(x)"),
        *("f = torch.save; f(x)", "(torch.save # c\n(x))", "torch.save\\\n(x)", 'getattr(torch, "sa" "ve")(x)'),
        *("'custom C++ ops'; ops.image.read_file(x)", "custom C++\nops.image.read_file(x)"),
        *('getattr(x, "s\\141ve")', "getattr (torch, 'a')", "o = ops", "ops .image.read_file(x)", "ops\\\n.image"),
    ],
)
def test_script_with_foreign_code(code: str, case_file, tmp_path: Path) -> None:
    def change(records: dict[str, bytes]) -> None:
        name = next(name for name in records if name.startswith("code/") and name.endswith(".py"))
        records[name] += b"\n# " + code.encode()

    path = tmp_path / "evil.pt"
    path.write_bytes(rewrite(case_file("torchscript-int8").path.read_bytes(), change))
    with pytest.raises(ValueError, match=r"evil\.pt contains code that no model needs"):
        deploy.load(path)


class Pooled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("boxes", torch.tensor([[0.0, 0, 0, 4, 4], [0.0, 1, 1, 6, 5]]))

    def forward(self, x: Tensor) -> Tensor:
        return roi_align(self.conv(x), self.boxes, (2, 2))


def test_operators_of_torchvision_load(tmp_path: Path) -> None:
    """Their code holds an error message about "custom C++ ops"."""
    model = Pooled().eval()
    path = deploy.export(model, example(), tmp_path / "model.pt", format="torchscript").path
    with torch.no_grad():
        assert torch.equal(deploy.load(path)(example()), model(example()))


class Names(torch.nn.Module):
    """Has a child named like an operator, and one whose name is not an identifier."""

    def __init__(self) -> None:
        super().__init__()
        self.ops = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))])
        self.add_module("norm-1", torch.nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        for op in self.ops:
            x = op(x)
        ops = [getattr(self, "norm-1")(x), x]
        return ops[0] + ops[1]


def test_script_with_onednn_operators_loads(tmp_path: Path) -> None:
    """Convolutions with a fused activation use them."""
    model = nn.Sequential(tnn.InvertedResidual(16, 16, 1, 4, activation_layer=nn.Hardswish)).train()
    images = torch.randn(2, 16, 8, 8)
    prepared = quantized.prepare_qat(model, images, backend="onednn")
    prepared(images)
    int8 = quantized.convert(prepared.eval())
    path = tmp_path / "int8.pt"
    deploy.export(int8, images, path, format="torchscript")
    with zipfile.ZipFile(path) as archive:
        assert any(b"ops.onednn.qconv" in archive.read(name) for name in archive.namelist())
    assert torch.equal(deploy.load(path)(images), int8(images))


def test_script_with_harmless_names_loads(tmp_path: Path) -> None:
    deploy.export(Names().eval(), example(), tmp_path / "model.pt", format="torchscript")


def with_duplicate_records(content: bytes) -> bytes:
    """The same records a second time, in another folder that torch ignores."""
    output = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(output, "w") as twice:
        for folder in ("archive", "other"):
            for name in archive.namelist():
                twice.writestr(f"{folder}/{name.partition('/')[2]}", archive.read(name))
    return output.getvalue()


def with_two_directories(content: bytes) -> bytes:
    """A second directory of records, after the one whose offset is stored at the end."""
    content = (
        rewrite(content, lambda records: None)[: -len(append_checksum(EMPTY, Container.ZIP)) + len(EMPTY) - 2] + b"\0\0"
    )
    size, offset = (int.from_bytes(content[i : i + 4], "little") for i in (-10, -6))
    return content[:-22] + content[offset : offset + size] + content[-22:]


EMPTY = b"PK\5\6" + bytes(18)


@pytest.mark.parametrize("change", [with_duplicate_records, with_two_directories])
@pytest.mark.parametrize("format", ["torchscript", "pt2"])
def test_file_with_ambiguous_records(change: Callable[[bytes], bytes], format: str, case_file, tmp_path: Path) -> None:
    path = tmp_path / "evil.pt2"
    path.write_bytes(append_checksum(change(case_file(format).path.read_bytes()), Container.ZIP))
    with pytest.raises(ValueError, match=r"evil\.pt2 was not written by deploy\.export: two readers"):
        deploy.load(path)
