"""Models of LiteRT, which has an environment of its own. Without it, the tests check the error that names it."""

import io
import zipfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized

from ._support import CLASSES, example, float_model, relative_error

INSTALLED = find_spec("litert_torch") is not None
needs_litert = pytest.mark.skipif(not INSTALLED, reason="an extra")


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def int8_model() -> nn.Module:
    return quantized.quantize(float_model(), [example()], engine="pt2e", backend="litert")


def test_ranges_are_signed_and_asymmetric() -> None:
    int8 = int8_model()
    calls = [node for node in int8.body.graph.nodes if "quantize_per_tensor" in str(node.target)]
    assert len(calls) > 10
    assert {node.args[3:] for node in calls} == {(-128, 127, torch.int8)}
    assert any(node.args[2] not in (0, -128) for node in calls)
    x = example()
    assert (float_model()(x) - int8(x)).norm() < 0.03 * float_model()(x).norm()


@pytest.mark.parametrize("backend", ["x86", "onnxruntime"])
def test_other_backends_are_refused(backend: str, tmp_path: Path) -> None:
    int8 = quantized.quantize(float_model(), [example()], engine="pt2e", backend=backend)
    with pytest.raises(TypeError, match="or call .*engine='pt2e', backend='litert'"):
        deploy.export(int8, example(), tmp_path / "model.tflite", format="litert")


@pytest.mark.skipif(INSTALLED, reason="for other environments")
def test_missing_package(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r'needs litert_torch: pip install "torchvision_layers\[litert\]"'):
        deploy.export(float_model(), example(), tmp_path / "model.tflite", format="litert")


def kernels(path: Path) -> list[tuple[str, str]]:
    """The operators of a file, with the type of the first output of each."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_path=str(path), experimental_op_resolver_type=plain)
    interpreter.allocate_tensors()
    types = {details["index"]: details["dtype"].__name__ for details in interpreter.get_tensor_details()}
    return [(call["op_name"], types[call["outputs"][0]]) for call in interpreter._get_ops_details()]


@needs_litert
@pytest.mark.parametrize("name", ["float", "int8"])
def test_file_agrees_with_model(name: str, tmp_path: Path) -> None:
    model = float_model() if name == "float" else int8_model()
    exported = deploy.export(
        model, example(), tmp_path / "model.tflite", format="litert", classes=CLASSES, mean=[0.1] * 3, std=[0.5] * 3
    )
    loaded = deploy.load(exported.path, threads=1)
    assert loaded.metadata["classes"] == CLASSES
    assert loaded.metadata["input_shape"] == [3, 3, 16, 16]
    x = torch.randn_like(example())
    assert relative_error(loaded(x), model(x)) < (1e-5 if name == "float" else 0.03)
    with pytest.raises(ValueError, match="input must have"):
        loaded(x[:1])
    with zipfile.ZipFile(io.BytesIO(exported.path.read_bytes())) as archive:
        assert archive.namelist() == ["metadata.json"]
    if name == "int8":
        types = {kernel for operator, kernel in kernels(exported.path) if operator != "TRANSPOSE"}
        assert types == {"int8"}


@needs_litert
def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.depth = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 4, 3)

        def forward(self, image: Tensor, depth: Tensor) -> dict[str, object]:
            return {"mask": self.image(image) + self.depth(depth), "features": [image * 2, depth]}

    model, image, depth = Model().eval(), example(), example()[:, :1]
    inputs = {"depth": depth, "image": image}
    path = deploy.export(model, inputs, tmp_path / "m.tflite", format="litert").path
    torch.testing.assert_close(deploy.load(path)(**inputs), model(**inputs), rtol=1e-4, atol=1e-5)
