"""Batch normalization over the images of all processes, also on CPUs, which ``nn.SyncBatchNorm`` does not support."""

import torch
import torch.distributed as dist
from torch import Tensor, nn


class _Sum(torch.autograd.Function):
    """Sums a tensor over the processes; the gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)


class SyncBatchNormOnCPU(nn.BatchNorm2d):
    """``nn.BatchNorm2d`` that computes its statistics in training over the images of all processes."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        channels = (1, -1, 1, 1)
        x = input.to(self.weight.dtype)  # from half precision
        sums = _Sum.apply(torch.cat([x.sum((0, 2, 3)), x.new_tensor([x.numel() / x.shape[1]])]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centered = x - mean.view(channels)
        # A second pass: a difference of sums loses digits if the mean is large.
        variance = _Sum.apply(centered.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return torch.addcmul(self.bias.view(channels), centered, scale.view(channels)).to(input.dtype)


def sync_batch_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """``model`` with synchronized batch norms; parameters and names do not change.

    Raises:
        ValueError: on a CPU, for a batch norm without affine parameters, running statistics or momentum.
    """
    if device.type != "cpu":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            if not (module.affine and module.track_running_stats and module.momentum is not None):
                raise ValueError(f"sync_bn needs batch norms with affine, statistics and momentum; {name} is {module}")
            module.__class__ = SyncBatchNormOnCPU
    return model
