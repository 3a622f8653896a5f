"""Quantization-aware training of eager models, in one process and with DistributedDataParallel in two."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from torchvision_layers import nn as tnn
from torchvision_layers import quantized
from torchvision_layers.testing._checks._quantization import decibels

BACKENDS = ("x86", "onednn", "qnnpack")


def model() -> nn.Sequential:
    """A model whose weights depend on the seed of the rank, so that ranks agree only if rank 0 broadcasts its own."""
    layers = (
        tnn.ConvNormAct(3, 8, activation_layer=nn.Hardswish),
        tnn.BasicBlock(8, 8),
        tnn.InvertedResidual(8, 8, 1, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        tnn.LinearDropoutAct(8, 4),
    )
    return nn.Sequential(*layers)


def images(seed: int, rows: int = 4) -> Tensor:
    return torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def gradients(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    module(x).square().mean().backward()
    return {key: p.grad.clone() for key, p in module.named_parameters() if p.grad is not None}


def prepared(backend: str) -> quantized.QuantizableModel:
    return quantized.prepare_qat(model(), backend=backend)


def _train(rank: int, folder: str, backend: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(rank)
    own = prepared(backend)
    parallel = DistributedDataParallel(own)
    optimizer = torch.optim.SGD(parallel.parameters(), 0.05, momentum=0.9)
    for i in range(3):
        gradients(parallel, images(2 * i + rank))
        optimizer.step()
    state = {key: value.clone() for key, value in own.state_dict().items()}

    # Frozen, samples of a batch are independent; the buffers of rank 0 are broadcast.
    quantized.freeze(own)
    shared = {key.removeprefix("module."): grad for key, grad in gradients(parallel, images(100 + rank)).items()}
    optimizer.zero_grad()
    outputs = quantized.convert(own)(images(200))
    torch.save((state, own.state_dict(), shared, outputs), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["x86", "onednn"])
def test_two_processes_match_one(tmp_path: Path, backend: str) -> None:
    torch.multiprocessing.spawn(_train, (str(tmp_path), backend), nprocs=2)
    (state, frozen, shared, outputs), (other_state, _, other_shared, _) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)
    )
    parameters = {key for key, _ in prepared(backend).model.named_parameters()}
    assert len(parameters) == 20
    for key in parameters:
        assert torch.equal(state[key], other_state[key]), f"{key} differs between the processes"
    assert shared.keys() == other_shared.keys()
    assert len(shared) == len(parameters)
    assert all(torch.equal(grad, other_shared[key]) for key, grad in shared.items())

    # One process gives the same: the gradient of the whole batch is the mean over both shards, as DDP computes it.
    alone = prepared(backend)
    alone.load_state_dict(frozen)
    quantized.freeze(alone)
    shards = [gradients(alone, images(100 + rank)) for rank in range(2)]
    whole = gradients(alone, torch.cat([images(100), images(101)]))
    for key, grad in shared.items():
        mean = (shards[0][key] + shards[1][key]) / 2
        scale = float(mean.abs().max()) + 1e-12
        assert float((grad - mean).abs().max()) <= 1e-4 * scale, key
        assert float((whole[key] - mean).abs().max()) <= 1e-3 * scale, key
    differences = [float((shards[0][key] - shared[key]).abs().max() / shared[key].abs().max()) for key in shared]
    assert max(differences) > 0.1, "the gradients of the shards must differ"

    converted = quantized.convert(alone)
    assert torch.equal(converted(images(200)), outputs), "the loaded state must convert to the same model"
    assert decibels(alone.eval()(images(200)), converted(images(200))) >= 20
    weighted = [row for row in quantized.report(converted).rows if row.before in ("Conv2d", "Linear")]
    assert {row.runs_in for row in weighted} == {"int8"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_frozen_training_changes_weights_only(backend: str) -> None:
    torch.manual_seed(2)
    own = prepared(backend)
    optimizer = torch.optim.SGD(own.parameters(), 0.05)
    gradients(own, images(0))
    optimizer.step()
    quantized.freeze(own)
    before = {key: value.clone() for key, value in own.state_dict().items()}
    gradients(own, 5 * images(1))
    optimizer.step()
    changed = {key for key, value in own.state_dict().items() if not torch.equal(value, before[key])}
    parameters = {key.removeprefix("model.") for key, _ in own.named_parameters()}
    assert changed
    # On x86 the weight ranges follow the weights, so that no sum of two products overflows.
    ranges = {key for key in changed if ".weight_fake_quant." in key}
    assert bool(ranges) == (backend == "x86")
    assert changed - ranges <= parameters


def test_weights_growing_after_freezing_do_not_overflow_on_x86() -> None:
    own = prepared("x86")
    gradients(own, images(0))
    quantized.freeze(own)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.mul_(3)
    converted = quantized.convert(own)  # without a forward since the weights grew
    converted.load_state_dict(converted.state_dict())
    for value in converted.state_dict().values():
        if isinstance(value, torch.Tensor) and value.dtype is torch.qint8:
            rows = value.int_repr().int().flatten(2).mT.flatten(1)
            for rows_of_sign in (rows.clamp(min=0), rows.neg().clamp(min=0)):  # products of other signs cancel
                assert int((rows_of_sign[:, :-1:2] + rows_of_sign[:, 1::2]).max()) <= 128


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_parameter_has_a_gradient(backend: str) -> None:
    torch.manual_seed(3)
    grads = gradients(prepared(backend), images(0))
    assert len(grads) == 20
    for key, grad in grads.items():
        assert bool(grad.isfinite().all()), key
        assert float(grad.abs().max()) > 0, key


@pytest.mark.parametrize("backend", BACKENDS)
def test_int8_matches_trained_model(backend: str) -> None:
    """The second half of the training runs with frozen ranges. The bound allows for pooling, rounded in int8 only."""
    torch.manual_seed(4)
    own = prepared(backend)
    optimizer = torch.optim.SGD(own.parameters(), 0.02)
    for i in range(4):
        if i == 2:
            quantized.freeze(own)
        gradients(own, images(i, 16))
        optimizer.step()
    x = images(9, 16)
    expected = own.eval()(x).detach()
    assert decibels(expected, quantized.convert(own)(x)) >= 20
    assert torch.equal(own(x), expected), "convert changed the prepared model"
