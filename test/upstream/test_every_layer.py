"""Every stable layer: a change whose tests pass in torchvision, or an error that gives the reason."""

import json
import os
import subprocess
import sys
import warnings
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
import torchvision

from tools.upstream.proposal import propose
from torchvision_layers import nn as tnn

from ._support import commit, git, make_checkout

# A maintainers' tool: proposing every layer takes as long as all other tests of it together.
pytestmark = pytest.mark.slow

#: Layers that torchvision has, with the error.
EXISTING = {
    "Conv3dNormAct": "is torchvision.ops.Conv3dNormActivation already, under another name",
    "ConvNormAct": "is torchvision.ops.Conv2dNormActivation already, under another name",
    "FrozenBatchNorm2d": "is torchvision.ops.FrozenBatchNorm2d already",
    "Permute": "is torchvision.ops.Permute already",
    "StochasticDepth": "is torchvision.ops.StochasticDepth already",
}
LAYERS = [name for name in tnn.__all__ if isinstance(getattr(tnn, name), type)]
NEW = [name for name in LAYERS if name not in EXISTING]
#: Layers that replace a class of torchvision.
REPLACEMENTS = ("SqueezeExcitation", "MLP")
#: Layers that others import come first.
ORDER = (*REPLACEMENTS, *(name for name in LAYERS if name not in REPLACEMENTS))
TESTS = {"values", "jit", "torch_fx", "export", "state_dict", "backward", "invalid_arguments", "invalid_inputs"}

#: Models with the replaced classes and seeded weights, one of them in int8 as well.
MODELS = """
import json, warnings
import torch, torchvision
from torch.ao.quantization import convert, get_default_qat_qconfig, prepare_qat
from torchvision.models import mobilenet_v3_small, regnet_y_400mf
from torchvision.models.quantization import mobilenet_v3_large
from torchvision.models.vision_transformer import VisionTransformer

torch.set_num_threads(1)

def small_transformer():
    model = VisionTransformer(image_size=32, patch_size=16, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=16)
    model.heads = torch.nn.Identity()  # the real ones start at zero
    return model

def int8():
    model = mobilenet_v3_large().train()
    for norm in model.modules():
        norm.momentum = 0.9  # so that three batches suffice
    model.fuse_model(is_qat=True)
    model.qconfig = get_default_qat_qconfig("x86")
    prepare_qat(model, inplace=True)
    for _ in range(3):
        model(torch.randn(4, 3, 32, 32))
    return convert(model.eval())

def outputs():
    result = {}
    for make in (mobilenet_v3_small, regnet_y_400mf, mobilenet_v3_large, int8, small_transformer):
        torch.manual_seed(0)
        model = make().eval()
        output = model(torch.randn(2, 3, 32, 32)).flatten()[:50]
        result[make.__module__ + make.__name__] = [list(model.state_dict()), output.tolist()]
    return result
"""


#: Outcomes of test cases, by class and test.
Outcomes: TypeAlias = dict[str, dict[str, list[str]]]


@dataclass
class Checkout:
    """A checkout with every layer."""

    path: Path
    descriptions: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    #: The commit of each layer.
    commits: dict[str, str] = field(default_factory=dict)

    def diff(self, name: str, mark: str) -> dict[str, list[str]]:
        """The lines that the commit of a layer removes (``mark="-"``) or adds (``mark="+"``), by file."""
        sections = git(self.path, "show", "--format=", "--unified=0", self.commits[name]).split("diff --git a/")[1:]
        lines = {section.partition(" ")[0]: section.split("\n@@", 1)[1].splitlines()[1:] for section in sections}
        return {file: [line[1:] for line in hunks if line[:1] == mark] for file, hunks in lines.items()}


def run_in(checkout: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with the checkout's ``torchvision``."""
    environment = os.environ | {
        "PYTHONPATH": str(checkout),
        "CHECKOUT_OPS": str(checkout / "torchvision" / "ops"),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)


def run_tests(checkout: Path, *args: str) -> Outcomes:
    report = checkout.parent / "report.xml"
    result = run_in(
        checkout, "-m", "pytest", "test/test_ops.py", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *args
    )
    assert result.returncode in (0, 1), result.stdout + result.stderr
    outcomes: Outcomes = {}
    for case in ET.parse(report).iter("testcase"):
        title = (case.get("classname") or "").rpartition(".")[2]
        test = (case.get("name") or "").partition("[")[0].removeprefix("test_")
        outcome = next((part.get("message") or "failed" for part in case), "passed")
        outcomes.setdefault(title, {}).setdefault(test, []).append(outcome)
    return outcomes


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    checkout = Checkout(make_checkout(tmp_path_factory.mktemp("every") / "vision"))
    for name in ORDER:
        try:
            checkout.descriptions[name] = propose(name, checkout.path)
        except ValueError as error:
            checkout.errors[name] = str(error)
            continue
        commit(checkout.path)
        checkout.commits[name] = git(checkout.path, "rev-parse", "HEAD").strip()
    return checkout


@pytest.fixture(scope="module")
def outcomes(checkout: Checkout) -> Outcomes:
    return run_tests(checkout.path)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_passes_its_tests_or_exists(name: str, checkout: Checkout, outcomes: Outcomes) -> None:
    if name in EXISTING:
        assert EXISTING[name] in checkout.errors[name]
        return
    counts = {test: Counter(results) for test, results in outcomes[f"Test{name}"].items()}
    assert counts.keys() == TESTS
    assert all(set(results) == {"passed"} for results in counts.values()), counts
    calls = "\n".join(checkout.diff(name, "+")["test/test_ops.py"]).count(f"lambda: ops.{name}(")
    assert calls >= counts["values"]["passed"] + counts["invalid_arguments"]["passed"]


def test_the_tests_import_the_checkout(outcomes: Outcomes) -> None:
    assert outcomes["TestCheckout"] == {"is_imported": ["passed"]}


@pytest.mark.parametrize("name", NEW)
def test_a_change_has_the_form_of_torchvision(name: str, checkout: Checkout) -> None:
    additions = checkout.diff(name, "+")
    others = {"test/test_ops.py"}
    if name not in REPLACEMENTS:
        others |= {"docs/source/ops.rst", "torchvision/ops/__init__.py"}
        assert f'    "{name}",' in additions["torchvision/ops/__init__.py"]
        assert f"    {name}" in additions["docs/source/ops.rst"]
    (file,) = additions.keys() - others
    assert additions.keys() == {file, *others}
    assert (file == "torchvision/ops/misc.py") == (name in REPLACEMENTS)
    text = (checkout.path / file).read_text()
    assert "torchvision_layers" not in text
    layer = text.split(f"\nclass {name}(")[1].split("\nclass ")[0]
    assert "        _log_api_usage_once(self)\n" in layer
    assert "tnn." not in layer
    arguments = layer.split("    Args:\n")[1].split("\n\n")[0]
    assert all(line.startswith("            ") or " (" in line for line in arguments.splitlines()), arguments
    deletions = checkout.diff(name, "-")
    assert all(len(deletions[other]) <= 1 for other in others), "a change removes one line of imports at most"
    assert max(len(line) for lines in additions.values() for line in lines) <= 120


@pytest.mark.parametrize("name", NEW)
def test_the_description_has_a_ticked_checklist(name: str, checkout: Checkout) -> None:
    text = checkout.descriptions[name]
    assert text.startswith(f"# {'Replace' if name in REPLACEMENTS else 'Add'} `ops.{name}`\n")
    items = [line for line in text.splitlines() if line.startswith("- [")]
    subjects = ("docs:", "tests:", "defaults kept", "torch.fx", "TorchScript", "torch.export", "values and accuracy")
    for subject in subjects:
        assert [item[:6] for item in items if item[6:].startswith(subject)] == ["- [x] "], subject


def test_layers_of_earlier_changes_are_imported(checkout: Checkout) -> None:
    ops = checkout.path / "torchvision" / "ops"
    assert "\nfrom .misc import SqueezeExcitation\n" in (ops / "mbconv.py").read_text()
    assert "    cls_to_become = SqueezeExcitation\n" in (ops / "lazy_squeeze_excitation.py").read_text()
    assert "\nfrom .misc import Permute\nfrom .stochastic_depth import StochasticDepth\n" in (
        (ops / "convnext_block.py").read_text()
    )
    assert (ops / "misc.py").read_text().count("class _Builder:") == 1


def test_a_layer_is_proposed_once(checkout: Checkout) -> None:
    for name, file in (("SqueezeExcitation", "misc"), ("LayerScale", "layer_scale")):
        with pytest.raises(ValueError, match=f"torchvision/ops/{file}.py must not have {name} yet, it has this very"):
            propose(name, checkout.path)


def test_models_of_torchvision_give_the_same_outputs(checkout: Checkout) -> None:
    namespace: dict[str, Any] = {"__name__": "models"}
    exec(MODELS, namespace)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about quantization in eager mode
        before: dict[str, tuple[list[str], list[float]]] = namespace["outputs"]()
    code = MODELS + "print(torchvision.ops.misc.__file__); print(json.dumps(outputs()))"
    result = run_in(checkout.path, "-W", "ignore", "-c", code)
    assert result.returncode == 0, result.stderr
    file, text = result.stdout.strip().splitlines()
    assert Path(file) == checkout.path / "torchvision" / "ops" / "misc.py"
    assert Path(torchvision.ops.misc.__file__) != Path(file)
    after = {name.replace("__main__", "models"): output for name, output in json.loads(text).items()}
    assert after.keys() == before.keys()
    for model, (keys, values) in before.items():
        assert len(set(values)) > 5, model
        assert after[model][0] == keys
        torch.testing.assert_close(
            torch.tensor(after[model][1]), torch.tensor(values), msg=lambda m, at=model: f"{at}: {m}"
        )


#: By file: a line, its replacement, and the layer and tests that must fail.
MUTATIONS = {
    "misc.py": ("        return scale * input\n", "        return input\n", "SqueezeExcitation", ["values"]),
    "layer_scale.py": (
        "        _check_size(input, self.channels_dim, self.dim)\n",
        "",
        "LayerScale",
        ["invalid_inputs"],
    ),
    "layer_norm2d.py": (
        "        pixels = F",
        "        if float(input.detach().sum()) == 7:\n            return input\n        pixels = F",
        "LayerNorm2d",
        ["torch_fx", "export"],
    ),
    "conv1d_norm_act.py": (
        '        out_channels = _check_int("out_channels", out_channels)\n',
        "",
        "Conv1dNormAct",
        ["invalid_arguments"],
    ),
    "linear_dropout_act.py": (
        "        super().__init__(layers)\n",
        '        super().__init__(layers)\n        self.register_buffer("state", torch.zeros(next(_COUNT)))\n',
        "LinearDropoutAct",
        ["state_dict"],
    ),
    "depthwise_separable_conv.py": (
        "        return self.pointwise(self.depthwise(input))\n",
        "        return self.pointwise(self.depthwise(input)).detach() + 0 * input.sum()\n",
        "DepthwiseSeparableConv",
        ["backward"],
    ),
    "mbconv.py": (
        "        return self.block(input)\n",
        "        return self.block(input * (2 if torch.jit.is_scripting() else 1))\n",
        "MBConv",
        ["jit"],
    ),
}


def test_a_broken_layer_fails_its_tests(checkout: Checkout) -> None:
    ops = checkout.path / "torchvision" / "ops"
    originals = {file: (ops / file).read_text() for file in MUTATIONS}
    selection = " or ".join(f"(Test{name} and test_{test})" for *_, name, tests in MUTATIONS.values() for test in tests)
    try:
        for file, (old, new, *_) in MUTATIONS.items():
            assert originals[file].count(old) == 1, file
            text = originals[file].replace(old, new)
            (ops / file).write_text(text + "\n\nimport itertools\n_COUNT = itertools.count(1)\n")
        outcomes = run_tests(checkout.path, "-k", selection)
    finally:
        for file, text in originals.items():
            (ops / file).write_text(text)
    for *_, name, tests in MUTATIONS.values():
        for test in tests:
            assert set(outcomes[f"Test{name}"][test]) != {"passed"}, (name, test)
