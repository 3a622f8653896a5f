"""Transforms of images and mixing of batches, compared with torchvision."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from common.data import datasets, presets
from torch import Tensor
from torchvision.transforms import v2

BILINEAR = v2.InterpolationMode.BILINEAR
# As in torchvision's training script.
POLICIES = {
    "ra": partial(v2.RandAugment, magnitude=9),
    "ta_wide": v2.TrivialAugmentWide,
    "augmix": partial(v2.AugMix, severity=3),
    "imagenet": partial(v2.AutoAugment, v2.AutoAugmentPolicy.IMAGENET),
    "cifar10": partial(v2.AutoAugment, v2.AutoAugmentPolicy.CIFAR10),
    "svhn": partial(v2.AutoAugment, v2.AutoAugmentPolicy.SVHN),
}


def random_image(dataset: str, size: int = 32, seed: int = 0) -> Tensor:
    """Noise in the type of the dataset: float for digits, bytes for the others."""
    pixels = torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed))
    return pixels if dataset == "digits" else (pixels * 256).to(torch.uint8)


def test_constants_of_digits():
    train, _, _ = datasets.load_datasets("digits")
    assert train.sources.mean().item() == pytest.approx(presets.DIGITS_MEAN[0], abs=2e-3)
    assert train.sources.std().item() == pytest.approx(presets.DIGITS_STD[0], abs=2e-3)


def test_photographs_are_mirrored_and_cropped():
    wide = torch.zeros(3, 64, 128, dtype=torch.uint8)
    wide[:, :, :64] = 255
    image = presets.photo_eval(56)(wide)
    assert image.shape == (3, 56, 56)
    center = presets.to_display(image, "imagefolder")
    assert np.allclose(center[..., :20], 1)
    assert np.allclose(center[..., -20:], 0, atol=1e-6)
    mirrored = [presets.photo_train(56)(wide)[0] for _ in range(50)]
    left_brighter = [image[:, 0].mean() > image[:, -1].mean() for image in mirrored]
    right_brighter = [image[:, 0].mean() < image[:, -1].mean() for image in mirrored]
    assert any(left_brighter)
    assert any(right_brighter)


def test_normalization_of_each_dataset():
    assert datasets.DATASETS == ("digits", "imagefolder", "cifar10", "imagenet", "fake")
    for dataset in datasets.DATASETS:
        _, test = presets.transforms_of(dataset, 32)
        mean, std = presets.normalization(dataset)
        flat = torch.full((3, 32, 32), 0.6) if dataset == "digits" else torch.full((3, 32, 32), 153, dtype=torch.uint8)
        for channel in range(3):
            assert torch.allclose(test(flat)[channel], torch.tensor((0.6 - mean[channel]) / std[channel]))
        assert torch.allclose(presets.to_display(test(flat)[None], dataset), torch.full((1, 3, 32, 32), 0.6))
    assert len({presets.normalization(dataset) for dataset in datasets.DATASETS}) == 3
    assert presets.normalization("imagenet") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for function in (presets.normalization, partial(presets.to_display, torch.rand(3, 8, 8))):
        with pytest.raises(ValueError, match="dataset must be one of digits, .*; got 'mnist'"):
            function("mnist")


def test_displayed_images_are_clamped():
    assert presets.to_display(torch.full((3, 2, 2), 9.0), "cifar10").eq(1).all()
    assert presets.to_display(torch.full((3, 2, 2), -9.0), "cifar10").eq(0).all()


def test_photographs_are_transformed_as_in_torchvision():
    image = random_image("imagenet", 50)
    train, test = presets.transforms_of("imagenet", 224, auto_augment="ra", random_erase=0.5)
    scale = [v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    augment = [POLICIES["ra"](interpolation=BILINEAR)]
    crop = [v2.RandomResizedCrop(224, interpolation=BILINEAR, antialias=True), v2.RandomHorizontalFlip(0.5)]
    expected = v2.Compose([*crop, *augment, *scale, v2.RandomErasing(p=0.5)])
    for seed in range(10):
        torch.manual_seed(seed)
        output = train(image)
        torch.manual_seed(seed)
        assert torch.equal(output, expected(image))
    assert torch.equal(
        test(image), v2.Compose([v2.Resize(256, interpolation=BILINEAR), v2.CenterCrop(224), *scale])(image)
    )


def test_cifar10_is_shifted_by_up_to_four_pixels_and_mirrored():
    image = random_image("cifar10")
    train, test = presets.transforms_of("cifar10", 32)
    padded = torch.zeros(3, 40, 40, dtype=torch.uint8)
    padded[:, 4:36, 4:36] = image
    crops = {}
    for top in range(9):
        for left in range(9):
            window = padded[:, top : top + 32, left : left + 32]
            crops[window.numpy().tobytes()] = (top, left, False)
            crops[window.flip(2).numpy().tobytes()] = (top, left, True)
    torch.manual_seed(0)
    drawn = set()
    for _ in range(300):
        pixels = (presets.to_display(train(image), "cifar10") * 255).round().to(torch.uint8)
        drawn.add(crops[pixels.contiguous().numpy().tobytes()])
    for values, expected in zip(zip(*drawn, strict=True), (range(9), range(9), (False, True)), strict=True):
        assert set(values) == set(expected)
    assert torch.allclose(presets.to_display(test(image), "cifar10") * 255, image.float(), atol=1e-3)


def test_cifar10_is_scaled_to_other_sizes():
    image = random_image("cifar10")
    scaled = presets.to_display(presets.transforms_of("cifar10", 64)[1](image), "cifar10")
    expected = torch.nn.functional.interpolate(image[None].float(), size=(64, 64), mode="bilinear")[0] / 255
    assert (scaled - expected).abs().max() < 1.1 / 255  # bytes are rounded


def test_policies_equal_torchvision():
    assert set(POLICIES) == set(presets.AUTO_AUGMENT)
    for name in presets.AUTO_AUGMENT:
        image = random_image("digits")
        train, _ = presets.transforms_of("digits", 32, auto_augment=name)
        without_policy, _ = presets.transforms_of("digits", 32)
        policy = POLICIES[name](interpolation=BILINEAR)
        differing = 0
        for seed in range(20):
            torch.manual_seed(seed)
            output = train(image)
            torch.manual_seed(seed)
            plain = without_policy(image)
            assert torch.allclose(
                output, v2.Normalize((0.305,) * 3, (0.376,) * 3)(policy(presets.to_display(plain, "digits"))), atol=1e-4
            )
            differing += not torch.equal(output, plain)
        assert differing > 10


@pytest.mark.parametrize("name", presets.AUTO_AUGMENT)
@pytest.mark.parametrize("dataset", datasets.DATASETS)
def test_policies_work_on_every_dataset(dataset, name):
    """No error and no pixel out of range, for small, large, noisy, black and white images."""
    torch.manual_seed(0)
    mean, std = (torch.tensor(values)[:, None, None] for values in presets.normalization(dataset))
    for size in (8, 40):
        train, _ = presets.transforms_of(dataset, size, auto_augment=name)
        black = torch.zeros_like(random_image(dataset))
        white = black + (1 if dataset == "digits" else 255)
        for seed in range(30):
            for image in (random_image(dataset, seed=seed), black, white):
                original = image.clone()
                output = train(image)
                assert type(output) is Tensor
                assert (output.shape, output.dtype) == ((3, size, size), torch.float32)
                pixels = output * std + mean
                assert pixels.min() > -1e-4
                assert pixels.max() < 1 + 1e-4
                assert torch.equal(image, original)


@pytest.mark.parametrize("name", presets.AUTO_AUGMENT)
@pytest.mark.parametrize("dataset", ["digits", "cifar10", "imagenet"])
def test_only_torch_draws_random_numbers(dataset, name):
    train, _ = presets.transforms_of(dataset, 32, auto_augment=name, random_erase=0.5)
    outputs = []
    for seed, other in ((0, 0), (0, 1), (1, 1)):
        torch.manual_seed(seed)
        random.seed(other)
        np.random.seed(other)
        outputs.append(torch.stack([train(random_image(dataset)) for _ in range(10)]))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[1], outputs[2])


@pytest.mark.parametrize("dataset", ["digits", "cifar10", "imagenet"])
@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.3, 0.2, 0.4), (1.0, 0.99, 1)])
def test_random_erasing(dataset, share, low, high):
    """In a white image, only erased pixels equal the mean."""
    torch.manual_seed(0)
    train, test = presets.transforms_of(dataset, 32, random_erase=share)
    white = torch.full_like(random_image(dataset), 1 if dataset == "digits" else 255)
    erased = [(train(white) == 0).all(dim=0) for _ in range(300)]
    assert low <= np.mean([mask.any().item() for mask in erased]) <= high
    for mask in erased:
        if mask.any():
            rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
            assert mask.float().mean() < 0.38  # at most 0.33 before rounding of the sides
    assert not (test(white) == 0).any()


def test_no_mixing():
    assert presets.batch_mixing(10, 0, 0.0) is None


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf")])
def test_bad_mixing_parameters(alpha):
    with pytest.raises(ValueError, match=f"mixup_alpha must be at least 0 and finite; got {alpha}"):
        presets.batch_mixing(10, alpha, 1.0)
    with pytest.raises(ValueError, match=f"cutmix_alpha must be at least 0 and finite; got {alpha}"):
        presets.batch_mixing(10, 0.0, alpha)
    with pytest.raises(ValueError, match="num_classes must be at least 1; got 0"):
        presets.batch_mixing(0, 1.0, 1.0)


def mixed(mixup_alpha: float, cutmix_alpha: float, count: int) -> list[tuple[str, float]]:
    """Mixes a batch ``count`` times; returns the method and the share of the first of both images.

    The pixels of an image are its index, so that their values show how they were mixed.
    """
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 16, 16).contiguous()
    labels = torch.tensor([2, 0, 4, 1])
    original = images.clone()
    mix = presets.batch_mixing(5, mixup_alpha, cutmix_alpha)
    results = []
    for _ in range(count):
        mixed_images, soft = mix(images, labels)
        assert torch.equal(images, original)
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
        results.append(("cutmix" if is_cut else "mixup", share))
    return results


def test_mixup_alone():
    """Also for an integer alpha, from whose distribution torch cannot sample."""
    torch.manual_seed(0)
    for alpha, variance in ((1, 1 / 12), (0.2, 1 / 5.6)):  # the beta distribution has 1/(4(2a+1))
        results = mixed(alpha, 0, 600)
        assert {method for method, _ in results} == {"mixup"}
        assert np.var([share for _, share in results]) == pytest.approx(variance, rel=0.12)


def test_cutmix_alone():
    torch.manual_seed(0)
    assert {method for method, _ in mixed(0, 1, 50)} == {"cutmix"}


def test_mixup_and_cutmix():
    torch.manual_seed(0)
    methods = [method for method, _ in mixed(0.8, 1.0, 200)]
    assert 70 < methods.count("mixup") < 130


def test_mixing_uses_random_numbers_of_torch():
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
