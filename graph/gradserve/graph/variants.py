"""Values of dtype variant: what is no array. They are immutable, and every engine keeps them on the host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument, InvalidType
from gradserve.graph.dtypes import DType
from gradserve.graph.shapes import Shape, is_static, merge


@dataclass(frozen=True, slots=True, eq=False)
class Variant:
    """Base of every value of dtype variant. Gradients add them up and make zeros of them.

    In an array of variants the number 0 stands for one that was never written: a slice leaves it in its gradient.
    """

    def __add__(self, other: Any) -> Any:
        return self.plus(other) if isinstance(other, Variant) else self

    __radd__ = __add__

    def plus(self, other: Any) -> Any:
        """The sum with another of the same kind."""
        raise NotImplementedError

    def zeros_like(self) -> Any:
        """The neutral element of +."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays in it, as an array says its own."""
        return sum(_bytes_of(getattr(self, part.name)) for part in fields(self))


@dataclass(frozen=True, slots=True, eq=False)
class TensorList(Variant):
    """A list of tensors, the value of TensorFlow's TensorList ops.

    Attributes:
        dtype: of the elements.
        shape: what is known of the elements' shapes.
        items: the elements; None for one that nobody has set, which reads as zeros.
    """

    dtype: DType
    shape: Shape
    items: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def item(self, index: int, shape: Shape = None) -> Any:
        """Element number `index`. Raises InvalidArgument where there is none, or it is unset and of unknown shape."""
        self.check(index)
        found = self.items[index]
        return self.zeros(shape) if found is None else found

    def check(self, index: int) -> None:
        """Raises InvalidArgument where there is no such element."""
        if not 0 <= index < len(self.items):
            raise InvalidArgument(f"A list of {len(self.items)} tensors has no element {index}.", index=index)

    def zeros(self, shape: Shape = None) -> Any:
        """An unset element. What its shape leaves open is taken from the other elements."""
        known = merge(self.shape, shape)
        if not is_static(known):
            known = next((merge(known, tuple(np.shape(item))) for item in self.items if item is not None), known)
        if known is None or not is_static(known):
            raise InvalidArgument(f"An element that was never set has the unknown shape {known}.", shape=known)
        if self.dtype.kind == "v":
            raise InvalidArgument("An element that was never set has no value.")
        return np.zeros([size or 0 for size in known], self.dtype.numpy)

    def with_items(self, items: tuple[Any, ...]) -> TensorList:
        """The same kind of list with other elements."""
        return TensorList(self.dtype, self.shape, items)

    def zeros_like(self) -> TensorList:
        """As many zeros: elements that are set become zeros of their shape."""
        return self.with_items(tuple(None if item is None else zeros_like(item) for item in self.items))

    def plus(self, other: TensorList) -> TensorList:
        if not self.items or not other.items:
            return self if self.items else other  # a sum may start before the length is known
        if len(self) != len(other):
            raise InvalidArgument(f"Lists of {len(self)} and {len(other)} tensors can't be added.")
        pairs = zip(self.items, other.items, strict=True)
        return replace(
            self,
            shape=merge(self.shape, other.shape),
            items=tuple(b if a is None else a if b is None else a + b for a, b in pairs),
        )


@dataclass(frozen=True, slots=True, eq=False)
class TensorMap(Variant):
    """A map from tensors to tensors, the value of TensorFlow's TensorMap ops. As a cotangent it is 0 at other keys.

    Attributes:
        entries: key and value by what tells keys apart: dtype, shape and contents.
    """

    entries: dict[Any, tuple[Any, Any]]

    def zeros_like(self) -> TensorMap:
        return TensorMap({mark: (key, zeros_like(value)) for mark, (key, value) in self.entries.items()})

    def plus(self, other: TensorMap) -> TensorMap:
        total = dict(self.entries)
        for mark, (key, value) in other.entries.items():
            total[mark] = (key, total[mark][1] + value) if mark in total else (key, value)
        return TensorMap(total)


@dataclass(frozen=True, slots=True, eq=False)
class Components(Variant):
    """Several tensors as one value: an Optional or a composite tensor.

    Attributes:
        values: arrays or variants; None for an Optional without a value, which as a cotangent is zero.
    """

    values: tuple[Any, ...] | None

    def zeros_like(self) -> Components:
        return Components(None if self.values is None else tuple(map(zeros_like, self.values)))

    def plus(self, other: Components) -> Components:
        if self.values is None or other.values is None:
            return other if self.values is None else self
        return Components(tuple(a + b for a, b in zip(self.values, other.values, strict=True)))


def cannot_feed(name: str, dtype: DType) -> InvalidType:
    """The error of a feed of a dtype that is no array: a variant or a resource."""
    if dtype.kind == "r":
        what = "give the variable behind it a value in a session, or feed the tensor that reads it"
    else:
        what = "feed the tensors that it is made of, and let the graph put them together (TensorListFromTensor, say)"
    return InvalidType(f"{name} is a {dtype}, which is no array and can't be fed: {what}.", tensor=name, dtype=dtype)


def cannot_fetch(name: str, dtype: DType) -> InvalidType:
    """The error of a fetch of a dtype that is no array: a variant or a resource."""
    if dtype.kind == "r":
        what = "fetch what ReadVariableOp reads of it"
    else:
        what = "fetch tensors that are read from it (TensorListStack, TensorListLength, say)"
    return InvalidType(
        f"{name} is a {dtype}, which is no array and can't be fetched: {what}.", tensor=name, dtype=dtype
    )


def zeros_like(value: Any) -> Any:
    """Zeros like an array or a variant."""
    if isinstance(value, Variant):
        return value.zeros_like()
    if value.dtype == object:
        return each(lambda entry: entry.zeros_like() if isinstance(entry, Variant) else type(entry)(), value)
    return np.zeros_like(value)


def _bytes_of(value: Any) -> int:
    if isinstance(value, (np.ndarray, np.generic, Variant)):
        return value.nbytes
    if isinstance(value, Mapping):
        return sum(map(_bytes_of, value.values()))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    return sum(map(_bytes_of, value)) if isinstance(value, tuple) else 0  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def each(function: Callable[[Any], Any], array: Any) -> Any:
    """An object array of the function's results, one for each entry of an object array."""
    result = np.empty(array.shape, object)
    for place in np.ndindex(array.shape):
        result[place] = function(array[place])
    return result
