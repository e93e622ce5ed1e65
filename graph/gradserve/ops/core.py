"""The ops that graphs are held together with: constants, placeholders, identities, and doing nothing."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from gradserve.errors import InvalidType
from gradserve.graph.dtypes import DType
from gradserve.graph.op import NOT_DIFFERENTIABLE, call, define, same_shape, scalar_shape
from gradserve.graph.shapes import Shape


def _constant_shape(*, value: Any, dtype: DType) -> Shape:
    if value.dtype != dtype.numpy:
        raise InvalidType(f"its value is {value.dtype}, but its dtype {dtype}.", dtype=dtype)
    return value.shape


define(
    "Const(; value: tensor, dtype: type) -> (output: dtype)",
    shape=_constant_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, *, value: value,
)
define(
    "HostConst(; value: tensor, dtype: type) -> (output: dtype)",
    shape=lambda *, value: value.shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, *, value: value,
    examples=lambda draw: [call(value=draw.normal(*draw.shape()), dtype="float64")],
)
define(
    "Placeholder(; dtype: type, shape: shape = unknown) -> (output: dtype)",
    shape=lambda *, shape: shape,
    gradient=NOT_DIFFERENTIABLE,
)
define(
    "PlaceholderV2(; dtype: type, shape: shape) -> (output: dtype)",
    shape=lambda *, shape: shape,
    gradient=NOT_DIFFERENTIABLE,
)
define(
    "Timestamp() -> (ts: float64)",
    shape=scalar_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp: np.array(time.time()),
    stateful=True,
    dynamic=True,
    examples=lambda draw: [call()],
)
define(
    "DeviceIndex(; device_names: list(string)) -> (index: int32)",
    shape=scalar_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, *, device_names: np.array([*device_names, "CPU"].index("CPU"), np.int32),
    examples=lambda draw: [call(device_names=["CPU", "GPU"])],
)
define("NoOp() -> ()", gradient=NOT_DIFFERENTIABLE, kernel=lambda xp: (), stateful=True)
define(
    "Identity(input: T; T: type) -> (output: T)",
    shape=same_shape,
    gradient=lambda dy, y, x: dy,
    kernel=lambda xp, x: x,
    takes_slices=True,
    examples=lambda draw: [call(draw.normal(*draw.shape()))],
)
