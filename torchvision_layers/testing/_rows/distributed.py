"""Rows on training in several processes."""

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

from .._cell import Cell, run_seeded
from .._row import NA, Tier, row
from ._applies import BATCH_STATISTICS, NO_PARAMETERS, TRAIN_EVAL, trainable

__all__ = ["ddp", "ddp_two", "fsdp2", "fsdp2_meta", "fsdp2_two", "syncbn"]

# What follows such a layer in place would be lost; nothing follows here.
_VIEWS = ((r"FSDP2-wrapped module .* returned a view tensor", UserWarning),)

IN_A_GROUP = NA("runs inside of a process group already", lambda cell: dist.is_initialized())


@contextmanager
def group(folder: Path, rank: int = 0, world_size: int = 1) -> Iterator[None]:
    hook = sys.excepthook  # torch wraps it at each start of a group, and never takes that back
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world_size)
    try:
        yield
    finally:
        dist.destroy_process_group()
        sys.excepthook = hook


def _shard(layer: nn.Module) -> nn.Module:
    fully_shard(layer, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))  # in place
    return layer


def _gradients(layer: nn.Module, input: Tensor) -> dict[str, Tensor]:
    """Gradients by the parameter's own name, whole where they are sharded."""
    run_seeded(layer, input).square().sum().backward()
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


def _check_alone(cell: Cell, wrap: Callable[[nn.Module], nn.Module]) -> None:
    layer, input = cell.layer(), cell.input()
    expected = _gradients(copy.deepcopy(layer), input)
    with tempfile.TemporaryDirectory() as folder, group(Path(folder)):
        _assert_same(_gradients(wrap(layer), input), expected)


@row("ddp", variants=TRAIN_EVAL, not_applicable=(NO_PARAMETERS, IN_A_GROUP))
def ddp(cell: Cell) -> None:
    """Under DistributedDataParallel, in a group of one, the gradients are those of the layer alone."""
    _check_alone(cell, DistributedDataParallel)


@row("fsdp2", variants=TRAIN_EVAL, not_applicable=(NO_PARAMETERS, IN_A_GROUP), ignored_warnings=_VIEWS)
def fsdp2(cell: Cell) -> None:
    """Under ``fully_shard``, in a group of one, the gradients are those of the layer alone."""
    _check_alone(cell, _shard)


@row("fsdp2_meta", not_applicable=(NO_PARAMETERS, IN_A_GROUP), ignored_warnings=_VIEWS)
def fsdp2_meta(cell: Cell) -> None:
    """Built on meta, sharded and then filled from a state dict, it gives the same bits."""
    layer, input = cell.layer(), cell.input()
    expected = layer(input)
    with torch.device("meta"):
        empty = cell.fresh()
    with tempfile.TemporaryDirectory() as folder, group(Path(folder)):
        sharded = _shard(empty).to_empty(device="cpu")
        set_model_state_dict(sharded, layer.state_dict(), options=StateDictOptions(full_state_dict=True))
        assert torch.equal(sharded(input), expected), "it gives other values"


def _train_one_shard(rank: int, folder: Path, wrap: Callable[[nn.Module], nn.Module]) -> None:
    """What each of two processes does: its own half of the batch, then the gradients into a file."""
    layer, input = torch.load(folder / "job.pt", weights_only=False)
    torch.set_num_threads(1)
    with group(folder, rank, 2):
        gradients = _gradients(wrap(layer), input.chunk(2)[rank])
        if rank == 0:
            torch.save(gradients, folder / "gradients.pt")
        dist.barrier()
        os._exit(0)  # gloo's threads abort now and then in an orderly exit after fully_shard


def _check_two(cell: Cell, wrap: Callable[[nn.Module], nn.Module]) -> None:
    layer = cell.layer()
    input = torch.cat([cell.input(), cell.input()])
    shards = [_gradients(copy.deepcopy(layer), half) for half in input.chunk(2)]
    expected = {name: (shards[0][name] + shards[1][name]) / 2 for name in shards[0]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save((layer, input), folder / "job.pt")
        torch.multiprocessing.spawn(_train_one_shard, (folder, wrap), nprocs=2)
        _assert_same(torch.load(folder / "gradients.pt", weights_only=True), expected)


@row("ddp_two", tier=Tier.NIGHTLY, variants=("train",), not_applicable=(NO_PARAMETERS,))
def ddp_two(cell: Cell) -> None:
    """In two processes, each with half of the batch, DistributedDataParallel gives the mean of their gradients."""
    _check_two(cell, DistributedDataParallel)


@row("fsdp2_two", tier=Tier.NIGHTLY, variants=("train",), not_applicable=(NO_PARAMETERS, IN_A_GROUP))
def fsdp2_two(cell: Cell) -> None:
    """In two processes, each with half of the batch and of the weights, ``fully_shard`` gives the mean."""
    _check_two(cell, _shard)


@row("syncbn", not_applicable=(BATCH_STATISTICS,))
def syncbn(cell: Cell) -> None:
    """``convert_sync_batchnorm`` changes batch norms and nothing else, and eval gives the same bits."""
    layer, input = cell.layer(), cell.input()
    expected = layer(input)
    kinds = {name: type(module) for name, module in layer.named_modules()}
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(layer))
    for name, module in converted.named_modules():
        was = kinds.pop(name)
        is_batch_norm = issubclass(was, nn.modules.batchnorm._BatchNorm)
        assert type(module) is (nn.SyncBatchNorm if is_batch_norm else was), f"{name} became {type(module).__name__}"
    assert not kinds, f"gone: {sorted(kinds)}"
    assert torch.equal(converted(input), expected), "it gives other values"
