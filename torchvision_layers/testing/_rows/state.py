"""Rows on what a layer holds: parameters, buffers, modes, copies, files, devices."""

import copy
import io
import pickle
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .._cell import Cell
from .._row import NA, row
from ._applies import NO_FLOATS, WAITS

__all__ = [
    "copies",
    "factory_kwargs",
    "meta",
    "no_loose_tensor",
    "no_shared_module",
    "skip_init",
    "train_eval_flag",
]


@row("factory_kwargs", not_applicable=(NO_FLOATS,))
def factory_kwargs(cell: Cell) -> None:
    """``device`` and ``dtype`` of the constructor reach every parameter and every float buffer."""
    layer = cell.spec.cls(**cell.kwargs(), device="meta", dtype=torch.float64)
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        assert tensor.device.type == "meta", f"{name} is on {tensor.device}"
        assert tensor.dtype is torch.float64 or not tensor.is_floating_point(), f"{name} is {tensor.dtype}"


def _loose_tensors(module: nn.Module) -> Iterator[str]:
    for name, value in vars(module).items():
        if name in ("_parameters", "_buffers", "_modules"):
            continue
        values = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else ()
        if isinstance(value, Tensor) or any(isinstance(item, Tensor) for item in values):
            yield name


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


@row("skip_init", not_applicable=(NO_FLOATS, WAITS))
def skip_init(cell: Cell) -> None:
    """``nn.utils.skip_init`` makes it without initialization, ready to load a state."""
    layer = cell.layer()
    raw = nn.utils.skip_init(cell.spec.cls, **cell.kwargs()).train(cell.training)
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
