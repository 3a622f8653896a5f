"""Runs checks on drawn models, and shrinks each new kind of failure to the smallest source that fails so."""

import itertools
import re
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase, settings

from .checks import CHECKS, due
from .description import Model
from .drawing import models
from .outcomes import CheckError, RefusedError
from .source import source
from .subject import Subject

__all__ = ["Found", "Summary", "run", "run_check"]

#: Models that one call of hypothesis draws: it mutates some, and starts each call with the smallest.
_CHUNK = 50
#: Parts of a message that differ between failures of one kind: numbers, and paths of files and modules.
_NUMBERS = re.compile(r"[-+]?\d[\d.e+-]*|/[^ ):]+")


@dataclass
class Found:
    """A failure, with the smallest source that shows it."""

    check: str
    message: str
    text: str

    @property
    def kind(self) -> str:
        """Equal for failures that probably have the same cause."""
        first = self.message.strip().partition("\n")[0]
        return f"{self.check}: {_NUMBERS.sub('N', first)[:100]}"

    def report(self) -> str:
        """The source, with the failure in a comment."""
        return "".join(f"# {line}\n" for line in [f"Fails: {self.check}", *self.message.splitlines()]) + self.text


@dataclass
class Summary:
    """The outcomes of a run."""

    models: int = 0
    passed: int = 0
    #: Numbers of models that are unfit for checks, because their outputs are not finite or amplify rounding.
    unfit: int = 0
    checks: Counter[str] = field(default_factory=Counter)
    #: Refusals by check and reason.
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    refused_models: int = 0
    #: The smallest failure of each kind, and how many models failed so.
    failures: dict[str, Found] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    #: Processor time by check.
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


class _EnoughError(BaseException):
    """Ends the search for a smaller failure; hypothesis passes it on, as it does with an interrupt."""


def run_check(subject: Subject, check: str) -> Found | RefusedError | None:
    """The failure or refusal of one check; ``None`` if it passes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            CHECKS[check](subject)
    except RefusedError as refusal:
        return refusal
    except CheckError as failure:
        return Found(check, str(failure), subject.text)
    except Exception:  # of the package, in a place where the check expects none
        return Found(
            check,
            traceback.format_exc(limit=-6).strip().rpartition("\n")[2] + "\n" + traceback.format_exc(),
            subject.text,
        )
    return None


class _Run:
    """A run, one call of hypothesis after the other."""

    def __init__(
        self,
        count: int,
        skip: int,
        periods: Mapping[str, int],
        shrink_seconds: float,
        ends_at_failure: bool,
        on_model: Callable[[str], None],
        on_progress: Callable[[Summary], None],
        folder: Path,
    ) -> None:
        self.count, self.skip, self.periods, self.folder = count, skip, dict(periods), folder
        self.shrink_seconds = shrink_seconds
        self.ends_at_failure, self.on_model, self.on_progress = ends_at_failure, on_model, on_progress
        self.summary = Summary()
        self.texts = set[str]()
        self.found: Found | None = None
        self.deadline = 0.0

    def examine(self, model: Model) -> None:
        if self._fails(source(model)):
            raise CheckError  # always here: hypothesis takes another line for another failure, and does not shrink it

    def _fails(self, text: str) -> bool:
        if self.found is not None:
            return self._is_same(text, self.found)
        if text in self.texts or len(self.texts) == self.count:
            return False
        self.texts.add(text)
        if len(self.texts) <= self.skip:
            return False
        self.on_model(text)
        self._check(Subject(text, self.folder))
        self.on_progress(self.summary)
        if self.ends_at_failure and self.summary.failures and self.found is None:
            raise _EnoughError
        return self.found is not None

    def _check(self, subject: Subject) -> None:
        summary = self.summary
        summary.models += 1
        if not subject.is_stable:
            summary.unfit += 1
            return
        outcomes = []
        for check in due(self.periods, len(self.texts)):
            start = time.process_time()
            outcome = run_check(subject, check)
            summary.seconds[check] += time.process_time() - start
            summary.checks[check] += 1
            outcomes.append(outcome)
            if isinstance(outcome, RefusedError):
                summary.refusals[check, outcome.reason] += 1
            if isinstance(outcome, Found):
                self._record(outcome)
        summary.passed += all(outcome is None for outcome in outcomes)
        summary.refused_models += any(isinstance(outcome, RefusedError) for outcome in outcomes)

    def _record(self, found: Found) -> None:
        self.summary.counts[found.kind] += 1
        if found.kind in self.summary.failures:
            return
        self.summary.failures[found.kind] = found
        if self.found is None and self.shrink_seconds:
            self.found, self.deadline = found, time.monotonic() + self.shrink_seconds

    def _is_same(self, text: str, found: Found) -> bool:
        """Whether a model fails in the same way as ``found``; the smallest is kept."""
        if time.monotonic() > self.deadline:
            raise _EnoughError
        if text == found.text:
            return True
        subject = Subject(text, self.folder)
        outcome = run_check(subject, found.check) if subject.is_stable else None
        if not isinstance(outcome, Found) or outcome.kind != found.kind:
            return False
        if len(text) < len(found.text):
            self.found = self.summary.failures[found.kind] = outcome
        return True

    def draw(self, seed: int) -> None:
        """Examines further models, and shrinks the first new failure among them."""

        @hypothesis.seed(seed)
        @settings(
            max_examples=_CHUNK,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
        )
        @hypothesis.given(models())
        def examine(model: Model) -> None:
            self.examine(model)

        try:
            examine()
        except _EnoughError:
            pass
        except BaseException:
            if self.found is None:  # the failure is not that of a model
                raise
        if self.found is not None:
            self.found = None
            self.on_progress(self.summary)


def run(
    count: int,
    seed: int,
    periods: Mapping[str, int],
    *,
    skip: int = 0,
    shrink_seconds: float = 60.0,
    ends_at_failure: bool = False,
    on_model: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[Summary], None] = lambda summary: None,
) -> Summary:
    """Draws models and checks them.

    Args:
        count: how many different models to draw.
        seed: equal seeds draw equal models, with the same version of hypothesis.
        periods: the checks, each on every model whose number divides by its period.
        skip: how many of them to draw without a check, to go on with a run that ended early.
        shrink_seconds: how long to shrink each kind of failure; ``0`` keeps the model as it was drawn.
        ends_at_failure: whether to end with the first model that fails.
        on_model: called with the source of each model before it is checked.
        on_progress: called after each model, and after a failure was shrunk.
    """
    with tempfile.TemporaryDirectory() as folder:
        state = _Run(count, skip, periods, shrink_seconds, ends_at_failure, on_model, on_progress, Path(folder))
        for chunk in itertools.count():
            if len(state.texts) == count or (ends_at_failure and state.summary.failures):
                break
            state.draw(seed * 1_000_003 + chunk)
    return state.summary
