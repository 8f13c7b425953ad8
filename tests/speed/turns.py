"""Tasks timed in turns, so that a busy machine slows all of them."""

from collections.abc import Callable
from statistics import median
from time import perf_counter


def medians_s(rounds: int, *tasks: Callable[[], object]) -> list[float]:
    """The median seconds of each task over so many rounds."""
    times: list[list[float]] = [[] for _ in tasks]
    for _ in range(rounds):
        for task, taken in zip(tasks, times, strict=True):
            start = perf_counter()
            task()
            taken.append(perf_counter() - start)
    return [median(taken) for taken in times]
