"""Files of models that take only some numbers of images are for the batch of the example."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from torchvision_layers import deploy, quantized

from .._clips import Clips


@pytest.mark.parametrize("frames", [2, 3])
@pytest.mark.parametrize("format", ["onnx", "pt2", "torchscript", "openvino", "onnx-qdq"])
def test_batch_is_that_of_the_example(format: str, frames: int, tmp_path: Path) -> None:
    model, batch = Clips(frames).eval(), torch.randn(6, 3, 9, 9)
    exported: nn.Module = deploy.fold(model, batch)
    if format == "onnx-qdq":
        exported = quantized.quantize(model, [batch], engine="pt2e", backend="onnxruntime")
    suffix = ".xml" if format == "openvino" else ""
    with pytest.warns(UserWarning, match="the file takes batches of 6 images only, as in the example.*raises for 7"):
        path = deploy.export(exported, batch, tmp_path / f"model{suffix}", format=format).path
    program = deploy.load(path)
    with torch.no_grad():
        torch.testing.assert_close(program(batch), exported(batch), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="must have size 6 in dimension 0"):
        program(torch.cat([batch, batch]))


def test_number_of_images_in_a_forward(tmp_path: Path) -> None:
    class Joined(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu().reshape(3, 768)

    model, batch = Joined().eval(), torch.randn(3, 3, 16, 16)
    with pytest.warns(UserWarning, match="the file takes batches of 3 images only"):
        path = deploy.export(model, batch, tmp_path / "model.pt2", lowered=False).path
    assert torch.equal(deploy.load(path)(batch), model(batch))
