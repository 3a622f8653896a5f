"""Checks of training in several processes."""

import copy
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from .._case import Case, loss_of, run_seeded
from .._check import NotApplicable, Tier, check
from .._modes import isolated_modes
from ._not_applicable import BATCH_STATISTICS, NO_PARAMETERS, TRAIN_EVAL, trainable

__all__ = ["ddp", "ddp_two", "fsdp2", "fsdp2_meta", "fsdp2_two", "syncbn"]

# An operation in place on the output would be lost; these checks have none.
_VIEWS = ((r"FSDP2-wrapped module .* returned a view tensor", UserWarning),)

IN_A_GROUP = NotApplicable("already runs in a process group", lambda case: dist.is_initialized())


NO_SECOND_DEVICE = NotApplicable(
    "has no second GPU for the second process",
    lambda case: case.device.type == "cuda" and torch.cuda.device_count() < 2,
    is_of_device=True,
)


@contextmanager
def group(folder: Path, device: torch.device, rank: int = 0, world_size: int = 1) -> Iterator[None]:
    hook = sys.excepthook  # torch wraps it whenever a group starts, and never restores it
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{folder / 'store'}",
        rank=rank,
        world_size=world_size,
        device_id=device if device.type == "cuda" else None,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()
        sys.excepthook = hook


def _shard(layer: nn.Module) -> nn.Module:
    kind = "cuda" if dist.get_backend() == "nccl" else "cpu"
    fully_shard(layer, mesh=init_device_mesh(kind, (dist.get_world_size(),)))  # in place
    return layer


def _gradients(layer: nn.Module, input: Tensor) -> dict[str, Tensor]:
    """Unsharded gradients by parameter name."""
    loss_of(run_seeded(layer, input)).backward()
    gradients = {}
    for name, parameter in trainable(layer):
        assert parameter.grad is not None, f"no gradient reaches {name}"
        whole = parameter.grad.full_tensor() if hasattr(parameter.grad, "full_tensor") else parameter.grad
        gradients[name.removeprefix("module.")] = whole.detach().clone()
    return gradients


def _assert_same(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = max(1.0, float(gradient.abs().max()))
        try:
            torch.testing.assert_close(got[name], gradient, rtol=1e-6, atol=1e-6 * scale)
        except AssertionError as error:
            raise AssertionError(f"gradient of {name}: {error}") from error


def _check_alone(case: Case, wrap: Callable[[nn.Module], nn.Module]) -> None:
    layer, input = case.layer(), case.input()
    expected = _gradients(copy.deepcopy(layer), input)
    with tempfile.TemporaryDirectory() as folder, group(Path(folder), case.device):
        _assert_same(_gradients(wrap(layer), input), expected)


@check("ddp", variants=TRAIN_EVAL, not_applicable=(NO_PARAMETERS, IN_A_GROUP))
def ddp(case: Case) -> None:
    """Gradients under DistributedDataParallel in a group of one equal those of the layer alone."""
    _check_alone(case, DistributedDataParallel)


@check("fsdp2", variants=TRAIN_EVAL, not_applicable=(NO_PARAMETERS, IN_A_GROUP), ignored_warnings=_VIEWS)
def fsdp2(case: Case) -> None:
    """Gradients under ``fully_shard`` in a group of one equal those of the layer alone."""
    _check_alone(case, _shard)


@check("fsdp2_meta", not_applicable=(NO_PARAMETERS, IN_A_GROUP), ignored_warnings=_VIEWS)
def fsdp2_meta(case: Case) -> None:
    """Built on meta, sharded and filled from a state dict, the layer has bit-equal outputs."""
    layer, input = case.layer(), case.input()
    expected = layer(input)
    with torch.device("meta"):
        empty = case.fresh()
    with tempfile.TemporaryDirectory() as folder, group(Path(folder), case.device):
        sharded = _shard(empty).to_empty(device=case.device)
        set_model_state_dict(sharded, layer.state_dict(), options=StateDictOptions(full_state_dict=True))
        assert torch.equal(sharded(input), expected), "outputs differ"


def _train_one_shard(rank: int, folder: Path, wrap: Callable[[nn.Module], nn.Module], kind: str) -> None:
    """Run half of the batch in one of two processes, and write the gradients to a file."""
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    layer, input = torch.load(folder / "job.pt", map_location=device, weights_only=False)
    torch.set_num_threads(1)
    with group(folder, device, rank, 2), isolated_modes(device):
        gradients = _gradients(wrap(layer), input.chunk(2)[rank])
        if rank == 0:
            torch.save(gradients, folder / "gradients.pt")
        dist.barrier()
        os._exit(0)  # after fully_shard, gloo's threads sometimes abort during an orderly exit


def _check_two(case: Case, wrap: Callable[[nn.Module], nn.Module]) -> None:
    layer = case.layer()
    input = torch.cat([case.input(), case.input()])
    shards = [_gradients(copy.deepcopy(layer), half) for half in input.chunk(2)]
    expected = {name: (shards[0][name] + shards[1][name]) / 2 for name in shards[0]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save((layer, input), folder / "job.pt")
        torch.multiprocessing.spawn(_train_one_shard, (folder, wrap, case.device.type), nprocs=2)
        gradients = torch.load(folder / "gradients.pt", map_location=case.device, weights_only=True)
        _assert_same(gradients, expected)


@check("ddp_two", tier=Tier.NIGHTLY, variants=("train",), not_applicable=(NO_PARAMETERS, NO_SECOND_DEVICE))
def ddp_two(case: Case) -> None:
    """In two processes with half of the batch each, DistributedDataParallel averages their gradients."""
    _check_two(case, DistributedDataParallel)


@check(
    "fsdp2_two", tier=Tier.NIGHTLY, variants=("train",), not_applicable=(NO_PARAMETERS, IN_A_GROUP, NO_SECOND_DEVICE)
)
def fsdp2_two(case: Case) -> None:
    """In two processes with half of the batch and weights each, ``fully_shard`` averages their gradients."""
    _check_two(case, _shard)


@check("syncbn", not_applicable=(BATCH_STATISTICS,))
def syncbn(case: Case) -> None:
    """``convert_sync_batchnorm`` changes only batch norms, and outputs in eval mode are bit-equal."""
    layer, input = case.layer(), case.input()
    expected = layer(input)
    kinds = {name: type(module) for name, module in layer.named_modules()}
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer))
    for name, module in converted.named_modules():
        before = kinds.pop(name)
        is_batch_norm = issubclass(before, nn.modules.batchnorm._BatchNorm)
        assert type(module) is (nn.SyncBatchNorm if is_batch_norm else before), f"{name} became {type(module).__name__}"
    assert not kinds, f"missing modules: {sorted(kinds)}"
    assert torch.equal(converted(input), expected), "outputs differ"
