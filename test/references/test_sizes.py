"""Width and depth multipliers of the reference models."""

import inspect

import pytest
import torch
from models import MODELS, build_model
from models.mobilenet_v3 import LARGE, SMALL, Row, scale_rows
from models.scaling import round_channels, scale_channels, scale_depth
from torch import nn

from torchvision_layers import nn as tnn


@pytest.mark.parametrize("name", MODELS)
def test_models_have_the_same_signature(name: str) -> None:
    arguments = inspect.signature(MODELS[name]).parameters
    assert {key: value.default for key, value in arguments.items()} == {
        "num_classes": 1000,
        "width_mult": 1.0,
        "depth_mult": 1.0,
    }


@pytest.mark.parametrize("name", MODELS)
def test_multipliers_change_the_size(name: str) -> None:
    """The number of parameters grows with each multiplier."""

    def parameters(width_mult: float, depth_mult: float) -> int:
        with torch.device("meta"):
            model = build_model(name, 7, width_mult, depth_mult)
        assert [*model.parameters()][-1].shape == (7,)
        return sum(parameter.numel() for parameter in model.parameters())

    assert parameters(0.25, 0.01) < parameters(0.25, 1.0) < parameters(0.25, 1.5) < parameters(0.75, 1.5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("argument", ["width_mult", "depth_mult"])
def test_multipliers_are_positive_and_finite(name: str, argument: str) -> None:
    for value in (0, -0.5, float("nan"), float("inf"), True, "1"):
        with pytest.raises(ValueError, match=f"{argument} must be a positive and finite number; got {value!r}"):
            build_model(name, 10, **{argument: value})


@pytest.mark.parametrize(
    ("name", "width_mult", "message"),
    [
        ("resnext50_32x4d", 0.125, "base_width must leave at least one channel, got 4 for planes=8"),
        ("resnet26_sasa", 0.3, "out_channels must be divisible by groups, got 19 and 8"),
    ],
)
def test_impossible_channels(name: str, width_mult: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(name, 10, width_mult)


def test_scaling_by_hand() -> None:
    assert [scale_depth(blocks, 0.5) for blocks in (1, 2, 3, 4)] == [1, 1, 2, 2]
    assert [scale_depth(3, mult) for mult in (0.01, 1 / 3, 0.34, 1.0, 1.1)] == [1, 1, 2, 3, 4]
    assert [scale_channels(64, mult) for mult in (0.001, 0.125, 0.51, 1.0)] == [1, 8, 33, 64]
    assert [round_channels(channels) for channels in (1, 11, 12, 18, 32)] == [8, 16, 16, 24, 32]


@pytest.mark.parametrize("rows", [LARGE, SMALL])
def test_mobilenet_v3_of_other_depths(rows: tuple[Row, ...]) -> None:
    assert tuple(scale_rows(rows, 1.0)) == rows
    shallow, deep = tuple(scale_rows(rows, 0.01)), tuple(scale_rows(rows, 2.0))
    stages = [(row.kernel_size, row.channels) for row in shallow]
    assert len(set(stages)) == len(stages)  # one block per stage
    assert all(row in rows for row in shallow)
    assert len(deep) == 2 * len(rows)
    assert [row for row in deep if row.stride == 2] == [row for row in rows if row.stride == 2]
    assert list(dict.fromkeys((row.kernel_size, row.channels) for row in deep)) == stages


def test_deeper_stage_repeats_its_last_block() -> None:
    """The repeated block has stride 1 and an identity skip."""
    model: nn.Module = build_model("mobilenet_v3_small", 10, 0.25, 2.0)
    blocks = [module for module in model.modules() if isinstance(module, tnn.InvertedResidual)]
    assert [block.stride for block in blocks[:4]] == [2, 1, 2, 1]
    assert [block.use_res_connect for block in blocks[:4]] == [False, True, False, True]
