"""What runs on a GPU alone, as far as it shows without one."""

import distributed
import pytest
import torch


def test_a_gpu_is_the_current_one_without_torchrun_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the current one a checkpoint holds the generator."""
    gpu, chosen = torch.device("cuda", 1), []
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(distributed, "_device", lambda name: gpu)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    with distributed.processes("cuda:1") as device:
        assert (device, chosen) == (gpu, [gpu])
