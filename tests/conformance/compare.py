"""Compares an answer with the expected one under the case's tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradserve.graph.graph import IndexedSlices
from tests.conformance.case import Array, Case


def gradients_differ(case: Case, got: Sequence[Any]) -> str | None:
    """What is wrong with the gradients, or None."""
    for k, (expected, dx) in enumerate(zip(case.expected["dx"], got, strict=True)):
        kind = "none" if dx is None else "indexed_slices" if isinstance(dx, IndexedSlices) else "dense"
        if kind != expected["kind"]:
            return f"gradient {k} is {kind}, expected {expected['kind']}"
        if dx is None:
            continue
        want = case.arrays
        if isinstance(dx, IndexedSlices):
            dtype = np.asarray(dx.values).dtype
            value = _dense(dx.values, dx.indices, dx.dense_shape)
            target = _dense(*(want[f"dx|{k}|{part}"] for part in ("values", "indices", "dense_shape")))
        else:
            dtype, value, target = np.asarray(dx).dtype, np.asarray(dx), want[f"dx|{k}"]
        if str(dtype) != expected["dtype"]:
            return f"gradient {k} is {dtype}, expected {expected['dtype']}"
        wrong = differ(case, value, target)
        if wrong:
            return f"gradient {k}: {wrong}"
    return None


def values_differ(case: Case, got: Sequence[Any]) -> str | None:
    """What is wrong with the forward values, or None."""
    for k, (expected, value) in enumerate(zip(case.expected.get("y", []), got, strict=False)):
        if expected.get("key") in case.arrays:
            wrong = differ(case, np.asarray(value), case.arrays[expected["key"]])
            if wrong:
                return f"y {k}: {wrong}"
    return None


def differ(case: Case, value: Array, target: Array) -> str | None:
    """How two arrays differ beyond |value - target| <= atol + rtol |target|; NaN equals NaN."""
    if value.shape != target.shape:
        return f"shape {value.shape}, expected {target.shape}"
    if target.dtype.kind in "OSU" or value.dtype.kind in "OSU":
        return None
    wide = np.complex128 if "c" in (target.dtype.kind, value.dtype.kind) else np.float64
    a, b = value.astype(wide), target.astype(wide)
    with np.errstate(all="ignore"):
        close = np.abs(a - b) <= case.meta["atol"] + case.meta["rtol"] * np.abs(b)
    fine = close | (a == b) | (np.isnan(a) & np.isnan(b))
    if fine.all():
        return None
    where = np.unravel_index(int(np.argmin(fine)), fine.shape)
    return f"{a[where]} at {tuple(map(int, where))}, expected {b[where]}"


def _dense(values: Array, indices: Array, shape: Array) -> Array:
    values = np.asarray(values)
    wide = values.astype(np.complex128 if values.dtype.kind == "c" else np.float64)
    result = np.zeros(tuple(int(size) for size in np.asarray(shape)), wide.dtype)
    np.add.at(result, np.asarray(indices), wide)
    return result
