"""The GPUs of this machine, for tests that need some."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest


@functools.cache
def devices() -> int:
    """How many GPUs CuPy sees; 0 where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has something to say of how it was installed
        try:
            import cupy  # pyright: ignore[reportMissingImports]

            return cupy.cuda.runtime.getDeviceCount()
        except (ImportError, RuntimeError):  # CUDA's, where there is no driver
            return 0


def needs_gpus(count: int) -> list[Any]:
    """The marks of a test that needs so many. What CuPy warns of (compiling for the first time, say) is no error."""
    found = devices()
    reason = f"needs CuPy and {count} GPUs, and there are {found}"
    return [
        pytest.mark.gpu,
        pytest.mark.skipif(found < count, reason=reason),
        pytest.mark.filterwarnings("ignore"),
    ]
