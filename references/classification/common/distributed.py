"""One process or many: process groups, collectives, and models that are parallel over processes.

``torchrun`` starts many processes. Without it there is one, and the collectives return their input.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def process_group(device: str | None = None) -> Iterator[torch.device]:
    """Joins the process group of ``torchrun``, if any, and yields the device of this process.

    The backend is NCCL on GPUs and Gloo elsewhere.

    Args:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ... Default: ``None``, a GPU if there is one.

    Raises:
        ValueError: if the device does not exist.
    """
    own_device = _device(device)
    if own_device.type == "cuda":
        torch.cuda.set_device(own_device)  # checkpoints hold the generator of the current GPU
    if "RANK" not in os.environ:
        yield own_device
        return
    store, own_rank, size = next(dist.rendezvous("env://"))
    # torchrun keeps its store when it restarts workers, and with it the addresses of the previous ones.
    store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend = "nccl" if own_device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=size)
    try:
        yield own_device
    finally:
        dist.destroy_process_group()


def _device(name: str | None) -> torch.device:
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be known to torch; got {name!r}") from error
    if not torch.amp.is_autocast_available(device.type):
        raise ValueError(f"device must be able to compute; got {name!r}")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    try:
        torch.empty(1, device=device)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"device must exist; got {name!r} ({str(error).splitlines()[0]})") from error
    return device


def describe(device: torch.device) -> str:
    """The device, with the name of a GPU."""
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def gather_rows(values: list[float], device: torch.device) -> Tensor:
    """The ``values`` of every process as a CPU tensor with one row per process."""
    row = torch.tensor(values, dtype=torch.float64)
    if world_size() == 1:
        return row[None]
    rows = [torch.empty_like(row, device=device) for _ in range(world_size())]
    dist.all_gather(rows, row.to(device))
    return torch.stack(rows).cpu()


def gather_objects(value: object) -> list:
    """The ``value`` of every process."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def broadcast_buffers(model: nn.Module) -> None:
    """Copies the buffers of the first process, such as batch norm statistics, to all others."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def wrap_ddp(model: nn.Module, device: torch.device, fsdp: bool = False) -> nn.Module:
    """The module to call in training, which averages gradients over the processes.

    It is ``model`` itself in a single process, and with ``fsdp``, which shards the parameters in place.
    """
    if fsdp:
        shard(model)
    if fsdp or world_size() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def shard(model: nn.Module) -> None:
    """Shards the parameters over the processes in place (FSDP2): one group per block of a stage, one for the rest."""
    for stage in model.children():
        if isinstance(stage, nn.Sequential):
            for block in stage:
                if next(block.parameters(), None) is not None:
                    fully_shard(block)
    fully_shard(model)


def local_shard(value: Tensor) -> Tensor:
    """The part of a sharded tensor that this process holds; an ordinary tensor unchanged."""
    value = value.detach()
    return value.to_local() if isinstance(value, DTensor) else value
