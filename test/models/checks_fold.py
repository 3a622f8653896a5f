"""Folded models equal the model, on every size and batch."""

from torch import Tensor, nn

from torchvision_layers import deploy

from .comparing import check_close
from .outcomes import refuse
from .subject import Subject, outputs_of

__all__ = ["check_fold"]


def check_fold(subject: Subject) -> None:
    """In float64 without a batch that ``fold`` could compare, which hides no mistake, and in float32 with one."""
    folded = _fold(subject, in_double=True)
    for batch, size in ((4, 0), (1, 1), (3, 2)):
        inputs = subject.inputs(batch, size).map(Tensor.double)
        check_close(outputs_of(folded, inputs), subject.expected(batch, size), 1e-9, f"folded, size {size}")
    folded, inputs = _fold(subject, in_double=False), subject.inputs()
    exact = subject.expected()
    own = max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-30))
        for a, b in zip(outputs_of(subject.model(), inputs), exact, strict=True)
    )
    check_close(outputs_of(folded, inputs), exact, 1e-5 + 4 * own, "folded in float32")


def _fold(subject: Subject, in_double: bool) -> nn.Module:
    model, inputs = subject.model(), subject.inputs()
    if in_double:
        model, inputs = model.double(), inputs.map(Tensor.double)
        try:
            return deploy.fold(model)
        except ValueError as error:
            if "batch is required" not in str(error):
                raise refuse(error, subject.text) from error
    try:
        return deploy.fold(model, tuple(inputs.args) or tuple(inputs.kwargs.values()))
    except Exception as error:
        raise refuse(error, subject.text) from error
