"""Checks of state: parameters, buffers, modes, copies, files, devices."""

import copy
import functools
import io
import pickle
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._case import Case, run_seeded
from .._check import NotApplicable, check
from ._not_applicable import BATCH_STATISTICS, NO_FLOATS, TRAIN_EVAL, WAITS

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


@check("factory_kwargs", reads_values=False, not_applicable=(NO_FLOATS,))
def factory_kwargs(case: Case) -> None:
    """``device`` and ``dtype`` arguments apply to every parameter and every float buffer."""
    layer = case.spec.cls(**{**case.kwargs(), "device": "meta", "dtype": torch.float64})
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


@check("no_loose_tensor", reads_values=False)
def no_loose_tensor(case: Case) -> None:
    """No module keeps a tensor outside parameters and buffers, also after a call."""
    layer = case.layer()
    layer(case.input())
    for path, module in layer.named_modules():
        for name in _loose_tensors(module):
            raise AssertionError(f"{path or type(module).__name__} keeps a tensor in {name}: .to() does not move it")


@check("no_shared_module", reads_values=False)
def no_shared_module(case: Case) -> None:
    """No module is registered twice, because hooks and quantization would treat both as one."""
    layer = case.fresh()
    names: dict[int, str] = {}
    for name, module in layer.named_modules(remove_duplicate=False):
        assert id(module) not in names, f"{name} is the same module as {names[id(module)]}"
        names[id(module)] = name


@check(
    "train_eval_flag",
    reads_values=False,
    not_applicable=(NotApplicable("reads_mode not declared", lambda case: case.sample.reads_mode is None),),
)
def train_eval_flag(case: Case) -> None:
    """``forward`` reads ``training`` exactly if the sample declares ``reads_mode``."""
    layer = case.layer()
    for module in layer.modules():
        del module.training
    try:
        layer(case.input())
    except AttributeError as error:
        if "training" not in str(error):
            raise
        reads = True
    else:
        reads = False
    assert reads == case.sample.reads_mode, f"reads_mode={case.sample.reads_mode}, but forward gives {reads}"


@check("statistics", variants=TRAIN_EVAL, not_applicable=(BATCH_STATISTICS,))
def statistics(case: Case) -> None:
    """Running statistics of batch norms move towards those of the batch in training, by momentum, and not in eval."""
    layer = case.layer()
    calls: list[tuple[str, Any, Tensor]] = []
    for name, module in layer.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            hook = functools.partial(lambda name, module, args: calls.append((name, module, args[0].detach())), name)
            module.register_forward_pre_hook(hook)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    run_seeded(layer, case.input())
    for name, module, x in calls:
        channels = x.transpose(0, 1).flatten(1)
        momentum = module.momentum if module.momentum is not None else 1.0  # None: the mean over all batches, here one
        for key, batch in (("running_mean", channels.mean(1)), ("running_var", channels.var(1))):
            expected = before[f"{name}.{key}" if name else key].lerp(batch, momentum if case.training else 0.0)
            try:
                torch.testing.assert_close(getattr(module, key), expected, rtol=1e-5, atol=1e-6)
            except AssertionError as error:
                raise AssertionError(f"{name}.{key}: {error}") from error


@check("meta")
def meta(case: Case) -> None:
    """The layer is built and runs on meta, and is filled by ``to_empty`` and loading, or by ``assign=True``."""
    layer = case.layer()
    input = case.input()
    expected = layer(input)
    with torch.device("meta"):
        empty = [case.fresh() for _ in range(2)]
        output = empty[0](torch.empty(case.sample.shape))
    assert output.device.type == "meta", f"a layer on meta returns an output on {output.device}"
    assert output.shape == expected.shape
    empty[0].to_empty(device=case.device).load_state_dict(layer.state_dict())
    empty[1].load_state_dict(layer.state_dict(), assign=True)
    for filled, how in zip(empty, ("to_empty", "assign=True"), strict=True):
        assert torch.equal(filled(input), expected), f"filled by {how}, outputs differ"


NO_CLASS = NotApplicable("is a function, not a class", lambda case: not isinstance(case.spec.cls, type))


@check("skip_init", not_applicable=(NO_CLASS, NO_FLOATS, WAITS))
def skip_init(case: Case) -> None:
    """``nn.utils.skip_init`` builds the layer without initialization, ready for a state dict."""
    layer = case.layer()
    cls: Any = case.spec.cls
    raw = case.sample.adapt(nn.utils.skip_init(cls, **case.kwargs(), device=case.device)).train(case.training)
    raw.load_state_dict(layer.state_dict())
    input = case.input()
    assert torch.equal(raw(input), layer(input))


@check("copies")
def copies(case: Case) -> None:
    """Outputs of a deep copy, a pickle and a state dict from a file are bit-equal."""
    layer, input = case.layer(), case.input()
    expected = layer(input)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    loaded = case.fresh()
    loaded.load_state_dict(torch.load(file, weights_only=True), strict=True)
    for how, other in (
        ("deep copy", copy.deepcopy(layer)),
        ("pickle", pickle.loads(pickle.dumps(layer))),
        ("state dict", loaded),
    ):
        assert torch.equal(other(input), expected), f"outputs differ after: {how}"
        assert not {id(p) for p in other.parameters()} & {id(p) for p in layer.parameters()}, (
            f"parameters shared by: {how}"
        )
