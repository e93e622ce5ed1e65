"""Maps from tensors to tensors as values. The gradient of a map is a map: it is zero at the keys that it lacks.

Source: TensorFlow's map_ops; the values are gradserve.graph.variants.TensorMap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Tensor
from gradserve.graph.op import MISSING, NOT_DIFFERENTIABLE, Example, define, raw
from gradserve.graph.variants import TensorMap
from gradserve.ops.ways import Way, ways

# Examples


def _ways(*functions: Way) -> Callable[[Any], list[Example]]:
    return ways(lambda draw: (draw.size(0, 3),), *functions)


def _map(x: Tensor, *keys: Any) -> Tensor:
    """x at the first key, its sine at the second."""
    handle = raw.EmptyTensorMap()
    for key, value in zip(keys, (x, raw.Sin(x)), strict=True):
        handle = raw.TensorMapInsert(handle, x.graph.constant(key), value)
    return handle


def _read(handle: Tensor, key: Any, like: Tensor) -> Tensor:
    return raw.TensorMapLookup(handle, like.graph.constant(key), value_dtype=like.dtype.base)


_A, _B = np.array(b"a", object), np.array(b"b", object)


def _looked_up(x: Tensor) -> list[Tensor]:
    """Both, one of them twice."""
    handle = _map(x, _A, _B)
    return [_read(handle, _A, x) * _read(handle, _B, x), _read(handle, _B, x)]


def _inserted_again(x: Tensor) -> list[Tensor]:
    return [_read(_map(x, _A, _A), _A, x)]


def _never_looked_up(x: Tensor) -> list[Tensor]:
    return [_read(_map(x, _A, _B), _B, x)]


def _erased_before(x: Tensor) -> list[Tensor]:
    handle = raw.TensorMapErase(_map(x, _A, _B), x.graph.constant(_A), value_dtype=x.dtype.base)
    return [_read(handle, _B, x)]


def _of_tensors(x: Tensor) -> list[Tensor]:
    keys = np.array([1, 2]), np.array([1, 3])
    return [_read(_map(x, *keys), keys[1], x)]


# Keys


def _mark(key: Any) -> Any:
    """What tells keys apart."""
    array = np.asarray(key)
    contents = tuple(array.ravel().tolist()) if array.dtype == object else array.tobytes()
    return array.dtype.str, array.shape, contents


def _checked(handle: TensorMap, key: Any) -> Any:
    mark = _mark(key)
    if mark not in handle.entries:
        raise InvalidArgument(f"The map has no key {np.asarray(key).tolist()!r}.")
    return mark


define(
    "EmptyTensorMap() -> (handle: variant)",
    shape=lambda: (),
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp: TensorMap({}),
    dynamic=True,
)
define(
    "TensorMapSize(input_handle: variant) -> (size: int32)",
    shape=lambda handle: (),
    gradient=MISSING,
    kernel=lambda xp, handle: np.int32(len(handle.entries)),
    dynamic=True,
)
define(
    "TensorMapHasKey(input_handle: variant, key: key_dtype; key_dtype: type) -> (has_key: bool)",
    shape=lambda handle, key: (),
    gradient=MISSING,
    kernel=lambda xp, handle, key: np.bool_(_mark(key) in handle.entries),
    dynamic=True,
)
define(
    "TensorMapStackKeys(input_handle: variant; key_dtype: type) -> (keys: key_dtype)",
    gradient=MISSING,
    kernel=lambda xp, handle, *, key_dtype: (
        np.stack([key for key, _ in handle.entries.values()]) if handle.entries else np.zeros([0], key_dtype.numpy)
    ),
    dynamic=True,
)


def _lookup_gradient(dy: Tensor, y: Tensor, handle: Tensor, key: Tensor) -> Any:
    return raw.TensorMapInsert(raw.EmptyTensorMap(), key, dy), None


define(
    "TensorMapLookup(input_handle: variant, key: key_dtype; key_dtype: type, value_dtype: type) -> (value: value_dtype)",
    gradient=_lookup_gradient,
    kernel=lambda xp, handle, key: handle.entries[_checked(handle, key)][1],
    dynamic=True,
    examples=_ways(_looked_up, _of_tensors),
)


def _insert_gradient(
    dy: Tensor, y: Tensor, handle: Tensor, key: Tensor, value: Tensor, *, key_dtype: DType, value_dtype: DType
) -> Any:
    """With zeros added at the key it is always there to be read."""
    kinds: Any = {"key_dtype": key_dtype, "value_dtype": value_dtype}
    full = raw.AddN([dy, raw.TensorMapInsert(raw.EmptyTensorMap(), key, raw.ZerosLike(value))])
    dvalue = raw.TensorMapLookup(full, key, **kinds) if value_dtype.is_trainable else None
    return raw.TensorMapErase(full, key, **kinds), None, dvalue


define(
    "TensorMapInsert(input_handle: variant, key: key_dtype, value: value_dtype; key_dtype: type, value_dtype: type)"
    " -> (output_handle: variant)",
    shape=lambda handle, key, value: (),
    gradient=_insert_gradient,
    kernel=lambda xp, handle, key, value: TensorMap({**handle.entries, _mark(key): (key, value)}),
    dynamic=True,
    examples=_ways(_inserted_again, _never_looked_up),
)


def _erase_gradient(dy: Tensor, y: Tensor, handle: Tensor, key: Tensor, *, key_dtype: DType, value_dtype: DType) -> Any:
    """What dy may hold at the key belongs to another value that had it; with zeros added it is there to be erased."""
    full = raw.AddN([dy, raw.ZerosLike(handle)])
    return raw.TensorMapErase(full, key, key_dtype=key_dtype, value_dtype=value_dtype), None


def _erased(xp: Any, handle: TensorMap, key: Any) -> TensorMap:
    gone = _checked(handle, key)
    return TensorMap({mark: entry for mark, entry in handle.entries.items() if mark != gone})


define(
    "TensorMapErase(input_handle: variant, key: key_dtype; key_dtype: type, value_dtype: type)"
    " -> (output_handle: variant)",
    shape=lambda handle, key: (),
    gradient=_erase_gradient,
    kernel=_erased,
    dynamic=True,
    examples=_ways(_erased_before),
)
