"""Progress of long work on a terminal: the bar of tqdm if it is installed, otherwise a line with numbers."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, TypeVar

__all__ = ["Progress", "track"]

_T = TypeVar("_T")
_SECONDS = 0.1  # between two changes of the line


class _Line:
    """A line such as ``rounding: 3 of 20``, which overwrites itself."""

    def __init__(self, label: str, total: int | None, done: int) -> None:
        self.label, self.total, self.done = label, total, done
        self.note, self.width, self.written = "", 0, 0.0
        self._write()

    def update(self) -> None:
        self.done += 1
        if time.monotonic() - self.written >= _SECONDS or self.done == self.total:
            self._write()

    def set_postfix_str(self, note: str) -> None:
        self.note = note
        self._write()

    def close(self) -> None:
        print(file=sys.stderr)

    def _write(self) -> None:
        counted = f"{self.done}" if self.total is None else f"{self.done} of {self.total}"
        text = f"{self.label}: {counted}" + (f", {self.note}" if self.note else "")
        self.width = max(self.width, len(text))
        print(f"\r{text:<{self.width}}", end="", file=sys.stderr, flush=True)
        self.written = time.monotonic()


class Progress:
    """Shows how much of some work is done, if standard error is a terminal.

    Args:
        label: name of the work.
        unit: what is counted, which tqdm shows.
        total: number of units, if it is known.
        done: number of units before the first update.
        shown: ``False`` shows nothing.
    """

    def __init__(self, label: str, unit: str, total: int | None = None, *, done: int = 0, shown: bool = True) -> None:
        self._bar: Any = None
        if not shown or not sys.stderr.isatty():
            return
        try:
            from tqdm import tqdm
        except ImportError:
            self._bar = _Line(label, total, done)
        else:
            self._bar = tqdm(desc=label, total=total, initial=done, unit=unit)

    def update(self, note: str = "") -> None:
        """One more unit is done."""
        if self._bar is not None:
            self._bar.update()
            if note:
                self._bar.set_postfix_str(note)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def track(items: Iterable[_T], label: str, unit: str, *, shown: bool = True) -> Iterator[_T]:
    """The items, with their progress."""
    total = len(items) if isinstance(items, Sized) else None
    with Progress(label, unit, total, shown=shown) as progress:
        for item in items:
            yield item
            progress.update()
