import hashlib
import io
import pickle
import shutil
from collections import Counter
from pathlib import Path

import data
import numpy as np
import presets
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10


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
    with pytest.raises(ValueError, match="dataset must be one of digits, .*, fake; got 'mnist'"):
        data.load_datasets("mnist")
    with pytest.raises(ValueError, match="image_size must be at least 8, got 4"):
        data.load_datasets("digits", image_size=4)


@pytest.mark.parametrize("name", data.DATASETS)
def test_data_path_is_given_where_it_is_needed_and_only_there(name):
    if name in ("digits", "fake"):
        with pytest.raises(ValueError, match=f"data_path is for the imagefolder.*{name} has none; got 'photos'"):
            data.load_datasets(name, "photos")
    else:
        with pytest.raises(ValueError, match=f"data_path must be given for the {name} dataset"):
            data.load_datasets(name)


@pytest.mark.parametrize("name", data.DATASETS)
def test_augmentations_are_checked_before_anything_is_read(name):
    path = None if name in ("digits", "fake") else "nowhere"
    with pytest.raises(ValueError, match="auto_augment must be one of ra, .*svhn; got 'all'"):
        data.load_datasets(name, path, auto_augment="all")
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=rf"random_erase must be in \[0, 1\]; got {share}"):
            data.load_datasets(name, path, random_erase=share)


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


def test_images_of_all_kinds_are_read_in_their_colours(tmp_path):
    """A ramp stays a ramp in 16 bits, which cut off at 8 would be white; the others are of one colour."""
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "ramp.tiff")
    for name in ("ramp.png", "ramp.tiff"):
        image = np.asarray(data.read_image(str(tmp_path / name)))
        assert image.shape == (16, 16, 3)
        assert np.abs(image[..., 0].ravel().astype(int) - np.arange(256)).max() <= 1

    colour = Image.new("RGB", (16, 16), (200, 100, 50))
    see_through = colour.convert("P", palette=Image.Palette.ADAPTIVE)
    see_through.info["transparency"] = b"\x80\xff"  # pillow warns where this is converted to RGB directly
    for name, image, expected in (
        ("gray.png", Image.new("L", (16, 16), 90), (90, 90, 90)),
        ("gray.jpg", Image.new("L", (16, 16), 90), (90, 90, 90)),
        ("bits.png", Image.new("1", (16, 16), 1), (255, 255, 255)),
        ("gray_alpha.png", Image.new("LA", (16, 16), (90, 10)), (90, 90, 90)),
        ("palette.png", colour.convert("P", palette=Image.Palette.ADAPTIVE), (200, 100, 50)),
        ("see_through.png", see_through, (200, 100, 50)),
        ("alpha.png", Image.new("RGBA", (16, 16), (200, 100, 50, 128)), (200, 100, 50)),
        ("print.jpg", colour.convert("CMYK"), (200, 100, 50)),
        ("colour.jpg", colour, (200, 100, 50)),
    ):
        image.save(tmp_path / name)
        found = np.asarray(data.read_image(str(tmp_path / name)))
        assert found.shape == (16, 16, 3), name
        assert np.abs(found.astype(int) - expected).max() <= 2, name


def test_what_is_no_image_is_an_unreadable_item(photos):
    """A folder called as an image is a folder; all else stays in the list, and tells what is wrong with it."""
    blue = photos / "blue"
    Image.new("RGB", (64, 64), "blue").save(blue / "cut.jpg")
    (blue / "cut.jpg").write_bytes((blue / "cut.jpg").read_bytes()[:-40])
    (blue / "empty.jpeg").touch()
    (blue / "text.png").write_text("not a picture")
    (blue / "gone.png").symlink_to(photos / "nowhere.png")
    (blue / "folder.png").mkdir()
    train, test, _ = data.load_datasets("imagefolder", photos, 32)
    found = {}
    for dataset in (train, test):
        for index, source in enumerate(dataset.sources):
            if isinstance(dataset[index], data.Unreadable):
                assert dataset[index].path == source
                found[Path(source).name] = dataset[index].reason
    assert sorted(found) == ["cut.jpg", "empty.jpeg", "gone.png", "text.png"]
    assert "truncated" in found["cut.jpg"]
    assert "cannot identify" in found["empty.jpeg"]
    assert "cannot identify" in found["text.png"]
    assert "FileNotFoundError" in found["gone.png"]
    assert len(train) + len(test) == 24


@pytest.fixture
def cifar10(tmp_path, monkeypatch) -> tuple[Path, list[np.ndarray], list[int]]:
    """CIFAR-10 with 6 images instead of 60,000, the last of which is for testing, and its images and labels."""
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


def test_cifar10_is_read_as_torchvision_has_left_it(cifar10):
    folder, images, labels = cifar10
    train, test, classes = data.load_datasets("cifar10", folder, 32)
    assert classes == [f"kind {number}" for number in range(10)]
    assert (train.labels, test.labels) == (labels[:5], labels[5:])
    for index in range(5):
        assert np.array_equal(np.asarray(train.read(train.sources[index])), images[index])
    image, label = test[0]
    assert label == 9
    expected = (images[5] / 255 - [0.4914, 0.4822, 0.4465]) / [0.2470, 0.2435, 0.2616]
    assert np.allclose(image.permute(1, 2, 0), expected, atol=1e-5)
    larger = data.load_datasets("cifar10", folder, 48)
    assert [dataset[0][0].shape for dataset in larger[:2]] == [(3, 48, 48)] * 2


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta", "all"])
@pytest.mark.parametrize("is_gone", [True, False])
def test_cifar10_that_is_not_whole(cifar10, name, is_gone):
    folder, _, _ = cifar10
    file = folder / CIFAR10.base_folder / name
    if name == "all":
        shutil.rmtree(folder)
    elif is_gone:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="does not hold CIFAR-10, or not all of it; .*download=True") as caught:
        data.load_datasets("cifar10", folder)
    assert str(caught.value).startswith(f"data_path {folder} ")


def make_imagenet(folder: Path, classes: int) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (60, 40), "green").save(picture, format="JPEG")
    for part in ("train", "val"):
        for number in range(classes):
            path = folder / part / f"n{number:08}" / f"n{number:08}_{part}.JPEG"
            path.parent.mkdir(parents=True)
            path.write_bytes(picture.getvalue())


def test_imagenet_has_a_thousand_classes(tmp_path):
    make_imagenet(tmp_path, 1000)
    train, test, classes = data.load_datasets("imagenet", tmp_path, 32)
    assert classes == [f"n{number:08}" for number in range(1000)]
    assert train.labels == test.labels == list(range(1000))
    assert {Path(path).parts[-3] for path in train.sources} == {"train"}
    assert {Path(path).parts[-3] for path in test.sources} == {"val"}
    image, label = test[999]
    assert (image.shape, label) == ((3, 32, 32), 999)
    shutil.rmtree(tmp_path / "train" / "n00000000")
    with pytest.raises(ValueError, match="not in both: n00000000$"):
        data.load_datasets("imagenet", tmp_path)
    shutil.rmtree(tmp_path / "val" / "n00000000")
    with pytest.raises(ValueError, match=r"data_path .* must hold 1000 classes for the imagenet dataset, got 999"):
        data.load_datasets("imagenet", tmp_path)


def test_imagenet_is_never_split(photos):
    with pytest.raises(ValueError, match=r"data_path .*photos must hold the folders train and val for the imagenet"):
        data.load_datasets("imagenet", photos)
    with pytest.raises(ValueError, match=r"data_path nowhere does not exist"):
        data.load_datasets("imagenet", "nowhere")


def test_fake_images_depend_on_their_index_alone():
    torch.manual_seed(1)
    train, test, classes = data.load_datasets("fake", image_size=16)
    before = torch.get_rng_state()
    image, label = test[7]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    _, again, _ = data.load_datasets("fake", image_size=16)
    assert torch.equal(again[7][0], image)
    assert label == again.labels[7]
    assert (len(train), len(test), len(classes)) == (1000, 200, 10)
    assert set(train.labels) == set(test.labels) == set(range(10))
    assert image.shape == train[999][0].shape == (3, 16, 16)
    drawn = [np.asarray(dataset.read(dataset.sources[i])).tobytes() for dataset in (train, test) for i in range(200)]
    assert len(set(drawn)) == 400
