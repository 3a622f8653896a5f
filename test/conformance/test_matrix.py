"""Every layer in every check with every sample. Outcomes must equal those in the docs."""

import pytest

from torchvision_layers.testing import Case, Check, Status, cases_of, run_case

from .matrix_record import (
    ALL_CHECKS,
    HEAVIEST,
    HEAVY,
    OUTCOMES,
    TABLE,
    all_cases,
    as_text,
    is_slow,
    load,
    load_devices,
    render,
    status_of,
)
from .specs import SPECS

# The number of expected failures for reasons outside the layers. It may only decrease.
EXPECTED_FAILURES = 1

OUT_OF_DATE = "docs/source/conformance.* is out of date: run `make table`"

CASES = [
    pytest.param(check, case, id=f"{spec.name}-{check.id}-{case.id}", marks=[pytest.mark.slow] * is_slow(check, case))
    for spec in SPECS
    for check in ALL_CHECKS
    for case in cases_of(spec, check)
]


@pytest.mark.parametrize(("check", "case"), CASES)
def test_case(check: Check, case: Case, request: pytest.FixtureRequest) -> None:
    outcome = run_case(check, case)
    if outcome.error is not None:
        raise outcome.error
    if request.config.getoption("--write-matrix"):
        request.config.stash[OUTCOMES].append((case.spec.name, outcome))
        return
    assert as_text(outcome) == load().get(case.spec.name, {}).get(check.id, {}).get(outcome.case_id), OUT_OF_DATE


def test_the_record_has_exactly_the_cases() -> None:
    """Cases of staged layers that run in ``make test-all`` only may be missing; the page says how many are."""
    recorded = {(layer, check, case) for layer, checks in load().items() for check in checks for case in checks[check]}
    expected = {(spec.name, check.id, case_id) for spec, check, case_id in all_cases()}
    late = {
        (spec.name, check.id, case.id)
        for spec in SPECS
        if spec.status == "experimental"
        for check in ALL_CHECKS
        for case in cases_of(spec, check)
        if is_slow(check, case)
    }
    assert recorded <= expected, OUT_OF_DATE
    assert expected - recorded <= late, OUT_OF_DATE
    texts = [text for checks in load().values() for cases in checks.values() for text in cases.values()]
    assert Status.FAILED not in {status_of(text) for text in texts}


def test_the_page_is_up_to_date() -> None:
    assert TABLE.read_text(encoding="utf-8") == render(load(), load_devices()), OUT_OF_DATE


def test_xfails_are_known_and_documented() -> None:
    ids = {id for check in ALL_CHECKS for id in (check.id, *(f"{check.id}[{variant}]" for variant in check.variants))}
    xfails = [(spec.name, id, xfail) for spec in SPECS for id, xfail in spec.xfails.items()]
    assert len(xfails) == EXPECTED_FAILURES
    for layer, id, xfail in xfails:
        assert id in ids, (layer, id)
        assert xfail.reason, (layer, id)
        assert xfail.link.startswith("https://"), (layer, id)


def test_heavy_checks_exist() -> None:
    ids = {check.id for check in ALL_CHECKS}
    assert {*HEAVY, *(id for checks in HEAVIEST.values() for id in checks)} <= ids
    assert {*HEAVIEST} <= {spec.name for spec in SPECS}
