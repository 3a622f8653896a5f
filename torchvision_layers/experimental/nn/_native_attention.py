"""The kernel that ``nn.MultiheadAttention`` runs in inference."""

import torch
from torch import Tensor, nn

from ..._utils.checks import is_tensor

__all__ = ["is_native_attention_usable", "native_attention"]

#: Its memory is quadratic in the number of tokens. The largest model of torchvision has 1,370.
_MAX_TOKENS = 2048


def is_native_attention_usable(input: Tensor, heads: int, in_proj: nn.Module, out_proj: nn.Module) -> bool:
    """Whether ``nn.MultiheadAttention`` in eval mode would run the kernel on this input.

    Never in a trace or a compiled graph, under a mode that must see each operator, or for linear layers whose own
    forward must run, because they have hooks or were replaced.
    """
    if not is_tensor(input) or torch.compiler.is_compiling() or not torch.backends.mha.get_fastpath_enabled():
        return False
    tensors = [input]
    for linear in (in_proj, out_proj):
        if type(linear) is not nn.Linear or "forward" in vars(linear) or linear.bias is None:
            return False
        if linear._forward_hooks or linear._forward_pre_hooks:
            return False
        tensors += [linear.weight, linear.bias]
    device = input.device.type
    return (
        heads % 2 == 0
        and 0 < input.shape[1] <= _MAX_TOKENS
        and input.shape[0] > 0
        and all(tensor.dtype == input.dtype for tensor in tensors)
        and device in ("cpu", "cuda")
        and not torch.is_autocast_enabled(device)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        and not torch.overrides.has_torch_function(tensors)
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def native_attention(input: Tensor, heads: int, in_proj: nn.Linear, out_proj: nn.Linear) -> Tensor:
    """Both linear layers and the attention between them."""
    output, _ = torch._native_multi_head_attention(
        input,
        input,
        input,
        input.shape[2],
        heads,
        in_proj.weight,
        in_proj.bias,
        out_proj.weight,
        out_proj.bias,
        need_weights=False,
    )
    return output
