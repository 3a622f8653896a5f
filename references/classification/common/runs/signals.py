"""SIGINT and SIGTERM as requests to stop at the next safe point."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # noqa: N818 - not an error
    """The run was stopped by a signal and has saved its state; the message says how to resume."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class StopRequested(Exception):  # noqa: N818
    """A signal asks the run to stop; the state of training can be saved."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"signal {signum} requests a stop")
        self.signum = signum


class StopRequest:
    """Records the first SIGINT or SIGTERM inside in :attr:`signum`; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signum = 0

    def __enter__(self) -> "StopRequest":
        self._handlers = {signum: signal.signal(signum, self._record) for signum in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)

    def _record(self, signum: int, frame: FrameType | None) -> None:
        if self.signum and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum


@contextmanager
def sigint_blocked() -> Iterator[None]:
    """Processes started inside never receive SIGINT; they do receive SIGTERM, with which torch ends its workers."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT,))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
