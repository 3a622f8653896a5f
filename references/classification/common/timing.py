"""Timing of several functions in one process."""

import time
from collections.abc import Callable, Sequence
from statistics import median

LATENCY_BATCH = 16  # images in a batch whose latency is measured
WARMUP_ROUNDS = 3


def median_seconds(
    functions: Sequence[Callable[[], object]],
    rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    repeats: int = 1,
) -> list[float]:
    """Median duration of each function over ``rounds``, after some warm-up rounds.

    A round calls all functions in turn, so that a slow moment of the machine affects all of them. With ``repeats``,
    each is called so many times in a row, and only its last call counts.
    """
    durations: list[list[float]] = [[] for _ in functions]
    for i in range(rounds + WARMUP_ROUNDS):
        for function, seconds in zip(functions, durations, strict=True):
            for _ in range(repeats):
                start = clock()
                function()
                duration = clock() - start
            if i >= WARMUP_ROUNDS:
                seconds.append(duration)
    return [median(seconds) for seconds in durations]
