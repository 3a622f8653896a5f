"""The row ``golden``: from weights and inputs in closed form come the values that were recorded once.

References tell whether a layer is right. This row tells that nothing, a new torch included, has changed what it gives.
``EXPECTTEST_ACCEPT=1`` writes the record, as it does for the texts of ``test/layers/test_repr_and_keys.py``.
"""

import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from torchvision_layers.testing import Cell, row
from torchvision_layers.testing._rows._applies import RANDOM_IN_TRAINING, TRAIN_EVAL

from ._support import write

__all__ = ["golden"]

FOLDER = Path(__file__).parent / "golden"


def waves(count: int, step: float) -> Tensor:
    """Numbers between -1 and 1 that no random generator had a part in."""
    return (torch.arange(count, dtype=torch.float64) * step).sin().float()


def fill(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for i, (name, tensor) in enumerate([*layer.named_parameters(), *layer.named_buffers()]):
            if tensor.is_floating_point():
                values = waves(tensor.numel(), 1.1 + 0.1 * i).view(tensor.shape)
                tensor.copy_(1 + values / 2 if name.endswith("running_var") else values)
    return layer


def described(output: Tensor) -> dict[str, list[float]]:
    """Shape, some of the values, and two sums over all of them."""
    flat = output.detach().double().flatten()
    places = torch.linspace(0, flat.numel() - 1, 7).long()
    return {
        "shape": list(output.shape),
        "values": [round(float(value), 6) for value in flat[places]],
        "mean and root mean square": [round(float(flat.mean()), 6), round(float(flat.square().mean().sqrt()), 6)],
    }


@row(
    "golden",
    variants=TRAIN_EVAL,
    not_applicable=(RANDOM_IN_TRAINING,),
)
def golden(cell: Cell) -> None:
    """From weights and inputs in closed form come the recorded values, to 1e-4."""
    layer = fill(cell.fresh())
    input = waves(torch.Size(cell.sample.shape).numel(), 0.37).view(cell.sample.shape)
    got = described(layer(input))
    file = FOLDER / f"{cell.spec.name}.json"
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    place = f"{cell.sample.id}, {cell.variant}"
    if os.environ.get("EXPECTTEST_ACCEPT"):
        record[place] = got
        write(file, json.dumps(dict(sorted(record.items())), indent=1) + "\n")
    assert place in record, f"nothing is recorded for {place}"
    assert got["shape"] == record[place]["shape"]
    for name in ("values", "mean and root mean square"):
        torch.testing.assert_close(torch.tensor(got[name]), torch.tensor(record[place][name]), rtol=1e-4, atol=1e-4)
