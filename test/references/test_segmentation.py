"""The segmentation scripts: scenes, mean IoU, models, and a short run of both scripts."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from sklearn.metrics import jaccard_score
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from ._support import SCRIPTS

# The path of the classification scripts is set by _support.
from common.tables.variants import BEGIN, END  # isort: skip

SEGMENTATION = SCRIPTS.parent / "segmentation"
sys.path.append(str(SEGMENTATION))  # last: the classification scripts have a train.py too

import scenes  # noqa: E402
import segmenters  # noqa: E402
from evaluation import confusion_matrix, mean_iou  # noqa: E402


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"segmentation_{name}", SEGMENTATION / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scenes_are_drawn_from_their_own_scans() -> None:
    (training, _), (test, digits) = (scenes.digit_scans(is_training) for is_training in (True, False))
    assert (len(training), len(test)) == (1437, 360)
    assert digits.bincount().min() >= 30
    keys = [{scan.numpy().tobytes() for scan in scans} for scans in (training, test)]
    assert len(keys[0] & keys[1]) <= 2  # scikit-learn has a few equal scans


def test_scenes_are_the_same_in_every_run_and_differ_by_epoch() -> None:
    first, again = (scenes.test_scenes(6, 32) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.masks, again.masks)
    epochs = [scenes.training_scenes(6, 32, 0, epoch).masks for epoch in (1, 2)]
    assert not torch.equal(*epochs)


def test_cards_are_where_the_mask_is() -> None:
    """Paper is brighter than the table, and each card has the digit of its scan."""
    scans = torch.zeros(1, 1, 8, 8)
    images, masks = scenes.compose(scans, torch.tensor([7]), 40, 48, torch.Generator().manual_seed(0))
    brightness = scenes.displayable(images).mean(1)
    assert set(masks.unique().tolist()) == {0, 8}
    assert brightness[masks == 8].mean() > brightness[masks == 0].mean() + 0.3
    assert 0.2 < float((masks == 8).float().mean()) < 0.7


def test_mean_iou_is_that_of_sklearn() -> None:
    generator = torch.Generator().manual_seed(0)
    masks, predicted = (torch.randint(4, (3, 9, 9), generator=generator) for _ in range(2))
    result = mean_iou(confusion_matrix(predicted, masks, 4))
    expected = jaccard_score(masks.flatten(), predicted.flatten(), average=None)
    assert result.iou == pytest.approx(expected.tolist())
    assert result.mean_iou == pytest.approx(expected.mean())
    assert result.pixel_accuracy == pytest.approx(float((masks == predicted).float().mean()))


@pytest.mark.parametrize("name", segmenters.MODELS)
@pytest.mark.parametrize("size", [(64, 64), (50, 39)])
def test_masks_have_the_size_of_the_image(name: str, size: tuple[int, int]) -> None:
    model = segmenters.MODELS[name](11, 0.125, 0.5).eval()
    assert model(torch.randn(1, 3, *size)).shape == (1, 11, *size)


def test_checkpoints_of_torchvisions_deeplab_load() -> None:
    torch.manual_seed(0)
    other = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=3).eval()
    model = segmenters.DeepLabV3(3).eval()
    model.load_state_dict(other.state_dict(), strict=True)
    x = torch.randn(1, 3, 64, 50)
    with torch.no_grad():
        torch.testing.assert_close(model(x), other(x)["out"], rtol=1e-5, atol=1e-6)


def test_strides_beyond_the_output_stride_become_dilations() -> None:
    for stride in (4, 8, 16, 32):
        model = segmenters.DeepLabV3(3, 0.125, output_stride=stride).eval()
        assert model.backbone(torch.randn(1, 3, 64, 64)).shape[2:] == (64 // stride, 64 // stride)
    with pytest.raises(ValueError, match="output_stride must be 4, 8, 16 or 32, got 2"):
        segmenters.DeepLabV3(3, 0.125, output_stride=2)


def test_a_run_trains_tests_and_quantizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, deployment = script("train"), script("deployment")
    options = ["--width-mult=0.125", "--image-size=32", "--scenes=16", "--batch-size=8", "--test-scenes=8"]
    parser = train.get_parser()
    trained: dict[str, Any] = train.main(parser.parse_args([*options, "--epochs=2", f"--output-dir={tmp_path}"]))
    assert [entry["epoch"] for entry in trained["history"]] == [1, 2]
    assert {path.name for path in tmp_path.iterdir()} == {"model.pth", "predictions.png", "train.log"}
    weights = str(tmp_path / "model.pth")
    tested = train.main(parser.parse_args(["--test-only", "--weights", weights, "--test-scenes=8"]))
    assert tested["result"] == trained["result"]
    arguments = ["--weights", weights, "--test-scenes=8", "--calibration-scenes=8", "--rounds=1", "--files", "pt2"]
    deployed = deployment.main(deployment.get_parser().parse_args(arguments))
    assert deployed["mean_iou"]["float"] == trained["result"].mean_iou
    assert abs(deployed["mean_iou"]["int8, eager"] - deployed["mean_iou"]["float"]) < 0.1
    (row,) = deployed["rows"]
    assert not row.problem
    assert (tmp_path / "predictions_int8_eager.png").exists()
    assert "equal within" in capsys.readouterr().out


@pytest.mark.slow
def test_variants_are_compared_and_resumed(tmp_path: Path) -> None:
    options = ["width-mult=0.125", "image-size=32", "scenes=16", "batch-size=8", "test-scenes=8", "epochs=1"]
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.txt").write_text("\n".join(f"--{option}" for option in options))
    readme, results = tmp_path / "README.md", tmp_path / "results.json"
    readme.write_text(f"before\n{BEGIN}\n{END}\nafter\n")
    paths = [f"--recipes={tmp_path / 'recipes'}", f"--output-dir={tmp_path / 'runs'}", f"--results={results}"]
    command = [sys.executable, str(SEGMENTATION / "variants.py"), *paths, f"--readme={readme}", "--machine=a test"]
    weights = tmp_path / "runs" / "tiny" / "seed0" / "model.pth"
    times = []
    for seeds in ("1", "2"):
        subprocess.run([*command, "--seeds", seeds], check=True, capture_output=True)
        times.append(weights.stat().st_mtime_ns)
    assert times[0] == times[1]
    figures = json.loads(results.read_text())["models"]["tiny"]
    assert len(figures["float"]) == 2
    assert all(0 < iou < 1 for name in ("float", "int8, eager", "int8, pt2e") for iou in figures[name])
    count = sum(parameter.numel() for parameter in segmenters.MODELS["unet_resnet18"](11, 0.125).parameters())
    assert figures["parameters"] == [count, count]
    text = readme.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    low, high = sorted(figures["float"])
    assert f"| `tiny` | {count:,} | {(low + high) / 2:.3f}, {low:.3f}–{high:.3f} |" in text


def test_mistakes_are_errors(tmp_path: Path) -> None:
    train = script("train")
    parser = train.get_parser()
    for arguments, message in (
        (["--epochs=0"], "epochs must be at least 1; got 0"),
        (["--test-only"], "test_only needs the weights"),
        (["--weights=a.pth"], "weights can only be tested"),
    ):
        with pytest.raises(ValueError, match=message):
            train.main(parser.parse_args(arguments))
    for content in ({"model": {}}, {"state": {}, "options": {"model": "resnet18"}}):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(ValueError, match="is not a model.pth of references/segmentation"):
            train.main(parser.parse_args(["--test-only", f"--weights={tmp_path / 'other.pth'}"]))


@pytest.mark.parametrize("recipe", sorted((SEGMENTATION / "recipes").iterdir()), ids=lambda path: path.stem)
def test_recipes_name_a_model_and_parse(recipe: Path) -> None:
    args = script("train").get_parser().parse_args([f"@{recipe}"])
    assert args.model == recipe.stem
