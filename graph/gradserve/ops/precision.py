"""In which precision kernels compute."""

from __future__ import annotations

from typing import Any


def is_narrow(kind: Any) -> bool:
    """Whether a NumPy dtype is a 16-bit float (bfloat16 is of kind V)."""
    return kind.itemsize == 2 and kind.kind in "fV"


def widen(xp: Any, x: Any) -> Any:
    """16-bit floats as float32, in which products and sums are taken; everything else as it is."""
    return x.astype(xp.float32) if is_narrow(x.dtype) else x
