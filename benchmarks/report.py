"""One measured row, and how it is printed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: what was measured.
        ours_seconds, peer_seconds: medians.
        peer: what it is compared with.
        goal: the goal of the cost table, in words.
    """

    name: str
    ours_seconds: float
    peer_seconds: float
    peer: str
    goal: str

    @property
    def ratio(self) -> float:
        """Our time over the peer's."""
        return self.ours_seconds / self.peer_seconds

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"ratio": self.ratio}

    def __str__(self) -> str:
        return (
            f"{self.name:<44} {self.ours_seconds * 1e3:10.3f} ms  {self.peer:<28} "
            f"{self.peer_seconds * 1e3:10.3f} ms  ratio {self.ratio:7.3f}  (goal: {self.goal})"
        )


def median_seconds(action: Callable[[], Any], repeats: int) -> float:
    """The median time of an action, after one call that is not counted."""
    action()
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def alternating(ours: Callable[[], Any], peer: Callable[[], Any], rounds: int, calls: int) -> tuple[float, float]:
    """Medians of seconds a call of two actions measured in turns, so that noise of the machine hits both."""
    ours()
    peer()
    samples: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for action, kept in zip((ours, peer), samples, strict=True):
            start = time.perf_counter()
            for _ in range(calls):
                action()
            kept.append((time.perf_counter() - start) / calls)
    return statistics.median(samples[0]), statistics.median(samples[1])
