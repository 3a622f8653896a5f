"""Transforms of images for training and testing, and mixing of training batches.

All randomness comes from torch's global generator.
"""

import math

import torch
from torch import Tensor
from torchvision.transforms import v2

AUTO_AUGMENT: tuple[str, ...] = ("ra", "ta_wide", "augmix", "imagenet", "cifar10", "svhn")
BILINEAR = v2.InterpolationMode.BILINEAR

# Over the 8×8 scans of the training split, scaled to [0, 1].
DIGITS_MEAN, DIGITS_STD = (0.305,) * 3, (0.376,) * 3
# Over all pixels of the training images of CIFAR-10, scaled to [0, 1].
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# The statistics of ImageNet, used for photographs in general.
PHOTO_MEAN, PHOTO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# TensorFlow's checkpoints expect values of nearly [-1, 1], exact in 8 bits.
TENSORFLOW_MEAN, TENSORFLOW_STD = (127 / 255,) * 3, (128 / 255,) * 3
# Which mean and standard deviation images are normalized with: those of the dataset, or fixed ones.
SCHEMES = ("dataset", "tensorflow")

# Mean and standard deviation by name of the dataset.
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "digits": (DIGITS_MEAN, DIGITS_STD),
    "imagefolder": (PHOTO_MEAN, PHOTO_STD),
    "cifar10": (CIFAR10_MEAN, CIFAR10_STD),
    "imagenet": (PHOTO_MEAN, PHOTO_STD),
    "fake": (PHOTO_MEAN, PHOTO_STD),
}


def transforms_of(
    dataset: str,
    image_size: int,
    *,
    auto_augment: str | None = None,
    random_erase: float = 0.0,
    scheme: str = "dataset",
) -> tuple[v2.Transform, v2.Transform]:
    """The transforms of ``dataset`` for training and for testing.

    Args:
        dataset: a key of ``NORMALIZATIONS``.
        image_size: side of the square output.
        auto_augment: augmentation of training images, one of ``AUTO_AUGMENT``: RandAugment, TrivialAugmentWide,
            AugMix, or the AutoAugment policy for the dataset of that name. Default: ``None``.
        random_erase: probability that a random rectangle of a training image is replaced by the mean.
            Default: ``0.0``.
        scheme: normalization, one of ``SCHEMES``. Default: ``"dataset"``.

    Errors: ``ValueError`` for an unknown dataset, scheme or ``auto_augment``, or a ``random_erase`` outside of [0, 1].
    """
    mean, std = normalization(dataset, scheme)
    train, test = {"digits": (digits_train, digits_eval), "cifar10": (cifar10_train, cifar10_eval)}.get(
        dataset, (photo_train, photo_eval)
    )
    transforms = train(image_size, auto_augment, random_erase), test(image_size)
    if scheme == "dataset":
        return transforms
    old_mean, old_std = normalization(dataset)
    shift = [(new - old) / scale for new, old, scale in zip(mean, old_mean, old_std, strict=True)]
    change = v2.Normalize(shift, [new / old for new, old in zip(std, old_std, strict=True)])
    train_transform, test_transform = (v2.Compose([transform, change]) for transform in transforms)
    return train_transform, test_transform


def digits_train(image_size: int, auto_augment: str | None = None, random_erase: float = 0.0) -> v2.Transform:
    """Rotates, shifts and scales digits a little; never mirrors them, since a mirrored digit is not a digit."""
    affine = v2.RandomAffine(degrees=10, translate=(0.08, 0.08), scale=(0.9, 1.1), interpolation=BILINEAR)
    resize = v2.Resize((image_size, image_size))
    return v2.Compose([resize, affine, *_policy(auto_augment), *_to_input("digits"), *_erasing(random_erase)])


def digits_eval(image_size: int) -> v2.Transform:
    return v2.Compose([v2.Resize((image_size, image_size)), *_to_input("digits")])


def cifar10_train(image_size: int, auto_augment: str | None = None, random_erase: float = 0.0) -> v2.Transform:
    """Shifts by up to 4 of the 32 pixels, mirrors half of the images, then scales."""
    shift = [v2.ToImage(), v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), *_policy(auto_augment)]
    return v2.Compose([*shift, v2.Resize((image_size, image_size)), *_to_input("cifar10"), *_erasing(random_erase)])


def cifar10_eval(image_size: int) -> v2.Transform:
    return v2.Compose([v2.ToImage(), v2.Resize((image_size, image_size)), *_to_input("cifar10")])


def photo_train(image_size: int, auto_augment: str | None = None, random_erase: float = 0.0) -> v2.Transform:
    """Crops and scales at random and mirrors half of the images."""
    crop = [v2.ToImage(), v2.RandomResizedCrop((image_size, image_size)), v2.RandomHorizontalFlip()]
    return v2.Compose([*crop, *_policy(auto_augment), *_to_input("imagefolder"), *_erasing(random_erase)])


def photo_eval(image_size: int) -> v2.Transform:
    """Crops the center: 224/256 of the shorter side."""
    crop = [v2.ToImage(), v2.Resize(round(image_size * 256 / 224)), v2.CenterCrop(image_size)]
    return v2.Compose([*crop, *_to_input("imagefolder")])


def _policy(auto_augment: str | None) -> list[v2.Transform]:
    if auto_augment is None:
        return []
    if auto_augment not in AUTO_AUGMENT:
        raise ValueError(f"auto_augment must be one of {', '.join(AUTO_AUGMENT)}; got {auto_augment!r}")
    by_name = {"ra": v2.RandAugment, "ta_wide": v2.TrivialAugmentWide, "augmix": v2.AugMix}
    if auto_augment in by_name:
        return [by_name[auto_augment](interpolation=BILINEAR)]
    return [v2.AutoAugment(v2.AutoAugmentPolicy(auto_augment), interpolation=BILINEAR)]


def _to_input(dataset: str) -> list[v2.Transform]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*normalization(dataset)), v2.ToPureTensor()]


def _erasing(random_erase: float) -> list[v2.Transform]:
    """Random erasing, for use after the normalization, when zero is the mean."""
    if not 0 <= random_erase <= 1:
        raise ValueError(f"random_erase must be in [0, 1]; got {random_erase}")
    return [v2.RandomErasing(random_erase)] if random_erase > 0 else []


def batch_mixing(num_classes: int, mixup_alpha: float, cutmix_alpha: float) -> v2.Transform | None:
    """MixUp, CutMix, or a random one of both for each batch: a function of images and labels that returns both mixed.

    Mixed labels are class probabilities, batch × ``num_classes``. Each image is mixed with the previous one, so batches
    must be shuffled.

    Args:
        num_classes: number of classes.
        mixup_alpha: parameter of MixUp's beta distribution; ``0`` disables MixUp.
        cutmix_alpha: the same for CutMix. If both are ``0``, the result is ``None``.

    Errors: ``ValueError`` for an alpha that is negative or not finite, or for less than one class.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1; got {num_classes}")
    for name, alpha in (("mixup_alpha", mixup_alpha), ("cutmix_alpha", cutmix_alpha)):
        if not 0 <= alpha < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite; got {alpha}")
    kinds = ((v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha))
    # float: torch cannot sample from a beta distribution of an integer.
    mixings = [kind(alpha=float(alpha), num_classes=num_classes) for kind, alpha in kinds if alpha > 0]
    if not mixings:
        return None
    return mixings[0] if len(mixings) == 1 else v2.RandomChoice(mixings)


def normalization(dataset: str, scheme: str = "dataset") -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation with which images of ``dataset`` are normalized.

    Errors: ``ValueError`` for an unknown dataset or scheme.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"normalization must be one of {', '.join(SCHEMES)}; got {scheme!r}")
    if dataset not in NORMALIZATIONS:
        raise ValueError(f"dataset must be one of {', '.join(NORMALIZATIONS)}; got {dataset!r}")
    return (TENSORFLOW_MEAN, TENSORFLOW_STD) if scheme == "tensorflow" else NORMALIZATIONS[dataset]


def to_display(images: Tensor, dataset: str) -> Tensor:
    """Inverts the normalization of ``dataset``: images of the same shape with values in [0, 1]."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in normalization(dataset))
    return (images * std + mean).clamp(0, 1)
