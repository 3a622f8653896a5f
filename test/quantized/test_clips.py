"""Models that take only some numbers of images, as those of videos do."""

import pytest
import torch

from torchvision_layers import deploy, quantized

from .._clips import Clips

ENGINES = [("eager", "x86"), ("eager", "onednn"), ("pt2e", "x86"), ("pt2e", "onnxruntime")]


@pytest.mark.parametrize("images", [6, 12])
@pytest.mark.parametrize("frames", [2, 3, 6])
@pytest.mark.parametrize(("engine", "backend"), ENGINES)
def test_clips_are_quantized(engine: str, backend: str, frames: int, images: int) -> None:
    model, batch = Clips(frames).eval(), torch.randn(images, 3, 9, 9)
    int8 = quantized.quantize(model, [batch, batch.flip(0)], engine=engine, backend=backend)
    more = torch.cat([batch, batch.flip(0)])
    with torch.no_grad():
        for inputs in (batch, more):
            expected, output = model(inputs), int8(inputs)
            assert output.shape == expected.shape
            assert float((output - expected).abs().max()) < 0.02 * float(expected.abs().max()) + 0.01


@pytest.mark.parametrize("engine", ["eager", "pt2e"])
def test_clips_are_trained(engine: str) -> None:
    model, batch = Clips(3).eval(), torch.randn(6, 3, 9, 9)
    prepared = quantized.prepare_qat(model, batch, engine=engine)
    prepared(batch).sum().backward()
    assert all(parameter.grad is not None for parameter in prepared.parameters())
    int8 = quantized.convert(prepared)
    with torch.no_grad():
        expected = prepared.eval()(batch)
        assert float((int8(batch) - expected).abs().max()) < 0.05 * float(expected.abs().max()) + 0.01


@pytest.mark.parametrize("frames", [2, 3])
def test_clips_are_lowered(frames: int) -> None:
    model, batch = Clips(frames).eval(), torch.randn(6, 3, 9, 9)
    lowered = deploy.lower(model, batch)
    with torch.no_grad():
        for inputs in (batch, torch.cat([batch, batch])):
            torch.testing.assert_close(lowered(inputs), model(inputs), rtol=0, atol=1e-5)


def test_one_clip_is_too_small_an_example_for_a_graph() -> None:
    message = "model must be exported with a batch of at least twice as many images as it needs, got 3"
    with pytest.raises(RuntimeError, match=message):
        quantized.quantize(Clips(3).eval(), [torch.randn(3, 3, 9, 9)], engine="pt2e")
