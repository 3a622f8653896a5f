"""ExecuTorch programs. Without the package, the tests check the error that names it."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers._utils.inputs import Inputs
from torchvision_layers.deploy._metadata import describe
from torchvision_layers.deploy._subject import Subject
from torchvision_layers.deploy.formats import executorch
from torchvision_layers.deploy.formats.size_rules import size_check
from torchvision_layers.deploy.integrity.checksum import Container, append_checksum

from ._support import relative_error

INSTALLED = find_spec("executorch") is not None


def small_model() -> nn.Module:
    """Residual blocks and channel attention, with batch norm statistics."""
    model = nn.Sequential(
        tnn.ConvNormAct(3, 8, stride=2, activation_layer=nn.ReLU6),
        tnn.BasicBlock(8, 16, stride=2, se_layer=tnn.SqueezeExcitation),
        tnn.InvertedResidual(16, 16, stride=1, expand_ratio=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    for _ in range(5):
        model(torch.randn(8, 3, 16, 16))
    return model.eval()


class Branching(nn.Module):
    """Takes another branch for odd heights, and for wide images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, input: Tensor) -> Tensor:
        output = self.conv(input)
        if input.shape[2] % 2 == 1:
            output = output * 2
        return output if input.shape[3] < 20 else output + 1


def export_program(model: nn.Module, path: Path, size: int = 16) -> deploy.Exported | None:
    """Exports the model; without the package, checks the error and returns ``None``."""
    example = torch.randn(2, 3, size, size)
    if INSTALLED:
        return deploy.export(model, example, path, format="executorch", about={"name": "é"})
    with pytest.raises(ImportError, match="format='executorch' needs executorch: pip install executorch"):
        deploy.export(model, example, path, format="executorch")
    assert not path.exists()
    return None


def test_float_model_of_every_size(tmp_path: Path) -> None:
    model = small_model()
    done = export_program(model, tmp_path / "model.pte")
    if done is None:
        return
    assert done.difference < 1e-5
    loaded = deploy.load(done.path)
    assert loaded.format == "executorch"
    assert loaded.metadata["about"] == {"name": "é"}
    for shape in ((1, 3, 16, 16), (16, 3, 32, 32), (5, 3, 9, 31), (3, 3, 16, 1)):
        input = torch.randn(shape)
        assert relative_error(loaded(input), model(input)) < 1e-5
        assert torch.equal(loaded(input.to(memory_format=torch.channels_last)), loaded(input))
    assert loaded(torch.empty(0, 3, 16, 16)).shape == (0, 5)
    for shape in ((17, 3, 16, 16), (2, 3, 40, 16), (2, 3, 16, 33)):
        with pytest.raises(ValueError, match=r"input must have a size from \d+ to \d+ in dimension"):
            loaded(torch.randn(shape))


def test_int8_model(tmp_path: Path) -> None:
    model = small_model()
    images = [torch.randn(8, 3, 16, 16) for _ in range(3)]
    if not INSTALLED:
        with pytest.raises(ImportError, match="needs executorch"):
            quantized.quantize(model, images, engine="pt2e", backend="xnnpack")
        return
    int8 = quantized.quantize(model, images, engine="pt2e", backend="xnnpack")
    rows = {row.path: row for row in quantized.report(int8).rows}
    assert all(rows[path].runs_in == "int8" for path in ("0.0", "1.conv1", "1.conv2", "1.downsample.0", "5"))
    floats, done = export_program(model, tmp_path / "float.pte"), export_program(int8, tmp_path / "int8.pte")
    assert done is not None
    assert floats is not None
    assert done.size < floats.size
    loaded = deploy.load(done.path)
    assert loaded.metadata["quantization"]["backend"] == "xnnpack"
    input = torch.randn(4, 3, 20, 18)
    assert relative_error(loaded(input), int8(input)) < 0.05  # a few quantization steps of 1/127
    assert 0 < relative_error(loaded(input), model(input)) < 0.2


def test_folded_model_runs_in_xnnpack(tmp_path: Path) -> None:
    done = export_program(deploy.fold(small_model()), tmp_path / "model.pte")
    if done is not None:
        content = done.path.read_bytes()
        assert b"XnnpackBackend" in content
        assert b"aten::sum" not in content
        assert b"aten::mean" not in content
        assert b"aten::convolution" not in content


def test_weights_in_channels_last(tmp_path: Path) -> None:
    model = small_model()
    input = torch.randn(2, 3, 16, 16)
    expected = model(input)
    done = export_program(model.to(memory_format=torch.channels_last), tmp_path / "model.pte")
    if done is not None:
        assert relative_error(deploy.load(done.path)(input), expected) < 1e-5


def test_sizes_of_other_branches_raise(tmp_path: Path) -> None:
    model = Branching().eval()
    example = torch.randn(2, 3, 14, 14)
    if not INSTALLED:
        assert export_program(model, tmp_path / "model.pte") is None
        return
    subject = Subject.of(model, Inputs((example,)))
    described = describe(subject, "executorch", [], [], [], {})
    call, metadata = executorch.deserialize(executorch.serialize(subject, described), tmp_path / "model.pte")
    assert metadata == described
    for shape in ((1, 3, 14, 14), (2, 3, 16, 19)):
        input = torch.randn(shape)
        assert relative_error(call(input), model(input)) < 1e-5
    with pytest.raises(ValueError, match=r"input must have sizes with .*size\[2\]"):
        call(torch.randn(2, 3, 15, 14))
    with pytest.raises(ValueError, match="input must have a size from .* to 19 in dimension 3, got 21"):
        call(torch.randn(2, 3, 14, 21))


def test_runtime_ignores_the_checksum(tmp_path: Path) -> None:
    model = small_model()
    done = export_program(model, tmp_path / "model.pte")
    if done is None:
        return
    from executorch.runtime import Runtime, Verification

    input = torch.randn(2, 3, 16, 16)
    for verification in (Verification.Minimal, Verification.InternalConsistency):
        program = Runtime.get().load_program(done.path, verification=verification)
        assert relative_error(program.load_method("forward").execute([input])[0], model(input)) < 1e-5
        assert json.loads(program.load_method("metadata").execute([])[0])["about"] == {"name": "é"}


def test_damaged_files(tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    done = export_program(small_model(), path)
    content = (
        append_checksum(b"\x3c\0\0\0ET12" + bytes(1000), Container.EXECUTORCH) if done is None else path.read_bytes()
    )
    for damaged in (content[:-1], content[: len(content) // 2], content[:500] + b"\x55" + content[501:], content[:40]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="model.pte"):
            deploy.load(path)


def test_foreign_program(tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(append_checksum(b"\x3c\0\0\0ET12" + bytes(1000), Container.EXECUTORCH))
    with pytest.raises(ValueError if INSTALLED else ImportError, match="model.pte" if INSTALLED else "pip install"):
        deploy.load(path)


def test_rules_contain_arithmetic_only() -> None:
    text = {"least": [1, 3, 2], "most": [4, 3, 9], "rules": ["(size[2] % 2) == 0 and max(1, size[0]) < 4"]}
    check = size_check(json.dumps(text), ["input"])
    check([(3, 3, 4)])
    for size, message in (
        ((3, 3), "must have 3 dimensions, got 2"),
        ((3, 4, 4), "must have size 3 in dimension 1, got 4"),
        ((3, 3, 10), "must have a size from 2 to 9 in dimension 2, got 10"),
        ((3, 3, 5), r"must have sizes with .* got \[3, 3, 5\]"),
        ((4, 3, 4), r"must have sizes with .* got \[4, 3, 4\]"),
    ):
        with pytest.raises(ValueError, match=message):
            check([size])
    for rule in ("__import__('os')", "size.x", "9 ** 9", "1 << 9", "'a' == 'a'", "[1]", "(lambda: 1)()", "other[0]"):
        with pytest.raises(ValueError, match="a rule must contain sizes and arithmetic only"):
            size_check(json.dumps({**text, "rules": [rule]}), ["input"])
