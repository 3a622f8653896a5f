"""One process or many: starting them, what they tell each other, and models spread over them.

``torchrun`` starts many; without it there is one, for which all of this is nothing.
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
def processes(device: str | None = None) -> Iterator[torch.device]:
    """Joins the processes that ``torchrun`` started, by NCCL on GPUs, by Gloo elsewhere; gives this one's device.

    Args:
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ... Default: ``None``, a GPU where there is one.

    Raises:
        ValueError: for a device that does not exist here.
    """
    chosen = _device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # whose generator a checkpoint holds
    if "RANK" not in os.environ:
        yield chosen
        return
    store, place, whole = next(dist.rendezvous("env://"))
    # torchrun keeps its store when it restarts workers, and in it the addresses of those that ended.
    store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", store=store, rank=place, world_size=whole)
    try:
        yield chosen
    finally:
        dist.destroy_process_group()


def _device(device: str | None) -> torch.device:
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be one that torch knows; got {name!r}") from error
    if not torch.amp.is_autocast_available(chosen.type):
        raise ValueError(f"device must be one that computes; got {name!r}")
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    try:
        torch.empty(1, device=chosen)
    except (AssertionError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"device must exist here; got {name!r} ({str(error).splitlines()[0]})") from error
    return chosen


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def exchange(values: list[float], device: torch.device) -> Tensor:
    """What each process passed here, a row for each, on the CPU."""
    mine = torch.tensor(values, dtype=torch.float64)
    if count() == 1:
        return mine[None]
    rows = [torch.empty_like(mine, device=device) for _ in range(count())]
    dist.all_gather(rows, mine.to(device))
    return torch.stack(rows).cpu()


def gather(value: object) -> list:
    """The objects that the processes passed here."""
    if count() == 1:
        return [value]
    values = [None] * count()
    dist.all_gather_object(values, value)
    return values


def share_buffers(model: nn.Module) -> None:
    """Gives every process the buffers of the first, such as the statistics that batch norms averaged there."""
    if count() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def spread(model: nn.Module, device: torch.device, fsdp: bool = False) -> nn.Module:
    """What to call in training so that gradients are averaged over the processes; ``model`` itself where it is alone.

    With ``fsdp`` it is ``model`` as well, its parameters sharded in place: each block of its stages, and the rest.
    """
    if fsdp:
        shard(model)
        return model
    if count() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == "cuda" else None)


def shard(model: nn.Module) -> None:
    """Shards parameters over the processes (FSDP2), in place: each block of a stage as one, what is left as another."""
    for stage in model.children():
        if isinstance(stage, nn.Sequential):
            for block in stage:
                if next(block.parameters(), None) is not None:
                    fully_shard(block)
    fully_shard(model)


def local(value: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other as it is."""
    value = value.detach()
    return value.to_local() if isinstance(value, DTensor) else value
