"""Unsupported models raise an error that names the reason, and an existing file stays as it is."""

import sys
from pathlib import Path

import pytest

from torchvision_layers.standalone import source, write
from torchvision_layers.standalone.__main__ import main

from ..interpreter import Interpreter
from ._support import ROOT, WITHOUT_TWINS, reference_to

HEAD = "import torch\nfrom torch import nn\nfrom torchvision_layers import nn as tnn\n"


def check_error(folder: Path, code: str, message: str, name: str = "net", quantizable: bool = False) -> None:
    path = folder / "unsupported_model.py"
    path.write_text(HEAD + code)
    with pytest.raises(ValueError, match=message):
        source(f"{path}:{name}", quantizable=quantizable)
    sys.modules.pop("unsupported_model", None)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "globals()['net'] = lambda: 1\n",
            "net must be defined in source, module unsupported_model creates it at run time",
        ),
        ("exec('def net(): pass')\n", "net must be defined in source, module unsupported_model creates it at"),
        ("def net():\n    return missing()\n", r"missing must be .* unsupported_model does not define it \(line 5 of"),
        ("import numpy\ndef net():\n    return numpy.ones(1)\n", "only torch and the standard library, got numpy.ones"),
        (
            "from numpy import ones\ndef net():\n    return ones(1)\n",
            "only torch and the standard library, got numpy.ones",
        ),
        (
            "import torchvision\ndef net():\n    return torchvision.models.resnet18()\n",
            "must use only torch and the standard library, got torchvision.models.resnet18",
        ),
        (
            "from torchvision.ops import MLP\ndef net():\n    return MLP(1, [1])\n",
            "must use only torch and the standard library, got torchvision.ops.MLP",
        ),
        (
            "from torchvision_layers import deploy\ndef net():\n    return deploy.fold(nn.ReLU())\n",
            "the model must not use torchvision_layers.deploy.fold.fold, which works only within the package",
        ),
        (
            "from torchvision_layers import quantized\ndef net():\n    return quantized.quantize(nn.ReLU(), [])\n",
            "the model must not use torchvision_layers.quantized.api.quantize, which works only within the package",
        ),
        (
            "def net():\n    return getattr(tnn, 'MLP')(1, [1])\n",
            "must not use a module as a value, got torchvision_layers.nn",
        ),
        (
            "def net():\n    from torchvision_layers.nn import MLP\n    return MLP(1, [1])\n",
            r"may import only torch and the standard library, got torchvision_layers.nn \(line 5",
        ),
        (
            "def isinstance():\n    return tnn.MLP(1, [1])\n",
            "must not have the name of a builtin or module that it uses",
        ),
    ],
)
def test_unsupported_models(code: str, message: str, tmp_path: Path) -> None:
    check_error(tmp_path, code, message, name="isinstance" if "def isinstance" in code else "net")


@pytest.mark.parametrize(("name", "layer"), WITHOUT_TWINS.items())
def test_model_with_a_layer_without_a_twin(name: str, layer: str) -> None:
    message = rf"every layer must have a quantizable twin, {layer} has none \(line \d+ of module models\."
    with pytest.raises(ValueError, match=message):
        source(reference_to(name), quantizable=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Permute", r"quantizable must be False .* for Permute, which needs no twin"),
        ("StochasticDepth", r"quantizable must be False .* for StochasticDepth, which needs no twin"),
        ("FrozenBatchNorm2d", r"quantizable must be False .* for FrozenBatchNorm2d, which needs no twin"),
        ("LazyConvNormAct", "every layer must have a quantizable twin, LazyConvNormAct has none"),
    ],
)
def test_layers_without_twins(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        source(f"torchvision_layers.nn:{name}", quantizable=True)


def test_a_twin_needs_quantizable() -> None:
    with pytest.raises(ValueError, match=r"needs quantizable=True \(--quantizable\), got QuantizableMLP"):
        source("torchvision_layers.quantized:QuantizableMLP")
    text = source("torchvision_layers.quantized:QuantizableMLP", quantizable=True)
    assert text.count("\nclass QuantizableMLP(QuantizableLayer, MLP):") == 1


def test_a_subclass_that_overrides_a_method_of_its_twin(tmp_path: Path) -> None:
    code = (
        "class Own(tnn.SqueezeExcitation):\n    def _scale(self, x, y):\n        return x\n\n"
        "def net():\n    return Own(4, 2)\n"
    )
    check_error(
        tmp_path, code, "Own overrides _scale of SqueezeExcitation, which its twin lacks: derive", quantizable=True
    )


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("nowhere.py:net", FileNotFoundError, "must be in an existing file, got nowhere.py"),
        ("nowhere.module:net", ValueError, "nowhere.module cannot be imported"),
        ("resnet18", ValueError, "must be FILE.py:FUNCTION or package.module:FUNCTION, got 'resnet18'"),
        ("torchvision_layers.nn:Nothing", ValueError, "has no function 'Nothing'"),
        ("torch.nn:ReLU", ValueError, "the model must not be part of torch or torchvision, got torch.nn:ReLU"),
        ("torchvision.models:resnet18", ValueError, "must not be part of torch or torchvision, got torchvision"),
        ("math:sqrt", ValueError, "module math must have readable source"),
    ],
)
def test_invalid_references(reference: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        source(reference)


def test_an_existing_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "mlp.py"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"must be a new file unless force=True \(--force\), got .*mlp\.py"):
        write("torchvision_layers.nn:MLP", path)
    assert path.read_text() == "mine"
    with pytest.raises(ValueError, match="has no function"):
        write("torchvision_layers.nn:Nothing", path, force=True)
    assert path.read_text() == "mine"
    write("torchvision_layers.nn:MLP", path, force=True)
    assert "class MLP" in path.read_text()
    assert list(tmp_path.iterdir()) == [path], "no temporary file is left"


def test_invalid_outputs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must be in an existing folder"):
        write("torchvision_layers.nn:MLP", tmp_path / "none" / "mlp.py")
    with pytest.raises(ValueError, match=r"must end in \.py, got .*mlp\.txt"):
        write("torchvision_layers.nn:MLP", tmp_path / "mlp.txt")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mlp.py"
    assert main(["torchvision_layers.nn:MLP", "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: {len(path.read_text().splitlines())} lines\n"
    assert main(["torchvision_layers.nn:MLP", "-o", str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: the output must be a new file")
    assert main(["torchvision_layers.nn:MLP", "-o", str(path), "--force", "--quantizable"]) == 0
    assert "class QuantizableMLP" in path.read_text()


def test_the_import_loads_no_engine(interpreter: Interpreter) -> None:
    code = (
        "import sys, torchvision_layers.standalone as s\n"
        "s.source('torchvision_layers.nn:MLP')\n"
        "print([m for m in sys.modules if m.startswith(('torch.ao.quantization.fx', 'torchvision_layers.quantized',"
        " 'torchvision_layers.deploy', 'torchao'))])"
    )
    result = interpreter.run(code, cwd=ROOT)
    assert result.stdout.strip() == "[]", result.stderr


def test_wrapped_model(tmp_path: Path) -> None:
    check_error(
        tmp_path,
        "net = torch.nn.DataParallel(tnn.MLP(1, [1]))\n",
        "net is a DataParallel: pass the module that it wraps, net.module",
    )
