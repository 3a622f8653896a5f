"""
Your torchvision model in int8, in a file, in five minutes
==========================================================

You have a trained model and want it smaller and faster on a CPU. This page trains a ResNet-18 of torchvision on
handwritten digits, quantizes it in one call, and writes it to a file that runs without this package.
"""

# %%
# A trained model
# ---------------
#
# Skip this part if you have one. The digits of scikit-learn have 8×8 pixels; the network sees them at 16×16.

import time

import torch
import torchvision
from matplotlib import pyplot
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from torchvision_layers import deploy, quantized

torch.manual_seed(0)
torch.set_num_threads(1)  # the images are too small for more
digits = load_digits()
images = torch.from_numpy(digits.images).float().unsqueeze(1).div(16)
images = F.interpolate(images, size=16, mode="bilinear").expand(-1, 3, -1, -1).contiguous()
labels = torch.from_numpy(digits.target)
train_images, test_images = images[:1400], images[1400:]
train_labels, test_labels = labels[:1400], labels[1400:]

model = torchvision.models.resnet18(num_classes=10)
epochs, batch_size = 3, 50
optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * len(train_images) // batch_size)
for _ in range(epochs):
    for batch in torch.randperm(len(train_images)).split(batch_size):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train_images[batch]), train_labels[batch]).backward()
        optimizer.step()
        schedule.step()
model.eval()


def accuracy(predict) -> float:
    with torch.no_grad():
        return (predict(test_images).argmax(1) == test_labels).float().mean().item()


print(f"float: {accuracy(model):.1%} of {len(test_images)} test images")

# %%
# Int8
# ----
#
# ``quantize`` needs the model in eval mode and some batches of training images, which show it the range of each
# activation. You don't list modules to fuse, and you don't change the model: its additions become modules, batch
# norms and activations are fused into convolutions, and the result is compared with the float model before you get
# it.

int8 = quantized.quantize(model, train_images[:256].split(32))
print(f"int8: {accuracy(int8):.1%}")

# %%
# The report has one row per module. Everything runs in int8 here; a row in float would say why.

print(quantized.report(int8))

# %%
# A file
# ------
#
# ``export`` loads the file back and compares it with the model, also at other batch and image sizes, before the file
# gets its name. ``deploy.load`` verifies its checksum.

exported = deploy.export(int8, test_images[:8], "digits_int8.pt", classes=[str(i) for i in range(10)])
program = deploy.load("digits_int8.pt")
print(f"{exported.size / 1e6:.1f} MB instead of {sum(p.numel() * 4 for p in model.parameters()) / 1e6:.1f} MB")
print(f"file: {accuracy(program):.1%}, classes {program.metadata['classes']}")

# %%
# The file needs torch only: ``torch.jit.load("digits_int8.pt")`` runs it in Python, ``torch::jit::load`` in C++.
# :doc:`/deploying` lists the other formats, such as ONNX.
#
# Is it faster?
# -------------
#
# The median of calls that take turns, for one image:

image = test_images[:1]
seconds = {"float": [], "int8": []}
with torch.no_grad():
    for _ in range(30):
        for name, call in (("float", model), ("int8", program)):
            start = time.perf_counter()
            call(image)
            seconds[name].append(time.perf_counter() - start)
median = {name: sorted(times)[len(times) // 2] for name, times in seconds.items()}
print(f"int8 takes {median['int8'] / median['float']:.2f} of the time of float")

# %%
# Predictions
# -----------

figure, axes = pyplot.subplots(2, 8, figsize=(10, 3), layout="constrained")
predicted = program(test_images[:16]).argmax(1)
for axis, picture, label in zip(axes.flat, test_images[:16], predicted.tolist(), strict=True):
    axis.imshow(picture[0].numpy(), cmap="gray_r")
    axis.set_title(program.metadata["classes"][label])
    axis.axis("off")

# %%
# Next: :doc:`2_which_layer_costs_accuracy` if your model loses accuracy, :doc:`/quantizing` for all options.
