"""Rows on what a layer holds: parameters, buffers, modes, copies, files, devices."""

import copy
import functools
import io
import pickle
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._cell import Cell, run_seeded
from .._row import NA, row
from ._applies import BATCH_STATISTICS, NO_FLOATS, TRAIN_EVAL, WAITS

__all__ = [
    "copies",
    "factory_kwargs",
    "meta",
    "no_loose_tensor",
    "no_shared_module",
    "skip_init",
    "statistics",
    "train_eval_flag",
]


@row("factory_kwargs", not_applicable=(NO_FLOATS,))
def factory_kwargs(cell: Cell) -> None:
    """``device`` and ``dtype`` of the constructor reach every parameter and every float buffer."""
    layer = cell.spec.cls(**{**cell.kwargs(), "device": "meta", "dtype": torch.float64})
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        assert tensor.device.type == "meta", f"{name} is on {tensor.device}"
        assert tensor.dtype is torch.float64 or not tensor.is_floating_point(), f"{name} is {tensor.dtype}"


def _loose_tensors(module: nn.Module) -> Iterator[str]:
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers", "_modules"):
            continue
        if _holds_tensor(value):
            yield name


def _holds_tensor(value: object) -> bool:
    if isinstance(value, dict):
        return any(_holds_tensor(item) for item in value.values())
    if isinstance(value, (list, tuple, set)):
        return any(_holds_tensor(item) for item in value)
    return isinstance(value, Tensor)


@row("no_loose_tensor")
def no_loose_tensor(cell: Cell) -> None:
    """No module holds a tensor outside of parameters and buffers, neither when it is made nor after a call."""
    layer = cell.layer()
    layer(cell.input())
    for path, module in layer.named_modules():
        for name in _loose_tensors(module):
            raise AssertionError(f"{path or type(module).__name__} keeps a tensor in {name}: .to() does not move it")


@row("no_shared_module")
def no_shared_module(cell: Cell) -> None:
    """No module stands in two places: quantization and hooks would take them for one."""
    layer = cell.fresh()
    places: dict[int, str] = {}
    for name, module in layer.named_modules(remove_duplicate=False):
        assert id(module) not in places, f"{name} is the module of {places[id(module)]}"
        places[id(module)] = name


@row("train_eval_flag", not_applicable=(NA("reads_mode not declared", lambda cell: cell.sample.reads_mode is None),))
def train_eval_flag(cell: Cell) -> None:
    """``forward`` looks at ``training`` where the sample says so, and nowhere else."""
    layer = cell.layer()
    for module in layer.modules():
        del module.training
    try:
        layer(cell.input())
    except AttributeError as error:
        if "training" not in str(error):
            raise
        reads = True
    else:
        reads = False
    assert reads == cell.sample.reads_mode, f"reads_mode={cell.sample.reads_mode}, but forward says {reads}"


@row("statistics", variants=TRAIN_EVAL, not_applicable=(BATCH_STATISTICS,))
def statistics(cell: Cell) -> None:
    """Running statistics of batch norms move in training, by momentum towards those of the batch, and not in eval."""
    layer = cell.layer()
    seen: list[tuple[str, Any, Tensor]] = []
    for name, module in layer.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            note = functools.partial(lambda name, module, args: seen.append((name, module, args[0].detach())), name)
            module.register_forward_pre_hook(note)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    run_seeded(layer, cell.input())
    for name, module, x in seen:
        channels = x.transpose(0, 1).flatten(1)
        momentum = module.momentum if module.momentum is not None else 1.0  # the mean over all batches, here of one
        for key, batch in (("running_mean", channels.mean(1)), ("running_var", channels.var(1))):
            expected = before[f"{name}.{key}" if name else key].lerp(batch, momentum if cell.training else 0.0)
            try:
                torch.testing.assert_close(getattr(module, key), expected, rtol=1e-5, atol=1e-6)
            except AssertionError as error:
                raise AssertionError(f"{name}.{key}: {error}") from error


@row("meta")
def meta(cell: Cell) -> None:
    """Built and run without data, then filled: by ``to_empty`` and loading, and by ``assign=True``."""
    layer = cell.layer()
    input = cell.input()
    expected = layer(input)
    with torch.device("meta"):
        empty = [cell.fresh() for _ in range(2)]
        output = empty[0](torch.empty(cell.sample.shape))
    assert output.device.type == "meta", f"a layer on meta gives an output on {output.device}"
    assert output.shape == expected.shape
    empty[0].to_empty(device="cpu").load_state_dict(layer.state_dict())
    empty[1].load_state_dict(layer.state_dict(), assign=True)
    for filled, how in zip(empty, ("to_empty", "assign=True"), strict=True):
        assert torch.equal(filled(input), expected), f"filled by {how} it gives other values"


NO_CLASS = NA("is a function, not a class", lambda cell: not isinstance(cell.spec.cls, type))


@row("skip_init", not_applicable=(NO_CLASS, NO_FLOATS, WAITS))
def skip_init(cell: Cell) -> None:
    """``nn.utils.skip_init`` makes it without initialization, ready to load a state."""
    layer = cell.layer()
    cls: Any = cell.spec.cls
    raw = nn.utils.skip_init(cls, **cell.kwargs()).train(cell.training)
    raw.load_state_dict(layer.state_dict())
    input = cell.input()
    assert torch.equal(raw(input), layer(input))


@row("copies")
def copies(cell: Cell) -> None:
    """A deep copy, a pickle and a state dict through a file, loaded strictly, all give the same bits."""
    layer, input = cell.layer(), cell.input()
    expected = layer(input)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = cell.fresh()
    loaded.load_state_dict(torch.load(file, weights_only=True), strict=True)
    for how, other in (
        ("deep copy", copy.deepcopy(layer)),
        ("pickle", pickle.loads(pickle.dumps(layer))),
        ("state dict", loaded),
    ):
        assert torch.equal(other(input), expected), f"the {how} gives other values"
        assert not {id(p) for p in other.parameters()} & {id(p) for p in layer.parameters()}, f"the {how} is shallow"
