"""Every stable layer: a change whose tests pass in a torchvision that has it, or a refusal that says why."""

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

from torchvision_layers import nn as tnn
from torchvision_layers.upstream import Change, propose

from ._support import REPOSITORY, commit, grow

#: What torchvision has, and what the refusal says of it.
THERE = {
    "Conv3dNormAct": "is torchvision.ops.Conv3dNormActivation already, by another name",
    "ConvNormAct": "is torchvision.ops.Conv2dNormActivation already, by another name",
    "FrozenBatchNorm2d": "is torchvision.ops.FrozenBatchNorm2d already",
    "Permute": "is torchvision.ops.Permute already",
    "StochasticDepth": "is torchvision.ops.StochasticDepth already",
}
#: Classes of torchvision that are replaced where they stand.
REPLACED = ("SqueezeExcitation", "MLP")
#: Those that others use first, so that these import them.
ORDER = (*REPLACED, *(name for name in tnn.__all__ if name not in REPLACED))
TESTS = {"values", "jit", "torch_fx", "export", "state_dict", "backward", "invalid_arguments", "invalid_inputs"}

#: Models with the classes that are replaced, from weights of one seed; one of them in int8 as well.
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
    model.heads = torch.nn.Identity()  # which begin with zeros
    return model

def int8():
    model = mobilenet_v3_large().train()
    for norm in model.modules():
        norm.momentum = 0.9  # or three batches would leave the statistics at their start
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


#: By class and test.
Outcomes: TypeAlias = dict[str, dict[str, list[str]]]


@dataclass
class Grown:
    """A tree that has every layer, with what was proposed, refused, and what came out of its tests."""

    tree: Path
    changes: dict[str, Change] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)


def run_in(tree: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python so that ``torchvision`` is that of the tree."""
    environment = os.environ | {
        "PYTHONPATH": str(tree),
        "TREE_OPS": str(tree / "torchvision" / "ops"),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def run_tests(tree: Path, *arguments: str) -> Outcomes:
    """Outcomes of the tests of a tree, by class and test."""
    report = tree.parent / "report.xml"
    done = run_in(
        tree, "-m", "pytest", "test/test_ops.py", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    outcomes: Outcomes = {}
    for case in ET.parse(report).iter("testcase"):
        title = (case.get("classname") or "").rpartition(".")[2]
        test = (case.get("name") or "").partition("[")[0].removeprefix("test_")
        failure = next((part.get("message") or "failed" for part in case), "passed")
        outcomes.setdefault(title, {}).setdefault(test, []).append(failure)
    return outcomes


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    grown = Grown(grow(tmp_path_factory.mktemp("every") / "vision"))
    for name in ORDER:
        try:
            change = propose(name, grown.tree, REPOSITORY)
        except ValueError as error:
            grown.refusals[name] = str(error)
            continue
        change.write()
        commit(grown.tree)
        grown.changes[name] = change
    return grown


@pytest.fixture(scope="module")
def outcomes(grown: Grown) -> Outcomes:
    return run_tests(grown.tree)


@pytest.mark.parametrize("name", tnn.__all__)
def test_a_layer_is_proposed_or_there_already(
    name: str, grown: Grown, outcomes: dict[str, dict[str, list[str]]]
) -> None:
    if name in THERE:
        assert THERE[name] in grown.refusals[name]
        return
    change = grown.changes[name]
    counts = {test: Counter(found) for test, found in outcomes[f"Test{name}"].items()}
    assert counts.keys() == TESTS
    assert all(set(found) == {"passed"} for found in counts.values()), counts
    samples = change.files["test/test_ops.py"][1].count(f"lambda: ops.{name}(")
    assert samples >= counts["values"]["passed"] + counts["invalid_arguments"]["passed"]


def test_the_tests_run_on_the_tree(outcomes: Outcomes) -> None:
    assert outcomes["TestTree"] == {"is_imported": ["passed"]}


@pytest.mark.parametrize("name", [name for name in tnn.__all__ if name not in THERE])
def test_a_change_has_the_form_of_torchvision(name: str, grown: Grown) -> None:
    files = grown.changes[name].files
    layer, *others = files
    text = files[layer][1].split(f"\nclass {name}(")[1]
    assert "        _log_api_usage_once(self)\n" in text
    arguments = text.split("    Args:\n")[1].split("\n\n")[0]
    assert all(line.startswith("            ") or " (" in line for line in arguments.splitlines()), arguments
    assert "tnn." not in text
    assert "torchvision_layers" not in files[layer][1]
    if name in REPLACED:
        assert layer == "torchvision/ops/misc.py"
        assert others == ["test/test_ops.py"]
    else:
        assert others == ["torchvision/ops/__init__.py", "docs/source/ops.rst", "test/test_ops.py"]
        assert f'    "{name}",\n]' in files["torchvision/ops/__init__.py"][1]
        assert f"\n    {name}\n" in files["docs/source/ops.rst"][1]
    for file in others:
        before, after = (set(text.splitlines()) for text in files[file])
        assert len(before - after) <= 1, "nothing goes but a line of imports"
    added = {line for before, after in files.values() for line in {*after.splitlines()} - {*before.splitlines()}}
    assert max(map(len, added)) <= 120


@pytest.mark.parametrize("name", [name for name in tnn.__all__ if name not in THERE])
def test_the_pull_request_has_the_checklist_filled_in(name: str, grown: Grown) -> None:
    text = grown.changes[name].pull_request
    assert text.startswith(f"# {'Replace' if name in REPLACED else 'Add'} `ops.{name}`\n")
    items = [line for line in text.splitlines() if line.startswith("- [")]
    subjects = ("docs:", "tests:", "defaults kept", "torch.fx", "TorchScript", "torch.export", "values and accuracy")
    for subject in subjects:
        assert [item[:6] for item in items if item[6:].startswith(subject)] == ["- [x] "], subject


def test_layers_that_are_there_are_imported(grown: Grown) -> None:
    ops = grown.tree / "torchvision" / "ops"
    assert "\nfrom .misc import SqueezeExcitation\n" in (ops / "mbconv.py").read_text()
    assert "    cls_to_become = SqueezeExcitation\n" in (ops / "lazy_squeeze_excitation.py").read_text()
    assert "\nfrom .misc import Permute\nfrom .stochastic_depth import StochasticDepth\n" in (
        (ops / "convnext_block.py").read_text()
    )
    assert (ops / "misc.py").read_text().count("class _Builder:") == 1


def test_nothing_is_proposed_twice(grown: Grown) -> None:
    with pytest.raises(ValueError, match="SqueezeExcitation of torchvision/ops/misc.py is this layer already"):
        propose("SqueezeExcitation", grown.tree, REPOSITORY)
    with pytest.raises(ValueError, match="LayerScale of torchvision/ops/layer_scale.py is this layer already"):
        propose("LayerScale", grown.tree, REPOSITORY)


@pytest.mark.slow
def test_models_of_torchvision_compute_what_they_did(grown: Grown) -> None:
    here: dict[str, Any] = {"__name__": "models"}
    exec(MODELS, here)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, on its quantization in eager mode
        before: dict[str, tuple[list[str], list[float]]] = here["outputs"]()
    code = MODELS + "print(torchvision.ops.misc.__file__); print(json.dumps(outputs()))"
    done = run_in(grown.tree, "-W", "ignore", "-c", code)
    assert done.returncode == 0, done.stderr
    file, text = done.stdout.strip().splitlines()
    assert Path(file) == grown.tree / "torchvision" / "ops" / "misc.py"
    assert Path(torchvision.ops.misc.__file__) != Path(file)
    after = {name.replace("__main__", "models"): found for name, found in json.loads(text).items()}
    assert after.keys() == before.keys()
    for model, (keys, values) in before.items():
        assert len(set(values)) > 5, model
        assert after[model][0] == keys
        torch.testing.assert_close(
            torch.tensor(after[model][1]), torch.tensor(values), msg=lambda m, at=model: f"{at}: {m}"
        )


#: A line of a file, what it becomes, and the tests of which one must see that.
BREAKS = {
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


@pytest.mark.slow
def test_a_broken_layer_fails_its_tests(grown: Grown) -> None:
    ops = grown.tree / "torchvision" / "ops"
    kept = {file: (ops / file).read_text() for file in BREAKS}
    wanted = " or ".join(f"(Test{name} and test_{test})" for *_, name, tests in BREAKS.values() for test in tests)
    try:
        for file, (old, new, *_) in BREAKS.items():
            assert kept[file].count(old) == 1, file
            text = kept[file].replace(old, new)
            (ops / file).write_text(text + "\n\nimport itertools\n_COUNT = itertools.count(1)\n")
        found = run_tests(grown.tree, "-k", wanted)
    finally:
        for file, text in kept.items():
            (ops / file).write_text(text)
    for *_, name, tests in BREAKS.values():
        for test in tests:
            assert set(found[f"Test{name}"][test]) != {"passed"}, (name, test)
