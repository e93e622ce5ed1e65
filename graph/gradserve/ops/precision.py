"""In which precision kernels compute, and where a dtype ends."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np


def is_narrow(kind: Any) -> bool:
    """Whether a NumPy dtype is a 16-bit float (bfloat16 is of kind V)."""
    return kind.itemsize == 2 and kind.kind in "fV"


def widen(xp: Any, x: Any) -> Any:
    """16-bit floats as float32, in which products and sums are taken; everything else as it is."""
    return x.astype(xp.float32) if is_narrow(x.dtype) else x


def lowest(kind: Any) -> Any:
    """The lowest finite number of a NumPy dtype."""
    return ml_dtypes.finfo(kind).min if kind.kind in "fV" else np.iinfo(kind).min


def highest(kind: Any) -> Any:
    """The highest finite number of a NumPy dtype."""
    return ml_dtypes.finfo(kind).max if kind.kind in "fV" else np.iinfo(kind).max
