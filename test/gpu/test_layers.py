"""Every layer in every check: on a GPU all that apply there, otherwise on meta those that need no values."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from torchvision_layers.testing import (
    CHECKS,
    Case,
    Check,
    LayerSpec,
    NotApplicable,
    Outcome,
    Sample,
    Status,
    Tier,
    XFail,
    cases_of,
    check_layer,
    run_case,
)
from torchvision_layers.testing._check import NO_VALUES
from torchvision_layers.testing._checks import devices
from torchvision_layers.testing._checks._not_applicable import CPU_ONLY, GPU_ONLY

from ..conformance import matrix_record
from ..conformance.mutant_layers import Control, ReadsAValue
from ..conformance.specs import SPECS

CONTROL = LayerSpec(Control, (Sample("default", {}, (2, 3, 6, 7), reads_mode=True),))
BY_ID = {check.id: check for check in CHECKS}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption("--device")
    device, excluded = ("meta", NO_VALUES) if option == "cpu" else (option, CPU_ONLY)
    metafunc.parametrize(
        ("check", "case"),
        [
            pytest.param(
                check, case, id=f"{spec.name}-{check.id}-{case.id}", marks=[pytest.mark.slow] * is_slow(check, case)
            )
            for spec in SPECS
            for check in CHECKS
            if excluded not in check.not_applicable
            for case in cases_of(spec, check, device)
        ],
    )


def is_slow(check: Check, case: Case) -> bool:
    """Compilers run on the first sample of each layer."""
    is_first = case.sample is case.spec.samples[0]
    return not is_first and (check.tier is Tier.NIGHTLY or check.id in matrix_record.HEAVY)


def test_case(check: Check, case: Case, request: pytest.FixtureRequest) -> None:
    outcome = run_case(check, case)
    if case.device.type == "cuda":
        request.config.stash[matrix_record.OUTCOMES].append((case.spec.name, outcome))
    if outcome.error is not None:
        raise outcome.error


@pytest.mark.parametrize(
    ("needs", "elsewhere", "ids"),
    [
        (GPU_ONLY, ("cpu", "meta"), {"cuda_graph", "no_sync", "tf32"}),
        (CPU_ONLY, ("meta",), {"ptq_eager", "qat_eager", "int8_io", "pt2e_ptq", "pt2e_io", "pt2e_qat", "onnx_qdq"}),
    ],
)
def test_some_checks_need_another_device(needs: NotApplicable, elsewhere: tuple[str, ...], ids: set[str]) -> None:
    assert {check.id for check in CHECKS if needs in check.not_applicable} == ids
    for check in map(BY_ID.__getitem__, ids):
        for case in (case for device in elsewhere for case in cases_of(CONTROL, check, device)):
            assert needs.holds(case)
            assert run_case(check, case).status is Status.NOT_APPLICABLE


def test_an_expected_failure_of_another_device_is_not_expected() -> None:
    expected = {"determinism": XFail("reason", "https://example.org")}
    report = check_layer(Control, CONTROL.samples, rows=["determinism"], expected_failures=expected, device="meta")
    assert {outcome.status for outcome in report.outcomes} == {Status.NOT_APPLICABLE}


@pytest.mark.parametrize("name", ["cuda:63", "no device", "privateuseone"])
def test_a_device_must_exist(name: str) -> None:
    with pytest.raises(ValueError, match=f"device must exist, got '{name}' "):
        check_layer(Control, CONTROL.samples, device=name)


@pytest.fixture
def stand_ins(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, nothing waits for one, and a captured call is computed again."""
    if device.type == "cuda":
        return

    def captured(call: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        output = call()
        return output, lambda: output.copy_(call())

    monkeypatch.setattr(devices, "captured", captured)
    for name in ("synchronize", "set_sync_debug_mode"):
        monkeypatch.setattr(torch.cuda, name, lambda argument: None)
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)


@pytest.mark.usefixtures("stand_ins")
@pytest.mark.parametrize("variant", ["train", "eval"])
@pytest.mark.parametrize("check", [devices.tf32, devices.no_sync, devices.cuda_graph], ids=lambda check: check.id)
def test_a_check_of_gpus_passes(check: Check, variant: str, device: torch.device) -> None:
    check.function(Case(CONTROL, CONTROL.samples[0], variant, device))


def test_a_graph_that_computes_something_else_is_detected(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "captured", lambda call: (call(), lambda: None))
    with pytest.raises(AssertionError, match="not close"):
        devices.cuda_graph.function(Case(CONTROL, CONTROL.samples[0], "eval", device))


def test_a_layer_that_waits_is_detected(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("needs a GPU")
    spec = LayerSpec(ReadsAValue, CONTROL.samples)
    for id in ("no_sync", "cuda_graph"):
        assert run_case(BY_ID[id], Case(spec, spec.samples[0], "eval", device)).status is Status.FAILED


def test_records_of_devices_are_separate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = SPECS[0]
    case = cases_of(spec, BY_ID["tf32"])[0]
    outcome = Outcome("tf32", case.id, Status.PASSED)
    before = matrix_record.load()
    monkeypatch.setattr(matrix_record, "JSON", tmp_path / "conformance.json")
    monkeypatch.setattr(matrix_record, "TABLE", tmp_path / "conformance.rst")
    matrix_record.save([(spec.name, outcome)], "A GPU")
    monkeypatch.setattr(matrix_record, "_load", matrix_record._load.__wrapped__)
    assert matrix_record.load() == before
    assert matrix_record.load_devices() == {"A GPU": {spec.name: {"tf32": {case.id: "passed"}}}}
    page = (tmp_path / "conformance.rst").read_text(encoding="utf-8")
    assert "\nA GPU\n-----\n\n1 cases passed, 0 do not apply" in page
