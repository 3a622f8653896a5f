"""Seeds, states of generators, and deterministic algorithms."""

import random

import numpy as np
import pytest
import torch
from common.runs import reproducibility


def draw_numbers() -> tuple:
    return random.random(), np.random.rand(), torch.rand(()).item()


def test_seed_and_epoch_determine_all_generators():
    drawn = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
        reproducibility.seed_everything(seed, epoch)
        drawn[seed, epoch] = draw_numbers()
        reproducibility.seed_everything(seed, epoch)
        assert draw_numbers() == drawn[seed, epoch]
    for numbers in zip(*drawn.values(), strict=True):
        assert len(set(numbers)) == 4


def test_generators_are_restored(tmp_path):
    torch.save(reproducibility.generator_states(), tmp_path / "generators.pth")
    numbers = draw_numbers()
    reproducibility.restore_generators(torch.load(tmp_path / "generators.pth", weights_only=True))
    assert draw_numbers() == numbers != draw_numbers()


def test_deterministic_algorithms_only_inside():
    @reproducibility.deterministic_algorithms()
    def fail():
        assert torch.are_deterministic_algorithms_enabled()
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
