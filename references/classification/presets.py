"""What is done to an image between the file and the model, and to a batch before the model sees it.

Whatever is random is drawn from torch's global generator.
"""

import math

import torch
from torch import Tensor
from torchvision.transforms import v2

AUTO_AUGMENT: tuple[str, ...] = ("ra", "ta_wide", "augmix", "imagenet", "cifar10", "svhn")
BILINEAR = v2.InterpolationMode.BILINEAR

# Over the bare 8×8 scans of the training split, scaled to [0, 1].
DIGITS_MEAN, DIGITS_STD = (0.305,) * 3, (0.376,) * 3
# Over all pixels of the training images of CIFAR-10, scaled to [0, 1].
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# ImageNet's, which serve photographs in general.
PHOTO_MEAN, PHOTO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# By the names of the datasets.
NORMALIZATIONS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "digits": (DIGITS_MEAN, DIGITS_STD),
    "imagefolder": (PHOTO_MEAN, PHOTO_STD),
    "cifar10": (CIFAR10_MEAN, CIFAR10_STD),
    "imagenet": (PHOTO_MEAN, PHOTO_STD),
    "fake": (PHOTO_MEAN, PHOTO_STD),
}


def transforms_of(
    dataset: str, image_size: int, *, auto_augment: str | None = None, random_erase: float = 0.0
) -> tuple[v2.Transform, v2.Transform]:
    """What training images and what test images of ``dataset`` go through.

    Args:
        dataset: a key of ``NORMALIZATIONS``.
        image_size: side of the square that comes out.
        auto_augment: one of ``AUTO_AUGMENT``: RandAugment, TrivialAugmentWide, AugMix, or the policy that AutoAugment
            found on the dataset of that name; for training images. Default: ``None``, none of them.
        random_erase: how likely a training image has a random rectangle replaced by the mean. Default: ``0.0``.

    Errors: ``ValueError`` for an unknown dataset or ``auto_augment``, or a ``random_erase`` that is no probability.
    """
    normalization(dataset)
    train, test = {"digits": (digits_train, digits_eval), "cifar10": (cifar10_train, cifar10_eval)}.get(
        dataset, (photo_train, photo_eval)
    )
    return train(image_size, auto_augment, random_erase), test(image_size)


def digits_train(image_size: int, auto_augment: str | None = None, random_erase: float = 0.0) -> v2.Transform:
    """Digits turned, moved and scaled a little; never mirrored, since a mirrored digit is no digit."""
    turn = v2.RandomAffine(degrees=10, translate=(0.08, 0.08), scale=(0.9, 1.1), interpolation=BILINEAR)
    resize = v2.Resize((image_size, image_size))
    return v2.Compose([resize, turn, *_policy(auto_augment), *_to_input("digits"), *_erasing(random_erase)])


def digits_eval(image_size: int) -> v2.Transform:
    return v2.Compose([v2.Resize((image_size, image_size)), *_to_input("digits")])


def cifar10_train(image_size: int, auto_augment: str | None = None, random_erase: float = 0.0) -> v2.Transform:
    """Moved by up to 4 of the 32 pixels, mirrored half of the time, and scaled last."""
    move = [v2.ToImage(), v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), *_policy(auto_augment)]
    return v2.Compose([*move, v2.Resize((image_size, image_size)), *_to_input("cifar10"), *_erasing(random_erase)])


def cifar10_eval(image_size: int) -> v2.Transform:
    return v2.Compose([v2.ToImage(), v2.Resize((image_size, image_size)), *_to_input("cifar10")])


def photo_train(image_size: int, auto_augment: str | None = None, random_erase: float = 0.0) -> v2.Transform:
    """A random part of the photograph, mirrored half of the time."""
    part = [v2.ToImage(), v2.RandomResizedCrop((image_size, image_size)), v2.RandomHorizontalFlip()]
    return v2.Compose([*part, *_policy(auto_augment), *_to_input("imagefolder"), *_erasing(random_erase)])


def photo_eval(image_size: int) -> v2.Transform:
    """The middle of the photograph: 224 of 256 pixels of its shorter side, in proportion."""
    part = [v2.ToImage(), v2.Resize(round(image_size * 256 / 224)), v2.CenterCrop(image_size)]
    return v2.Compose([*part, *_to_input("imagefolder")])


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
    """Stands after the normalization, where zero is the mean."""
    if not 0 <= random_erase <= 1:
        raise ValueError(f"random_erase must be in [0, 1]; got {random_erase}")
    return [v2.RandomErasing(random_erase)] if random_erase > 0 else []


def batch_mixing(num_classes: int, mixup_alpha: float, cutmix_alpha: float) -> v2.Transform | None:
    """MixUp, CutMix, or for each batch one of the two: called with images and labels, gives both mixed.

    Labels come back as a share of each class, batch × ``num_classes``. Each image is mixed with the one before it, so
    batches must be shuffled.

    Args:
        num_classes: how many labels there are.
        mixup_alpha: of the beta distribution that the share is drawn from; ``0`` leaves MixUp out.
        cutmix_alpha: the same for CutMix. With both ``0`` there is nothing to mix: ``None``.

    Errors: ``ValueError`` for an alpha that is negative or not finite, or for less than one class.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1; got {num_classes}")
    for name, alpha in (("mixup_alpha", mixup_alpha), ("cutmix_alpha", cutmix_alpha)):
        if not 0 <= alpha < math.inf:
            raise ValueError(f"{name} must be at least 0 and finite; got {alpha}")
    kinds = ((v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha))
    # As a float: of an integer torch makes a distribution that cannot be drawn from.
    mixings = [kind(alpha=float(alpha), num_classes=num_classes) for kind, alpha in kinds if alpha > 0]
    if not mixings:
        return None
    return mixings[0] if len(mixings) == 1 else v2.RandomChoice(mixings)


def normalization(dataset: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that images of ``dataset`` are normalized with.

    Errors: ``ValueError`` for an unknown dataset.
    """
    if dataset not in NORMALIZATIONS:
        raise ValueError(f"dataset must be one of {', '.join(NORMALIZATIONS)}; got {dataset!r}")
    return NORMALIZATIONS[dataset]


def to_display(images: Tensor, dataset: str) -> Tensor:
    """Undoes the normalization of ``dataset``, for pictures: values in [0, 1], shape as given."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in normalization(dataset))
    return (images * std + mean).clamp(0, 1)
