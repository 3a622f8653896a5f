"""The check ``golden``: weights and inputs in closed form give the recorded outputs.

References show that a layer is correct; this check shows that no change, a new torch included, alters its outputs.
``EXPECTTEST_ACCEPT=1`` writes the record.
"""

import json
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from torchvision_layers.testing import Case, check
from torchvision_layers.testing._checks._not_applicable import RANDOM_IN_TRAINING, TRAIN_EVAL

from ._support import write

__all__ = ["golden"]

FOLDER = Path(__file__).parent / "golden"


def waves(count: int, step: float) -> Tensor:
    """Numbers between -1 and 1, independent of random generators."""
    return (torch.arange(count, dtype=torch.float64) * step).sin().float()


def fill(layer: nn.Module) -> nn.Module:
    with torch.no_grad():
        for i, (name, tensor) in enumerate([*layer.named_parameters(), *layer.named_buffers()]):
            if tensor.is_floating_point():
                values = waves(tensor.numel(), 1.1 + 0.1 * i).view(tensor.shape)
                tensor.copy_(1 + values / 2 if name.endswith("running_var") else values)
    return layer


def describe(output: Tensor) -> dict[str, list[float]]:
    """Shape, some of the values, and two statistics of all of them."""
    flat = output.detach().double().cpu().flatten()
    indices = torch.linspace(0, flat.numel() - 1, 7).long()
    return {
        "shape": list(output.shape),
        "values": [round(float(value), 6) for value in flat[indices]],
        "mean and root mean square": [round(float(flat.mean()), 6), round(float(flat.square().mean().sqrt()), 6)],
    }


@check(
    "golden",
    variants=TRAIN_EVAL,
    not_applicable=(RANDOM_IN_TRAINING,),
)
def golden(case: Case) -> None:
    """Weights and inputs in closed form give the recorded outputs, to 1e-4."""
    layer = fill(case.fresh())
    input = waves(torch.Size(case.sample.shape).numel(), 0.37).view(case.sample.shape).to(case.device)
    actual = describe(layer(input))
    file = FOLDER / f"{case.spec.name}.json"
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    case_id = f"{case.sample.id}, {case.variant}"
    if os.environ.get("EXPECTTEST_ACCEPT"):
        record[case_id] = actual
        write(file, json.dumps(dict(sorted(record.items())), indent=1) + "\n")
    assert case_id in record, f"nothing is recorded for {case_id}"
    assert actual["shape"] == record[case_id]["shape"]
    for name in ("values", "mean and root mean square"):
        torch.testing.assert_close(
            torch.tensor(actual[name]), torch.tensor(record[case_id][name]), rtol=1e-4, atol=1e-4
        )
