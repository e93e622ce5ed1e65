"""Lists of tensors inside of a trace: a buffer with a row for each element, and a length.

A list can be traced where all its elements have one known shape and a bound of its length is known. Rows past the
length hold anything. What list ops do to such lists stands in xla_list_kernels.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradserve.graph.dtypes import DType
from gradserve.graph.shapes import Shape, compatible, is_static, merge
from gradserve.graph.variants import TensorList, Variant
from gradserve.workers.engines.xla_rounds import Counter

_LARGEST_CONSTANT = 64
_MOST_WAITING = 4
"""Writes, so that reading an element stays cheap where a list is long in the making."""


class Constant(NamedTuple):
    """A small array that is known, to be compared."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes

    @staticmethod
    def of(value: Any) -> Constant | None:
        """The constant, if the value is one."""
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iub" or value.size > _LARGEST_CONSTANT:
            return None
        return Constant(value.dtype.str, value.shape, value.tobytes())

    @property
    def value(self) -> np.ndarray[Any, Any]:
        return np.ndarray(self.shape, self.dtype, self.content)


@dataclass(frozen=True, slots=True)
class ListKind:
    """What is known of a list before it is traced.

    Attributes:
        dtype: of the elements.
        element: their shape; for a list of lists the kind of those, None while no element has been seen.
        capacity: rows of the buffer.
        least, most: bounds of the length, at most the capacity.
        only: what all its elements are equal to, where that is known: shapes, say, that a loop saves in every round.
        line: what they are where they are numbers at equal distances: a loop's counter, saved in every round.
        waiting: how many writes wait (see DenseList).
        is_zero: whether there is no buffer, since all elements but those that wait are zeros.
    """

    dtype: DType
    element: Shape | ListKind
    capacity: int
    least: int
    most: int
    only: Constant | None = None
    line: Counter | None = None
    waiting: int = 0
    is_zero: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether the length is known."""
        return self.least == self.most

    @property
    def is_shaped(self) -> bool:
        """Whether the shape of its elements is known."""
        if isinstance(self.element, ListKind):
            return self.element.has_rows
        return self.dtype.kind != "v" and is_static(self.element)

    @property
    def has_rows(self) -> bool:
        """Whether enough is known to make a buffer, which an empty list needs none of."""
        return self.is_shaped or not self.capacity

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer."""
        if isinstance(self.element, ListKind):
            return self.capacity * self.element.nbytes
        return self.capacity * math.prod(size or 0 for size in self.element or ()) * self.dtype.numpy.itemsize

    def join(self, other: ListKind) -> ListKind | None:
        """What holds of both; None where no buffer could hold either."""
        found = self.holding(other.element)
        if found is None or self.dtype is not other.dtype:
            return None
        return replace(
            found,
            capacity=max(self.capacity, other.capacity),
            least=min(self.least, other.least),
            most=max(self.most, other.most),
            only=self.only_with(other.only, other.most),
            line=self.line if self.line == other.line or not other.most else None if self.most else other.line,
            waiting=max(self.waiting, other.waiting),
            is_zero=self.is_zero and other.is_zero,
        )

    def holding(self, element: Shape | ListKind) -> ListKind | None:
        """The same with this known of the elements, too; None where it contradicts what is known already."""
        own = self.element
        if isinstance(own, ListKind) and isinstance(element, ListKind):
            joined = own.join(element)
            return None if joined is None else replace(self, element=joined)
        if isinstance(own, ListKind) or isinstance(element, ListKind):
            known, other = (own, element) if isinstance(own, ListKind) else (element, own)
            return replace(self, element=known) if other is None else None
        return replace(self, element=merge(own, element)) if compatible(own, element) else None

    def only_with(self, other: Constant | None, count: int) -> Constant | None:
        """What all elements are equal to when as many as `count` others are among them."""
        if not count:
            return self.only
        return other if not self.most or self.only == other else None

    @property
    def varied(self) -> ListKind:
        """The same without a claim of what its elements are."""
        return replace(self, only=None, line=None)

    @property
    def settled(self) -> ListKind:
        """The same for a list that is all in its buffer."""
        return replace(self, waiting=0, is_zero=False)

    def of_length(self, least: int, most: int) -> ListKind:
        """The same with other bounds of the length."""
        return replace(self, least=max(least, 0), most=max(most, 0))


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, slots=True, eq=False)
class DenseList(Variant):
    """A list in a trace.

    Attributes:
        kind: what is known of it.
        items: [capacity, *element]; for a list of lists a DenseList whose arrays have that axis in front; None for
            zeros.
        length: an int where it is known, else an int32 scalar.
        waiting: places and values of elements that are set, but are not in the buffer yet, first ones first. So a sum
            with a list of zeros but for one element touches one row; and a round of a loop that reads elements and
            overwrites them leaves it to the next round to write, when nothing needs the buffer as it was any more: XLA
            would copy all of it in every round.
    """

    kind: ListKind
    items: Any
    length: Any
    waiting: tuple[tuple[Any, Any], ...] = ()

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[ListKind, Any]]:
        known = self.length if isinstance(self.length, int) else None
        return (self.items, None if known is not None else self.length, self.waiting), (self.kind, known)

    @classmethod
    def tree_unflatten(cls, known: tuple[ListKind, Any], parts: tuple[Any, ...]) -> DenseList:
        kind, length = known
        return cls(kind, parts[0], parts[1] if length is None else length, parts[2])

    @staticmethod
    def zeros(kind: ListKind, length: Any = None) -> DenseList:
        """A list of zeros; of the least length, unless it is told."""
        return DenseList(replace(kind, waiting=0, is_zero=True), None, kind.least if length is None else length)

    @property
    def nbytes(self) -> int:
        return sum(leaf.nbytes for leaf in jax.tree_util.tree_leaves(self))

    def dense(self) -> DenseList:
        """The same with all elements in its buffer. `kind.has_rows` must hold."""
        if self.items is not None and not self.waiting:
            return self
        items = _zeros(self.kind, ()) if self.items is None else self.items
        for place, value in self.waiting:
            items = _put(items, place, value)
        return DenseList(self.kind.settled, items, self.length)

    def fit(self, kind: ListKind) -> DenseList:
        """The same as a list of a kind that holds of it, with a buffer: rows are added or cut off."""
        kind = replace(kind, is_zero=False)
        length = kind.least if kind.is_exact else jnp.asarray(self.length, jnp.int32)
        held = self
        if self.kind.is_shaped and (self.items is None or len(self.waiting) > kind.waiting):
            held = self.dense()
        items = _fitted(held.items, self.kind, kind, ())
        waiting = [(jnp.asarray(place, jnp.int32), _element(kind, value)) for place, value in held.waiting]
        idle = [(jnp.int32(0), _row(items, 0))] if len(waiting) < kind.waiting else []
        waiting = idle * (kind.waiting - len(waiting)) + waiting
        return DenseList(kind, items, length, tuple(waiting))

    def row(self, place: Any) -> Any:
        """An element. `kind.is_shaped` must hold."""
        if self.kind.line is not None:
            return self.kind.line.after(jnp.asarray(place, self.kind.dtype.numpy))
        row = _row(self.dense().items if self.items is None else self.items, place)
        for other, value in self.waiting:
            row = jax.tree_util.tree_map(lambda old, new, other=other: jnp.where(other == place, new, old), row, value)
        return row

    def with_row(self, place: Any, value: Any, waits: bool) -> DenseList:
        """The same with an element set, which may wait; it has the shape of the others."""
        waits = waits or (self.items is None and not self.waiting)
        value = _element(self.kind, value)
        if not waits or len(self.waiting) == _MOST_WAITING:
            held = self.dense()
            return replace(held, items=_put(held.items, place, value))
        waiting = (*self.waiting, (place, value))
        return replace(self, kind=replace(self.kind, waiting=len(waiting)), waiting=waiting)

    def zeros_from(self, place: Any) -> DenseList:
        """The same with zeros from a place on. `kind.has_rows` must hold."""

        def cleared(leaf: Any) -> Any:
            stays = jnp.arange(leaf.shape[0]).reshape(-1, *[1] * (leaf.ndim - 1)) < place
            return jnp.where(stays, leaf, jnp.zeros((), leaf.dtype))

        held = self.dense()
        return replace(held, items=jax.tree_util.tree_map(cleared, held.items))

    def zeros_like(self) -> DenseList:
        kind = self.kind.settled.varied
        if isinstance(kind.element, ListKind):
            return DenseList(kind, _cleared(self.dense().items), self.length)
        return DenseList.zeros(replace(kind, capacity=kind.most), self.length)

    def on_host(self) -> TensorList:
        """The value as kernels of the host take it."""
        kind, count = self.kind, int(self.length)
        if not kind.is_shaped or (self.items is None and not self.waiting):
            return TensorList(kind.dtype, None if isinstance(kind.element, ListKind) else kind.element, (None,) * count)
        held = self.dense()
        if isinstance(kind.element, ListKind):
            rows = [jax.tree_util.tree_map(lambda leaf, row=row: leaf[row], held.items) for row in range(count)]
            return TensorList(kind.dtype, None, tuple(row.on_host() for row in rows))
        return TensorList(kind.dtype, kind.element, tuple(np.asarray(held.items)[:count]))


def total(a: DenseList, b: DenseList) -> Any:
    """The sum of the buffers of two dense lists of one kind; lists in them keep their lengths."""
    return _total(a.items, b.items)


def _total(a: Any, b: Any) -> Any:
    return replace(a, items=_total(a.items, b.items)) if isinstance(a, DenseList) else a + b


# Buffers: one array, or, for lists of lists, the arrays of a DenseList with an axis in front


def _zeros(kind: ListKind, lead: tuple[int, ...]) -> Any:
    """A buffer of zeros, with axes of these sizes in front; None where there is nothing to hold."""
    lead = (*lead, kind.capacity)
    if isinstance(kind.element, ListKind):
        inner = kind.element
        return DenseList(inner, _zeros(inner, lead), inner.least if inner.is_exact else jnp.zeros(lead, jnp.int32))
    return jnp.zeros((*lead, *(size or 0 for size in kind.element or ())), kind.dtype.numpy) if kind.is_shaped else None


def _fitted(items: Any, old: ListKind, new: ListKind, lead: tuple[int, ...]) -> Any:
    """A buffer, with axes of these sizes in front, made one of another kind."""
    if items is None:
        return _zeros(new, lead)
    axis, lead = len(lead), (*lead, new.capacity)
    items = jax.tree_util.tree_map(lambda leaf: _resized_axis(leaf, axis, new.capacity), items)
    if not isinstance(new.element, ListKind) or not isinstance(old.element, ListKind):
        return items
    length = items.length
    if isinstance(length, int) and not new.element.is_exact:
        length = jnp.full(lead, length, jnp.int32)
    return DenseList(new.element, _fitted(items.items, old.element, new.element, lead), length)


def _resized_axis(leaf: Any, axis: int, size: int) -> Any:
    have = leaf.shape[axis]
    if have < size:
        return jnp.pad(leaf, [(0, size - have if k == axis else 0) for k in range(leaf.ndim)])
    return leaf if have == size else lax.slice_in_dim(leaf, 0, size, axis=axis)


def _cleared(items: Any) -> Any:
    """Zeros in place of all elements; lists in it keep their lengths."""
    if isinstance(items, DenseList):
        return replace(items, items=_cleared(items.items))
    return None if items is None else jnp.zeros_like(items)


def _put(items: Any, place: Any, value: Any) -> Any:
    index = _unsigned(place)
    return jax.tree_util.tree_map(lambda leaf, row: lax.dynamic_update_index_in_dim(leaf, row, index, 0), items, value)


def _row(items: Any, place: Any) -> Any:
    index = _unsigned(place)
    return jax.tree_util.tree_map(lambda leaf: lax.dynamic_index_in_dim(leaf, index, 0, keepdims=False), items)


def _unsigned(place: Any) -> Any:
    """A place as JAX need not ask whether it counts from the end."""
    return place if isinstance(place, int) else jnp.asarray(place).astype(jnp.uint32)


def _element(kind: ListKind, value: Any) -> Any:
    """A value as an element of a list of a kind."""
    return value.fit(kind.element) if isinstance(value, DenseList) and isinstance(kind.element, ListKind) else value
