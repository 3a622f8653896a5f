"""A hundred drawn models pass their checks. ``make fuzz`` draws thousands, with all checks."""

import pytest

from .running import run

#: Each check runs on every model whose number divides by its period. All together take less than a minute.
PERIODS = {
    "fold": 3,
    "eager x86": 5,
    "eager onednn": 5,
    "eager qnnpack": 10,
    "standalone": 20,
    "state eager": 25,
    "qat eager x86": 10,
    "qat eager onednn": 50,
    "torchscript": 20,
    "torchscript int8": 50,
    "pt2e x86": 20,
    "pt2e onnxruntime": 25,
    "qat pt2e": 50,
    "state pt2e": 100,
    "pt2": 100,
    "pt2 int8": 100,
    "onnx": 100,
    "onnx-qdq": 100,
}


@pytest.mark.filterwarnings("ignore")  # of torch about itself, in every check
def test_drawn_models() -> None:
    summary = run(100, 0, PERIODS, shrink_seconds=60)
    assert summary.models == 100
    assert not summary.failures, "\n\n".join(found.report() for found in summary.failures.values())
    assert summary.passed >= 80
    assert summary.unfit <= 5


def test_skipped_models_are_drawn_only() -> None:
    all_models, last_models = list[str](), list[str]()
    run(12, 3, {}, on_model=all_models.append)
    run(12, 3, {}, skip=9, on_model=last_models.append)
    assert len(all_models) == 12
    assert last_models == all_models[9:]
