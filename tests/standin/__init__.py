"""A stand-in for CuPy and NCCL, on NumPy, sockets and threads: what the cupy engine and the transport between GPUs are
tested with where there is no GPU. Only tests install it, in processes of their own.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
import types
from typing import Any

import numpy as np
import scipy.special

from tests.standin import cuda, nccl
from tests.standin.arrays import DeviceArray, Namespace
from tests.standin.memory import OutOfMemoryError, pool


def install() -> types.ModuleType:
    """Puts the stand-in in CuPy's place, in this process."""
    module: Any = Namespace("cupy", np)
    module.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    module.ndarray = DeviceArray
    module.asnumpy = lambda value: value.get() if isinstance(value, DeviceArray) else np.asarray(value)
    module.get_default_memory_pool = lambda: pool
    module.cuda = beneath = _module("cupy.cuda")
    for name in ("Stream", "Event", "get_current_stream", "runtime"):
        setattr(beneath, name, getattr(cuda, name))
    beneath.nccl = _module("cupy.cuda.nccl")
    for name in nccl.__all__:
        setattr(beneath.nccl, name, getattr(nccl, name))
    beneath.nccl.available = os.environ.get("STANDIN_NCCL") != "none"
    beneath.memory = types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
    beside = _module("cupyx")
    beside.empty_pinned = lambda shape, dtype=float: np.empty(shape, dtype)
    special = Namespace("cupyx.scipy.special", scipy.special)
    sys.modules.update({
        "cupy": module, "cupy.cuda": beneath, "cupy.cuda.nccl": beneath.nccl, "cupyx": beside,
        "cupyx.scipy": _module("cupyx.scipy"), "cupyx.scipy.special": special,
    })  # fmt: skip
    return module


def _module(name: str) -> Any:
    return types.ModuleType(name)
