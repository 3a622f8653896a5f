"""Files of models with several inputs and with outputs in containers."""

import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from torchvision_layers import deploy, quantized
from torchvision_layers.deploy.formats.table import FORMATS

from ._support import FunctionModule, relative_error

IMAGE, DEPTH = (torch.randn(2, n, 16, 16, generator=torch.Generator().manual_seed(n)) for n in (3, 1))


@dataclass
class Result:
    logits: Tensor
    features: list[Tensor]
    loss: Tensor | None = None


class Pair(NamedTuple):
    mask: Tensor
    classes: Tensor


class RGBD(nn.Module):
    """Takes an image and, if there is one, its depth; ``end`` makes the output."""

    def __init__(self, end: Callable[[Tensor], object] = lambda y: y) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rgb = nn.Conv2d(3, 4, 3, padding=1)
        self.depth = nn.Conv2d(1, 4, 3, padding=1)
        self.end = end
        self.eval()

    def forward(self, image: Tensor, depth: Tensor | None = None, scale: float = 1.0) -> Any:
        y = self.rgb(image)
        return self.end(y if depth is None else y + self.depth(depth) * scale)


class Query(nn.Module):
    """Searches an image for a template, whose sizes are independent, with weights for a fixed number of scales."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.eval()

    def forward(self, image: Tensor, template: Tensor, *, valid: Tensor) -> dict[str, Tensor]:
        kernel = self.conv(template).mean((2, 3), keepdim=True) * valid[:, None, None, None]
        return {"map": (self.conv(image) * kernel).sum(1), "found": valid}


def check(model: nn.Module, example: Any, exported: deploy.Exported) -> deploy.Loaded:
    """Compares the file with the model at another batch and image size."""
    loaded = deploy.load(exported.path)
    args, kwargs = (example, {}) if isinstance(example, tuple) else ((), example)

    def other(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() < 4:
            return value
        return torch.randn(3, value.shape[1], *((1, 1) if value.shape[2] == 1 else (21, 18)))

    args, kwargs = tuple(map(other, args)), {name: other(value) for name, value in kwargs.items()}
    with torch.no_grad():
        expected, output = model(*args, **kwargs), loaded(*args, **kwargs)
    expected = list(vars(expected).values()) if isinstance(expected, Result) else expected
    for value, original in zip(tree_leaves(output), tree_leaves(expected), strict=True):
        if isinstance(original, Tensor) and original.is_floating_point():
            assert relative_error(value, original) < 1e-5
        else:
            assert torch.equal(value, original) if isinstance(value, Tensor) else value == original
    return loaded


@pytest.mark.parametrize(
    "example", [(IMAGE, DEPTH), {"depth": DEPTH, "image": IMAGE}, (IMAGE, DEPTH, 2.0), (IMAGE, None, 2.0)]
)
def test_inputs_are_passed_as_in_the_example(example: Any, tmp_path: Path) -> None:
    model = RGBD()
    exported = deploy.export(model, example, tmp_path / "m.pt2", format="pt2")
    loaded = check(model, example, exported)
    names = [spec["name"] for spec in loaded.metadata["inputs"]]
    assert names == (["image"] if None in example else ["image", "depth"])
    assert loaded.metadata["inputs"][-1]["shape"] == ["batch", 3 if None in example else 1, "height", "width"]
    for wrong in ((IMAGE,), (IMAGE, DEPTH, 3.0), (IMAGE, DEPTH, DEPTH)):
        with pytest.raises(TypeError, match=r"inputs must be those of the example, \(.*image.*\), got \("):
            loaded(*wrong)
    if names == ["image", "depth"] and isinstance(example, tuple):
        with pytest.raises(ValueError, match=r"depth must have the height of image, 16, got shape \[2, 1, 17, 16\]"):
            loaded(IMAGE, torch.randn(2, 1, 17, 16), *example[2:])
        assert loaded(IMAGE[:0], DEPTH[:0], *example[2:]).shape == (0, 4, 16, 16)


class Masked(nn.Module):
    """Takes an image and a mask without channels, in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.eval()

    def forward(self, sample: dict[str, Tensor]) -> Tensor:
        return self.conv(sample["image"]) * sample["mask"].unsqueeze(1)


@pytest.mark.parametrize(("format", "suffix"), [("pt2", "pt2"), ("onnx", "onnx")])
def test_masks_have_the_sizes_of_the_image_and_dicts_any_order(format: str, suffix: str, tmp_path: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    model, mask = Masked(), torch.rand(2, 16, 16)
    deploy.export(model, ({"image": IMAGE, "mask": mask},), tmp_path / f"m.{suffix}", format=format)
    loaded = deploy.load(tmp_path / f"m.{suffix}")
    assert [spec["shape"] for spec in loaded.metadata["inputs"]] == [
        ["batch", 3, "height", "width"],
        ["batch", "height", "width"],
    ]
    image, mask = torch.randn(3, 3, 21, 18), torch.rand(3, 21, 18)
    with torch.no_grad():
        expected = model({"image": image, "mask": mask})
    for sample in ({"image": image, "mask": mask}, {"mask": mask, "image": image}):
        assert relative_error(loaded(sample), expected) < 1e-5
    for wrong in ({"mask": mask}, {"mask": mask, "image": image, "more": mask}, {"image": mask, "mask": image}):
        with pytest.raises((TypeError, ValueError), match="must"):
            loaded(wrong)
    with pytest.raises(ValueError, match="sample_mask must have the height of sample_image, 21"):
        loaded({"mask": mask[:, 1:], "image": image})


@pytest.mark.parametrize(
    ("end", "names", "kind"),
    [
        (lambda y: OrderedDict(out=y, aux=y.mean(1)), ["out", "aux"], dict),
        (lambda y: Result(y.mean((2, 3)), [y, 2 * y]), ["logits", "features_0", "features_1"], dict),
        (lambda y: (y, None, [y + 1, 3], 0.5), ["output_0", "output_2_0"], tuple),
        (lambda y: [Pair(y.sigmoid(), y.argmax(1))], ["output_0_0", "output_0_1"], list),
        (lambda y: {"image": y, 7: {"rgb.weight": y.amax((2, 3))}}, ["image_output", "7_rgb.weight"], dict),
    ],
    ids=["ordered", "dataclass", "constants", "named_tuple", "keys"],
)
def test_outputs_in_containers(end: Any, names: list[str], kind: type, tmp_path: Path) -> None:
    model = RGBD(end)
    loaded = check(model, (IMAGE, DEPTH), deploy.export(model, (IMAGE, DEPTH), tmp_path / "m.pt2", format="pt2"))
    assert loaded.metadata["outputs"] == names
    assert type(loaded(IMAGE, DEPTH)) is kind


@pytest.mark.parametrize(
    "end",
    [
        lambda y: {"image": y, "rgb.weight": y.amax((2, 3)), "": y.mean((2, 3)), "none": None},
        pytest.param(lambda y: Result(y, [y, y.argmax(1)]), marks=pytest.mark.slow),
    ],
)
def test_onnx_names_follow_parameters_and_keys(end: Any, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = RGBD(end)
    exported = deploy.export(model, (IMAGE, DEPTH), tmp_path / "m.onnx", format="onnx")
    loaded = check(model, (IMAGE, DEPTH), exported)
    graph = onnx.load(exported.path).graph
    sizes = {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.input}
    assert sizes == {"image": ["batch", 3, "height", "width"], "depth": ["batch", 1, "height", "width"]}
    assert [value.name for value in graph.output] == loaded.metadata["outputs"]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["aoti", "onnx"])
@pytest.mark.parametrize("example", [{"image": IMAGE, "depth": DEPTH}, (IMAGE, DEPTH, 2.0)])
def test_compiled_files_with_containers(format: str, example: Any, tmp_path: Path) -> None:
    model = RGBD(lambda y: Result(y.mean((2, 3)), [y, y.argmax(1)]))
    check(model, example, deploy.export(model, example, tmp_path / f"m{FORMATS[format].suffix}", format=format))


def test_sizes_of_each_input(tmp_path: Path) -> None:
    model, valid = Query(), torch.ones(2)
    example = {"template": IMAGE[..., :8, :8], "image": IMAGE, "valid": valid}
    exported = deploy.export(model, example, tmp_path / "m.pt2", format="pt2")
    loaded = deploy.load(exported.path)
    shapes = {spec["name"]: spec["shape"] for spec in loaded.metadata["inputs"]}
    assert shapes == {
        "image": ["batch", 3, "height", "width"],
        "template": ["batch", 3, "template_height", "template_width"],
        "valid": ["batch"],
    }
    inputs = {"image": torch.randn(5, 3, 9, 30), "template": torch.randn(5, 3, 11, 4), "valid": torch.ones(5)}
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs), model(**inputs))
    with pytest.raises(ValueError, match=r"template must have the batch of image, 5, got shape \[4, "):
        loaded(**{**inputs, "template": torch.randn(4, 3, 11, 4)})


def test_one_input_keeps_its_names(tmp_path: Path) -> None:
    exported = deploy.export(RGBD(), IMAGE, tmp_path / "m.pt2", format="pt2")
    metadata = deploy.load(exported.path).metadata
    assert metadata["input_shape"] == [None, 3, None, None]
    assert not {"inputs", "call", "outputs", "returns"} & metadata.keys()
    assert deploy.export(RGBD(), (IMAGE,), tmp_path / "m.pt2", format="pt2").shapes == exported.shapes


class Merge(nn.Module):
    def forward(self, output: Tensor, image: Tensor) -> Tensor:
        return image.mean(1, keepdim=True) + output


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_an_input_may_be_called_output(format: str, tmp_path: Path) -> None:
    model = Merge().eval()
    path = tmp_path / f"m{FORMATS[format].suffix}"
    loaded = check(model, (DEPTH, IMAGE), deploy.export(model, (DEPTH, IMAGE), path, format=format))
    assert [spec["name"] for spec in loaded.metadata["inputs"]] == ["output", "image"]
    assert loaded.metadata["outputs"] == ["output_output"]


@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_keys_may_be_any_text(format: str, tmp_path: Path) -> None:
    example, path = (IMAGE, DEPTH), tmp_path / f"m{FORMATS[format].suffix}"
    model = RGBD(lambda y: {"größe, m": y, None: y.mean(1), 0.5: y.amax(1)})
    loaded = check(model, example, deploy.export(model, example, path, format=format))
    assert list(loaded(*example)) == ["größe, m", None, 0.5]
    code = RGBD(lambda y: {"print(1)": y})
    if format == "pt2":
        with pytest.raises(TypeError, match=r"holds keys of letters, .* only, got 'print\(1\)'"):
            deploy.export(code, example, path, format=format)
    else:
        check(code, example, deploy.export(code, example, path, format=format))


class VariableInputs(nn.Module):
    def forward(self, *inputs: Tensor, **more: Tensor) -> tuple[Tensor, Tensor]:
        return sum(inputs[1:], inputs[0]), sum(more.values(), inputs[0])


class Nested(nn.Module):
    def forward(self, images: list[Tensor], options: dict[str, Tensor]) -> Tensor:
        return images[0] + images[1] + options["bias"]


def test_variable_and_nested_inputs(tmp_path: Path) -> None:
    for model, example, names in (
        (VariableInputs(), (IMAGE, IMAGE + 1), ["inputs_0", "inputs_1"]),
        (Nested(), ([IMAGE, IMAGE + 1], {"bias": IMAGE}), ["images_0", "images_1", "options_bias"]),
    ):
        exported = deploy.export(model.eval(), example, tmp_path / "m.pt2", format="pt2")
        loaded = deploy.load(exported.path)
        assert [spec["name"] for spec in loaded.metadata["inputs"]] == names
        torch.testing.assert_close(loaded(*example), model(*example))


BIAS = torch.ones(2, 4, 1, 1)


class Attentive(nn.Module):
    """Has an operation in float between int8 layers, which TorchScript can only trace."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 4, 1)
        self.eval()

    def forward(self, image: Tensor, bias: Tensor) -> dict[str, Tensor]:
        y = self.first(image)
        y = self.second(torch.softmax(y, 1) * y)
        return {"out": y + bias, "pooled": y.mean((2, 3))}


@pytest.mark.parametrize("example", [(IMAGE, BIAS), {"bias": BIAS, "image": IMAGE}])
def test_int8_with_operations_in_float_is_traced(example: Any, tmp_path: Path) -> None:
    model = quantized.quantize(Attentive(), [example], backend="x86")
    exported = deploy.export(model, example, tmp_path / "m.pt")
    assert exported.difference == 0
    check(model, example, exported)
    if isinstance(example, tuple):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="`torch.jit")
            run = torch.jit.load(exported.path)
        assert set(run(bias=example[1], image=example[0])) == {"out", "pooled"}


@pytest.mark.parametrize("format", ["pt2", pytest.param("onnx-qdq", marks=pytest.mark.slow)])
def test_int8_program_with_several_inputs(format: str, tmp_path: Path) -> None:
    example = {"bias": BIAS, "image": IMAGE}
    backend = "onnxruntime" if format == "onnx-qdq" else "x86"
    model = quantized.quantize(Attentive(), [example], engine="pt2e", backend=backend)
    loaded = deploy.load(deploy.export(model, example, tmp_path / f"m{FORMATS[format].suffix}", format=format).path)
    assert [spec["name"] for spec in loaded.metadata["inputs"]] == ["image", "bias"]
    image, bias = torch.randn(3, 3, 21, 18), torch.ones(3, 4, 1, 1)
    with torch.no_grad():
        output, expected = loaded(image=image, bias=bias), Attentive()(image, bias)
    assert list(output) == ["out", "pooled"]
    for name, value in output.items():
        error = value - expected[name]
        assert 10 * float(torch.log10(expected[name].square().mean() / error.square().mean())) > 25


@pytest.mark.parametrize(
    ("example", "error", "message"),
    [
        ([IMAGE, DEPTH], TypeError, "a tuple of positional inputs, or a mapping of keyword inputs, got list"),
        ((IMAGE, DEPTH, 1.0, 2), TypeError, r"example must hold the inputs of forward\(image: .* too many positional"),
        (
            {"picture": IMAGE},
            TypeError,
            "example must hold the inputs of forward.* missing a required argument",
        ),
        ({}, TypeError, "example must hold a float32 tensor"),
        ((IMAGE.int(),), TypeError, "example must hold a float32 tensor"),
        ((IMAGE, DEPTH.half()), TypeError, "tensors of float32, int64, .* got torch.float16"),
        ((IMAGE, Pair(DEPTH, DEPTH)), TypeError, "example must hold only tensors, numbers, .* got a Pair"),
        ((IMAGE, DEPTH[:0]), ValueError, r"at least one input, got shape \[0, 1, 16, 16\]"),
    ],
)
def test_wrong_examples(example: Any, error: type, message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        deploy.export(RGBD(), example, tmp_path / "m.pt2", format="pt2")


@pytest.mark.parametrize(
    ("end", "message"),
    [
        (lambda y: None, "model must return at least one tensor, got None"),
        (lambda y: {"out": y, "kind": {1}}, "model must return only tensors, numbers, .* got a set"),
    ],
)
def test_wrong_outputs(end: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=message):
        deploy.export(RGBD(end), (IMAGE, DEPTH), tmp_path / "m.pt2", format="pt2")


def test_graph_of_a_feature_extractor(tmp_path: Path) -> None:
    def forward(module: nn.Module, image: Tensor) -> object:
        y = module.conv(image)
        return {"low": y, "high": [torch.relu(y), None]}

    model = torch.fx.symbolic_trace(FunctionModule(forward, conv=nn.Conv2d(3, 4, 3, padding=1))).eval()
    for format in ("pt2", "onnx"):
        check(model, (IMAGE,), deploy.export(model, IMAGE, tmp_path / f"m{FORMATS[format].suffix}", format=format))


def test_strings_in_outputs_name_other_formats(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="format='pt2' cannot return strings: use format='onnx' or 'aoti'"):
        deploy.export(RGBD(lambda y: (y, "px")), (IMAGE, DEPTH), tmp_path / "m.pt2", format="pt2")


def test_int8_graph_that_rounds_nothing(tmp_path: Path) -> None:
    graph = quantized.quantize(nn.Sequential(nn.ReLU()).eval(), [IMAGE], engine="pt2e")
    path = deploy.export(graph, IMAGE, tmp_path / "m.pt2", format="pt2").path
    assert torch.equal(deploy.load(path)(IMAGE), IMAGE.relu())


def test_folded_model_with_a_dataclass_is_compared() -> None:
    def forward(module: nn.Module, x: Tensor) -> Result:
        return Result(module.norm(module.conv(x)), [])

    model = FunctionModule(forward, conv=nn.Conv2d(3, 4, 3), norm=nn.BatchNorm2d(4)).eval()
    folded = deploy.fold(model, IMAGE)
    assert type(folded.norm) is nn.Identity
    with torch.no_grad():
        assert relative_error(folded(IMAGE).logits, model(IMAGE).logits) < 1e-5
