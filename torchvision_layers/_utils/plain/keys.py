"""Keys of the ``state_dict`` of a container that takes the place of one layer."""

from functools import partial
from typing import Any

from torch import nn

__all__ = ["hide_name"]


def hide_name(container: nn.Module, name: str) -> None:
    """Keeps the name of one child out of the keys of ``container.state_dict()``, also when a state is loaded."""
    container.register_state_dict_post_hook(partial(_strip_name, name))
    container.register_load_state_dict_pre_hook(partial(_add_name, name))


def _strip_name(
    name: str, module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    start = f"{prefix}{name}."
    for key in [key for key in state_dict if key.startswith(prefix)]:  # all of them, which keeps their order
        value = state_dict.pop(key)
        state_dict[prefix + key.removeprefix(start) if key.startswith(start) else key] = value


def _add_name(
    name: str, module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
) -> None:
    others = module._modules.keys() - {name}
    for key in [key for key in state_dict if key.startswith(prefix)]:
        rest = key.removeprefix(prefix)
        if rest.partition(".")[0] not in others:
            state_dict[f"{prefix}{name}.{rest}"] = state_dict.pop(key)
