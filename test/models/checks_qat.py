"""Prepared models compute what the float model computes, train, and convert to what they computed."""

import copy
import re

import torch
from torch import Tensor, nn

from torchvision_layers import quantized
from torchvision_layers._utils.inputs import Inputs
from torchvision_layers._utils.structure import flatten

from .comparing import check_close, check_explained
from .outcomes import CheckError, RefusedError, refuse
from .rounding import estimate_rounding
from .subject import Subject, outputs_of

__all__ = ["check_qat"]

_RANDOM = re.compile("dropout|stochastic_depth|StochasticDepth", re.IGNORECASE)


def check_qat(subject: Subject, engine: str, backend: str) -> None:
    if engine == "eager" and _has_zero_gain(subject.model()):
        # Torch's fused modules divide by the gains of batch norms, so the prepared model gives NaN.
        raise RefusedError("batch norm with a gain of zero in training", "")
    inputs, is_random = subject.inputs(), bool(_RANDOM.search(subject.text))
    expected = _trained_once(subject.model().train(), inputs)
    prepared = _prepare(subject, engine, backend)
    silent = _switch(copy.deepcopy(prepared), fake_quant=False, observers=False)
    # The fused forms divide by the deviations of the batch norms and multiply by them again.
    check_close(outputs_of(silent.eval(), inputs), subject.expected(), 1e-3, "prepared, without rounding, in eval mode")
    outputs, gradients = _trained_once(silent.train(), inputs)
    if not is_random:
        check_close(outputs, expected[0], 1e-3, "prepared, without rounding, in training mode")
        # A norm that follows may make the gradient of one input zero, up to rounding; sums may cancel.
        floor = 1e-6 * max(float(gradient.abs().max()) for gradient in expected[1]) + 1e-12
        floor += _rounding_of_gradients(subject, expected[1])
        check_close(gradients, expected[1], 1e-2, "gradients without rounding", floor)
    if next(prepared.parameters(), None) is None:
        raise RefusedError("nothing to train", "")
    optimizer = torch.optim.SGD(prepared.parameters(), 1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        _trained_once(prepared.train(), inputs)
        for name, parameter in prepared.named_parameters():
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                raise CheckError(f"the gradient of {name} is not finite")
        optimizer.step()
    try:
        int8 = quantized.convert(prepared)  # type: ignore[arg-type]  # prepared by either engine
    except Exception as error:
        raise refuse(error, subject.text, is_early=False) from error
    trained = outputs_of(_switch(prepared, fake_quant=True, observers=False).eval(), inputs)
    # Training changed statistics, and with them the sensitivity of the model.
    reference = _follow_batches(subject.model()).train()
    _trained_once(reference, inputs)
    estimate = estimate_rounding(reference.eval(), lambda model: outputs_of(model, inputs))
    # Ranges are moving averages, which are wider than those of the last batch.
    check_explained(outputs_of(int8, inputs), trained, estimate, "converted", 3)


def _rounding_of_gradients(subject: Subject, gradients: list[Tensor]) -> float:
    """How far gradients in float32 are from those in float64."""
    inputs = subject.inputs().map(Tensor.double)
    try:
        exact = _trained_once(subject.model().double().train(), inputs)[1]
    except RefusedError:  # a forward may cast to float32
        return 0.0
    return max(float((gradient - other).abs().max()) for gradient, other in zip(gradients, exact, strict=True))


def _has_zero_gain(model: nn.Module) -> bool:
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    return any(norm.weight is not None and not bool(norm.weight.all()) for norm in norms)


def _prepare(subject: Subject, engine: str, backend: str) -> nn.Module:
    try:
        model = _follow_batches(subject.model())
        return quantized.prepare_qat(model, subject.batch(), engine=engine, backend=backend)
    except Exception as error:
        raise refuse(error, subject.text) from error


def _follow_batches(model: nn.Module) -> nn.Module:
    """Gives batch norms the statistics of the last batch: two steps would not bring those of others near to them."""
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.momentum is not None:
            norm.momentum = 1.0
    return model


def _switch(model: nn.Module, *, fake_quant: bool, observers: bool) -> nn.Module:
    """Enables or disables rounding and the observation of ranges, in place."""
    for name, buffer in model.named_buffers():
        if name.endswith("fake_quant_enabled"):
            buffer.fill_(fake_quant)
        elif name.endswith("observer_enabled"):
            buffer.fill_(observers)
    return model


def _loss(output: Tensor) -> Tensor:
    """A sum of squares with a weight for each: that of a normalized output alone would be constant."""
    weights = torch.linspace(0.5, 1.5, output.numel(), dtype=output.dtype)
    return (output.square() * weights.view(output.shape)).mean()


def _trained_once(model: nn.Module, inputs: Inputs) -> tuple[list[Tensor], list[Tensor]]:
    """The outputs in training mode, and the gradients of a loss with respect to the inputs.

    Errors: ``RefusedError`` if torch cannot differentiate the float model; ``CheckError`` if it can, but not another.
    """
    torch.manual_seed(0)
    leaves = inputs.map(lambda tensor: tensor.clone().requires_grad_())
    try:
        outputs = flatten(leaves.map(lambda tensor: tensor * 1.0).run(model))[0]
        sum(map(_loss, outputs), torch.zeros(())).backward()
    except (RuntimeError, ValueError) as error:
        if isinstance(model, (quantized.QuantizableModel, quantized.QuantizableGraph)):
            raise CheckError(f"training: {type(error).__name__}: {error}") from error
        raise RefusedError("torch cannot train the float model", str(error)) from error
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves.tensors()]
    return [output.detach() for output in outputs], gradients
