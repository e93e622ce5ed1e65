"""What the server says of itself: a log line for each failed call, and counts for GetCluster."""

from __future__ import annotations

import logging
import time

from gradserve.errors import GradserveError

log = logging.getLogger("gradserve.requests")


class Telemetry:
    """Counts of one server."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.requests = 0
        self.failures = 0

    @property
    def uptime_seconds(self) -> float:
        return time.monotonic() - self.began

    def started(self) -> float:
        """When a call began, for `finished`."""
        return time.perf_counter()

    def finished(self, method: str, started: float, error: GradserveError | None) -> None:
        """Counts a call and, where it failed, logs why."""
        self.requests += 1
        if error is not None:
            self.failures += 1
            milliseconds = 1e3 * (time.perf_counter() - started)
            log.info("%s failed after %.1f ms: %s: %s", method, milliseconds, error.reason, error.message)
        elif log.isEnabledFor(logging.DEBUG):
            log.debug("%s took %.1f ms", method, 1e3 * (time.perf_counter() - started))
