"""Checks of gradients."""

import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .._case import Case, loss_of, random_states, run_seeded
from .._check import NotApplicable, Tier, check
from ._not_applicable import TRAIN_EVAL, trainable

__all__ = ["checkpointed", "functional", "gradcheck", "gradcheck_slow", "gradgradcheck", "grads_reach", "noncontig"]


def _as_function(case: Case) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    """The layer as a deterministic function of its input and parameters, in float64."""
    layer = case.layer(torch.float64)
    names = [name for name, _ in layer.named_parameters()]
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}

    def call(input: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(1)
        state = dict(zip(names, parameters, strict=True)) | {name: b.clone() for name, b in buffers.items()}
        return torch.func.functional_call(layer, state, (input,))

    input = case.input(torch.float64).requires_grad_()
    return call, (input, *(p.detach().clone().requires_grad_() for p in layer.parameters()))


# A small step rarely crosses the kink of a ReLU, where no derivative is correct.
_EPS, _ATOL = 1e-7, 1e-5


@check("gradcheck", variants=TRAIN_EVAL)
def gradcheck(case: Case) -> None:
    """Gradients of the input and of every parameter agree with finite differences, in a random direction."""
    call, inputs = _as_function(case)
    torch.autograd.gradcheck(call, inputs, fast_mode=True, eps=_EPS, atol=_ATOL)


@check("gradcheck_slow", tier=Tier.NIGHTLY, variants=TRAIN_EVAL)
def gradcheck_slow(case: Case) -> None:
    """Each derivative of the input and of every parameter agrees with finite differences."""
    call, inputs = _as_function(case)
    torch.autograd.gradcheck(call, inputs, eps=_EPS, atol=_ATOL)


def _has_no_second_derivative(case: Case) -> bool:
    call, inputs = _as_function(case)
    (gradient,) = torch.autograd.grad(call(*inputs).square().sum(), inputs[:1], create_graph=True)
    try:
        gradient.square().sum().backward()
    except RuntimeError as error:
        return re.search("derivative for .* is not implemented", str(error)) is not None
    return False


@check(
    "gradgradcheck",
    tier=Tier.NIGHTLY,
    variants=TRAIN_EVAL,
    not_applicable=(NotApplicable("uses an operator without a second derivative in torch", _has_no_second_derivative),),
)
def gradgradcheck(case: Case) -> None:
    """Second derivatives agree with finite differences, in random directions."""
    call, inputs = _as_function(case)
    torch.autograd.gradgradcheck(call, inputs, fast_mode=True, eps=_EPS, atol=1e-4)


@check("grads_reach", variants=TRAIN_EVAL)
def grads_reach(case: Case) -> None:
    """The input and every parameter get a finite gradient that is not zero everywhere."""
    unreached: set[str] | None = None
    for seed in range(16):  # with many random weights, a bottleneck of one unit with a ReLU outputs zero
        torch.manual_seed(seed)
        layer = case.layer()
        input = case.input().requires_grad_()
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
    output.backward(torch.linspace(-1, 1, output.numel(), dtype=output.dtype, device=output.device).view(output.shape))
    gradients = [input.grad, *(parameter.grad for parameter in layer.parameters())]
    return [output.detach(), *(gradient.clone() for gradient in gradients if gradient is not None)]


@check("noncontig", variants=TRAIN_EVAL)
def noncontig(case: Case) -> None:
    """Non-contiguous inputs and output gradients give the same results as contiguous ones."""
    plain, strided = case.layer(), case.layer()
    strided.load_state_dict(plain.state_dict())
    input = case.input()
    expected = _outputs_and_gradients(plain, plain, input)
    spread = torch.stack([input, torch.randn_like(input)], dim=-1)[..., 0]
    assert not spread.is_contiguous()

    def call(input: Tensor) -> Tensor:
        output = strided(input)  # the gradient of one half of a stack is not contiguous
        return torch.stack([output, output.detach()], dim=-1)[..., 0]

    # Relative to the largest gradient: that of a bias before a batch norm is only a rounding error.
    scale = max(1.0, *(float(tensor.abs().max()) for tensor in expected))
    for got, want in zip(_outputs_and_gradients(strided, call, spread), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * scale)


@check(
    "functional",
    # torch computes the gradient of Tensor.unfold, and attention, sample by sample, which is slow but correct.
    ignored_warnings=(
        ("There is a performance drop.*batching rule for aten::unfold_backward", UserWarning),
        ("There is a performance drop.*batching rule for aten::_scaled_dot_product", UserWarning),
    ),
)
def functional(case: Case) -> None:
    """In eval mode, ``vmap`` over layers, and over samples for their gradients, equals separate calls."""
    layers = [case.layer(), case.layer()]
    input = case.input()
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
        return loss_of(call(parameters, state, image[None]))

    gradients, of_input = torch.vmap(torch.func.grad(loss, argnums=(0, 1)), (None, 0))(own, input)
    for i in range(input.shape[0]):
        image = input[i : i + 1].clone().requires_grad_()
        layers[0].zero_grad()
        loss_of(layers[0](image)).backward()
        assert image.grad is not None
        for got, want in (
            (of_input[i], image.grad[0]),
            *((gradients[name][i], parameter.grad) for name, parameter in trainable(layers[0])),
        ):
            assert want is not None
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * max(1.0, float(want.abs().max())))


@check("checkpoint", variants=TRAIN_EVAL)
def checkpointed(case: Case) -> None:
    """With checkpointing, output, gradients and the random state afterwards are bit-equal."""
    plain, recomputed = case.layer(), case.layer()
    recomputed.load_state_dict(plain.state_dict())
    input = case.input()
    expected = _outputs_and_gradients(plain, plain, input)
    states = random_states(case.device)
    got = _outputs_and_gradients(recomputed, lambda x: checkpoint(recomputed, x, use_reentrant=False), input)
    assert all(map(torch.equal, random_states(case.device), states)), "the random state differs"
    for tensor, want in zip(got, expected, strict=True):
        assert torch.equal(tensor, want), "output or gradients differ"
