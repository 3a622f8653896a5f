"""The pass over a model that moves everything constant in inference into the weights."""

import copy
from collections import Counter
from collections.abc import Callable, Collection

from torch import Tensor, nn

from ..._utils.chains import expand_chain
from ..._utils.data_flow import ForwardTrace
from ..._utils.folded_forms import fold_itself
from ..._utils.modules import replace_module_
from ..._utils.recorded_forwards import record_forwards
from ..._utils.scaling import in_channels, scale_inputs, scale_outputs
from ..._utils.source_lines import failing_line
from ..._utils.tracing import trace_forward
from ...layers.layer_norm import LayerScale
from ...layers.positional_conv import PositionalConv2d
from ...quantized.eager.support import is_unit
from .replacement import float_class_of
from .rules import channels_dim, is_identity, is_opaque, is_weighted, runs_in_order, scale_and_shift

__all__ = ["FoldingPass"]


class FoldingPass:
    """Folds a model in place, and records which other parts of the model depend on each module.

    Every module stays the same object, because a ``forward`` may reach it by other ways than its name.

    Args:
        model: the model, in eval mode.
        run: runs a model on the batch on which the result will be compared with the original. Then a ``forward`` that
            cannot be traced is assumed to use the modules below it as in this run. ``None`` if there is no batch.
        kept: modules to leave alone. Default: none.
    """

    def __init__(
        self, model: nn.Module, run: Callable[[nn.Module], object] | None, kept: Collection[nn.Module] = ()
    ) -> None:
        self.is_compared, self.kept = run is not None, kept
        #: How many times each module is registered.
        self.registrations = Counter[nn.Module]()
        self.folded_modules = set[nn.Module]()
        #: Modules whose parts or parameters a ``forward`` above them uses directly.
        self.entered = set[nn.Module]()
        #: The trace of each ``forward``.
        self.traces: dict[nn.Module, ForwardTrace] = {}
        #: For each module below a ``forward`` that cannot be traced, the path of that ``forward``.
        self.untraced: dict[nn.Module, str] = {}
        self._trace(model, "")
        if run is not None:
            self._record(model, run)

    def _trace(self, model: nn.Module, path: str) -> None:
        self.registrations |= Counter(
            child for module in model.modules() for child in module._modules.values() if child is not None
        )
        if model in self.untraced:
            self._mark_untraced(model, self.untraced[model])
        for name, module in model.named_modules(prefix=path):
            if is_opaque(module) or type(module).forward is nn.Module.forward:  # an nn.ModuleList has no forward
                continue
            trace = self.traces[module] = trace_forward(module, ignores_shapes=True)
            self.entered.update(module.get_submodule(part) for part in trace.parts)
            if not trace.is_traced:
                self._mark_untraced(module, name or "model")

    def _record(self, model: nn.Module, run: Callable[[nn.Module], object]) -> None:
        paths = {path for path, m in model.named_modules() if m in self.traces and not self.traces[m].is_traced}
        if not paths:
            return
        copied = copy.deepcopy(model)  # a forward may change its own state
        try:
            traces = record_forwards(copied, paths, lambda: run(copied))
        except NotImplementedError as error:
            line, is_own = failing_line(error, copied)
            if is_own:
                raise
            raise ValueError(
                f"model cannot be folded as a whole: {line} runs an operator that cannot be recorded, such as "
                "torch.cond; fold the modules around it one by one, as in model.features = deploy.fold(model.features)"
            ) from error
        for path, trace in traces.items():
            module = model.get_submodule(path)
            self.traces[module] = trace
            self.entered.update(module.get_submodule(part) for part in trace.parts)

    def _mark_untraced(self, module: nn.Module, path: str) -> None:
        for child in module.modules():
            if child is not module:
                self.untraced.setdefault(child, path)

    def fold(self, model: nn.Module) -> None:
        """Folds ``model``.

        Errors: ``ValueError`` if there is something to fold below a ``forward`` that cannot be traced, and the result
        will not be compared.
        """
        self._fold(model, "")
        for module in self.folded_modules:
            self._remove_identities(module)

    def _fold(self, module: nn.Module, path: str) -> None:
        if module in self.folded_modules or module in self.entered or module in self.kept:
            return
        self.folded_modules.add(module)
        if fold_itself(module, path or "model"):
            self._trace(module, path)
        if is_opaque(module):
            return
        trace = self._trace_of(module)
        for name in trace.whole:
            self._fold(module.get_submodule(name), f"{path}.{name}".lstrip("."))
        for names in trace.chains:
            for chain in expand_chain(module, names, self._is_unit, self._trace_of):
                self._fold_chain(module, chain, path)
        for name, names in trace.rows:
            chain = expand_chain(module, [*names, name], self._is_unit, self._trace_of)[-1]
            if isinstance(self._first_weighted(module, chain[-2::-1]), nn.Linear):
                self._fold_chain(module, chain, path)

    def _remove_identities(self, module: nn.Module) -> None:
        """Removes children that do nothing from a sequence, and makes those of other modules ``nn.Identity``."""
        trace = None if is_opaque(module) else self._trace_of(module)
        if trace is None or not trace.is_traced or (module in self.untraced and not self.is_compared):
            return
        for name in trace.whole:
            part = module.get_submodule(name)
            if is_identity(part) and part not in self.kept:
                replace_module_(part, nn.Identity())
        if runs_in_order(module):
            for name, child in [*module._modules.items()]:
                if child is not None and is_identity(child) and child not in self.kept:
                    del module._modules[name]  # the other children keep their names

    def _fold_chain(self, parent: nn.Module, names: list[str], path: str) -> None:
        """Folds norms and scales into the weighted layers next to them.

        Args:
            parent: the module that the names belong to.
            names: names of modules, each of which feeds only the next.
            path: the path of ``parent``.
        """
        for i, name in enumerate(names):
            module = parent.get_submodule(name)
            if self._is_shared(module):
                continue
            if not self._fold_back(parent, names[:i], module) and not self._fold_ahead(parent, names[i + 1 :], module):
                continue
            if parent in self.untraced and not self.is_compared:
                raise ValueError(
                    f"batch is required: the forward of {self.untraced[parent]} cannot be traced, so only a comparison "
                    f"can show whether it calls {path or 'model'} as a whole; call deploy.fold(model, batch)"
                )
            replace_module_(module, nn.Identity())

    def _fold_back(self, parent: nn.Module, names: list[str], module: nn.Module) -> bool:
        """Folds ``module`` into the weighted layer before it, if possible."""
        layer = self._first_weighted(parent, names[::-1])
        if layer is None:
            return False
        factors = scale_and_shift(module, layer)
        if factors is None:
            return False
        if isinstance(layer, PositionalConv2d):
            scale_outputs(layer.conv, *factors)
            scale_outputs(layer.position.conv, factors[0])
        else:
            scale_outputs(layer, *factors)
        return True

    def _fold_ahead(self, parent: nn.Module, names: list[str], module: nn.Module) -> bool:
        """Folds a layer scale into the weighted layer after it, if possible."""
        if float_class_of(module) is not LayerScale:
            return False
        layer = self._first_weighted(parent, names)
        if isinstance(layer, PositionalConv2d):
            layer = layer.conv
        if layer is None or in_channels(layer) != module.dim or channels_dim(layer) != module.channels_dim:
            return False
        assert isinstance(module.weight, Tensor)
        scale_inputs(layer, module.weight)  # exact for padding, because scaled zeros are zeros
        return True

    def _first_weighted(self, parent: nn.Module, names: list[str]) -> nn.Module | None:
        """The first module of a chain that does something, if that is a weighted layer of its own."""
        modules = [parent.get_submodule(name) for name in names]
        first = next((module for module in modules if not is_identity(module)), None)
        return first if first is not None and is_weighted(first) and not self._is_shared(first) else None

    def _trace_of(self, module: nn.Module) -> ForwardTrace:
        if module not in self.traces:
            self.traces[module] = trace_forward(module, ignores_shapes=True)
        return self.traces[module]

    def _is_unit(self, module: nn.Module) -> bool:
        """Whether the module is one member of a chain, whatever it calls."""
        return is_opaque(module) or is_weighted(module) or self._is_shared(module) or module in self.entered

    def _is_shared(self, module: nn.Module) -> bool:
        """Whether something else depends on the weights of the module."""
        return is_unit(module) or self.registrations[module] > 1 or module in self.kept
