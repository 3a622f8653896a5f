"""Stages of a model: what it needs before the next one, and what it no longer does after it."""

import copy
import functools

import pytest
import torch
from torch import nn

from torchvision_layers import nn as tnn
from torchvision_layers import quantized

IMAGES = torch.randn(4, 3, 8, 8)


def test_converting_untrained_model_raises() -> None:
    with pytest.raises(ValueError, match="model must have run on batches, or have loaded a state"):
        quantized.convert(quantized.prepare_qat(tnn.ConvNormAct(3, 4)))


def test_frozen_model_stays_frozen_in_train_mode() -> None:
    """Covers running statistics of folded and unfolded norms, and quantization ranges."""
    model = nn.Sequential(
        nn.BatchNorm2d(3),
        tnn.ConvNormAct(3, 4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        tnn.LinearDropoutAct(4, 4, norm_layer=nn.BatchNorm1d, activation_layer=None),
        nn.BatchNorm1d(4),
    )
    prepared = quantized.prepare_qat(model)
    prepared(IMAGES)
    quantized.freeze(prepared)
    prepared.train()
    before = {key: value.clone() for key, value in prepared.state_dict().items()}
    prepared(5 * IMAGES)
    after = prepared.state_dict().items()  # ranges of weights follow the weights and the batch norms
    assert all(torch.equal(value, before[key]) for key, value in after if ".weight_fake_quant." not in key)
    with pytest.raises(ValueError, match="model must come from prepare_qat"):
        quantized.freeze(model)


def test_training_int8_and_loading_other_backend_raise() -> None:
    model = tnn.ConvNormAct(3, 4).eval()
    x86, onednn = (quantized.quantize(model, [IMAGES], backend=backend) for backend in ("x86", "onednn"))
    with pytest.raises(RuntimeError, match="an int8 model cannot be trained"):
        x86.train()
    with pytest.raises(ValueError, match=r"0\.weight has weights made for another backend"):
        x86.load_state_dict(onednn.state_dict())
    onednn.load_state_dict(x86.state_dict())


def with_linear() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()


@functools.cache
def int8_with_linear(backend: str) -> quantized.QuantizableModel:
    return quantized.quantize(with_linear(), [IMAGES], backend=backend)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("key", ["0.scale", "0.bias", "0.weight", "3.scale", "3._packed_params._packed_params"])
def test_state_without_a_key_of_an_int8_layer(key: str, strict: bool) -> None:
    int8 = int8_with_linear("x86")
    state = int8.state_dict()
    del state[key]
    with pytest.raises(RuntimeError, match=rf"Missing key\(s\) in state_dict: '{key}'$"):
        int8.load_state_dict(state, strict)


def test_partial_states() -> None:
    int8 = int8_with_linear("x86")
    state = int8.state_dict()
    int8.load_state_dict(copy.copy(state))
    with pytest.raises(RuntimeError, match=r"_metadata .* copy a state by copy.copy\(state\)"):
        int8.load_state_dict(dict(state))
    with pytest.raises(RuntimeError, match="Unexpected key.* 'other'$"):
        int8.load_state_dict({**state, "other": torch.ones(1)})
    with pytest.raises(
        RuntimeError, match="all keys of int8 layers, also with strict=False:.*\n.*'0.weight', '0.bias'"
    ):
        int8.load_state_dict({key: value for key, value in state.items() if key[0] != "0"}, strict=False)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(("backend", "other"), [("x86", "onednn"), ("onednn", "x86")])
def test_state_of_another_backend(backend: str, other: str, strict: bool) -> None:
    state = int8_with_linear(other).state_dict()
    with pytest.raises(RuntimeError, match=f"for backend='{backend}', got the form of '{other}'.*with the backend"):
        int8_with_linear(backend).load_state_dict(state, strict)


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_state_of_another_stage_for_a_prepared_model(engine: str) -> None:
    model = with_linear()
    prepared = quantized.prepare_qat(model, IMAGES, engine=engine)
    prepared(IMAGES)
    int8 = quantized.convert(prepared)
    with pytest.raises(
        ValueError, match="^state_dict must be that of a prepared model, got that of a float model: load"
    ):
        prepared.load_state_dict(model.state_dict())
    for strict in (True, False):
        with pytest.raises(ValueError, match="got that of an int8 model, .* load what was saved before convert"):
            prepared.load_state_dict(int8.state_dict(), strict)
    prepared.load_state_dict(prepared.state_dict())


def test_calibrating_model_fused_for_training_raises() -> None:
    model = quantized.quantizable(tnn.ConvNormAct(3, 4).train())
    quantized.fuse_model(model)
    with pytest.raises(ValueError, match="model is fused for training"):
        quantized.quantize(model, [IMAGES])


def test_unsupported_batches_raise() -> None:
    for batch, rule in (
        ({"image": IMAGES}, r"must hold the inputs of forward\(input\): "),
        ([], "must be a float32 tensor, got list"),
        (IMAGES.to(torch.uint8), "must be a float32 tensor, got torch.uint8"),
    ):
        with pytest.raises(TypeError, match=f"the input in batch 0 {rule}"):
            quantized.quantize(nn.Sequential(nn.Conv2d(3, 3, 1)), [batch])
