"""Photographs that packages ship, and their crops."""

from pathlib import Path

import numpy as np
import pytest
import torch
from common.data import photographs
from PIL import Image


def test_calibration_and_evaluation_share_no_photograph() -> None:
    assert not set(photographs.CALIBRATION) & set(photographs.EVALUATION)
    assert {name.partition("/")[0] for name in (*photographs.CALIBRATION, *photographs.EVALUATION)} == set(
        photographs.PACKAGES
    )


def test_crops() -> None:
    """They are the same for each call, and within the values of the pixels."""
    names = ("sklearn/china.jpg", "matplotlib/grace_hopper.jpg")
    crops = photographs.crops(names, 4, 32, seed=0)
    assert crops.shape == (4, 3, 32, 32)
    assert -127 / 128 <= float(crops.min()) < float(crops.max()) <= 1
    assert crops.equal(photographs.crops(names, 4, 32, seed=0))
    assert not crops.equal(photographs.crops(names, 4, 32, seed=1))
    assert photographs.pixels(Image.new("RGB", (3, 2), (127, 255, 0)))[:, 0, 0].tolist() == [0.0, 1.0, -127 / 128]


def test_boxes_are_inside() -> None:
    generator = np.random.default_rng(0)
    for left, top, right, bottom in (photographs.random_box((60, 40), generator) for _ in range(200)):
        assert 0 <= left < right <= 60
        assert 0 <= top < bottom <= 40
        assert (right - left) * (bottom - top) >= 0.13 * 60 * 40


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="scikit-learn must ship moon.jpg, this version does not"):
        photographs.load_photograph("sklearn/moon.jpg")
    monkeypatch.setattr(photographs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="chelsea.png is in a package .*: pip install scikit-image"):
        photographs.load_photograph("skimage/chelsea.png")


def test_grey_photographs_become_rgb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "shipping" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "shipping" / "__init__.py").touch()
    Image.new("L", (4, 5), 7).save(folder / "grey.png")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(photographs.PACKAGES, "shipping", ("shipping", "data"))
    image = photographs.load_photograph("shipping/grey.png")
    assert (image.mode, image.size) == ("RGB", (4, 5))
    assert torch.unique(photographs.pixels(image)).tolist() == [-120 / 128]
