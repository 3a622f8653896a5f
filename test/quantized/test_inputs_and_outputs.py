"""Models with several inputs and structured outputs."""

import dataclasses
import sys
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import quantized
from torchvision_layers._utils.structure import flatten
from torchvision_layers.testing._checks._quantization import decibels

X, DEPTH = torch.randn(4, 3, 12, 12), torch.randn(4, 1, 12, 12)


@dataclasses.dataclass
class Result:
    scores: Tensor
    features: Tensor


class Both(NamedTuple):
    scores: Tensor
    features: Tensor


OUTPUTS = {
    "tuple": lambda a, b: (a, b),
    "named_tuple": Both,
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"scores": a, "features": b},
    "ordered_dict": lambda a, b: OrderedDict(scores=a, features=b),
    "dataclass": Result,
    "nested": lambda a, b: {"levels": [a, (b,)]},
    "none": lambda a, b: (a, None, b, True, 2),
}


class Fusion(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self, output: str = "tuple") -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 8, 3, padding=1)
        self.depth = nn.Conv2d(1, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 4, 1)
        self.output = OUTPUTS[output]

    def forward(self, image: Tensor, depth: Tensor) -> Any:
        features = torch.relu(self.image(image) + self.depth(depth))
        return self.output(self.head(features), features)


def check(int8: Any, model: nn.Module, *args: Any, **kwargs: Any) -> None:
    output, template = flatten(int8(*args, **kwargs))
    expected, expected_template = flatten(model(*args, **kwargs))
    assert template == expected_template
    for tensor, original in zip(output, expected, strict=True):
        assert tensor.dtype is torch.float32
        assert decibels(tensor, original) > 25


@pytest.mark.parametrize("output", OUTPUTS)
def test_structure_of_outputs(output: str) -> None:
    model = Fusion(output).eval()
    int8 = quantized.quantize(model, [(X, DEPTH), (DEPTH.expand(4, 3, 12, 12), DEPTH)])
    check(int8, model, X, DEPTH)
    check(int8, model, image=X[:1], depth=DEPTH[:1])
    for tensor, original in zip(flatten(int8(X[:0], DEPTH[:0]))[0], flatten(model(X, DEPTH))[0], strict=True):
        assert tensor.shape == (0, *original.shape[1:])


def test_forms_of_batches_give_the_same_model() -> None:
    model = Fusion().eval()
    expected = quantized.quantize(model, [(X, DEPTH)])(X, DEPTH)
    labels = torch.zeros(4, dtype=torch.int64)
    for batch in ({"image": X, "depth": DEPTH}, ((X, DEPTH), labels), [X, DEPTH, labels]):
        output = quantized.quantize(model, [batch])(X, DEPTH)
        assert all(torch.equal(a, b) for a, b in zip(output, expected, strict=True))


def test_only_input_by_its_name() -> None:
    class Named(nn.Sequential):
        def forward(self, image: Tensor) -> Tensor:
            return super().forward(image)

    model = Named(nn.Conv2d(3, 4, 3)).eval()
    int8 = quantized.quantize(model, [{"image": X}])
    assert torch.equal(int8(image=X), int8(X))
    check(int8, model, image=X)
    with pytest.raises(TypeError, match="unexpected keyword argument 'x'"):
        int8(x=X)


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_weights_on_the_meta_device_are_refused(engine: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, device="meta")).eval()
    with pytest.raises(ValueError, match=r"must hold its weights to be quantized, 0\.weight is on the meta device"):
        quantized.quantize(model, [X], engine=engine)
    with pytest.raises(ValueError, match="0.weight is on the meta device"):
        quantized.prepare_qat(model, X, engine=engine)
    model.to_empty(device="cpu").load_state_dict(nn.Sequential(nn.Conv2d(3, 4, 3)).state_dict())
    quantized.quantize(model, [X], engine=engine)


def test_training_with_several_inputs() -> None:
    model = Fusion().train()
    prepared = quantized.prepare_qat(model, (X, DEPTH))
    prepared(X, DEPTH)[0].sum().backward()
    check(quantized.convert(prepared), model.eval(), X, DEPTH)
    without_example = quantized.prepare_qat(model)
    with pytest.raises(ValueError, match="pass an example with all inputs to prepare_qat"):
        without_example(X, DEPTH)


def test_scales_of_all_inputs_are_in_the_state_dict() -> None:
    model = Fusion().eval()
    first = quantized.quantize(model, [(X, DEPTH)])
    second = quantized.quantize(Fusion().eval(), [(3 * X, 5 * DEPTH)])
    assert {"entry.scale", "entries.0.scale"} < first.state_dict().keys()
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(second(X, DEPTH), first(X, DEPTH), strict=True))


class _Terminal:
    """Standard error that claims to be a terminal and records what is written."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("has_tqdm", "last"), [(True, "3/3"), (False, ": 3 of 3")])
@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_progress_bar_follows_the_batches_on_a_terminal(
    engine: str, has_tqdm: bool, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).eval()
    for batches, progress, is_shown in (([X] * 3, True, True), ([X] * 3, False, False), ([X], True, False)):
        monkeypatch.setattr(sys, "stderr", terminal := _Terminal())
        if not has_tqdm:
            monkeypatch.setitem(sys.modules, "tqdm", None)
        quantized.quantize(model, batches, engine=engine, progress=progress)
        monkeypatch.undo()
        assert (last in terminal.text) is is_shown
        assert bool(terminal.text) is is_shown


def test_no_progress_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    quantized.quantize(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), [X] * 3)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("vnni", "limit", "expected"), [(True, None, "onednn"), (False, None, "x86"), (True, "AVX2", "x86")]
)
def test_automatic_backend(vnni: bool, limit: str | None, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert quantized.quantize(nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), [X]).backend == expected


class FromDict(nn.Module):
    """The only argument is a dict of images."""

    def __init__(self) -> None:
        super().__init__()
        self.fusion = Fusion("dict")

    def forward(self, inputs: dict[str, Tensor]) -> Any:
        return self.fusion(inputs["image"], inputs["depth"])


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
@pytest.mark.parametrize("has_target", [False, True])
def test_mapping_as_the_only_argument(engine: str, has_target: bool) -> None:
    inputs = {"image": X, "depth": DEPTH}
    batch = (inputs, torch.zeros(4, dtype=torch.long)) if has_target else inputs
    model = FromDict().eval()
    int8 = quantized.quantize(model, [batch], engine=engine, backend="x86")
    check(int8, model, inputs)


def test_mapping_with_the_name_of_the_only_argument_holds_keyword_inputs() -> None:
    model = FromDict().eval()
    inputs = {"inputs": {"image": X, "depth": DEPTH}}
    check(quantized.quantize(model, [inputs]), model, **inputs)


def test_mapping_for_a_tensor_raises() -> None:
    with pytest.raises(TypeError, match=r"the input in batch 0 must hold the inputs of forward\(input: .*'input'"):
        quantized.quantize(nn.Conv2d(3, 4, 1).eval(), [{"img": X}])


class ByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)


class AnyNames(ByName):
    def forward(self, **inputs: Tensor) -> Tensor:
        return self.conv(inputs["image"])


class KeywordOnly(ByName):
    def forward(self, *, image: Tensor) -> Tensor:
        return self.conv(image)


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
@pytest.mark.parametrize("cls", [AnyNames, KeywordOnly])
def test_only_input_that_is_never_positional(cls: type[ByName], engine: str) -> None:
    model, batch = cls(), {"image": X}
    prepared = quantized.prepare_qat(model, batch, engine=engine)
    prepared(**batch)
    check(quantized.convert(prepared), model.eval(), **batch)
    check(quantized.quantize(model, [batch], engine=engine), model, **batch)
