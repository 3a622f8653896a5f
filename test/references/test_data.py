"""The datasets: their splits, folders and image formats."""

import hashlib
import io
import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from common.data import datasets, presets
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10


def test_digits_have_a_fixed_stratified_split():
    torch.manual_seed(1)
    train, test, classes = datasets.load_datasets("digits")
    torch.manual_seed(2)
    again, _, _ = datasets.load_datasets("digits", image_size=16)
    assert classes == list("0123456789")
    assert torch.equal(train.sources, again.sources)

    label_of = {image.tobytes(): label for image, label in zip(*load_digits(return_X_y=True), strict=True)}
    assert len(label_of) == 1797  # all scans differ, so their bytes identify them
    split = {}
    for dataset in (train, test):
        for scan, label in zip(dataset.sources, dataset.labels, strict=True):
            assert torch.equal(scan[0], scan[1])
            split[(scan[2].double().numpy() * 16).tobytes()] = label
    assert split == label_of
    assert len(train) + len(test) == 1797
    for label, count in Counter(label_of.values()).items():
        assert test.labels.count(label) / count == pytest.approx(0.2, abs=0.01)


def test_digits_are_scaled_and_normalized():
    _, test, _ = datasets.load_datasets("digits", image_size=32)
    image, label = test[5]
    scan = test.sources[5]
    assert label == test.labels[5]
    expected = torch.nn.functional.interpolate(scan[None], size=(32, 32), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(image, (expected - 0.305) / 0.376)
    torch.testing.assert_close(presets.to_display(image, "digits"), expected.clamp(0, 1))


def test_digits_are_augmented_but_never_mirrored():
    train, test, _ = datasets.load_datasets("digits", image_size=32)
    assert not torch.equal(train[0][0], train[0][0])
    assert torch.equal(test[0][0], test[0][0])
    half = torch.zeros(3, 8, 8)
    half[..., :4] = 1
    for _ in range(50):
        image = train.transform(half)
        assert image[..., :12].mean() > image[..., 20:].mean()


def test_folder_of_classes_has_a_stratified_split(photos):
    train, test, classes = datasets.load_datasets("imagefolder", photos, 32)
    assert classes == ["blue", "red"]
    assert sorted(train.sources + test.sources) == sorted(str(path) for path in photos.rglob("*.png"))
    assert Counter(train.labels) == {0: 8, 1: 8}
    assert Counter(test.labels) == {0: 2, 1: 2}
    for dataset in (train, test):
        assert [Path(path).parent.name for path in dataset.sources] == [classes[label] for label in dataset.labels]
        image, _ = dataset[0]
        assert type(image) is torch.Tensor
        assert (image.shape, image.dtype) == ((3, 32, 32), torch.float32)
    assert datasets.load_datasets("imagefolder", photos, 32)[0].sources == train.sources


def test_class_of_two_images_is_in_both_sets():
    train, test = datasets.stratified_split([0] * 100 + [1] * 2)
    assert sorted(train + test) == list(range(102))
    assert len({100, 101} & set(test)) == 1


def test_train_and_val_folders_are_not_split(tmp_path, draw):
    for part, count in (("train", 3), ("val", 2)):
        for name in ("blue", "red"):
            draw(tmp_path / part / name, count)
    train, test, classes = datasets.load_datasets("imagefolder", tmp_path, 32)
    assert classes == ["blue", "red"]
    assert {Path(path).parts[-3] for path in train.sources} == {"train"}
    assert {Path(path).parts[-3] for path in test.sources} == {"val"}
    assert (len(train), len(test)) == (6, 4)


def test_bad_name_or_size():
    with pytest.raises(ValueError, match="dataset must be one of digits, .*, fake; got 'mnist'"):
        datasets.load_datasets("mnist")
    with pytest.raises(ValueError, match="image_size must be at least 8, got 4"):
        datasets.load_datasets("digits", image_size=4)


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_data_path_is_required_or_refused(name):
    if name in ("digits", "fake"):
        with pytest.raises(
            ValueError, match=f"data_path is only for the datasets imagefolder.*not for {name}; got 'photos'"
        ):
            datasets.load_datasets(name, "photos")
    else:
        with pytest.raises(ValueError, match=f"data_path is required for the {name} dataset"):
            datasets.load_datasets(name)


@pytest.mark.parametrize("name", datasets.DATASETS)
def test_augmentation_is_checked_before_reading(name):
    path = None if name in ("digits", "fake") else "nowhere"
    with pytest.raises(ValueError, match="auto_augment must be one of ra, .*svhn; got 'all'"):
        datasets.load_datasets(name, path, auto_augment="all")
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"random_erase must be in \[0, 1\]; got {share}"):
            datasets.load_datasets(name, path, random_erase=share)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "Couldn't find any class folder"),
        ({"blue": 0, "red": 0}, "no valid file for the classes blue, red"),
        ({"blue": 2, "red": 0}, "no valid file for the classes red"),
        ({"blue": 2}, "at least 2 classes, got only 'blue'"),
        ({"blue": 2, "red": 1}, "class 'red' must have at least 2 images to be split, got 1"),
        ({"train/blue": 2, "train/red": 2}, r"must hold train and val, or one folder per class; got \['train'\]"),
        ({"train/blue": 1, "train/red": 1, "val/blue": 1}, "same classes; only one has red"),
        ({"train/blue": 1, "val/blue": 1}, "at least 2 classes"),
    ],
)
def test_incomplete_folders(tmp_path, draw, counts, message):
    for folder, count in counts.items():
        draw(tmp_path / folder, count)
    with pytest.raises(ValueError, match=message) as info:
        datasets.load_datasets("imagefolder", tmp_path)
    assert str(tmp_path) in str(info.value)


def test_data_path_must_be_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"data_path .*nowhere does not exist"):
        datasets.load_datasets("imagefolder", tmp_path / "nowhere")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match=r"data_path .*file is not a folder"):
        datasets.load_datasets("imagefolder", file)


def test_image_formats_keep_their_colours(tmp_path):
    """A 16-bit ramp stays a ramp, although clipped to 8 bits it would be white; the other images have one colour."""
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "ramp.tiff")
    for name in ("ramp.png", "ramp.tiff"):
        image = np.asarray(datasets.read_image(str(tmp_path / name)))
        assert image.shape == (16, 16, 3)
        assert np.abs(image[..., 0].ravel().astype(int) - np.arange(256)).max() <= 1

    colour = Image.new("RGB", (16, 16), (200, 100, 50))
    transparent = colour.convert("P", palette=Image.Palette.ADAPTIVE)
    transparent.info["transparency"] = b"\x80\xff"  # pillow warns about its direct conversion to RGB
    for name, image, expected in (
        ("gray.png", Image.new("L", (16, 16), 90), (90, 90, 90)),
        ("gray.jpg", Image.new("L", (16, 16), 90), (90, 90, 90)),
        ("bits.png", Image.new("1", (16, 16), 1), (255, 255, 255)),
        ("gray_alpha.png", Image.new("LA", (16, 16), (90, 10)), (90, 90, 90)),
        ("palette.png", colour.convert("P", palette=Image.Palette.ADAPTIVE), (200, 100, 50)),
        ("transparent.png", transparent, (200, 100, 50)),
        ("alpha.png", Image.new("RGBA", (16, 16), (200, 100, 50, 128)), (200, 100, 50)),
        ("print.jpg", colour.convert("CMYK"), (200, 100, 50)),
        ("colour.jpg", colour, (200, 100, 50)),
    ):
        image.save(tmp_path / name)
        pixels = np.asarray(datasets.read_image(str(tmp_path / name)))
        assert pixels.shape == (16, 16, 3), name
        assert np.abs(pixels.astype(int) - expected).max() <= 2, name


def test_unreadable_files_are_items_with_a_reason(photos):
    """A folder with the name of an image is ignored; other files stay in the list."""
    blue = photos / "blue"
    Image.new("RGB", (64, 64), "blue").save(blue / "truncated.jpg")
    (blue / "truncated.jpg").write_bytes((blue / "truncated.jpg").read_bytes()[:-40])
    (blue / "empty.jpeg").touch()
    (blue / "text.png").write_text("not an image")
    (blue / "missing.png").symlink_to(photos / "nowhere.png")
    (blue / "folder.png").mkdir()
    train, test, _ = datasets.load_datasets("imagefolder", photos, 32)
    reasons = {}
    for dataset in (train, test):
        for index, source in enumerate(dataset.sources):
            if isinstance(dataset[index], datasets.Unreadable):
                assert dataset[index].path == source
                reasons[Path(source).name] = dataset[index].reason
    assert sorted(reasons) == ["empty.jpeg", "missing.png", "text.png", "truncated.jpg"]
    assert "truncated" in reasons["truncated.jpg"]
    assert "cannot identify" in reasons["empty.jpeg"]
    assert "cannot identify" in reasons["text.png"]
    assert "FileNotFoundError" in reasons["missing.png"]
    assert len(train) + len(test) == 24


@pytest.fixture
def cifar10(tmp_path, monkeypatch) -> tuple[Path, list[np.ndarray], list[int]]:
    """A CIFAR-10 of 5 training images and 1 test image: its folder, images and labels."""
    folder = tmp_path / "cifar" / CIFAR10.base_folder
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    labels = [3, 1, 4, 1, 5, 9]
    files = {
        name: {"data": image.transpose(2, 0, 1).reshape(1, -1), "labels": [label]}
        for (name, _), image, label in zip(CIFAR10.train_list + CIFAR10.test_list, images, labels, strict=True)
    }
    files[CIFAR10.meta["filename"]] = {"label_names": [f"kind {number}" for number in range(10)]}
    checksums = {}
    for name, content in files.items():
        (folder / name).write_bytes(pickle.dumps(content))
        checksums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    for part in ("train_list", "test_list"):
        monkeypatch.setattr(CIFAR10, part, [[name, checksums[name]] for name, _ in getattr(CIFAR10, part)])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": checksums[CIFAR10.meta["filename"]]})
    return tmp_path / "cifar", list(images), labels


def test_cifar10_as_torchvision_downloads_it(cifar10):
    folder, images, labels = cifar10
    train, test, classes = datasets.load_datasets("cifar10", folder, 32)
    assert classes == [f"kind {number}" for number in range(10)]
    assert (train.labels, test.labels) == (labels[:5], labels[5:])
    for index in range(5):
        assert np.array_equal(np.asarray(train.read(train.sources[index])), images[index])
    image, label = test[0]
    assert label == 9
    expected = (images[5] / 255 - [0.4914, 0.4822, 0.4465]) / [0.2470, 0.2435, 0.2616]
    assert np.allclose(image.permute(1, 2, 0), expected, atol=1e-5)
    larger = datasets.load_datasets("cifar10", folder, 48)
    assert [dataset[0][0].shape for dataset in larger[:2]] == [(3, 48, 48)] * 2


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta", "all"])
@pytest.mark.parametrize("is_missing", [True, False])
def test_incomplete_cifar10(cifar10, name, is_missing):
    folder, _, _ = cifar10
    file = folder / CIFAR10.base_folder / name
    if name == "all":
        shutil.rmtree(folder)
    elif is_missing:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="does not hold a complete CIFAR-10; .*download=True") as info:
        datasets.load_datasets("cifar10", folder)
    assert str(info.value).startswith(f"data_path {folder} ")


def make_imagenet(folder: Path, classes: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (60, 40), "green").save(buffer, format="JPEG")
    for part in ("train", "val"):
        for number in range(classes):
            path = folder / part / f"n{number:08}" / f"n{number:08}_{part}.JPEG"
            path.parent.mkdir(parents=True)
            path.write_bytes(buffer.getvalue())


def test_imagenet_must_have_1000_classes(tmp_path):
    make_imagenet(tmp_path, 1000)
    train, test, classes = datasets.load_datasets("imagenet", tmp_path, 32)
    assert classes == [f"n{number:08}" for number in range(1000)]
    assert train.labels == test.labels == list(range(1000))
    assert {Path(path).parts[-3] for path in train.sources} == {"train"}
    assert {Path(path).parts[-3] for path in test.sources} == {"val"}
    image, label = test[999]
    assert (image.shape, label) == ((3, 32, 32), 999)
    shutil.rmtree(tmp_path / "train" / "n00000000")
    with pytest.raises(ValueError, match="only one has n00000000$"):
        datasets.load_datasets("imagenet", tmp_path)
    shutil.rmtree(tmp_path / "val" / "n00000000")
    with pytest.raises(ValueError, match=r"data_path .* must hold 1000 classes for the imagenet dataset, got 999"):
        datasets.load_datasets("imagenet", tmp_path)


def test_imagenet_needs_train_and_val(photos):
    with pytest.raises(ValueError, match=r"data_path .*photos must hold the folders train and val for the imagenet"):
        datasets.load_datasets("imagenet", photos)
    with pytest.raises(ValueError, match=r"data_path nowhere does not exist"):
        datasets.load_datasets("imagenet", "nowhere")


def test_fake_images_depend_only_on_their_index():
    torch.manual_seed(1)
    train, test, classes = datasets.load_datasets("fake", image_size=16)
    rng_state = torch.get_rng_state()
    image, label = test[7]
    assert torch.equal(torch.get_rng_state(), rng_state)
    torch.manual_seed(2)
    _, again, _ = datasets.load_datasets("fake", image_size=16)
    assert torch.equal(again[7][0], image)
    assert label == again.labels[7]
    assert (len(train), len(test), len(classes)) == (1000, 200, 10)
    assert set(train.labels) == set(test.labels) == set(range(10))
    assert image.shape == train[999][0].shape == (3, 16, 16)
    contents = [np.asarray(dataset.read(dataset.sources[i])).tobytes() for dataset in (train, test) for i in range(200)]
    assert len(set(contents)) == 400
