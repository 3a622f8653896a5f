"""Programs with something in them that would run: refused, though their checksums are right."""

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

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.deploy._sealing import seal_zip

from ._support import Reads, example


def rewritten(content: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    """The zip file with other records."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    held = {name.partition("/")[2]: value for name, value in records.items()}
    change(held)
    output = io.BytesIO()
    with zipfile.ZipFile(output, "w") as archive:
        for name, value in held.items():
            archive.writestr(f"archive/{name}", value)
    return seal_zip(output.getvalue())


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
def test_a_program_that_would_run_something_is_refused(
    attack: str, written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pt2"
    path.write_bytes(rewritten(written("pt2").path.read_bytes(), ATTACKS[attack]))
    with pytest.raises(ValueError, match=r"evil\.pt2"):
        deploy.load(path)(example())
    assert os.listdir(tmp_path) == ["evil.pt2"]


@pytest.mark.parametrize("attack", ["guard", "size"])
def test_torch_alone_runs_it(attack: str, written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the tests above would show nothing, and the docs say too much."""
    monkeypatch.chdir(tmp_path)
    content = rewritten(written("pt2").path.read_bytes(), ATTACKS[attack])
    with contextlib.suppress(Exception):  # what it gives is no size, no tensor, and so on
        torch.export.load(io.BytesIO(content)).module()(example())
    assert os.listdir(tmp_path) == ["ran"]


def test_a_program_that_is_only_written_anew_loads(written, tmp_path: Path) -> None:
    path = tmp_path / "same.pt2"
    path.write_bytes(rewritten(written("pt2").path.read_bytes(), lambda records: None))
    assert torch.equal(deploy.load(path)(example()), deploy.load(written("pt2").path)(example()))


def sizes_of_many_kinds(self, x):
    """Leaves sums, products, remainders and guards of sizes in the program."""
    assert x.shape[2] % 4 == 0
    height, width = x.shape[2], x.shape[3]
    y = nn_pool(x[:, :, : height // 2 + 1, : max(width - 1, 3)])
    y = torch.nn.functional.interpolate(y, size=(2 * height, width + height), mode="nearest")
    return self.conv(y.reshape(x.shape[0], x.shape[1], -1, height)).mean((2, 3))


def nn_pool(x):
    return torch.nn.functional.adaptive_avg_pool2d(x, (4, 4))


@pytest.mark.parametrize("operator", ["aten.from_file.default", "aten.save.default", "image.write_file.default"])
def test_a_program_that_opens_files_is_refused(operator: str, written, tmp_path: Path) -> None:
    path = tmp_path / "evil.pt2"
    change = in_model(lambda model: first_node(model).update(target=f"torch.ops.{operator}"))
    path.write_bytes(rewritten(written("pt2").path.read_bytes(), change))
    with pytest.raises(ValueError, match=rf"evil\.pt2 calls what is not an operator of torch.*{operator}"):
        deploy.load(path)


def test_guards_and_expressions_of_honest_models_pass(tmp_path: Path) -> None:
    model = Reads(sizes_of_many_kinds, conv=tnn.ConvNormAct(3, 4))
    exported = deploy.export(model, example(), tmp_path / "model.pt2", format="pt2")
    with zipfile.ZipFile(exported.path) as archive:
        text = archive.read("archive/models/model.json").decode()
    assert "FloorDiv" in text or "//" in text
    assert json.loads(text)["guards_code"]
    assert deploy.load(exported.path).metadata["input_shape"] == [None, 3, None, None]


def test_unusual_names_of_modules_pass(tmp_path: Path) -> None:
    model = torch.nn.Sequential()
    model.add_module("stage 1/conv-norm", tnn.ConvNormAct(3, 4))
    model.add_module("torch", tnn.ConvNormAct(4, 4))
    deploy.export(model.eval(), example(), tmp_path / "model.pt2", format="pt2")


class Saves(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, "ran")
        return x


def test_a_script_that_writes_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="code that a model does not need.*save"):
        deploy.export(Saves().eval(), example(), tmp_path / "model.pt")
    assert "model.pt" not in os.listdir(tmp_path)


@pytest.mark.parametrize(
    "code",
    [
        *("torch.save(x)", "torch.from_file (x)", "x.save('ran')", "ops.aten.save(x)", "ops.image.write_file(x)"),
        *("f = torch.save; f(x)", "(torch.save # c\n(x))", "torch.save\\\n(x)", 'getattr(torch, "sa" "ve")(x)'),
        *('getattr(x, "s\\141ve")', "getattr (torch, 'a')", "o = ops", "ops .image.read_file(x)", "ops\\\n.image"),
    ],
)
def test_a_script_with_foreign_code_is_refused(code: str, written, tmp_path: Path) -> None:
    def change(records: dict[str, bytes]) -> None:
        name = next(name for name in records if name.startswith("code/") and name.endswith(".py"))
        records[name] += b"\n# " + code.encode()

    path = tmp_path / "evil.pt"
    path.write_bytes(rewritten(written("torchscript-int8").path.read_bytes(), change))
    with pytest.raises(ValueError, match=r"evil\.pt holds code that a model does not need"):
        deploy.load(path)


class Names(torch.nn.Module):
    """What is called like an operator, or has names that are no words."""

    def __init__(self) -> None:
        super().__init__()
        self.ops = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))])
        self.add_module("norm-1", torch.nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        for op in self.ops:
            x = op(x)
        ops = [getattr(self, "norm-1")(x), x]
        return ops[0] + ops[1]


def test_operators_of_onednn_in_a_script_pass(tmp_path: Path) -> None:
    """Which convolutions take where an activation is theirs."""
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


def test_honest_names_in_a_script_pass(tmp_path: Path) -> None:
    deploy.export(Names().eval(), example(), tmp_path / "model.pt")


def listed_twice(content: bytes) -> bytes:
    """With the same records once more, in another folder, of which torch does not know."""
    output = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as archive, zipfile.ZipFile(output, "w") as twice:
        for folder in ("archive", "other"):
            for name in archive.namelist():
                twice.writestr(f"{folder}/{name.partition('/')[2]}", archive.read(name))
    return output.getvalue()


def with_two_lists(content: bytes) -> bytes:
    """With a second list of records, after the one whose place is written at the end."""
    content = rewritten(content, lambda records: None)[: -len(seal_zip(EMPTY)) + len(EMPTY) - 2] + b"\0\0"
    size, place = (int.from_bytes(content[i : i + 4], "little") for i in (-10, -6))
    return content[:-22] + content[place : place + size] + content[-22:]


EMPTY = b"PK\5\6" + bytes(18)


@pytest.mark.parametrize("change", [listed_twice, with_two_lists])
@pytest.mark.parametrize("format", ["torchscript", "pt2"])
def test_a_file_that_readers_see_in_two_ways_is_refused(
    change: Callable[[bytes], bytes], format: str, written, tmp_path: Path
) -> None:
    path = tmp_path / "evil.pt2"
    path.write_bytes(seal_zip(change(written(format).path.read_bytes())))
    with pytest.raises(ValueError, match=r"evil\.pt2 is no zip file as deploy\.export writes it.* two ways"):
        deploy.load(path)
