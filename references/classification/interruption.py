"""Ctrl-C and SIGTERM as a request to stop at the next good moment."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # noqa: N818 - it is no error
    """The run was asked to stop, has saved what it had, and says how to go on."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class StopAsked(Exception):  # noqa: N818
    """A signal asks the run to stop; what was trained can be saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"asked to stop by signal {signum}")
        self.signum = signum


class StopRequest:
    """Inside, the first SIGINT or SIGTERM is noted in :attr:`signum`; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signum = 0

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum


@contextmanager
def without_ctrl_c() -> Iterator[None]:
    """A process that is started inside never gets SIGINT; SIGTERM, by which torch ends its readers, reaches it."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
