"""Arrays that behave as CuPy's where it hurts, with NumPy inside: none becomes a NumPy array unasked, none is mixed
with one, and every copy between the two sides is counted.

    wrap(array)           a device array around a NumPy array of this process
    copies                how many bytes went up and down so far
    namespace(name)       the functions of NumPy's module of this name, for device arrays
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.standin.memory import Memory, pool

_DTYPES = "?bBhHiIlLqQefdFD"
_MADE_FROM_HOST = ("array", "asarray", "ascontiguousarray", "asanyarray")
# What CuPy 14 lacks of NumPy's functions and kernels might ask for.
_ABSENT = frozenset(("block", "frompyfunc", "geomspace", "insert", "nditer", "unstack", "vecdot", "matvec", "vecmat"))
# Arguments that CuPy's functions lack.
_UNKNOWN = {"argsort": "stable", "max": "initial", "min": "initial"}
_CAST_TO_HOST = "Implicit conversion to a NumPy array is not allowed. Please use `.get()`."


class Copies:
    """Bytes that were copied between host and device, and how often the host waited for the device."""

    def __init__(self) -> None:
        self.up = self.down = self.waits = 0


copies = Copies()


class DeviceArray:
    """An array on the device.

    Attributes:
        held: its elements.
        memory: keeps count of what it takes, shared by all views.
    """

    __array_priority__ = 100

    def __init__(self, held: Any, memory: Memory | None = None) -> None:
        self.held = np.asarray(held)
        if self.held.dtype.char not in _DTYPES:
            raise ValueError(f"Unsupported dtype {self.held.dtype}")
        self.memory = pool.memory_of(self.held) if memory is None else memory

    # To the host

    def get(self, stream: Any = None, order: str = "C", out: Any = None, blocking: bool = True) -> np.ndarray:
        copies.down += self.held.nbytes
        copies.waits += blocking
        if out is None:
            return np.array(self.held, order="C")
        if out.shape != self.shape or out.dtype != self.dtype:
            raise ValueError("Shape mismatch.")
        np.copyto(out, self.held)
        return out

    def __array__(self, *arguments: Any, **options: Any) -> Any:
        raise TypeError(_CAST_TO_HOST)

    def __reduce__(self) -> Any:
        raise AssertionError("A device array must not travel.")

    def _scalar(self) -> Any:
        copies.down += self.held.nbytes
        copies.waits += 1
        return self.held[()] if self.held.ndim == 0 else self.held

    def item(self, *place: int) -> Any:
        return self._scalar().item(*place)

    def __bool__(self) -> bool:
        return bool(self._scalar())

    def __int__(self) -> int:
        return int(self._scalar())

    def __float__(self) -> float:
        return float(self._scalar())

    def __complex__(self) -> complex:
        return complex(self._scalar())

    def tolist(self) -> Any:
        return self._scalar().tolist()

    # What NumPy's functions do with it

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return getattr(_Ufunc(ufunc), method)(*inputs, **options)

    def __array_function__(self, function: Any, kinds: Any, inputs: Any, options: Any) -> Any:
        if function.__name__ in _ABSENT or any(kind is not DeviceArray for kind in kinds if kind is not np.ndarray):
            return NotImplemented
        return _call(function, inputs, options)

    # As an array

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("at", "ctypes", "setflags", "base"):
            raise AttributeError(name)
        found = getattr(self.held, name)
        if callable(found):
            return lambda *inputs, **options: _call(found, inputs, options)
        return wrap(found) if isinstance(found, np.ndarray) else found

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.held.shape, "typestr": self.held.dtype.str, "version": 3}

    @property
    def data(self) -> Any:
        return types.SimpleNamespace(ptr=self.held.ctypes.data)

    def __len__(self) -> int:
        return len(self.held)

    def __iter__(self) -> Any:
        return (self[k] for k in range(len(self)))

    def __getitem__(self, key: Any) -> DeviceArray:
        return wrap(self.held[_index(key)])

    def __setitem__(self, key: Any, value: Any) -> None:
        self.held[_index(key)] = _given(value)

    def __hash__(self) -> int:
        raise TypeError("unhashable type: 'DeviceArray'")


def _operator(name: str) -> Callable[..., Any]:
    def apply(self: DeviceArray, *others: Any) -> Any:
        if any(isinstance(other, np.ndarray) for other in others):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        return _call(getattr(self.held, name), others, {})

    return apply


for _name in (
    "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor", "lshift", "rshift", "divmod"
):  # fmt: skip
    for _prefix in ("", "r"):
        setattr(DeviceArray, f"__{_prefix}{_name}__", _operator(f"__{_prefix}{_name}__"))
    if _name not in ("matmul", "divmod"):
        setattr(DeviceArray, f"__i{_name}__", _operator(f"__i{_name}__"))
for _name in ("eq", "ne", "lt", "le", "gt", "ge", "neg", "pos", "invert", "abs"):
    setattr(DeviceArray, f"__{_name}__", _operator(f"__{_name}__"))


def wrap(value: Any) -> Any:
    """A result of NumPy's as CuPy would give it: scalars are arrays without axes."""
    if isinstance(value, (np.ndarray, np.generic)):
        return DeviceArray(value)
    if isinstance(value, (list, tuple)):
        made = [wrap(entry) for entry in value]
        return type(value)(*made) if hasattr(value, "_fields") else type(value)(made)
    return value


def _given(value: Any) -> Any:
    """An argument, as NumPy takes it. Raises TypeError for a NumPy array."""
    if isinstance(value, DeviceArray):
        return value.held
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_given(entry) for entry in value)
    return value


def _index(key: Any) -> Any:
    """An index: CuPy takes NumPy's arrays there, and uploads them."""
    if isinstance(key, tuple):
        return tuple(_index(entry) for entry in key)
    if isinstance(key, np.ndarray):
        copies.up += key.nbytes
    return key.held if isinstance(key, DeviceArray) else key


def _call(function: Any, inputs: Any, options: Any) -> Any:
    if _UNKNOWN.get(getattr(function, "__name__", "")) in options:
        raise TypeError(f"{function.__name__} got an unexpected keyword argument")
    with np.errstate(all="ignore"):
        return wrap(function(*map(_given, inputs), **{name: _given(value) for name, value in options.items()}))


def _from_host(function: Any) -> Any:
    def make(value: Any, dtype: Any = None, **options: Any) -> DeviceArray:
        if isinstance(value, DeviceArray):
            return wrap(function(value.held, dtype=dtype, **options))
        if isinstance(value, (list, tuple)) and any(isinstance(entry, DeviceArray) for entry in value):
            return wrap(np.array([_given(entry) for entry in value], dtype))
        made = np.array(value, dtype=dtype)
        if made.dtype.char not in _DTYPES:
            raise ValueError(f"Unsupported dtype {made.dtype}")
        copies.up += made.nbytes
        return DeviceArray(made)

    return make


class Namespace(types.ModuleType):
    """A module of NumPy's for device arrays."""

    def __init__(self, name: str, source: Any) -> None:
        super().__init__(name)
        self.__source = source

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in _ABSENT:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        found = getattr(self.__source, name)
        if isinstance(found, types.ModuleType):
            made: Any = Namespace(f"{self.__name__}.{name}", found)
        elif name in _MADE_FROM_HOST:
            made = _from_host(found)
        elif name == "take":
            made = _take
        elif isinstance(found, np.ufunc):
            made = _Ufunc(found)
        elif isinstance(found, type) or not callable(found):
            made = found
        else:
            made = _function(found)
        setattr(self, name, made)
        return made


class _Ufunc:
    """A function by elements, with its methods."""

    def __init__(self, function: np.ufunc) -> None:
        self._function = function
        self.__name__ = function.__name__

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return _call(self._function, inputs, options)

    def at(self, target: DeviceArray, index: Any, values: Any) -> None:
        self._check("at", ("add", "subtract"))
        self._function.at(target.held, _index(index), _given(values))

    def reduce(self, *inputs: Any, **options: Any) -> Any:
        self._check("reduce", ("add", "multiply"))
        return _call(self._function.reduce, inputs, options)

    def accumulate(self, *inputs: Any, **options: Any) -> Any:
        self._check("accumulate", ("add", "multiply"))
        return _call(self._function.accumulate, inputs, options)

    def _check(self, method: str, known: tuple[str, ...]) -> None:
        if self.__name__ not in known:
            raise NotImplementedError(f"`{self.__name__}.{method}` is not supported yet")


def _take(array: DeviceArray, indices: Any, axis: int | None = None, **options: Any) -> Any:
    return wrap(np.take(array.held, _index(indices), axis=axis, mode="wrap"))  # no index is out of range there


def _function(found: Any) -> Any:
    return lambda *inputs, **options: _call(found, inputs, options)
