"""Two things timed in turns, so that whatever else the machine does strikes both."""

import statistics
import time
from collections.abc import Callable


def seconds(action: Callable[[], object]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
    }


def in_turns(
    ours: Callable[[], object], limit: Callable[[], object], repeats: int
) -> tuple[dict[str, float], float]:
    """The share of the limit's speed that ours reaches, and our median seconds."""
    ours(), limit()  # neither pays for a first time
    times = [(seconds(ours), seconds(limit)) for _ in range(repeats)]
    share = spread([bare / own for own, bare in times])
    return share, statistics.median(own for own, _ in times)
