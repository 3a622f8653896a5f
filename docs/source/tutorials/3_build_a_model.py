"""
Build a model from layers
=========================

You want a network whose parts you can exchange: another norm, another activation, attention, other blocks. This page
writes a small ResNet once, builds five variants of it by passing constructors, and ends with a vision transformer.
"""

# %%
# A network with arguments for its parts
# --------------------------------------
#
# A layer argument is a constructor, or a module that is copied at each place. Each block says its ``out_channels``.

from functools import partial

import torch
from matplotlib import pyplot
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from torchvision_layers import deploy, quantized
from torchvision_layers import nn as tnn
from torchvision_layers.experimental import nn as enn


def resnet(block=tnn.BasicBlock, **layers) -> nn.Sequential:
    """A ResNet for digits; ``layers`` go to every block."""
    shared = {name: layer for name, layer in layers.items() if name in ("norm_layer", "activation_layer", "conv_layer")}
    parts, channels = [tnn.ConvNormAct(1, 8, **shared)], 8
    for width, stride in ((8, 1), (16, 2), (32, 2)):
        parts.append(block(channels, width, stride, **layers))
        channels = parts[-1].out_channels
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


# %%
# Variants
# --------

variants = {
    "batch norm, ReLU": resnet,
    "SiLU": partial(resnet, activation_layer=nn.SiLU),
    "group norm, standardized filters": partial(resnet, norm_layer=partial(nn.GroupNorm, 4), conv_layer=tnn.WSConv2d),
    "squeeze-excitation": partial(resnet, se_layer=tnn.SqueezeExcitation),
    "bottlenecks": partial(resnet, block=tnn.Bottleneck),
}

torch.set_num_threads(1)  # the layers are too small for more
digits = load_digits()
images = torch.from_numpy(digits.images).float().unsqueeze(1).div(16)
labels = torch.from_numpy(digits.target)
train_images, test_images, train_labels, test_labels = images[:1400], images[1400:], labels[:1400], labels[1400:]


def train(model: nn.Module, epochs: int, lr: float = 3e-3) -> float:
    """Trains and returns the accuracy on the test images."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * 28)
    for _ in range(epochs):
        for batch in torch.randperm(1400).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(train_images[batch]), train_labels[batch]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        return (model(test_images).argmax(1) == test_labels).float().mean().item()


accuracies = {}
for name, build in variants.items():
    torch.manual_seed(0)
    model = build()
    accuracies[name] = train(model, epochs=2)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{name:<34}{parameters:>8,} parameters {accuracies[name]:6.1%}")

# %%

figure, axis = pyplot.subplots(figsize=(8, 2.6), layout="constrained")
axis.barh(list(accuracies), [100 * value for value in accuracies.values()])
axis.set(xlim=(50, 100), xlabel="% of the test images after two epochs")
axis.invert_yaxis()

# %%
# Two epochs and one seed decide nothing; :doc:`/variants` compares models that were trained to the end with three
# seeds.
#
# Errors come in the constructor
# ------------------------------
#
# A wrong argument is named with its rule and value, before any batch:

try:
    tnn.ConvNormAct(3, 16, kernel_size=4)
except ValueError as error:
    print(error)

# %%
# A vision transformer
# --------------------
#
# Patches become tokens, blocks let them look at each other, and a head classifies their mean. These layers are
# staged: a minor release may change them.


class MeanOfTokens(nn.Module):
    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.mean(1)


torch.manual_seed(0)
block = partial(enn.TransformerEncoderBlock, 4, 64, 128, norm_layer=nn.RMSNorm)
vit = nn.Sequential(
    enn.PatchEmbedding(1, 64, patch_size=2),
    *(block() for _ in range(2)),
    nn.RMSNorm(64),
    MeanOfTokens(),
    nn.Linear(64, 10),
)
print(f"{sum(p.numel() for p in vit.parameters()):,} parameters {train(vit, epochs=6):.1%}")

# %%
# Without positions, it sees a bag of patches. Add an embedding per token, and take a gated MLP:


class Positions(nn.Module):
    def __init__(self, count: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(0.02 * torch.randn(count, channels))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens + self.embedding


torch.manual_seed(0)
block = partial(block, mlp_layer=enn.GatedMLP)
vit = nn.Sequential(
    enn.PatchEmbedding(1, 64, patch_size=2),
    Positions(16, 64),
    *(block() for _ in range(2)),
    nn.RMSNorm(64),
    MeanOfTokens(),
    nn.Linear(64, 10),
)
print(f"{sum(p.numel() for p in vit.parameters()):,} parameters {train(vit, epochs=6):.1%}")

# %%
# From here on, it is a model like any other: quantize it, and write it to a file.

int8 = quantized.quantize(vit, train_images[:256].split(64))
with torch.no_grad():
    print(f"int8: {(int8(test_images).argmax(1) == test_labels).float().mean():.1%}")
exported = deploy.export(vit, test_images[:4], "vit.pt2")
print(f"{exported.path.name}: {exported.size / 1e3:.0f} kB")

# %%
# :doc:`/composing` explains layer arguments, :doc:`/vision_transformer` and :doc:`/necks` the parts of larger models.
