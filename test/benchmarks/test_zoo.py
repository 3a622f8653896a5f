"""The zoo: its page is up to date, its columns find what is in a model, and no failure is hidden."""

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from benchmarks.zoo import page, record, run
from benchmarks.zoo.columns import COLUMNS, EXPORTS
from benchmarks.zoo.measures import decibels, layers_that_run, norms_behind_convolutions
from benchmarks.zoo.models import ZOO, Subject
from benchmarks.zoo.stirring import stir

OUT_OF_DATE = "docs/source/zoo.rst is out of date: run `make zoo`"


def subject() -> Subject:
    block = (nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    net = nn.Sequential(*block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    batch = torch.randn(2, 3, 8, 8)
    stir(net.eval(), batch, torch.Generator().manual_seed(0))
    return Subject(net, "", list(batch), batch)


def test_the_page_is_up_to_date() -> None:
    assert page.PATH.read_text(encoding="utf-8") == page.render(record.load()), OUT_OF_DATE


def test_the_record_has_models_and_columns_of_the_zoo() -> None:
    cells = record.load()
    assert cells.keys() <= ZOO.keys()
    for columns in cells.values():
        assert columns.keys() <= COLUMNS.keys()
        assert all(cell["conditions"] and cell.keys() - {"conditions"} for cell in columns.values())


@pytest.mark.parametrize(
    "column",
    [pytest.param(name, marks=[pytest.mark.slow] if name in EXPORTS else []) for name in COLUMNS],
)
@pytest.mark.filterwarnings("ignore")  # of torch and torchao by themselves
def test_each_column_gives_figures(column: str) -> None:
    engine = torch.backends.quantized.engine
    figures = COLUMNS[column](subject())
    torch.backends.quantized.engine = engine
    if "decibels" in figures:
        assert 25 < figures["decibels"] < 60
        assert (figures["layers in float"], figures["layers in int8"]) == (0, 2)
    elif column == "fold":
        assert (figures["norms"], figures["norms left"]) == (1, 0)
        assert 0 < figures["difference"] < 1e-5
    assert figures["seconds"] >= 0
    assert page.describe(figures)


def test_layers_in_float_are_counted() -> None:
    """Also those of attention, and not the products of activations."""
    x = torch.randn(2, 5, 8)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.conv = attention, nn.Conv1d(5, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.attention(x, x, x)[0])

    assert layers_that_run(Net(), x) == (3, 0)


def test_norms_behind_convolutions_are_counted() -> None:
    def count(*modules: nn.Module) -> int:
        return norms_behind_convolutions(nn.Sequential(nn.Conv2d(3, 4, 1), *modules).eval(), torch.randn(2, 3, 4, 4))

    class BatchNormAct(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).relu()

    assert [count(cls(4)) for cls in (nn.BatchNorm2d, BatchNormAct, torchvision.ops.FrozenBatchNorm2d)] == [1, 1, 1]
    assert [count(nn.ReLU(inplace), nn.BatchNorm2d(4)) for inplace in (False, True)] == [0, 0]
    assert count(nn.BatchNorm2d(4), nn.BatchNorm2d(4)) == 1


def test_statistics_are_stirred_from_a_seed() -> None:
    first, second = subject().model, subject().model
    norm: Any = first[1]
    assert not norm.training
    assert norm.momentum == 0.1
    assert all(
        bool((tensor.std() > 0.01).all()) for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    assert torch.equal(norm.weight, second[1].weight)


def test_noise_needs_the_same_outputs() -> None:
    x = torch.randn(2, 3)
    assert decibels([x, x], [x, 1.1 * x]) == pytest.approx(23.0, abs=0.1)
    with pytest.raises(ValueError, match=r"have shapes \[\[2, 3\]\] instead of \[\[2, 3\], \[2, 3\]\]"):
        decibels([x, x], [x])
    with pytest.raises(ValueError, match="not finite"):
        decibels([x], [x * float("nan")])


def test_failures_are_on_the_page() -> None:
    good = {"decibels": 30.0, "layers in float": 1, "layers in int8": 2, "fallbacks": 3, "seconds": 4.0}
    cells = {
        "resnet18": {
            "eager x86": {**good, "conditions": "here"},
            "FX x86": {**good, "decibels": 31.0, "seconds": 2.0, "conditions": "here"},
            "pt2e onnxruntime": {**good, "decibels": 20.0, "conditions": "here"},
            "torchao": {**good, "decibels": 25.0, "conditions": "here"},
            "torchao onnxruntime": {**good, "decibels": 19.0, "conditions": "here"},
            "fold": {"reason": "ValueError: a `b`", "conditions": "here"},
        }
    }
    lines = page.render(cells).splitlines()
    summary = next(line for line in lines if line.startswith("eager x86 "))
    assert summary.split()[2:] == ["1", "1", "0", "30.0", "1", "of", "1", "2.0"]
    summary = next(line for line in lines if line.startswith("pt2e onnxruntime "))
    assert summary.split()[6:] == ["1", "of", "1", "0", "of", "1", "1.0"]
    comparisons = [line.split()[1:] for line in lines if line.startswith("``resnet18``")]
    assert comparisons[0] == ["30.0", "31.0", "3", "1", "1", "4.0", "2.0"]
    assert comparisons[1] == ["20.0", "25.0", "19.0", "3", "1", "1", "4.0", "4.0"]
    assert lines[lines.index("fold, ``resnet18``") + 1] == "    ``ValueError: a 'b'``"
    assert page.describe(cells["resnet18"]["fold"]).startswith("FAILED, ValueError")


@pytest.mark.slow
def test_errors_and_limits_are_reasons() -> None:
    figures, traceback = run.run_alone("resnet18", "no column", 32, 300)
    assert figures == {"reason": "KeyError: 'no column'"}
    assert "Traceback" in traceback
    assert run.run_alone("resnet18", "onnx", 32, 0.1)[0] == {"reason": "took more than 0.1 seconds"}
