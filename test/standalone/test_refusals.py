"""What cannot be written is refused with a reason, and an existing file stays as it is."""

import subprocess
import sys
from pathlib import Path

import pytest

from torchvision_layers.standalone import source, write
from torchvision_layers.standalone.__main__ import main

from ._support import WITHOUT_TWINS, reference_to

HEAD = "import torch\nfrom torch import nn\nfrom torchvision_layers import nn as tnn\n"


def check(folder: Path, code: str, message: str, name: str = "net", quantizable: bool = False) -> None:
    path = folder / "refused_model.py"
    path.write_text(HEAD + code)
    with pytest.raises(ValueError, match=message):
        source(f"{path}:{name}", quantizable=quantizable)
    sys.modules.pop("refused_model", None)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "globals()['net'] = lambda: 1\n",
            "net of module .* must be in its source, it is made when it runs",
        ),
        ("exec('def net(): pass')\n", "net of module .* must be in its source, it is made when it runs"),
        ("def net():\n    return missing()\n", r"missing of module .* not defined there \(line 5 of"),
        ("import numpy\ndef net():\n    return numpy.ones(1)\n", "must need torch only, it imports ones of numpy"),
        ("from numpy import ones\ndef net():\n    return ones(1)\n", "must need torch only, it imports ones of numpy"),
        (
            "import torchvision\ndef net():\n    return torchvision.models.resnet18()\n",
            "must need torch only, it uses torchvision.models.resnet18",
        ),
        (
            "from torchvision.ops import MLP\ndef net():\n    return MLP(1, [1])\n",
            "must need torch only, it uses torchvision.ops.MLP",
        ),
        (
            "from torchvision_layers import deploy\ndef net():\n    return deploy.fold(nn.ReLU())\n",
            "must do without torchvision_layers.deploy, which works with the package only",
        ),
        (
            "from torchvision_layers import quantized\ndef net():\n    return quantized.quantize(nn.ReLU(), [])\n",
            "workflow.quantize must not be used by the model, it works with the package only",
        ),
        ("def net():\n    return getattr(tnn, 'MLP')(1, [1])\n", "module torchvision_layers.nn, it uses it as a value"),
        (
            "def net():\n    from torchvision_layers.nn import MLP\n    return MLP(1, [1])\n",
            "an import in a function must be of torch or the standard library, got line 5",
        ),
        ("A = 1; B = 2\ndef net():\n    return A\n", "must have lines of its own, got two on line 4"),
        ("net = nn.ReLU\n", None),
        ("def isinstance():\n    return tnn.MLP(1, [1])\n", "must not have the name of a builtin that it uses"),
    ],
)
def test_refused_models(code: str, message: str | None, tmp_path: Path) -> None:
    if message is None:  # an assignment is code like any other
        (tmp_path / "refused_model.py").write_text(HEAD + code)
        assert "net = nn.ReLU" in source(f"{tmp_path}/refused_model.py:net")
        return
    check(tmp_path, code, message, name="isinstance" if "def isinstance" in code else "net")


@pytest.mark.parametrize(("name", "layer"), WITHOUT_TWINS.items())
def test_models_with_a_layer_without_a_twin(name: str, layer: str) -> None:
    message = rf"every layer must have a quantizable twin, {layer} has none \(line \d+ of module models\."
    with pytest.raises(ValueError, match=message):
        source(reference_to(name), quantizable=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Permute", "a quantizable layer must need a twin, Permute needs none"),
        ("StochasticDepth", "a quantizable layer must need a twin, StochasticDepth needs none"),
        ("FrozenBatchNorm2d", "a quantizable layer must need a twin, FrozenBatchNorm2d needs none"),
        ("LazyConvNormAct", "every layer must have a quantizable twin, LazyConvNormAct has none"),
    ],
)
def test_layers_without_twins(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        source(f"torchvision_layers.nn:{name}", quantizable=True)


def test_a_twin_is_written_as_one() -> None:
    with pytest.raises(ValueError, match="must be written with quantizable, got QuantizableMLP without"):
        source("torchvision_layers.quantized:QuantizableMLP")
    text = source("torchvision_layers.quantized:QuantizableMLP", quantizable=True)
    assert text.count("\nclass QuantizableMLP(QuantizableLayer, MLP):") == 1


def test_a_subclass_that_hides_what_its_twin_adds(tmp_path: Path) -> None:
    code = (
        "class Own(tnn.SqueezeExcitation):\n    def _scale(self, x, y):\n        return x\n\n"
        "def net():\n    return Own(4, 2)\n"
    )
    check(tmp_path, code, "Own must not have its own _scale, which the twin of SqueezeExcitation", quantizable=True)


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("nowhere.py:net", FileNotFoundError, "must be in a file that exists, got nowhere.py"),
        ("nowhere.module:net", ValueError, "nowhere.module cannot be imported"),
        ("resnet18", ValueError, "must be FILE.py:FUNCTION or package.module:FUNCTION, got 'resnet18'"),
        ("torchvision_layers.nn:Nothing", ValueError, "has no function 'Nothing'"),
        ("torch.nn:ReLU", ValueError, "the model must be of a package that is not taken as given, got torch.nn:ReLU"),
        ("torchvision.models:resnet18", ValueError, "must be of a package that is not taken as given, got torchvision"),
        ("math:sqrt", ValueError, "the source of module math must be readable"),
    ],
)
def test_references(reference: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        source(reference)


def test_an_existing_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "mlp.py"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match=r"must be a new file, or be forced to replace one, got .*mlp\.py"):
        write("torchvision_layers.nn:MLP", path)
    assert path.read_text() == "mine"
    with pytest.raises(ValueError, match="has no function"):
        write("torchvision_layers.nn:Nothing", path, force=True)
    assert path.read_text() == "mine"
    write("torchvision_layers.nn:MLP", path, force=True)
    assert "class MLP" in path.read_text()
    assert list(tmp_path.iterdir()) == [path], "nothing temporary is left"


def test_outputs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="must be in a folder that exists"):
        write("torchvision_layers.nn:MLP", tmp_path / "none" / "mlp.py")
    with pytest.raises(ValueError, match=r"must end in \.py, got .*mlp\.txt"):
        write("torchvision_layers.nn:MLP", tmp_path / "mlp.txt")


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mlp.py"
    assert main(["torchvision_layers.nn:MLP", "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: {len(path.read_text().splitlines())} lines\n"
    assert main(["torchvision_layers.nn:MLP", "-o", str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: the output must be a new file")
    assert main(["torchvision_layers.nn:MLP", "-o", str(path), "--force", "--quantizable"]) == 0
    assert "class QuantizableMLP" in path.read_text()


def test_the_room_loads_no_engine() -> None:
    code = (
        "import sys, torchvision_layers.standalone as s\n"
        "s.source('torchvision_layers.nn:MLP')\n"
        "print([m for m in sys.modules if m.startswith(('torch.ao.quantization.fx', 'torchvision_layers.quantized',"
        " 'torchvision_layers.deploy', 'torchao'))])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
