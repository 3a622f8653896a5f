import random
from functools import partial

import data
import numpy as np
import presets
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

BILINEAR = v2.InterpolationMode.BILINEAR
# As torchvision's own training script builds them.
POLICIES = {
    "ra": partial(v2.RandAugment, magnitude=9),
    "ta_wide": v2.TrivialAugmentWide,
    "augmix": partial(v2.AugMix, severity=3),
    "imagenet": partial(v2.AutoAugment, v2.AutoAugmentPolicy.IMAGENET),
    "cifar10": partial(v2.AutoAugment, v2.AutoAugmentPolicy.CIFAR10),
    "svhn": partial(v2.AutoAugment, v2.AutoAugmentPolicy.SVHN),
}


def picture(dataset: str, size: int = 32, seed: int = 0) -> Tensor:
    """A noisy image as it is read: digits in float, all else in bytes."""
    pixels = torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))
    return pixels if dataset == "digits" else (pixels * 256).to(torch.uint8)


def test_normalisation_constants_are_those_of_the_training_digits():
    train, _, _ = data.load_datasets("digits")
    assert train.sources.mean().item() == pytest.approx(presets.DIGITS_MEAN[0], abs=2e-3)
    assert train.sources.std().item() == pytest.approx(presets.DIGITS_STD[0], abs=2e-3)


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


def test_every_dataset_has_its_normalization():
    assert data.DATASETS == ("digits", "imagefolder", "cifar10", "imagenet", "fake")
    for dataset in data.DATASETS:
        _, test = presets.transforms_of(dataset, 32)
        mean, std = presets.normalization(dataset)
        flat = torch.full((3, 32, 32), 0.6) if dataset == "digits" else torch.full((3, 32, 32), 153, dtype=torch.uint8)
        for channel in range(3):
            assert torch.allclose(test(flat)[channel], torch.tensor((0.6 - mean[channel]) / std[channel]))
        assert torch.allclose(presets.to_display(test(flat)[None], dataset), torch.full((1, 3, 32, 32), 0.6))
    assert len({presets.normalization(dataset) for dataset in data.DATASETS}) == 3
    assert presets.normalization("imagenet") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for function in (presets.normalization, partial(presets.to_display, torch.rand(3, 8, 8))):
        with pytest.raises(ValueError, match="dataset must be one of digits, .*; got 'mnist'"):
            function("mnist")


def test_pictures_are_shown_within_their_range():
    assert presets.to_display(torch.full((3, 2, 2), 9.0), "cifar10").eq(1).all()
    assert presets.to_display(torch.full((3, 2, 2), -9.0), "cifar10").eq(0).all()


def test_photographs_go_through_what_torchvision_trains_with():
    image = picture("imagenet", 50)
    train, test = presets.transforms_of("imagenet", 224, auto_augment="ra", random_erase=0.5)
    scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    augment = [POLICIES["ra"](interpolation=BILINEAR)]
    crop = [v2.RandomResizedCrop(224, interpolation=BILINEAR, antialias=True), v2.RandomHorizontalFlip(0.5)]
    theirs = v2.Compose([*crop, *augment, *scale, v2.RandomErasing(p=0.5)])
    for seed in range(10):
        torch.manual_seed(seed)
        found = train(image)
        torch.manual_seed(seed)
        assert torch.equal(found, theirs(image))
    assert torch.equal(
        test(image), v2.Compose([v2.Resize(256, interpolation=BILINEAR), v2.CenterCrop(224), *scale])(image)
    )


def test_cifar10_is_moved_by_up_to_four_pixels_and_mirrored():
    image = picture("cifar10")
    train, test = presets.transforms_of("cifar10", 32)
    padded = torch.zeros(3, 40, 40, dtype=torch.uint8)
    padded[:, 4:36, 4:36] = image
    places = {}
    for top in range(9):
        for left in range(9):
            window = padded[:, top : top + 32, left : left + 32]
            places[window.numpy().tobytes()] = (top, left, False)
            places[window.flip(2).numpy().tobytes()] = (top, left, True)
    torch.manual_seed(0)
    seen = set()
    for _ in range(300):
        pixels = (presets.to_display(train(image), "cifar10") * 255).round().to(torch.uint8)
        seen.add(places[pixels.contiguous().numpy().tobytes()])
    for values, expected in zip(zip(*seen, strict=True), (range(9), range(9), (False, True)), strict=True):
        assert set(values) == set(expected)
    assert torch.allclose(presets.to_display(test(image), "cifar10") * 255, image.float(), atol=1e-3)


def test_cifar10_is_scaled_where_another_size_is_wanted():
    image = picture("cifar10")
    scaled = presets.to_display(presets.transforms_of("cifar10", 64)[1](image), "cifar10")
    expected = torch.nn.functional.interpolate(image[None].float(), size=(64, 64), mode="bilinear")[0] / 255
    assert (scaled - expected).abs().max() < 1.1 / 255  # bytes are rounded


def test_the_policies_are_those_of_torchvision():
    assert set(POLICIES) == set(presets.AUTO_AUGMENT)
    for name in presets.AUTO_AUGMENT:
        image = picture("digits")
        train, _ = presets.transforms_of("digits", 32, auto_augment=name)
        plain, _ = presets.transforms_of("digits", 32)
        policy = POLICIES[name](interpolation=BILINEAR)
        differing = 0
        for seed in range(20):
            torch.manual_seed(seed)
            found = train(image)
            torch.manual_seed(seed)
            bare = plain(image)
            assert torch.allclose(
                found, v2.Normalize((0.305,) * 3, (0.376,) * 3)(policy(presets.to_display(bare, "digits"))), atol=1e-4
            )
            differing += not torch.equal(found, bare)
        assert differing > 10


@pytest.mark.parametrize("name", presets.AUTO_AUGMENT)
@pytest.mark.parametrize("dataset", data.DATASETS)
def test_policies_work_on_every_dataset(dataset, name):
    """Many draws, small and large images, black and white ones: no error, nothing out of the range of an image."""
    torch.manual_seed(0)
    mean, std = (torch.tensor(values)[:, None, None] for values in presets.normalization(dataset))
    for size in (8, 40):
        train, _ = presets.transforms_of(dataset, size, auto_augment=name)
        black = torch.zeros_like(picture(dataset))
        white = black + (1 if dataset == "digits" else 255)
        for seed in range(30):
            for image in (picture(dataset, seed=seed), black, white):
                before = image.clone()
                found = train(image)
                assert type(found) is Tensor
                assert (found.shape, found.dtype) == ((3, size, size), torch.float32)
                pixels = found * std + mean
                assert pixels.min() > -1e-4
                assert pixels.max() < 1 + 1e-4
                assert torch.equal(image, before)


@pytest.mark.parametrize("name", presets.AUTO_AUGMENT)
@pytest.mark.parametrize("dataset", ["digits", "cifar10", "imagenet"])
def test_all_that_is_random_comes_from_torch(dataset, name):
    train, _ = presets.transforms_of(dataset, 32, auto_augment=name, random_erase=0.5)
    drawn = []
    for seed, other in ((0, 0), (0, 1), (1, 1)):
        torch.manual_seed(seed)
        random.seed(other)
        np.random.seed(other)
        drawn.append(torch.stack([train(picture(dataset)) for _ in range(10)]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[1], drawn[2])


@pytest.mark.parametrize("dataset", ["digits", "cifar10", "imagenet"])
@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.3, 0.2, 0.4), (1.0, 0.99, 1)])
def test_a_rectangle_is_erased_as_often_as_asked(dataset, share, low, high):
    """White images have no pixel at the mean, but where they are erased."""
    torch.manual_seed(0)
    train, test = presets.transforms_of(dataset, 32, random_erase=share)
    white = torch.full_like(picture(dataset), 1 if dataset == "digits" else 255)
    erased = [(train(white) == 0).all(dim=0) for _ in range(300)]
    assert low <= np.mean([mask.any().item() for mask in erased]) <= high
    for mask in erased:
        if mask.any():
            rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert mask.float().mean() < 0.38  # at most 0.33 before its sides are rounded
    assert not (test(white) == 0).any()


def test_nothing_to_mix():
    assert presets.batch_mixing(10, 0, 0.0) is None


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf")])
def test_mixing_by_wrong_numbers(alpha):
    with pytest.raises(ValueError, match=f"mixup_alpha must be at least 0 and finite; got {alpha}"):
        presets.batch_mixing(10, alpha, 1.0)
    with pytest.raises(ValueError, match=f"cutmix_alpha must be at least 0 and finite; got {alpha}"):
        presets.batch_mixing(10, 0.0, alpha)
    with pytest.raises(ValueError, match="num_classes must be at least 1; got 0"):
        presets.batch_mixing(0, 1.0, 1.0)


def mixed(mixup_alpha: float, cutmix_alpha: float, count: int) -> list[tuple[str, float]]:
    """Mixes a batch often: what was done, and the share of each image in its own place.

    Images are full of their index, so that what a pixel was made of can be read from its value.
    """
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 16, 16).contiguous()
    labels = torch.tensor([2, 0, 4, 1])
    before = images.clone()
    mix = presets.batch_mixing(5, mixup_alpha, cutmix_alpha)
    found = []
    for _ in range(count):
        mixed_images, soft = mix(images, labels)
        assert torch.equal(images, before)
        assert (soft.shape, soft.dtype) == ((4, 5), torch.float32)
        share = soft[0, 2].item()
        for index in range(4):
            expected = torch.zeros(5)
            expected[labels[index]] += share
            expected[labels[index - 1]] += 1 - share
            assert torch.allclose(soft[index], expected, atol=1e-6)
            mean = share * index + (1 - share) * ((index - 1) % 4)
            assert mixed_images[index].mean().item() == pytest.approx(mean, abs=1e-5)
        is_cut = set(mixed_images.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}
        assert is_cut or all(image.unique().numel() == 1 for image in mixed_images)
        found.append(("cutmix" if is_cut else "mixup", share))
    return found


def test_mixup_alone():
    """Integers too: of one, torch makes a distribution that cannot be drawn from."""
    torch.manual_seed(0)
    for alpha, spread in ((1, 1 / 12), (0.2, 1 / 5.6)):  # the variance of such a beta distribution: 1/(4(2a+1))
        found = mixed(alpha, 0, 600)
        assert {kind for kind, _ in found} == {"mixup"}
        assert np.var([share for _, share in found]) == pytest.approx(spread, rel=0.12)


def test_cutmix_alone():
    torch.manual_seed(0)
    assert {kind for kind, _ in mixed(0, 1, 50)} == {"cutmix"}


def test_one_of_both_each_time():
    torch.manual_seed(0)
    kinds = [kind for kind, _ in mixed(0.8, 1.0, 200)]
    assert 70 < kinds.count("mixup") < 130


def test_mixing_draws_from_torch():
    images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    mix = presets.batch_mixing(3, 0.8, 1.0)
    results = []
    for seed, other in ((0, 0), (0, 1), (1, 1)):
        torch.manual_seed(seed)
        random.seed(other)
        np.random.seed(other)
        results.append(torch.cat([mix(images, labels)[1] for _ in range(10)]))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[1], results[2])
