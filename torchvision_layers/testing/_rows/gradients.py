"""Rows on gradients."""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .._cell import Cell, run_seeded
from .._row import NA, Tier, row
from ._applies import TRAIN_EVAL, trainable

__all__ = ["checkpointed", "functional", "gradcheck", "gradcheck_slow", "gradgradcheck", "grads_reach", "noncontig"]


def _as_function(cell: Cell) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The layer as a function of its input and its parameters, in float64, the same at each call."""
    layer = cell.layer(torch.float64)
    names = [name for name, _ in layer.named_parameters()]
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}

    def call(input: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(1)
        state = dict(zip(names, parameters, strict=True)) | {name: b.clone() for name, b in buffers.items()}
        return torch.func.functional_call(layer, state, (input,))

    input = cell.input(torch.float64).requires_grad_()
    return call, (input, *(p.detach().clone().requires_grad_() for p in layer.parameters()))


# A small step, so that it rarely crosses the kink of a ReLU, where no derivative is right.
_EPS, _ATOL = 1e-7, 1e-5


@row("gradcheck", variants=TRAIN_EVAL)
def gradcheck(cell: Cell) -> None:
    """Gradients of the input and of every parameter agree with finite differences, in a random direction."""
    call, inputs = _as_function(cell)
    torch.autograd.gradcheck(call, inputs, fast_mode=True, eps=_EPS, atol=_ATOL)


@row("gradcheck_slow", tier=Tier.NIGHTLY, variants=TRAIN_EVAL)
def gradcheck_slow(cell: Cell) -> None:
    """Every single derivative of the input and of every parameter agrees with finite differences."""
    call, inputs = _as_function(cell)
    torch.autograd.gradcheck(call, inputs, eps=_EPS, atol=_ATOL)


def _has_no_second_derivative(cell: Cell) -> bool:
    call, inputs = _as_function(cell)
    (gradient,) = torch.autograd.grad(call(*inputs).square().sum(), inputs[:1], create_graph=True)
    try:
        gradient.square().sum().backward()
    except RuntimeError as error:
        return re.search("derivative for .* is not implemented", str(error)) is not None
    return False


@row(
    "gradgradcheck",
    tier=Tier.NIGHTLY,
    variants=TRAIN_EVAL,
    not_applicable=(NA("uses an operator of which torch has no second derivative", _has_no_second_derivative),),
)
def gradgradcheck(cell: Cell) -> None:
    """Second derivatives agree with finite differences, in random directions."""
    call, inputs = _as_function(cell)
    torch.autograd.gradgradcheck(call, inputs, fast_mode=True, eps=_EPS, atol=1e-4)


@row("grads_reach", variants=TRAIN_EVAL)
def grads_reach(cell: Cell) -> None:
    """Every parameter, and the input, gets a finite gradient that is not zero everywhere."""
    unreached: set[str] | None = None
    for seed in range(16):  # a bottleneck of one unit with a ReLU is shut in many draws of its weights
        torch.manual_seed(seed)
        layer = cell.layer()
        input = cell.input().requires_grad_()
        output = run_seeded(layer, input)
        (output * torch.randn_like(output)).sum().backward()
        zero = set()
        for name, tensor in [("input", input), *trainable(layer)]:
            assert tensor.grad is not None, f"no gradient reaches {name}"
            assert bool(tensor.grad.isfinite().all()), f"the gradient of {name} is not finite"
            if not bool(tensor.grad.any()):
                zero.add(name)
        unreached = zero if unreached is None else unreached & zero
        if not unreached:
            return
    raise AssertionError(f"the gradient of {', '.join(sorted(unreached or ()))} is zero everywhere")


def _outputs_and_gradients(layer: nn.Module, call: Callable[[Tensor], Tensor], input: Tensor) -> list[Tensor]:
    input = input.detach().requires_grad_()
    layer.zero_grad()
    output = run_seeded(call, input)
    output.backward(torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape))
    gradients = [input.grad, *(parameter.grad for parameter in layer.parameters())]
    return [output.detach(), *(gradient.clone() for gradient in gradients if gradient is not None)]


@row("noncontig", variants=TRAIN_EVAL)
def noncontig(cell: Cell) -> None:
    """Inputs and gradients of outputs that lie in memory with steps give what contiguous ones give."""
    plain, strided = cell.layer(), cell.layer()
    strided.load_state_dict(plain.state_dict())
    input = cell.input()
    expected = _outputs_and_gradients(plain, plain, input)
    spread = torch.stack([input, torch.randn_like(input)], dim=-1)[..., 0]
    assert not spread.is_contiguous()

    def call(input: Tensor) -> Tensor:
        output = strided(input)  # the gradient of the first half of a stack comes back with steps
        return torch.stack([output, output.detach()], dim=-1)[..., 0]

    # Relative to the largest: a bias before a batch norm has no gradient, only what rounding leaves of the others.
    scale = max(1.0, *(float(tensor.abs().max()) for tensor in expected))
    for got, want in zip(_outputs_and_gradients(strided, call, spread), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * scale)


@row(
    "functional",
    # torch runs the gradient of Tensor.unfold one sample after the other, which is slow and not wrong.
    ignored_warnings=(("There is a performance drop.*batching rule for aten::unfold_backward", UserWarning),),
)
def functional(cell: Cell) -> None:
    """In eval: several layers at once under ``vmap``, and gradients sample by sample, as one by one."""
    layers = [cell.layer(), cell.layer()]
    input = cell.input()
    parameters, buffers = torch.func.stack_module_state(layers)

    def call(parameters: dict[str, Tensor], buffers: dict[str, Tensor], input: Tensor) -> Tensor:
        return torch.func.functional_call(layers[0], (parameters, buffers), (input,))

    stacked = torch.vmap(call, (0, 0, None))(parameters, buffers, input) if parameters or buffers else None
    for i, layer in enumerate(layers):
        if stacked is not None:
            torch.testing.assert_close(stacked[i], layer(input), rtol=1e-5, atol=1e-5)

    own = {name: parameter.detach() for name, parameter in layers[0].named_parameters()}
    state = dict(layers[0].named_buffers())

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return call(parameters, state, image[None]).square().sum()

    gradients, of_input = torch.vmap(torch.func.grad(loss, argnums=(0, 1)), (None, 0))(own, input)
    for i in range(input.shape[0]):
        image = input[i : i + 1].clone().requires_grad_()
        layers[0].zero_grad()
        layers[0](image).square().sum().backward()
        assert image.grad is not None
        for got, want in (
            (of_input[i], image.grad[0]),
            *((gradients[name][i], parameter.grad) for name, parameter in trainable(layers[0])),
        ):
            assert want is not None
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * max(1.0, float(want.abs().max())))


@row("checkpoint", variants=TRAIN_EVAL)
def checkpointed(cell: Cell) -> None:
    """Recomputed in the backward pass, it gives the same bits: output, gradients, and random numbers afterwards."""
    plain, recomputed = cell.layer(), cell.layer()
    recomputed.load_state_dict(plain.state_dict())
    input = cell.input()
    expected = _outputs_and_gradients(plain, plain, input)
    state = torch.get_rng_state()
    got = _outputs_and_gradients(recomputed, lambda x: checkpoint(recomputed, x, use_reentrant=False), input)
    assert torch.equal(torch.get_rng_state(), state), "random numbers go on differently"
    for tensor, want in zip(got, expected, strict=True):
        assert torch.equal(tensor, want), "output or gradients differ"
