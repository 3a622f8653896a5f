"""Scenes with a mask: handwritten digits on cards on a table.

The digits are the 1,797 scans of scikit-learn. Four fifths are on the cards of training scenes, and the others on those
of test scenes. A card has a size, angle, place and paper of its own, and may cover a part of another.
"""

import math
from typing import NamedTuple

import torch
from shared import normalization
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F

__all__ = ["CLASSES", "Scenes", "compose", "digit_scans", "displayable", "test_scenes", "training_scenes"]

CLASSES = ("background", *(str(digit) for digit in range(10)))
SPLIT_SEED = 0
TEST_SEED = 12345
SIDES = (0.36, 0.5)  # of a card, as parts of the side of a scene
LARGEST_ANGLE = math.radians(12)
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in normalization("digits", "dataset"))


class Scenes(NamedTuple):
    """Normalized images (N, 3, S, S), and the class of each pixel (N, S, S)."""

    images: Tensor
    masks: Tensor


def digit_scans(is_training: bool) -> tuple[Tensor, Tensor]:
    """Scans (N, 1, 8, 8) from 0 for paper to 1 for ink, and their digits."""
    digits = load_digits()
    split = train_test_split(
        digits.images, digits.target, test_size=0.2, random_state=SPLIT_SEED, stratify=digits.target
    )
    images, labels = (split[0], split[2]) if is_training else (split[1], split[3])
    return torch.from_numpy(images / 16).float().unsqueeze(1), torch.from_numpy(labels).long()


def compose(scans: Tensor, digits: Tensor, count: int, size: int, generator: torch.Generator) -> Scenes:
    """Draws ``count`` scenes, each with a card in most of its quarters."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    images = uniform(0.15, 0.5, 3, 1, 1) + 0.05 * torch.randn(count, 3, size, size, generator=generator)
    masks = torch.zeros(count, size, size, dtype=torch.long)
    for quarter in range(4):
        chosen = torch.randint(len(scans), (count,), generator=generator)
        corner = torch.tensor([2.0 * (quarter % 2) - 1, 2.0 * (quarter // 2) - 1])
        centre = 0.45 * corner + uniform(-0.12, 0.12, 2)
        side, angle = uniform(*SIDES), uniform(-LARGEST_ANGLE, LARGEST_ANGLE)
        cosine, sine = angle.cos() / side, angle.sin() / side
        turn = torch.stack([torch.stack([cosine, sine], 1), torch.stack([-sine, cosine], 1)], 1)
        maps = torch.cat([turn, -turn @ centre.unsqueeze(2)], 2)
        places = F.affine_grid(maps, [count, 1, size, size], align_corners=False)
        ink = F.grid_sample(scans[chosen], places, padding_mode="border", align_corners=False)
        paper, stroke = uniform(0.65, 1.0, 3, 1, 1), uniform(0.0, 0.25, 3, 1, 1)
        is_card = (places.abs().amax(3) <= 1) & (uniform(0, 1, 1, 1) < 0.8)
        images = torch.where(is_card.unsqueeze(1), paper * (1 - ink) + stroke * ink, images)
        masks = torch.where(is_card, digits[chosen].view(-1, 1, 1) + 1, masks)
    return Scenes((images - MEAN) / STD, masks)


def training_scenes(count: int, size: int, seed: int, epoch: int) -> Scenes:
    """Scenes of one epoch, which no other epoch has."""
    generator = torch.Generator().manual_seed(100_003 * seed + epoch)
    return compose(*digit_scans(True), count, size, generator)


def test_scenes(count: int, size: int) -> Scenes:
    """Scenes that are the same in every run."""
    return compose(*digit_scans(False), count, size, torch.Generator().manual_seed(TEST_SEED))


def displayable(images: Tensor) -> Tensor:
    """Images with values from 0 to 1."""
    return (images * STD + MEAN).clamp(0, 1)
