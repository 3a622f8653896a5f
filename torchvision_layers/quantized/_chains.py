"""Which children of a module run straight after one another: found by tracing, so nobody lists them."""

import torch.fx
from torch import nn

__all__ = ["chains"]


class _ShallowTracer(torch.fx.Tracer):
    """Traces one ``forward`` and looks into no child."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def chains(module: nn.Module) -> list[list[str]]:
    """Lists the names of children of which each feeds the next and nothing else, each called once.

    A ``forward`` that cannot be traced symbolically has no chains.
    """
    if next(module.children(), None) is None:
        return []
    try:
        graph = _ShallowTracer().trace(module)
    except Exception:  # forward is the user's, it may raise anything when it meets a proxy
        return []

    calls = [node for node in graph.nodes if node.op == "call_module"]
    targets = [node.target for node in calls]
    once = {node for node in calls if targets.count(node.target) == 1}
    found: list[list[str]] = []
    taken: set[torch.fx.Node] = set()
    for node in calls:
        if node not in once or node in taken:
            continue
        chain = [node]
        while len(chain[-1].users) == 1:
            after = next(iter(chain[-1].users))
            if after not in once or after.args != (chain[-1],) or after.kwargs:
                break
            chain.append(after)
        taken.update(chain)
        found.append([str(link.target) for link in chain])
    return found
