"""A copy of a model that is rewritten and fused, and was compared with the model on a batch."""

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..._utils.hooked_weights import compute_hooked_weights
from ..._utils.inputs import Inputs
from ..._utils.modules import copy_module, tensor_versions
from ..._utils.tracing import TraceCache
from ..checks import check_repeatable, check_same_results
from ..precision import check_no_autocasting
from ..settings import Settings
from .calls import Call, find_difference, record_calls
from .excluded import mark_float_chains_
from .first_run import FirstRun, run_first, running_module
from .float_forwards import add_int8_children
from .fusion import fuse_children
from .model import QuantizableModel, make_quantizable_, unwrapped
from .problems import describe, first_sentence, innermost, user_path
from .torch_ao.fusing import is_fused_for_training

__all__ = ["try_quantizable"]

#: Images on which a model is traced and rewritten; a batch of one may lose its first dimension.
_TRACED_IMAGES = 2

_REWRITING_CHANGED_RESULTS = (
    "whose result changed when the model was rewritten and fused: its forward depends on more than its input, reads a "
    "tensor after an in-place module or a child wrote into it, or, if it cannot be traced, calls only parts of a layer "
    "or of a Sequential (call them as wholes)"
)


def try_quantizable(
    model: nn.Module, batch: Inputs, settings: Settings, will_train: bool, traces: TraceCache
) -> tuple[QuantizableModel, dict[nn.Module, Call]]:
    """A fused quantizable copy of ``model``, and the calls of its modules on a few images of a batch.

    On these the copy must compute the same as ``model``. The whole batch decides if a ``forward`` takes no other number
    of images, and about errors.
    """
    few = batch.first_images(_TRACED_IMAGES)
    has_more = few.shapes() != batch.shapes()
    if has_more:
        with suppress(Exception):
            return _try_on(few, model, settings, will_train, traces)
        traces.clear()
    prepared, calls = _try_on(batch, model, settings, will_train, traces)
    prepared.takes_few_images = not has_more
    return prepared, calls


def _try_on(
    batch: Inputs, model: nn.Module, settings: Settings, will_train: bool, traces: TraceCache
) -> tuple[QuantizableModel, dict[nn.Module, Call]]:
    """Leaves a ``forward`` as it is, to run in float, if the copy would compute something else."""
    if will_train:
        check_no_autocasting(copy_module(unwrapped(model)).eval(), batch.map(Tensor.clone))
    kept = set[str]()
    while True:
        original = copy_module(unwrapped(model)).eval()
        state = _state_of(original)
        expected, run = run_first(original, batch.map(Tensor.clone), settings.excluded)
        if _state_of(original) != state:
            with torch.no_grad():
                check_repeatable(original, batch, expected)
        run.kept = kept
        prepared = _rewritten(model, batch, settings, will_train, traces, run)
        try:
            calls = _compare(prepared, original, batch, expected)
        except _DifferenceError as error:
            path = error.path
            while path in kept and path:  # what calls it may have been traced wrongly
                path = path.rpartition(".")[0]
            found = {path} | run.silent_writers
            if found <= kept:
                raise error.reason from error.reason.__cause__
            kept |= found
            traces.clear()
            continue
        mark_float_chains_(prepared, batch)
        return prepared.train(will_train), calls


def _state_of(model: nn.Module) -> list[Any]:
    """The state that a ``forward`` may change: the tensors of a model and the numbers in its attributes."""
    values = [value for module in model.modules() for value in vars(module).values()]
    return [*tensor_versions(model), *(value for value in values if isinstance(value, (int, float)))]


class _DifferenceError(Exception):
    """The copy does not run, or computes something else.

    Args:
        path: that of the module with the ``forward`` where it happens.
        reason: the error for the user.
    """

    def __init__(self, path: str, reason: RuntimeError) -> None:
        super().__init__(str(reason))
        self.path, self.reason = path, reason


def _rewritten(
    model: nn.Module, batch: Inputs, settings: Settings, will_train: bool, traces: TraceCache, run: FirstRun
) -> QuantizableModel:
    copied = copy_module(model)
    compute_hooked_weights(copied)
    prepared = make_quantizable_(copied.train(will_train), settings.allow_float, will_train, run, settings.excluded)
    if not will_train and is_fused_for_training(prepared):
        raise ValueError("model is fused for training; fuse it in eval mode, or leave that to quantize")
    if not will_train:  # in training mode, a forward may call other modules
        traces.update(run.traces)
    fuse_children(prepared, will_train, trace=traces.__getitem__)
    add_int8_children(prepared.model, will_train, run)
    prepared.observe_inputs(batch)
    return prepared.eval()


def _compare(prepared: QuantizableModel, original: nn.Module, batch: Inputs, expected: Any) -> dict[nn.Module, Call]:
    """The calls of the modules of ``prepared``, which must compute what ``original`` does."""
    stack: list[nn.Module] = []
    with torch.no_grad(), running_module(prepared, stack):
        try:
            output, calls = record_calls(prepared, batch)
        except Exception as error:  # a rewritten forward may call its children with other arguments
            module = innermost(prepared.model, stack)
            reason = RuntimeError(
                f"the rewritten model cannot run: in it, {describe(prepared.model, module)}, and raises: "
                f"{first_sentence(error)}"
            )
            reason.__cause__ = error
            raise _DifferenceError(user_path(prepared.model, module), reason) from error
        try:
            check_same_results(output, expected, _REWRITING_CHANGED_RESULTS, original, batch)
        except RuntimeError as error:
            module = find_difference(original, prepared.model, batch)
            reason = RuntimeError(f"{describe(prepared.model, module)}, {error}")
            raise _DifferenceError(user_path(prepared.model, module), reason) from None
    return calls
