"""Mistakes of a first visit: each error names the argument, the rule and the value, and shows code that works."""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.deploy._cli import main


class Net(nn.Module):
    """A branch and a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.branch, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        return self.head(torch.cat([x, torch.relu(self.branch(x))], 1).mean((2, 3)))


torch.manual_seed(0)
NET, X, LABELS = Net().eval(), torch.randn(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)


@pytest.fixture(scope="module")
def int8() -> quantized.QuantizableModel:
    return quantized.quantize(NET, [X])


@pytest.fixture(scope="module")
def graph() -> Any:
    return quantized.quantize(NET, [X], engine="pt2e")


@pytest.mark.parametrize(
    ("name", "format"),
    [("m.pt", "torchscript"), ("M.TS", "torchscript"), ("m.pt2", "pt2"), ("m.onnx", "onnx"), ("m", "pt2")],
)
def test_suffix_chooses_the_format(name: str, format: str, tmp_path: Path) -> None:
    exported = deploy.export(NET, X, tmp_path / name)
    assert (exported.format, deploy.load(exported.path).format) == (format, format)
    torch.testing.assert_close(deploy.load(exported.path)(X), NET(X), rtol=0, atol=1e-5)


def test_suffix_chooses_the_format_of_int8(int8: nn.Module, tmp_path: Path) -> None:
    for name in ("m.pt", "m"):
        assert deploy.export(int8, X, tmp_path / name).format == "torchscript"
    with pytest.raises(TypeError, match=r"format='onnx-qdq' does not support .* and a path that ends in \.pt, or call"):
        deploy.export(int8, X, tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("m.xyz", None, r"path must end in \.mlpackage, \.onnx, .* if format is None, got .*m\.xyz"),
        ("m.pth", None, r"path must end in .* if format is None"),
        ("m.onnx", "pt2", r"path must end in \.pt2 for format='pt2', got .*m\.onnx"),
        ("m.pt2", "torchscript", r"path must end in \.pt or \.ts for format='torchscript'"),
        ("m.PT2", "onnx", r"path must end in \.onnx for format='onnx'"),
        ("m.bin", "openvino", r"path must end in \.xml for format='openvino'"),
    ],
)
def test_suffix_of_no_format_or_another(name: str, format: str | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        deploy.export(NET, X, tmp_path / name, format=format)
    assert not list(tmp_path.iterdir())


def test_suffix_that_no_format_has_needs_the_format(tmp_path: Path) -> None:
    assert deploy.export(NET, X, tmp_path / "m.weights", format="pt2").format == "pt2"


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (None, 3, NET):
        with pytest.raises(TypeError, match="path must be a str or a Path, got"):
            deploy.export(NET, X, path)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="path must be a str or a Path, got"):
            deploy.load(path)  # type: ignore[arg-type]
    monkeypatch.setattr("os.access", lambda path, mode: False)  # the tests may run as root, who may write anywhere
    with pytest.raises(PermissionError, match="path must be in a folder that this process may write to, got"):
        deploy.export(NET, X, tmp_path / "m.pt2")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Net, r"pass an instance, Net\(\.\.\.\)\.eval\(\)"),
        (torchvision.models.resnet18, r"the function resnet18: pass the model that it returns, resnet18\(\.\.\.\)"),
        (
            NET.state_dict(),
            "OrderedDict with the keys 'stem.weight', 'stem.bias', ...: build the model, call load_state",
        ),
        (Net().load_state_dict(NET.state_dict()), r"what load_state_dict returns: call model\.load_state_dict"),
        ("resnet18.pth", r"call model\.load_state_dict\(torch\.load\('resnet18\.pth'\)\), and pass model"),
        (X, r"a tensor of shape \[2, 3, 8, 8\]: the model is the first argument"),
        (None, "None"),
    ],
)
def test_anything_but_a_model(model: Any, message: str, tmp_path: Path) -> None:
    calls = [
        lambda: quantized.quantize(model, [X]),
        lambda: quantized.prepare_qat(model, X),
        lambda: quantized.fuse_model(model),
        lambda: deploy.fold(model, X),
        lambda: deploy.lower(model, X),
        lambda: deploy.export(model, X, tmp_path / "m.pt2"),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=f"^model must be a module, got .*{message}") as caught:
            call()
        assert len(str(caught.value)) < 220


def test_model_that_is_int8_or_lowered_already(int8: nn.Module, graph: nn.Module) -> None:
    for model in (int8, graph):
        for engine in ("eager", "pt2e"):
            with pytest.raises(ValueError, match="model is prepared or converted already; start from the float model"):
                quantized.quantize(model, [X], engine=engine)
        with pytest.raises(ValueError, match="fold the float model, then quantize it"):
            deploy.fold(model, X)
    with pytest.raises(ValueError, match="the model before it was lowered"):
        quantized.quantize(deploy.lower(NET, X), [X])


def test_model_of_another_dtype_or_device() -> None:
    for model in (Net().double(), Net().half()):
        with pytest.raises(TypeError, match=r"stem\.weight is .*: call model\.float\(\)"):
            quantized.quantize(model, [X])
        with pytest.raises(TypeError, match=r"stem\.weight is .*: call model\.float\(\)"):
            deploy.lower(model, X)
    with pytest.raises(
        ValueError, match=r"CPU, but stem\.weight is on meta: call model\.to_empty\(device='cpu'\) and load"
    ):
        deploy.lower(Net().to("meta"), X)


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_batch_on_the_meta_device(engine: str) -> None:
    with pytest.raises(ValueError, match=r"the input in batch 1 must hold values, got a tensor on the meta device"):
        quantized.quantize(NET, [X, X.to("meta")], engine=engine)


UNSUITABLE = [
    (X.double(), TypeError, r"{} must be a float32 tensor, got torch\.float64: convert it with \.float\(\)"),
    (X.half(), TypeError, r"{} must be a float32 tensor, got torch\.float16: convert it with \.float\(\)"),
    (X.to(torch.uint8), TypeError, r"{} must be a float32 tensor, got torch\.uint8: .* \.float\(\) / 255"),
    (
        X.permute(0, 2, 3, 1),
        ValueError,
        r"{} must have 3 channels .* stem \(.*channels are last, .*permute\(0, 3, 1, 2\)",
    ),
    (X[:, :1], ValueError, r"{} must have 3 channels in dimension 1 .*: repeat .* \.expand\(-1, 3, -1, -1\)"),
    (torch.rand(2, 4, 8, 8), ValueError, r"{} must have 3 channels .*, got shape .*: drop the alpha channel"),
    (X[0], ValueError, r"{} must be a batch of 4 dimensions for stem .*, got shape \[3, 8, 8\]: .*unsqueeze\(0\)"),
]


@pytest.mark.parametrize(("batch", "error", "message"), UNSUITABLE)
def test_batch_that_the_first_layer_does_not_take(
    batch: Tensor, error: type[Exception], message: str, int8: nn.Module, tmp_path: Path
) -> None:
    mode = {name: module.training for name, module in NET.named_modules()}
    calls: dict[str, list[Callable[[], object]]] = {
        "the input in batch 1": [lambda: quantized.quantize(NET, [X, batch])],
        "batch": [lambda: deploy.fold(NET, batch)],
        "example": [lambda: deploy.export(NET, batch, tmp_path / "m.pt2", format="pt2")],
        "input": [lambda: int8(batch)],
    }
    if batch.dim() == 4:
        calls["the input in batch 0"] = [lambda: quantized.quantize(NET, [batch], engine="pt2e")]
        calls["example"] += [lambda: deploy.lower(NET, batch), lambda: quantized.prepare_qat(NET, batch)]
    for name, functions in calls.items():
        for call in functions:
            with pytest.raises(error, match=f"^{message.format(name)}"):
                call()
    assert mode == {name: module.training for name, module in NET.named_modules()}
    assert not any(module._forward_pre_hooks for module in NET.modules())


def test_remedies_work() -> None:
    grey, alpha = X[:, :1], torch.rand(2, 4, 8, 8)
    array, images = X.numpy().astype("float64"), (255 * torch.rand(2, 3, 8, 8)).to(torch.uint8)
    remedied = [X.double().float(), grey.expand(-1, 3, -1, -1), alpha[:, :3], X[0].unsqueeze(0), images.float() / 255]
    remedied += [X.permute(0, 2, 3, 1).permute(0, 3, 1, 2), torch.from_numpy(array).float()]
    quantized.quantize(NET, remedied)


def test_own_errors_of_a_forward_remain() -> None:
    class Picky(Net):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[2] < 16:
                raise ValueError("images must have 16 rows")
            return super().forward(x)

    message = r"^model must run on the input in batch 0, of shape \[2, 3, 8, 8\]: images must have 16 rows$"
    with pytest.raises(ValueError, match=message):
        quantized.quantize(Picky().eval(), [X])


LOADER = DataLoader(TensorDataset(X, LABELS), batch_size=2)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (X, r"batches must be an iterable of batches, got a Tensor: pass \[batch\]"),
        ({"x": X}, r"batches must be an iterable of batches, got a dict: pass \[batch\]"),
        (next(iter(LOADER)), r"batches must be an iterable of batches, got a list: pass \[batch\]"),
        ((X, LABELS), r"batches must be an iterable of batches, got a tuple: pass \[batch\]"),
        (X.numpy(), r"batches must be a list or a data loader .*, got ndarray: .*torch\.from_numpy"),
        ("photos/", "batches must be a list or a data loader of batches of float32 tensors, got 'photos/'"),
        (None, "batches must be a list or a data loader of batches of float32 tensors, got None"),
        ([LOADER], r"the input in batch 0 must be a float32 tensor, got DataLoader: .*next\(iter\(loader\)\)\[0\]"),
        ([X.numpy()], r"the input in batch 0 must be a float32 tensor, got ndarray: .*torch\.from_numpy\(array\)"),
        ([Image.new("RGB", (8, 8))], r"the input in batch 0 must be a float32 tensor, got Image: .*to_tensor\(image\)"),
        ([(LABELS, X)], r"the input in batch 0 must be a float32 tensor, got torch\.int64: labels come after images"),
        (
            [{"image": X, "label": LABELS}],
            r"the input in batch 0 must hold the inputs of forward\(x.* keys are 'image', 'label': rename them",
        ),
    ],
)
def test_anything_but_batches(batches: Any, message: str) -> None:
    for engine in ("eager", "pt2e"):
        with pytest.raises(TypeError, match=f"^{message}"):
            quantized.quantize(NET, batches, engine=engine)


def test_forms_of_batches_that_work() -> None:
    for batches in (LOADER, [X], (X, X), [(X, LABELS)], [next(iter(LOADER))], [{"x": X}], iter([X])):
        quantized.quantize(NET, batches)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (next(iter(LOADER)), ".*got list: pass the tensor in it that the model takes"),
        (LOADER, r".*got DataLoader: the images of a batch are mostly next\(iter\(loader\)\)\[0\]"),
        (X.numpy(), r".*got ndarray: convert it with torch\.from_numpy\(array\)\.float\(\)"),
        ((X, LABELS), r"{} must hold the inputs of forward\(x.*seems to be a target: leave it out, {}\[0\]"),
    ],
)
def test_anything_but_an_example(example: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=message.format("example", "example")):
        deploy.export(NET, example, tmp_path / "m.pt2")
    with pytest.raises(TypeError, match=message.format("batch", "batch")):
        deploy.fold(NET, example)


def cubed(x: float) -> float:
    return x**3


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"engine": "egaer"}, r"engine must be 'eager' or 'pt2e', got 'egaer': did you mean 'eager'\?"),
        ({"engine": "onnxruntime"}, "engine must be .*: pass engine='pt2e', backend='onnxruntime'"),
        ({"backend": "onedn"}, r"backend must be one of auto, .*, got 'onedn': did you mean 'onednn'\?"),
        ({"backend": "onnxruntime"}, "backend must be one of auto, .*, got 'onnxruntime': engine='pt2e' has it"),
        ({"backend": "qnnpack", "engine": "pt2e"}, "backend must be .*, got 'qnnpack': engine='eager' has it"),
        ({"backend": "tensort", "engine": "pt2e"}, r"backend must be .*, got 'tensort': did you mean 'tensorrt'\?"),
        ({"backend": None}, "backend must be one of auto, .*, got None$"),
        ({"ranges": "minmix"}, r"ranges must be .*, got 'minmix': did you mean 'minmax'\?"),
        ({"rounding": "gtpq"}, r"rounding must be 'nearest' or 'gptq', got 'gtpq': did you mean 'gptq'\?"),
        ({"exclude": ["haed"]}, "exclude must name modules of the model, 'haed' matches none; the closest are head"),
        (
            {"exclude": ["Linear"]},
            "exclude .*'Linear' matches none; it is the name of a class: pass the class itself, L",
        ),
        ({"exclude": "head"}, r"exclude must be a list of .*, got 'head': pass \['head'\]"),
        (
            {"exclude": [cubed]},
            "each function in exclude must be a function of a path and a module, such as lambda path",
        ),
        ({"exclude": [len]}, "each function in exclude must be a function of a path and a module, .*len"),
        ({"exclude": [isinstance]}, "each function in exclude must be a function of a path and a module, .*isinstance"),
    ],
)
def test_typing_errors_in_names(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        quantized.quantize(NET, iter([]), **kwargs)


@pytest.mark.parametrize(
    ("format", "name"),
    [("onx", "onnx"), ("ONNX", "onnx"), (".onnx", "onnx"), ("tflite", "litert"), ("openvio", "openvino")],
)
def test_typing_errors_in_formats(format: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"format must be one of torchscript, .*, got '{format}': did you mean '{name}'\?$"
    ):
        deploy.export(NET, X, tmp_path / "m", format=format)


def test_predicates_of_replace() -> None:
    for old in (len, isinstance, cubed):
        with pytest.raises(
            TypeError, match="^old must be a function of a path and a module, such as lambda path, module: "
        ):
            tnn.replace(NET, old, nn.Identity)  # type: ignore[arg-type]

    def fails(path: str, module: nn.Module) -> bool:
        raise TypeError("of its own")

    with pytest.raises(TypeError, match="^of its own$"):
        tnn.replace(NET, fails, nn.Identity)


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [("m.onnx", "onnxruntime", "onnx"), ("m.onnx", "onnxscript", "onnx"), ("m.xml", "openvino", "openvino")],
)
def test_missing_extra_is_found_before_any_work(
    name: str,
    missing: str,
    extra: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=rf'needs {missing}: pip install "torchvision_layers\[{extra}\]"'):
        deploy.export(NET, X, tmp_path / name)
    output = str(tmp_path / name)
    # The command checks it before it reads the checkpoint and the calibration, which do not exist.
    assert main(["torchvision.models:resnet18", "no.pth", "--output", output, "--int8", "--calibration", "no.npy"]) == 2
    assert f'needs {missing}: pip install "torchvision_layers[{extra}]"' in capsys.readouterr().err


def test_loaded_files_are_no_modules(tmp_path: Path) -> None:
    loaded = deploy.load(deploy.export(NET, X, tmp_path / "m.pt2").path)
    assert loaded.eval() is loaded.train(False) is loaded
    torch.testing.assert_close(loaded(input=X), loaded(X), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="a file cannot be trained: train the model that it was exported from"):
        loaded.train()
    for name in ("to", "cuda", "half", "parameters", "state_dict"):
        with pytest.raises(
            AttributeError, match=f"'Loaded' object has no attribute '{name}': a file is no module; change"
        ):
            getattr(loaded, name)
    with pytest.raises(AttributeError, match="no attribute 'shape'$"):
        loaded.shape  # noqa: B018
    with pytest.raises(
        TypeError, match=r"those of the example, \(input\), got \(images=input\): pass the inputs by position"
    ):
        loaded(images=X)
    assert copy.copy(loaded).format == "pt2"


class Two(nn.Module):
    def forward(self, image: Tensor, scale: Tensor) -> Tensor:
        return image * scale.mean() - image


def test_loaded_file_with_inputs_by_name(tmp_path: Path) -> None:
    scale = torch.rand(2, 3)
    loaded = deploy.load(deploy.export(Two().eval(), (X, scale), tmp_path / "m.pt").path)
    assert torch.equal(loaded(scale=scale, image=X), loaded(X, scale))


@pytest.mark.parametrize(
    ("write", "hint"),
    [
        (lambda path: torch.save(NET.state_dict(), path), r"; torch\.load may read it"),
        (lambda path: torch.export.save(torch.export.export(NET, (X,)), path), r"; torch\.export\.load may read it"),
        (lambda path: path.write_bytes(b""), "; it is empty"),
        (lambda path: path.write_text("model"), ""),
    ],
)
def test_files_that_export_did_not_write(write: Callable[[Path], object], hint: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    write(path)
    with pytest.raises(ValueError, match=rf"was not written by deploy\.export: it does not end in a checksum{hint}$"):
        deploy.load(path)


def test_int8_model_stays_on_the_cpu_in_float32() -> None:
    for engine in ("eager", "pt2e"):
        int8 = quantized.quantize(NET, [X], engine=engine)
        expected = int8(X)
        for change in (int8.half, int8.double, nn.Sequential(int8).bfloat16):
            with pytest.raises(TypeError, match="an int8 model must stay in float32, apart from its integers, got"):
                change()
        if engine == "eager":
            with pytest.raises(TypeError, match="int8 model of engine='eager' takes float32 tensors on the CPU only"):
                int8.to("meta")
        assert torch.equal(int8.float().cpu().to("cpu")(X), expected)


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_float_state_for_an_int8_model(engine: str) -> None:
    int8 = quantized.quantize(NET, [X], engine=engine)
    expected = int8(X)
    with pytest.raises(ValueError, match="^state_dict must be that of an int8 model, got weights in float"):
        int8.load_state_dict(NET.state_dict())
    assert torch.equal(int8(X), expected)


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_int8_model_within_another(engine: str) -> None:
    parent = nn.Sequential(nn.Identity(), quantized.quantize(NET, [X], engine=engine)).eval()
    for other in ("eager", "pt2e"):
        with pytest.raises(ValueError, match="^1 is prepared or converted already; start from the float model$"):
            quantized.quantize(parent, [X], engine=other)


def test_lowered_model_is_lowered_again() -> None:
    for model in (NET, quantized.quantize(NET, [X], engine="pt2e")):
        with pytest.raises(ValueError, match="^model is a LoweredModel: pass the module that it wraps"):
            deploy.lower(deploy.lower(model, X), X)


def test_batches_of_zeros_warn() -> None:
    with pytest.warns(UserWarning, match="^batches must hold typical inputs, got only zeros: "):
        quantized.quantize(NET, [torch.zeros_like(X), torch.zeros_like(X)], check=False)
    quantized.quantize(NET, [torch.zeros_like(X), X])


def test_float_state_of_an_int8_model(int8: nn.Module) -> None:
    with pytest.raises(
        ValueError, match="^state_dict must be that of an int8 model, got weights in float: load them into"
    ):
        int8.load_state_dict(NET.state_dict())
    int8.load_state_dict(int8.state_dict())
