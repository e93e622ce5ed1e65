"""Checks of values inside kernels, also of kernels that are being traced.

On NumPy a check raises. A compiled program can't raise: while it is traced, the engine collects the flags and
errors, has the program return which one came first, and raises after the run.
"""

from __future__ import annotations

import contextvars
from typing import Any, Protocol

import numpy as np

from gradserve.errors import GradserveError, InvalidArgument


class Collector(Protocol):
    """What an engine collects the checks of a trace with."""

    def refuse(self, wrong: Any, error: GradserveError) -> None:
        """The error is to be raised if `wrong`, a traced bool, is true."""
        ...


collector: contextvars.ContextVar[Collector | None] = contextvars.ContextVar("collector", default=None)


def refuse_if(wrong: Any, message: str) -> None:
    """Raises InvalidArgument with the message if `wrong`, a bool or a traced bool, is true."""
    if isinstance(wrong, (bool, np.bool_)):
        if wrong:
            raise InvalidArgument(message)
        return
    found = collector.get()
    if found is not None:
        found.refuse(wrong, InvalidArgument(message))


def refuse_outside(indices: Any, size: int, what: str) -> None:
    """Raises InvalidArgument unless every index lies in [0, size); on NumPy the message names one that does not."""
    if not indices.size:
        return
    outside = (indices < 0) | (indices >= size)
    example = ""
    if isinstance(indices, np.ndarray) and outside.any():
        example = f" {indices[outside].ravel()[0]}"
    refuse_if(outside.any(), f"{what}{example} is not in [0, {size}).")
