"""Code for GPUs, as far as it can be tested without one."""

import pytest
import torch
from common import distributed


def test_gpu_becomes_current_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints hold the generator of the current GPU."""
    gpu, current = torch.device("cuda", 1), []
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(distributed, "_device", lambda name: gpu)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    with distributed.process_group("cuda:1") as device:
        assert (device, current) == (gpu, [gpu])


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert distributed.describe(torch.device("cuda", 1)) == "cuda:1 (GPU 1)"
    assert distributed.describe(torch.device("cpu")) == "cpu"
