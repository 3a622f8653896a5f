import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import data
import numpy as np
import presets
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

# Python 3.12 and later warn where a process with threads is forked, which is how torch starts its loader workers.
forks = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_digits_are_split_once_and_by_class():
    torch.manual_seed(1)
    train, test, classes = data.load_datasets("digits")
    torch.manual_seed(2)
    again, _, _ = data.load_datasets("digits", image_size=16)
    assert classes == list("0123456789")
    assert torch.equal(train.sources, again.sources)

    label_of = {image.tobytes(): label for image, label in zip(*load_digits(return_X_y=True), strict=True)}
    assert len(label_of) == 1797  # every scan is another, so its bytes can stand for it
    found = {}
    for dataset in (train, test):
        for scan, label in zip(dataset.sources, dataset.labels, strict=True):
            assert torch.equal(scan[0], scan[1])
            found[(scan[2].double().numpy() * 16).tobytes()] = label
    assert found == label_of
    assert len(train) + len(test) == 1797
    for label, count in Counter(label_of.values()).items():
        assert test.labels.count(label) / count == pytest.approx(0.2, abs=0.01)


def test_a_digit_is_scaled_and_normalised():
    _, test, _ = data.load_datasets("digits", image_size=32)
    image, label = test[5]
    scan = test.sources[5]
    assert label == test.labels[5]
    expected = torch.nn.functional.interpolate(scan[None], size=(32, 32), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(image, (expected - 0.305) / 0.376)
    torch.testing.assert_close(presets.to_display(image, "digits"), expected.clamp(0, 1))


def test_digits_vary_in_training_but_are_never_mirrored():
    train, test, _ = data.load_datasets("digits", image_size=32)
    assert not torch.equal(train[0][0], train[0][0])
    assert torch.equal(test[0][0], test[0][0])
    half = torch.zeros(3, 8, 8)
    half[..., :4] = 1
    for _ in range(50):
        image = train.transform(half)
        assert image[..., :12].mean() > image[..., 20:].mean()


def test_normalisation_constants_are_those_of_the_training_digits():
    train, _, _ = data.load_datasets("digits")
    assert train.sources.mean().item() == pytest.approx(presets.DIGITS_MEAN[0], abs=2e-3)
    assert train.sources.std().item() == pytest.approx(presets.DIGITS_STD[0], abs=2e-3)


def test_a_folder_of_classes_is_split_by_class(photos):
    train, test, classes = data.load_datasets("imagefolder", photos, 32)
    assert classes == ["blue", "red"]
    assert sorted(train.sources + test.sources) == sorted(str(path) for path in photos.rglob("*.png"))
    assert Counter(train.labels) == {0: 8, 1: 8}
    assert Counter(test.labels) == {0: 2, 1: 2}
    for dataset in (train, test):
        assert [Path(path).parent.name for path in dataset.sources] == [classes[label] for label in dataset.labels]
        image, _ = dataset[0]
        assert type(image) is torch.Tensor
        assert (image.shape, image.dtype) == ((3, 32, 32), torch.float32)
    assert data.load_datasets("imagefolder", photos, 32)[0].sources == train.sources


def test_a_class_of_two_is_in_both_parts_of_the_split():
    train, test = data.stratified_split([0] * 100 + [1] * 2)
    assert sorted(train + test) == list(range(102))
    assert len({100, 101} & set(test)) == 1


def test_folders_train_and_val_are_taken_as_they_are(tmp_path, draw):
    for part, count in (("train", 3), ("val", 2)):
        for name in ("blue", "red"):
            draw(tmp_path / part / name, count)
    train, test, classes = data.load_datasets("imagefolder", tmp_path, 32)
    assert classes == ["blue", "red"]
    assert {Path(path).parts[-3] for path in train.sources} == {"train"}
    assert {Path(path).parts[-3] for path in test.sources} == {"val"}
    assert (len(train), len(test)) == (6, 4)


def test_wrong_names_and_sizes():
    with pytest.raises(ValueError, match="dataset must be one of digits, imagefolder; got 'mnist'"):
        data.load_datasets("mnist")
    with pytest.raises(ValueError, match="image_size must be at least 8, got 4"):
        data.load_datasets("digits", image_size=4)
    with pytest.raises(ValueError, match=r"data_path is for the imagefolder dataset.*got 'photos'"):
        data.load_datasets("digits", "photos")
    with pytest.raises(ValueError, match="data_path must be given"):
        data.load_datasets("imagefolder")
    with pytest.raises(ValueError, match="on_bad_image must be one of stop, skip; got 'ignore'"):
        data.ImageLoader([], 2, on_bad_image="ignore")


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ({}, "Couldn't find any class folder"),
        ({"blue": 0, "red": 0}, "no valid file for the classes blue, red"),
        ({"blue": 2, "red": 0}, "no valid file for the classes red"),
        ({"blue": 2}, "at least 2 classes, got only 'blue'"),
        ({"blue": 2, "red": 1}, "class 'red' has a single image"),
        ({"train/blue": 2, "train/red": 2}, r"must hold train and val, or one folder a class; got \['train'\]"),
        ({"train/blue": 1, "train/red": 1, "val/blue": 1}, "same classes, but not in both: red"),
        ({"train/blue": 1, "val/blue": 1}, "at least 2 classes"),
    ],
)
def test_folders_without_what_is_needed(tmp_path, draw, pictures, message):
    for folder, count in pictures.items():
        draw(tmp_path / folder, count)
    with pytest.raises(ValueError, match=message) as caught:
        data.load_datasets("imagefolder", tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_data_path_that_is_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"data_path .*nowhere does not exist"):
        data.load_datasets("imagefolder", tmp_path / "nowhere")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match=r"data_path .*file is not a folder"):
        data.load_datasets("imagefolder", file)


def damage(photos: Path) -> list[str]:
    """Makes three of the pictures unreadable, each in its own way."""
    empty, text, cut = photos / "blue" / "blue0.png", photos / "blue" / "blue1.png", photos / "red" / "red0.png"
    empty.write_bytes(b"")
    text.write_text("not a picture")
    cut.write_bytes(cut.read_bytes()[:200])
    return sorted(map(str, (empty, text, cut)))


def read_all(photos: Path, on_bad_image: str, workers: int = 0) -> data.ImageLoader:
    """Reads all pictures twice, in batches of three."""
    paths = sorted(map(str, photos.rglob("*.png")))
    pictures = data.Images(paths, list(range(len(paths))), data.read_image, presets.photo_eval(32))
    loader = data.ImageLoader(pictures, 3, workers=workers, on_bad_image=on_bad_image)
    for _ in range(2):
        seen = [label for images, labels in loader for label in labels.tolist()]
    loader.seen = [paths[label] for label in seen]
    return loader


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_left_out_named_once_and_counted(photos, capsys, workers):
    damaged = damage(photos)
    loader = read_all(photos, "skip", workers)
    assert sorted(loader.unreadable) == damaged
    assert sorted(loader.seen + damaged) == sorted(map(str, photos.rglob("*.png")))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for path in damaged:
        assert sum(path in line for line in lines) == 1


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_stops_by_default(photos, workers):
    first = damage(photos)[0]
    with pytest.raises(ValueError, match="cannot be read as an image") as caught:
        read_all(photos, "stop", workers)
    assert first in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_batch_of_nothing_but_unreadable_images_is_left_out(tmp_path):
    nothing = data.Images(["a", "b"], [0, 1], partial(open, mode="rb"), presets.photo_eval(32))
    assert list(data.ImageLoader(nothing, 2, on_bad_image="skip")) == []


def test_reading_and_testing_need_no_torchvision_layers(scripts):
    program = f"""
import sys
sys.modules["torchvision_layers"] = None  # makes its import fail
sys.path.insert(0, {str(scripts)!r})
import data, presets, utils, torch
_, test, _ = data.load_datasets("digits", image_size=8)
model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
print(len(utils.evaluate(model, data.ImageLoader(test, 64)).predictions))
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(result.stdout) == len(data.load_datasets("digits")[1])


def test_transforms_of_photographs_mirror_and_crop():
    wide = torch.zeros(3, 64, 128, dtype=torch.uint8)
    wide[:, :, :64] = 255
    image = presets.photo_eval(56)(wide)
    assert image.shape == (3, 56, 56)
    middle = presets.to_display(image, "imagefolder")
    assert np.allclose(middle[..., :20], 1)
    assert np.allclose(middle[..., -20:], 0, atol=1e-6)
    mirrored = [presets.photo_train(56)(wide)[0] for _ in range(50)]
    left_brighter = [image[:, 0].mean() > image[:, -1].mean() for image in mirrored]
    right_brighter = [image[:, 0].mean() < image[:, -1].mean() for image in mirrored]
    assert any(left_brighter)
    assert any(right_brighter)


def test_gray_images_of_sixteen_bits_are_scaled(tmp_path):
    """A ramp stays a ramp; cut off at 8 bits it would be white."""
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    image = np.asarray(data.read_image(str(tmp_path / "ramp.png")))
    assert image.shape == (16, 16, 3)
    assert np.abs(image[..., 0].ravel().astype(int) - np.arange(256)).max() <= 1
