"""The interface of an engine, and the two engines, each imported on first use because its backend may be missing."""

from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

from torch import nn

from .._utils.checks import did_you_mean
from .._utils.inputs import Inputs
from .._utils.quiet import quiet
from .eager.torch_ao import explain_missing_torch_ao
from .measurement import OutputMeasurement
from .report_row import ReportRow
from .settings import BACKENDS, Settings
from .wrapper import QuantizableWrapper

__all__ = ["Engine", "load_engine"]

Model = TypeVar("Model", bound=QuantizableWrapper)


class Engine(Protocol[Model]):
    """The functions of an engine's ``workflow`` module. The caller has checked every argument except the model."""

    def choose_backend(self, name: str) -> str:
        """Returns ``name``, or what ``"auto"`` means here; raises ``ValueError`` unless this machine has it."""

    def quantize(self, model: nn.Module, batches: Iterator[Inputs], settings: Settings) -> Model:
        """Returns an int8 copy of a float model, with ranges observed on the batches."""

    def prepare_qat(self, model: nn.Module, example: Inputs | None, settings: Settings) -> Model:
        """Returns a copy of a float model for quantization-aware training."""

    def convert(self, prepared: Model) -> Model:
        """Returns an int8 copy of a prepared model."""

    def freeze(self, prepared: Model) -> None:
        """Stops batch statistics and ranges of a prepared model, in place."""

    def measure(
        self, int8: Model, model: nn.Module, batches: Iterator[Inputs]
    ) -> tuple[list[ReportRow], OutputMeasurement]:
        """Returns the rows of an int8 model with their errors against its source, and those of its outputs."""


def load_engine(name: str) -> Engine[Any]:
    """The engine called ``name``.

    Errors: ``ValueError`` for an unknown name; ``ImportError`` if the package that the engine needs is missing.
    """
    if name == "eager":
        with explain_missing_torch_ao():
            from .eager import workflow as eager
        return eager
    if name == "pt2e":
        try:
            with quiet():  # torchao logs warnings about itself
                from .pt2e import workflow as pt2e
        except ImportError as error:
            raise ImportError(
                f"engine='pt2e' needs torchao, which cannot be imported here ({error}): "
                'pip install "torchvision_layers[pt2e]"'
            ) from error
        return pt2e
    owners = [engine for engine, backends in BACKENDS.items() if name in backends]
    remedy = f": pass engine={owners[0]!r}, backend={name!r}" if owners else did_you_mean(name, BACKENDS)
    raise ValueError(f"engine must be 'eager' or 'pt2e', got {name!r}{remedy}")
