"""Two models that run side by side, so that the values of one can be compared with those of the other."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

__all__ = ["iterated"]

T = TypeVar("T")


class _Closed(BaseException):
    """Ends a function whose values the caller no longer reads."""


@contextmanager
def iterated(function: Callable[[Callable[[T], None]], object]) -> Iterator[Iterator[T]]:
    """An iterator over the values that ``function`` gives to its argument, for as long as the context lasts.

    The function runs in a thread, but only while the caller waits for the next value, so neither runs ahead of the
    other. The iterator raises its exceptions.
    """
    turns, values, is_closed = threading.Semaphore(0), SimpleQueue[Any](), threading.Event()
    end = object()

    def wait() -> None:
        turns.acquire()
        if is_closed.is_set():
            raise _Closed

    def give(value: T) -> None:
        values.put((value, None))
        wait()

    def run() -> None:
        try:
            wait()
            function(give)
            values.put((end, None))
        except _Closed:
            pass
        except BaseException as error:
            values.put((end, error))

    def iterate() -> Iterator[T]:
        while True:
            turns.release()
            value, error = values.get()
            if error is not None:
                raise error
            if value is end:
                return
            yield value

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield iterate()
    finally:
        is_closed.set()
        turns.release()
        thread.join()
