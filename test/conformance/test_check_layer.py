"""``check_layer`` on layers outside the package."""

import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torchvision
from torch import Tensor, nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.testing import LayerCheckError, Sample, Status, XFail, check_layer
from torchvision_layers.testing._checks.pt2e import NOTHING_TO_QUANTIZE

from .mutant_layers import Control, UnknownKeyword

PAGE = Path(__file__).parents[2] / "docs" / "source" / "check_layer.rst"
SAMPLE = Sample("default", {}, (2, 3, 6, 7), reads_mode=True)
LINK = "https://example.org/why"


def blocks(language: str) -> list[str]:
    """Code blocks of the page, dedented."""
    found = re.findall(rf"\.\. code-block:: {language}\n\n((?:    .*\n|\n)+)", PAGE.read_text(encoding="utf-8"))
    return [re.sub(r"^    ", "", block, flags=re.MULTILINE).strip() for block in found]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The code of the page as a module, whose last line must not raise."""
    file = tmp_path_factory.mktemp("page") / "page_of_check_layer.py"
    file.write_text("\n\n\n".join(blocks("python")) + "\n", encoding="utf-8")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[file.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_fails_three_checks_and_its_fix_none(example: ModuleType) -> None:
    (output,) = blocks("text")
    assert example.broken.failed_checks == ("channels_last", "unknown_keyword", "wrong_width")
    lines = str(example.broken).splitlines()
    assert [line for line in lines if " FAILED " in line] == output.splitlines()


def test_failures_are_raised_with_the_report() -> None:
    with pytest.raises(LayerCheckError, match="unknown_keyword .*FAILED 1 of 1") as error:
        check_layer(UnknownKeyword, SAMPLE, rows=["unknown_keyword", "determinism"])
    assert error.value.report.failed_checks == ("unknown_keyword",)
    assert isinstance(error.value, AssertionError)


def test_expected_failures_are_strict() -> None:
    expected = {"unknown_keyword": XFail("takes all keywords", LINK)}
    report = check_layer(UnknownKeyword, SAMPLE, rows=["unknown_keyword"], expected_failures=expected)
    assert [outcome.status for outcome in report.outcomes] == [Status.XFAILED]
    assert "takes all keywords" in str(report)
    with pytest.raises(LayerCheckError, match="passes, but is expected to fail: takes all keywords"):
        check_layer(Control, SAMPLE, rows=["unknown_keyword"], expected_failures=expected)


def test_an_expected_failure_of_a_check_that_does_not_apply_is_a_failure() -> None:
    expected = {"stochastic": XFail("drops nothing", LINK)}
    with pytest.raises(LayerCheckError, match="does not apply .*, but is expected to fail: drops nothing"):
        check_layer(Control, SAMPLE, rows=["stochastic"], expected_failures=expected)


def test_one_variant_can_be_expected_to_fail() -> None:
    expected = {"determinism[train]": XFail("reason", LINK)}
    report = check_layer(Control, SAMPLE, rows=["determinism"], expected_failures=expected, raise_on_error=False)
    assert [outcome.status for outcome in report.outcomes] == [Status.FAILED, Status.PASSED]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows": ["grad"]}, "rows must name checks, got 'grad'; the checks are .*gradcheck"),
        ({"expected_failures": {"fx[test]": XFail("", LINK)}}, r"expected_failures must name .*got 'fx\[test\]'"),
        ({"samples": []}, "samples must contain at least one Sample, got none"),
    ],
)
def test_invalid_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_layer(**{"cls": Control, "samples": SAMPLE, **arguments})


def test_global_state_does_not_change() -> None:
    torch.manual_seed(7)
    before, hook = torch.get_rng_state(), sys.excepthook
    check_layer(Control, SAMPLE, rows=["stochastic", "determinism", "ddp", "meta"])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.distributed.is_initialized()
    assert sys.excepthook is hook
    assert torch.get_default_dtype() is torch.float32


def test_a_layer_of_torchvision() -> None:
    sample = Sample("default", {"input_channels": 6, "squeeze_channels": 3}, (2, 6, 5, 7), reads_mode=False)
    report = check_layer(torchvision.ops.SqueezeExcitation, sample, raise_on_error=False)
    assert report.failed_checks == ("factory_kwargs", "skip_init")
    assert check_layer(tnn.SqueezeExcitation, sample, rows=report.failed_checks).failures == ()


def test_a_function_that_returns_a_layer() -> None:
    def make(channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(channels, 4, 1), nn.ReLU())

    report = check_layer(make, Sample("default", {"channels": 3}, (2, 3, 6, 7)), rows=["gradcheck", "copies", "meta"])
    assert report.name == "make"


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self._multiply(x, self.gate(self.conv(x)))

    def _multiply(self, x: Tensor, gate: Tensor) -> Tensor:
        return x * gate


class QuantizableGated(quantized.QuantizableLayer, Gated):
    float_class = Gated

    def _add_observed_ops(self) -> None:
        self.product = quantized.Multiplication()

    def _multiply(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.product(x, gate)


class Correlates(nn.Module):
    """Multiplies activations, without a convolution or linear layer."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2) @ x.flatten(2).transpose(1, 2)


class Mixes(nn.Module):
    """Has a linear layer, written as a product."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1) @ self.weight


class MissingProduct(Gated):
    """A layer whose twin multiplies int8 tensors, which has no kernel."""


class QuantizableMissingProduct(quantized.QuantizableLayer, MissingProduct):
    float_class = MissingProduct


def test_a_layer_with_a_twin_is_quantized() -> None:
    rows = ["twin_keys", "fuse", "ptq_eager", "qat_eager", "int8_io", "pt2e_ptq", "pt2e_io", "pt2e_qat"]
    report = check_layer(Gated, SAMPLE, twin=QuantizableGated, rows=rows)
    assert {outcome.check_id for outcome in report.outcomes if outcome.status is Status.PASSED} == set(rows)
    broken = check_layer(MissingProduct, SAMPLE, twin=QuantizableMissingProduct, rows=rows, raise_on_error=False)
    assert broken.failed_checks == ("ptq_eager", "qat_eager", "int8_io")


def test_a_layer_without_a_twin_is_quantized_as_a_graph_if_it_has_weights() -> None:
    rows = ["ptq_eager", "pt2e_ptq"]
    for layer in (nn.Softsign, Correlates):
        outcomes = check_layer(layer, SAMPLE, rows=rows).outcomes
        assert {outcome.reason for outcome in outcomes} == {"has no twin", NOTHING_TO_QUANTIZE.reason}
    (graph,) = check_layer(Mixes, SAMPLE, rows=["pt2e_ptq"]).outcomes
    assert graph.status is Status.PASSED


def test_python_without_assertions_raises() -> None:
    module = importlib.import_module(check_layer.__module__)
    code = compile(Path(module.__file__).read_text(encoding="utf-8"), module.__file__, "exec", optimize=1)  # as with -O
    names = {"__name__": module.__name__, "__package__": module.__package__}
    exec(code, names)
    with pytest.raises(RuntimeError, match="check_layer relies on assert"):
        names["check_layer"](Control, SAMPLE, rows=["copies"])
