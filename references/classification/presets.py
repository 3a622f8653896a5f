"""What is done to an image between the file and the model."""

import torch
from torch import Tensor
from torchvision.transforms import v2

# Over the bare 8×8 scans of the training split, scaled to [0, 1].
DIGITS_MEAN, DIGITS_STD = (0.305,) * 3, (0.376,) * 3
# ImageNet's, which serve photographs in general.
PHOTO_MEAN, PHOTO_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def digits_train(image_size: int) -> v2.Transform:
    """Digits turned, moved and scaled a little; never mirrored, since a mirrored digit is no digit."""
    return v2.Compose(
        [
            v2.Resize((image_size, image_size)),
            v2.RandomAffine(
                degrees=10, translate=(0.08, 0.08), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR
            ),
            v2.Normalize(DIGITS_MEAN, DIGITS_STD),
        ]
    )


def digits_eval(image_size: int) -> v2.Transform:
    return v2.Compose([v2.Resize((image_size, image_size)), v2.Normalize(DIGITS_MEAN, DIGITS_STD)])


def photo_train(image_size: int) -> v2.Transform:
    """A random part of the photograph, mirrored half of the time."""
    return v2.Compose(
        [v2.ToImage(), v2.RandomResizedCrop((image_size, image_size)), v2.RandomHorizontalFlip(), *_photo_to_input()]
    )


def photo_eval(image_size: int) -> v2.Transform:
    """The middle of the photograph: 224 of 256 pixels of its shorter side, in proportion."""
    return v2.Compose(
        [v2.ToImage(), v2.Resize(round(image_size * 256 / 224)), v2.CenterCrop(image_size), *_photo_to_input()]
    )


def _photo_to_input() -> list[v2.Transform]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(PHOTO_MEAN, PHOTO_STD), v2.ToPureTensor()]


def normalization(dataset: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation that images of ``dataset`` are normalized with."""
    return (DIGITS_MEAN, DIGITS_STD) if dataset == "digits" else (PHOTO_MEAN, PHOTO_STD)


def to_display(images: Tensor, dataset: str) -> Tensor:
    """Undoes the normalisation of ``dataset``, for pictures: values in [0, 1], shape as given."""
    mean, std = normalization(dataset)
    return (images * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]).clamp(0, 1)
