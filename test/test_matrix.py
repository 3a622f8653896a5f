"""The matrix: every layer, every sample, every check."""

import copy
import io
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from cells import CELLS, both_modes, build, build_kwargs, each_sample, make_input, other_sizes, run
from layer_specs import SPECS, LayerSpec, Sample
from torch import Tensor, nn

from torchvision_layers import nn as tnn

# channels_last is a layout of images; a permutation is there to change the layout.
IMAGES = [cell for cell in CELLS if len(cell.values[1].shape) == 4 and cell.values[0].cls is not tnn.Permute]
each_image_sample = pytest.mark.parametrize(("spec", "sample"), IMAGES)


@both_modes
@each_sample
def test_reference(spec: LayerSpec, sample: Sample, training: bool) -> None:
    training = training and not sample.is_random  # no reference knows the draw; test_stochastic.py checks that
    layer = build(spec, sample, training, torch.float64)
    input = make_input(sample, torch.float64)
    weights = {key: value.numpy().copy() for key, value in layer.state_dict().items()}
    expected = sample.reference(input.numpy(), weights, training)
    with torch.no_grad():
        np.testing.assert_allclose(layer(input).numpy(), expected, rtol=1e-9, atol=1e-9)
        single = build(spec, sample, training)
        single.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
        np.testing.assert_allclose(single(input.float()).numpy(), expected, rtol=1e-4, atol=2e-5)


@both_modes
@each_sample
def test_gradcheck(spec: LayerSpec, sample: Sample, training: bool) -> None:
    """Gradients of the input and of every parameter against finite differences, away from the kinks of ReLU."""
    layer = build(spec, sample, training, torch.float64)
    names = [name for name, _ in layer.named_parameters()]
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}

    def call(input: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(1)
        state = dict(zip(names, parameters, strict=True)) | {name: b.clone() for name, b in buffers.items()}
        return torch.func.functional_call(layer, state, (input,))

    input = make_input(sample, torch.float64).requires_grad_()
    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(call, (input, *parameters), fast_mode=True, eps=1e-7, atol=1e-5)


@each_sample
def test_copies(spec: LayerSpec, sample: Sample) -> None:
    """A deep copy, a pickle and a state dict through a file all compute the same."""
    layer, input = build(spec, sample), make_input(sample)
    expected = layer(input)
    assert torch.equal(copy.deepcopy(layer)(input), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(input), expected)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = spec.cls(**build_kwargs(sample)).eval()
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert torch.equal(other(input), expected)


@each_sample
def test_call_sites_share_no_module(spec: LayerSpec, sample: Sample) -> None:
    layer = build(spec, sample)
    assert len(list(layer.named_modules())) == len(list(layer.named_modules(remove_duplicate=False)))


@pytest.mark.parametrize(
    "make",
    [
        lambda activation: tnn.ConvNormAct(3, 4, activation_layer=activation),
        lambda activation: tnn.BasicBlock(3, 3, activation_layer=activation),
        lambda activation: tnn.Bottleneck(4, 1, activation_layer=activation),
        lambda activation: tnn.InvertedResidual(3, 3, 1, 2, activation_layer=activation),
        lambda activation: tnn.MBConv(3, 3, activation_layer=activation),
        lambda activation: tnn.MLP(3, [4, 4, 4], activation_layer=activation),
    ],
)
@pytest.mark.parametrize("as_function", [False, True], ids=["instance", "function that gives one instance"])
def test_an_instance_is_copied_at_each_place(make: Callable[..., nn.Module], as_function: bool) -> None:
    given = nn.PReLU()
    layer = make((lambda: given) if as_function else given)
    found = [module for module in layer.modules() if isinstance(module, nn.PReLU)]
    assert len(found) >= 1
    assert given not in found
    names = [name for name, module in layer.named_modules(remove_duplicate=False) if isinstance(module, nn.PReLU)]
    assert len(names) == len(found)


@each_sample
def test_factory_arguments(spec: LayerSpec, sample: Sample) -> None:
    layer = spec.cls(**build_kwargs(sample), device="meta", dtype=torch.bfloat16)
    for tensor in [*layer.parameters(), *layer.buffers()]:
        assert tensor.device.type == "meta"
        assert tensor.dtype in (torch.bfloat16, torch.int64)


@both_modes
@each_image_sample
def test_channels_last(spec: LayerSpec, sample: Sample, training: bool) -> None:
    """Values are the same in every layout, and the output keeps the layout of the input."""
    layer, input = build(spec, sample, training), make_input(sample)
    other = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    expected = run(layer, input)
    output = run(other, input.to(memory_format=torch.channels_last))
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    assert output.is_contiguous(memory_format=torch.channels_last)


@both_modes
@each_sample
def test_inputs_are_not_changed(spec: LayerSpec, sample: Sample, training: bool) -> None:
    layer, input = build(spec, sample, training), make_input(sample)
    before = input.clone()
    layer(input)
    assert torch.equal(input, before)
    assert input._version == 0


@each_sample
def test_empty_batch(spec: LayerSpec, sample: Sample) -> None:
    layer = build(spec, sample)
    full = layer(make_input(sample))
    assert layer(make_input(sample)[:0]).shape == (0, *full.shape[1:])


@both_modes
@each_sample
def test_compile(spec: LayerSpec, sample: Sample, training: bool) -> None:
    """One graph, forward and backward, and no second compilation for other sizes."""
    torch._dynamo.reset()
    layer = build(spec, sample, training)
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager", dynamic=True)
    input = make_input(sample).requires_grad_()
    twin = input.detach().clone().requires_grad_()
    output, expected = run(compiled, input), run(layer, twin)
    torch.testing.assert_close(output, expected, rtol=1e-6, atol=1e-6)
    output.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(input.grad, twin.grad, rtol=1e-5, atol=1e-5)
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch in (5, 15):
            again = other_sizes(sample, batch).requires_grad_()
            torch.testing.assert_close(run(compiled, again), run(layer, again), rtol=1e-5, atol=1e-5)


@both_modes
@each_sample
def test_export(spec: LayerSpec, sample: Sample, training: bool) -> None:
    """Exported with dynamic batch and sizes, saved, loaded, and run at sizes not seen before."""
    layer = build(spec, sample, training)
    dynamic = {dim: torch.export.Dim.DYNAMIC for dim in sample.dynamic_dims}
    program = torch.export.export(copy.deepcopy(layer), (make_input(sample),), dynamic_shapes=(dynamic,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch in (3, 17):
        input = other_sizes(sample, batch)
        torch.testing.assert_close(run(loaded, input), run(layer, input), rtol=1e-5, atol=1e-5)


@both_modes
@each_sample
def test_fx(spec: LayerSpec, sample: Sample, training: bool) -> None:
    """Traced symbolically and pickled; a graph keeps the mode in which it was traced."""
    layer = build(spec, sample, training)
    traced = torch.fx.symbolic_trace(copy.deepcopy(layer))
    traced = pickle.loads(pickle.dumps(traced))
    for input in (make_input(sample), other_sizes(sample, 4)):
        torch.testing.assert_close(run(traced, input), run(layer, input), rtol=1e-6, atol=1e-6)


# torch.jit itself is deprecated; it is what loads without this package in every C++ program of today.
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
@both_modes
@each_sample
def test_script(spec: LayerSpec, sample: Sample, training: bool) -> None:
    layer = build(spec, sample, training)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(copy.deepcopy(layer)), file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for input in (make_input(sample), other_sizes(sample, 4)):
        torch.testing.assert_close(run(loaded, input), run(layer, input), rtol=1e-6, atol=1e-6)


WRONG = [
    pytest.param(spec, arguments, error, message, id=f"{spec.cls.__name__}-{message}")
    for spec in SPECS
    for arguments, error, message in spec.wrong
]
WRONG_INPUTS = [
    pytest.param(spec, bad, error, message, id=f"{spec.cls.__name__}-{message}")
    for spec in SPECS
    for bad, error, message in spec.wrong_inputs
]


@pytest.mark.parametrize(("spec", "arguments", "error", "message"), WRONG)
def test_wrong_arguments(spec: LayerSpec, arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        spec.cls(**{**spec.samples[0].kwargs, **arguments})


@pytest.mark.parametrize(("spec", "bad", "error", "message"), WRONG_INPUTS)
def test_wrong_inputs(spec: LayerSpec, bad: object, error: type[Exception], message: str) -> None:
    layer = build(spec, spec.samples[0])
    with pytest.raises(error, match=message):
        layer(torch.zeros(bad) if isinstance(bad, tuple) else bad)


def test_a_given_projection_is_copied_and_placed() -> None:
    projection = nn.Conv2d(3, 5, 1)
    block = tnn.BasicBlock(3, 5, downsample=projection, device="meta", dtype=torch.float64)
    assert (block.downsample.weight.device.type, block.downsample.weight.dtype) == ("meta", torch.float64)
    assert projection.weight.device.type == "cpu"


def test_a_projection_of_another_shape_is_named() -> None:
    block = tnn.BasicBlock(3, 5, downsample=nn.Conv2d(3, 1, 1))
    with pytest.raises(ValueError, match=r"downsample must give the shape of the branch \[2, 5, 4, 4\], got"):
        block(torch.randn(2, 3, 4, 4))


def test_every_public_layer_has_a_spec() -> None:
    assert {spec.cls.__name__ for spec in SPECS} == set(tnn.__all__)
    assert all(len(spec.wrong) >= 3 for spec in SPECS)
