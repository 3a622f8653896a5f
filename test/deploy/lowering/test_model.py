"""Lowered models as modules: copies, states, threads, processes, modes and inputs."""

import copy
import io
import multiprocessing
import pickle
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from torchvision_layers import deploy
from torchvision_layers import nn as tnn

from ._support import assert_agrees, assert_lowers, images, stir


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = [tnn.ConvNormAct(3, 8, stride=2), tnn.BasicBlock(8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return stir(nn.Sequential(*layers, nn.Linear(8, 5)), seed)


X = images(2, 3, 16, 16)


@pytest.fixture(scope="module")
def lowered() -> deploy.LoweredModel:
    return deploy.lower(network(), X)


def saved(model: nn.Module) -> nn.Module:
    content = io.BytesIO()
    torch.save(model, content)
    content.seek(0)
    return torch.load(content, weights_only=False)


@pytest.mark.parametrize("clone", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), saved])
def test_copies(lowered: deploy.LoweredModel, clone: Any) -> None:
    lowered(X)
    twin = clone(lowered)
    assert repr(twin) == repr(lowered)
    assert torch.equal(twin(X), lowered(X))
    assert torch.equal(clone(twin)(X), lowered(X))


def test_state_of_the_folded_model(lowered: deploy.LoweredModel) -> None:
    other = network(seed=1)
    folded = deploy.fold(other, X)
    assert lowered.state_dict().keys() == folded.state_dict().keys()
    twin = copy.deepcopy(lowered)
    twin(X)
    assert not twin.load_state_dict(folded.state_dict()).missing_keys
    assert_agrees(twin, other, X)
    assert_agrees(lowered, network(), X)  # a copy shares nothing


def test_packed_weights_are_not_saved(lowered: deploy.LoweredModel) -> None:
    lowered(X)
    plain = sum(tensor.nbytes for tensor in lowered.state_dict().values())
    assert len(pickle.dumps(lowered)) < plain + 20_000


def test_threads() -> None:
    lowered = deploy.lower(network(), X)
    inputs = [images(1 + i % 3, 3, 16 + i, 16, seed=i) for i in range(12)]
    expected = [lowered(x) for x in inputs]
    fresh = copy.deepcopy(lowered)  # has packed no weights yet
    with ThreadPoolExecutor(4) as pool:
        for output, value in zip(pool.map(fresh, inputs * 5), expected * 5, strict=True):
            assert torch.equal(output, value)


def run(lowered: deploy.LoweredModel, queue: Any) -> None:
    torch.set_num_threads(1)
    queue.put(lowered(X).tolist())


def test_fork(lowered: deploy.LoweredModel) -> None:
    expected = lowered(X)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=run, args=(lowered, queue))
    process.start()
    assert torch.equal(torch.tensor(queue.get(timeout=60)), expected)
    process.join()


class Features(Dataset):
    """The outputs of a model, which the processes of a data loader compute."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        return self.model(images(1, 3, 16, 16, seed=index))[0]


@pytest.mark.parametrize("is_packed", [True, False])
def test_data_loaders(is_packed: bool, lowered: deploy.LoweredModel) -> None:
    model = lowered if is_packed else copy.deepcopy(lowered)
    loader = DataLoader(Features(model), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=60)
    outputs = torch.cat(list(loader))
    assert torch.equal(outputs, torch.cat([lowered(images(1, 3, 16, 16, seed=i)) for i in range(4)]))


def test_number_of_threads() -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.get_num_threads())
            return F.relu(x)

    before = torch.get_num_threads()
    lowered = deploy.lower(nn.Conv2d(3, 4, 3), X, threads=before + 1)
    assert lowered(X).shape == (2, 4, 14, 14)
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        deploy.lower(Spy(), X, threads=0)
    with pytest.raises(ValueError, match="threads must be at most 1024, got 1000000"):
        deploy.lower(Spy(), X, threads=10**6)
    with pytest.raises(TypeError, match="threads must be an int, got 'all'"):
        deploy.lower(Spy(), X, threads="all")


def test_training_mode(lowered: deploy.LoweredModel) -> None:
    assert not any(module.training for module in lowered.modules())
    assert lowered.eval() is lowered
    with pytest.raises(RuntimeError, match="a lowered model cannot be trained"):
        lowered.train()
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    assert_agrees(deploy.lower(model, X), network(), X)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_gradients_and_autocast(lowered: deploy.LoweredModel) -> None:
    expected = lowered(X)
    assert not lowered(X.clone().requires_grad_()).requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(lowered(X), expected)
        again = deploy.lower(network(), X)
    assert torch.equal(again(X), expected)
    with torch.inference_mode():
        assert torch.equal(lowered(X), expected)
        again = deploy.lower(network(), X)
        again(X)
    assert torch.equal(again(X), expected)
    assert lowered.requires_grad_()(X).grad_fn is None


def test_heads_can_be_trained_on_the_outputs(lowered: deploy.LoweredModel) -> None:
    output = lowered(X)
    weight = torch.ones_like(output, requires_grad=True)
    (output * weight).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, output)


def test_every_call_is_checked(lowered: deploy.LoweredModel) -> None:
    for wrong in (X[0], X.double(), X[:, :2], (X, X), [X]):
        lowered(X)
        with pytest.raises((TypeError, ValueError)):
            lowered(*wrong) if isinstance(wrong, tuple) else lowered(wrong)
    assert torch.equal(lowered(input=X), lowered(X))


def test_other_dtypes_and_devices(lowered: deploy.LoweredModel) -> None:
    for change in (nn.Module.double, nn.Module.half, lambda m: m.to("meta"), lambda m: m.to(torch.bfloat16)):
        with pytest.raises(TypeError, match="a lowered model runs in float32 on the CPU only"):
            change(lowered)
    assert torch.equal(lowered.float().cpu().to(memory_format=torch.channels_last)(X), lowered(X))
    with pytest.raises(TypeError, match="input must be a float32 tensor, got torch.float64"):
        lowered(X.double())
    with pytest.raises(ValueError, match="input must be on the CPU, got meta"):
        lowered(X.to("meta"))
    with pytest.raises(ValueError, match="input must have size 3 in dimension 1"):
        lowered(X[:, :2])


def test_empty_batches(lowered: deploy.LoweredModel) -> None:
    assert lowered(X[:0]).shape == (0, 5)


def test_outputs_may_be_written_to() -> None:
    class Anchors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("base", torch.arange(4.0))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.conv(x), self.base * 2, (self.base + 1).view(2, 2)

    model = Anchors().eval()
    lowered = deploy.lower(model, X)
    for _ in range(2):
        assert_agrees(lowered, model, X)
        for output in lowered(X):
            output.zero_()


@dataclass
class Result:
    mask: Tensor
    scores: list[Tensor]
    name: str


class Pair(NamedTuple):
    first: Tensor
    second: Tensor | None


class Structured(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.rgb, self.depth = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(1, 4, 1)

    def forward(self, image: Tensor, depth: Tensor, *, scale: float = 1.0, extra: Tensor | None = None) -> Any:
        mask = F.relu(self.rgb(image) + self.depth(depth)) * scale
        if extra is not None:
            mask = mask + extra
        if self.kind == "dict":
            return OrderedDict(mask=mask, size=mask.shape[2], none=None)
        if self.kind == "dataclass":
            return Result(mask, [mask.mean((1, 2, 3)), mask.flatten(1).argmax(1)], "mask")
        return Pair(mask, None), [depth]


@pytest.mark.parametrize("kind", ["dict", "dataclass", "tuple"])
def test_several_inputs_and_structures(kind: str) -> None:
    torch.manual_seed(0)
    model = Structured(kind).eval()
    image, depth = images(2, 3, 8, 8), images(2, 1, 8, 8)
    lowered = deploy.lower(model, (image, depth))
    for batch, size in ((2, 8), (1, 9), (3, 12)):
        inputs = images(batch, 3, size, 8), images(batch, 1, size, 8)
        assert_agrees(lowered, model, *inputs)
        assert_agrees(lowered, model, inputs[0], depth=inputs[1])
        assert_agrees(pickle.loads(pickle.dumps(lowered)), model, *inputs)
    with pytest.raises(TypeError, match="model must be called like forward"):
        lowered(image)
    with pytest.raises(ValueError, match="scale must be 1.0"):
        lowered(image, depth, scale=2.0)
    keyword = deploy.lower(model, {"image": image, "depth": depth, "scale": 2.0, "extra": depth})
    assert_agrees(keyword, model, image, depth, scale=2.0, extra=depth)


class Shuffle(nn.Module):
    """Reads sizes, so that its program has guards."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        n, c, h, w = self.conv(input).shape
        if h > 30:
            return self.conv(input).view(n, c, h // 2, 2, w).mean(3)
        return self.conv(input)


def test_sizes_that_the_program_does_not_take() -> None:
    torch.manual_seed(0)
    model = Shuffle().eval()
    lowered = deploy.lower(model, images(2, 3, 32, 16))
    for clone in (lowered, pickle.loads(pickle.dumps(lowered))):
        assert_agrees(clone, model, images(3, 3, 34, 20))
        with pytest.raises(ValueError, match="input must have sizes that the forward of the model supports: "):
            clone(images(2, 3, 20, 16))


class Windows(nn.Module):
    """Pads to multiples of several numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        height, padded = input.shape[2], input
        for side in (4, 5, 7):
            padded = F.pad(padded, (0, 0, 0, (side - padded.shape[2] % side) % side))
        return F.relu(self.conv(padded))[:, :, :height]


def test_images_of_one_size() -> None:
    """An export of such a model for all sizes can take minutes."""
    torch.manual_seed(0)
    model = Windows().eval()
    with pytest.warns(UserWarning, match="the lowered model takes images of 18 x 16 only"):
        lowered = deploy.lower(model, images(2, 3, 18, 16))
    assert_agrees(lowered, model, images(3, 3, 18, 16))
    with pytest.raises(ValueError, match="input must have size 18 in dimension 2"):
        lowered(images(2, 3, 20, 16))


def test_shared_weights_and_modules_used_twice() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=2, dilation=2)
            self.b.weight = self.a.weight
            self.norm, self.act = nn.BatchNorm2d(4), nn.ReLU(inplace=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.act(self.norm(self.a(x)))
            x = self.act(self.norm(self.b(x))) + self.act(self.a(x))
            return x + F.conv2d(x, self.a.weight.transpose(0, 1), stride=1, padding=1)

    torch.manual_seed(0)
    lowered = assert_lowers(stir(Shared()), images(2, 4, 6, 6), others=[(images(1, 4, 9, 5),)])
    assert torch.equal(copy.deepcopy(lowered)(images(1, 4, 6, 6)), lowered(images(1, 4, 6, 6)))


def test_the_program_is_readable(lowered: deploy.LoweredModel) -> None:
    lines = [line.strip() for line in repr(lowered).splitlines()]
    assert lines[0] == "LoweredModel("
    assert lines[1:4] == [
        "input = input  [2, 3, 16, 16]",
        "to_channels_last = to_channels_last(input)  [2, 3, 16, 16]",
        "conv2d = mkldnn._convolution_pointwise(to_channels_last, 0.0.weight, 0.0.bias) + relu  [2, 8, 8, 8]",
    ]
    assert lines[-2] == "return linear"
    assert sum("+ sum in place + relu" in line for line in lines) == 1


def test_children_of_any_name() -> None:
    class Names(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.check, self.program, self.signature = (nn.Conv2d(3, 3, 1) for _ in range(3))
            self.run = nn.ModuleDict({"bind": nn.Conv2d(3, 3, 1)})

        def forward(self, x: Tensor) -> Tensor:
            return self.run["bind"](self.signature(self.program(self.check(x))))

    torch.manual_seed(0)
    assert_lowers(Names(), images(2, 3, 4, 4))
