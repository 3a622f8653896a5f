"""The part of the demo that classifies photographs, on a small model with random weights."""

import logging
from pathlib import Path

import pytest
import torch
from common import pretrained_demo
from PIL import Image
from torch import nn


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 1000))
    monkeypatch.setattr(pretrained_demo, "load_trained", lambda path, card: net.eval())
    for name, value in (("SIZE", 32), ("BATCH", 4), ("CALIBRATED", 8), ("MEASURED", 8)):
        monkeypatch.setattr(pretrained_demo, name, value)
    monkeypatch.setattr(pretrained_demo, "CALIBRATION", ("sklearn/china.jpg",))
    monkeypatch.setattr(pretrained_demo, "EVALUATION", ("sklearn/flower.jpg", "matplotlib/grace_hopper.jpg"))


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_it_writes_a_file_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "torch")  # as demo.py does
    line = pretrained_demo.classify_photographs(tmp_path / "lite0")
    noise = float(line.partition("int8: ")[2].partition(" dB")[0])
    assert 20 < noise < 60
    assert "of 3 photographs" in line
    assert {path.name for path in (tmp_path / "lite0").iterdir()} == {"onnx-qdq.onnx", "photographs.png"}
    printed = capsys.readouterr()
    assert len(printed.out.strip().splitlines()) == 4
    assert printed.err == ""


@pytest.mark.parametrize("missing", ["weights", "photographs", "torchao"])
@pytest.mark.usefixtures("small")
def test_a_missing_package_leaves_it_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise (ImportError if missing == "torchao" else ValueError)("not installed: pip install it")

    place, name = {
        "weights": (pretrained_demo, "load_trained"),
        "photographs": (pretrained_demo, "load_photograph"),
        "torchao": (pretrained_demo.quantized, "quantize"),
    }[missing]
    monkeypatch.setattr(place, name, fail)
    line = pretrained_demo.classify_photographs(tmp_path / "lite0")
    assert line == "efficientnet_lite0 is left out: not installed: pip install it"


def test_picture(tmp_path: Path) -> None:
    """Photographs whose classes differ have a red title."""
    logits = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    same, other = (pretrained_demo.predict(x, ["cat", "dog"]) for x in (logits, logits.flip(1)))
    assert [str(prediction) for prediction in same] == ["dog, 88%", "cat, 95%"]
    photographs = [Image.new("RGB", (40, 30), "blue")] * 2
    red = []
    for name, predictions in (("same", same), ("other", other)):
        path = tmp_path / f"{name}.png"
        pretrained_demo.plot(photographs, [same, predictions], path)
        with Image.open(path) as image:
            red.append((255, 0, 0) in {color for _, color in image.convert("RGB").getcolors(1 << 20)})
    assert red == [False, True]
