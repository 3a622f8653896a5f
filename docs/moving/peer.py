"""Pairs of a layer of another library and its replacement here: the table of arguments, and its verification."""

import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

__all__ = ["Peer", "check", "table"]


@dataclass(frozen=True)
class Peer:
    """Two layers that compute the same from the same weights."""

    #: Dotted names.
    theirs: str
    ours: str
    #: Arguments that both have under one name.
    same: tuple[str, ...]
    #: Non-default arguments to verify the pair with, and the shape of an input.
    call: Mapping[str, Any]
    our_call: Mapping[str, Any]
    shape: tuple[int, ...]
    #: Their argument, and ours with remarks.
    renamed: Mapping[str, str] = field(default_factory=dict)
    #: Their arguments without a counterpart, and the alternative.
    absent: Mapping[str, str] = field(default_factory=dict)
    #: Keys of their ``state_dict`` without a counterpart.
    lost_keys: tuple[str, ...] = ()
    note: str = ""
    #: Class of their first argument, if that is a configuration; ``call`` has its fields.
    config: str = ""

    @property
    def library(self) -> str:
        return self.theirs.split(".")[0]


def find(name: str) -> Any:
    """The class of a dotted name."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _parameters(cls: Any) -> list[str]:
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [name for name, p in inspect.signature(cls).parameters.items() if p.kind not in kinds]


def _their_parameters(peer: Peer) -> list[str]:
    names = _parameters(find(peer.theirs))
    return [f"cnf.{name}" for name in _parameters(find(peer.config))] + names[1:] if peer.config else names


def _ours(remark: str) -> str:
    """The argument at the start of a remark."""
    return remark.split("``")[1].split("=")[0]


def _make_theirs(peer: Peer) -> nn.Module:
    call = dict(peer.call)
    if peer.config:
        config = {name: call.pop(name) for name in list(call) if name.startswith("cnf.")}
        call["cnf"] = find(peer.config)(**{name.removeprefix("cnf."): value for name, value in config.items()})
    module = find(peer.theirs)(**call)
    assert isinstance(module, nn.Module)
    return module


def check(peer: Peer) -> None:
    """Raises ``AssertionError`` unless the arguments exist as listed and both layers give the same result."""
    listed = [*peer.same, *peer.renamed, *peer.absent]
    theirs, ours = _their_parameters(peer), _parameters(find(peer.ours))
    assert sorted(listed) == sorted(theirs), (peer.theirs, set(listed) ^ set(theirs))
    targets = {*peer.same, *map(_ours, peer.renamed.values())}
    assert targets <= set(ours), (peer.ours, targets - set(ours))
    torch.manual_seed(0)
    left, right = _make_theirs(peer).eval(), find(peer.ours)(**peer.our_call).eval()
    state = {key: value for key, value in left.state_dict().items() if key not in peer.lost_keys}
    state = {key: _randomized(key, value) for key, value in state.items()}
    left.load_state_dict(state, strict=not peer.lost_keys)
    # Keys may differ, but not their order.
    assert len(state) == len(right.state_dict()), (peer.theirs, list(state), list(right.state_dict()))
    right.load_state_dict(
        {
            key: value.reshape(mine.shape)
            for (key, mine), value in zip(right.state_dict().items(), state.values(), strict=True)
        }
    )
    input = torch.randn(peer.shape)
    with torch.no_grad():
        torch.testing.assert_close(right(input.clone()), left(input.clone()), rtol=1e-4, atol=1e-5)


def _randomized(key: str, value: torch.Tensor) -> torch.Tensor:
    """Random values that differ from any default, positive because one may be a variance."""
    return torch.rand_like(value) + 0.5 if value.is_floating_point() and value.dim() < 2 else value


def _code(names: list[str]) -> str:
    return ", ".join(f"``{name}``" for name in names)


def table(peer: Peer) -> str:
    """The page section for this pair, in reStructuredText."""
    theirs, ours = find(peer.theirs), find(peer.ours)
    heading = peer.theirs.removeprefix(peer.library + ".")
    defaults = {_ours(remark) for remark in peer.renamed.values()}
    added = [name for name in _parameters(ours) if name not in {*peer.same, *defaults}]
    rows = [(_code(list(peer.same)), "unchanged")] if peer.same else []
    rows += [(f"``{name}``", remark) for name, remark in {**peer.renamed, **peer.absent}.items()]
    rows += [("", f"additional: {_code(added)}")] if added else []
    lines = [heading, "~" * len(heading), "", f"Replacement: :class:`~{peer.ours}`. {peer.note}".rstrip(), ""]
    lines += [".. list-table::", "   :header-rows: 1", "   :widths: 40 60", ""]
    for left, right in [(f"``{theirs.__name__}``", f"``{ours.__name__}``"), *rows]:
        lines += [f"   * - {left}", f"     - {right}"]
    return "\n".join([*lines, ""])
