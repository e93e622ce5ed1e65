"""What list ops do in a trace. They take DenseLists (see xla_lists.py) in place of TensorLists.

A kernel returns None where what is known does not do: an element of unknown shape, a length that must be known. That
is asked before anything is traced; then the list stays on the host. Some declare keywords besides attrs: the node, and
what else is known of its inputs (see Facts).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradserve.graph.checks import refuse_if
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Node
from gradserve.graph.op import BoundRule
from gradserve.graph.shapes import Shape, compatible
from gradserve.workers.engines.xla_lists import Constant, DenseList, ListKind, total
from gradserve.workers.engines.xla_rounds import Counter

_LENGTH_READERS = frozenset(("TensorListLength", "TensorListElementShape", "ZerosLike"))


# What they have in common


def _shape(value: Any) -> Shape:
    """The shape that a host vector means: -1 alone is an unknown one."""
    sizes = np.asarray(value)
    if sizes.ndim == 0:
        return None if sizes < 0 else ()
    return tuple(None if size < 0 else int(size) for size in sizes)


def _unset(dtype: DType, element: Shape, count: int) -> DenseList | None:
    if dtype.kind in "sr" or count < 0:
        return None
    return DenseList.zeros(ListKind(dtype, None if dtype.kind == "v" else element, count, count, count))


def _holding(handle: DenseList, element: Shape | ListKind) -> DenseList | None:
    """The list with this known of its elements, too; None where it contradicts what is known already."""
    kind = handle.kind.holding(element)
    if kind is None or kind == handle.kind:
        return None if kind is None else handle
    return replace(handle, kind=kind) if handle.items is None else handle.fit(kind.settled)


def _accepting(handle: DenseList, item: Any) -> DenseList | None:
    """The list that an element like this can join."""
    found = _holding(handle, item.kind.settled if isinstance(item, DenseList) else tuple(item.shape))
    return None if found is None or not found.kind.has_rows else found


def _told(handle: DenseList, shape: Any) -> DenseList | None:
    """The list with what an op says of its elements' shape; None where that leaves it open, or there are none."""
    found = handle if isinstance(handle.kind.element, ListKind) else _holding(handle, _shape(shape))
    return None if found is None or not found.kind.is_shaped or not found.kind.most else found


def _varied(handle: DenseList) -> DenseList:
    """The list without a claim of what its elements are."""
    return replace(handle, kind=handle.kind.varied)


def _waits(node: Node, handle: DenseList, slot: int = 0) -> bool:
    """Whether what a node writes waits: another one reads elements of the list that it changes."""
    readers = [other for other, _ in node.inputs[slot].consumers if other is not node]
    return bool(handle.waiting) or any(other.type not in _LENGTH_READERS for other in readers)


def _is_inside(handle: DenseList, index: Any, bounds: tuple[int, int] | None) -> bool:
    """Whether an index may be one of an element; raises during the run where it then is none."""
    kind = handle.kind
    if isinstance(index, np.ndarray | np.generic):
        bounds = int(index), int(index)
    if not kind.most or (bounds is not None and (bounds[1] < 0 or bounds[0] >= kind.most)):
        return False
    if bounds is None or bounds[0] < 0 or bounds[1] >= kind.least:
        index = jnp.asarray(index)
        what = f"A list of {kind.most} tensors" if kind.is_exact else "A list of tensors"
        refuse_if((index < 0) | (index >= handle.length), f"{what} has no element at the place asked for.")
    return True


# Making lists


def _empty(xp: Any, shape: Any, most: Any, *, element_dtype: DType) -> Any:
    return _unset(element_dtype, _shape(shape), 0)


def _reserved(xp: Any, shape: Any, count: Any, *, element_dtype: DType) -> Any:
    return _unset(element_dtype, _shape(shape), int(count))


def _made(xp: Any, x: Any, shape: Any, *, element_dtype: DType) -> Any:
    if not x.ndim or not compatible(_shape(shape), x.shape[1:]):
        return None
    count = x.shape[0]
    return DenseList(ListKind(element_dtype, tuple(x.shape[1:]), count, count, count), jnp.asarray(x), count)


def _split(xp: Any, x: Any, shape: Any, lengths: Any, *, element_dtype: DType) -> Any:
    count = len(lengths)
    if not count or not x.ndim or len(set(np.asarray(lengths).tolist())) > 1 or int(np.sum(lengths)) != x.shape[0]:
        return None
    return _made(xp, jnp.reshape(x, (count, x.shape[0] // count, *x.shape[1:])), shape, element_dtype=element_dtype)


# Changing lists


def _pushed(xp: Any, handle: DenseList, item: Any, *, line: Counter | None) -> Any:
    held = _accepting(handle, item)
    if held is None:
        return None
    kind = held.kind
    held = held.fit(replace(kind.settled, capacity=max(kind.capacity, kind.most + 1)))
    held = held.with_row(held.length, item, waits=False)
    only = kind.only_with(Constant.of(item), 1)
    line = line if not kind.most or kind.line == line else None
    kind = replace(held.kind.of_length(kind.least + 1, kind.most + 1), only=only, line=line)
    return replace(held, kind=kind, length=held.length + 1)


def _popped(xp: Any, handle: DenseList, shape: Any) -> Any:
    held = _told(handle, shape)
    if held is None:
        return None
    kind, last = held.kind, held.length - 1
    if not kind.least:
        refuse_if(held.length == 0, "An empty list of tensors has no last element.")
        last = jnp.maximum(last, 0)
    return replace(held, kind=kind.of_length(kind.least - 1, kind.most - 1), length=last), held.row(last)


def _set(
    xp: Any, handle: DenseList, index: Any, item: Any, *, node: Node, bounds: tuple[int, int] | None,
    resize_if_index_out_of_bounds: bool,
) -> Any:  # fmt: skip
    held = _accepting(_varied(handle), item)
    if held is not None and resize_if_index_out_of_bounds:
        held = _grown(held, index)
    if held is None or not _is_inside(held, index, bounds):
        return None
    return held.with_row(index, item, _waits(node, handle))


def _grown(held: DenseList, index: Any) -> DenseList | None:
    """The list with room for an element at a place that is known; None where the length then is not known."""
    if not isinstance(index, np.ndarray | np.generic) or not held.kind.is_exact:
        return None
    return _resized(jnp, held, max(int(index) + 1, held.kind.most))


def _resized(xp: Any, handle: DenseList, size: Any) -> Any:
    count = int(size)
    if count < 0:
        return None
    kind = replace(handle.kind.settled, capacity=count, least=count, most=count)
    kind = kind if count <= handle.kind.least else kind.varied
    if not handle.kind.is_shaped or (handle.items is None and not handle.waiting):
        return DenseList.zeros(kind)
    if not handle.kind.is_exact or handle.kind.least < count:
        handle = handle.zeros_from(handle.length)
    return handle.fit(kind)


def _scattered(xp: Any, handle: DenseList, x: Any, indices: Any) -> Any:
    """Later rows win; the list grows where an index is past its end."""
    places = np.asarray(indices)
    held = _holding(_varied(handle), tuple(x.shape[1:])) if x.ndim else None
    if held is None or len(places) != x.shape[0] or np.min(places, initial=0) < 0 or not held.kind.is_exact:
        return None
    count = max(held.kind.most, int(np.max(places, initial=-1)) + 1)
    if len(places) == count and (places == np.arange(count)).all():
        return DenseList(replace(held.kind.settled, capacity=count, least=count, most=count), jnp.asarray(x), count)
    held = _resized(xp, held, count).dense()
    last = {int(place): row for row, place in enumerate(places)}
    rows = jnp.asarray(x)[np.array(list(last.values()), np.int32)]
    return replace(held, items=held.items.at[np.array(list(last), np.int32)].set(rows))


def _scattered_alone(xp: Any, x: Any, indices: Any, shape: Any, *, element_dtype: DType) -> Any:
    empty = _unset(element_dtype, _shape(shape), 0)
    return None if empty is None else _scattered(xp, empty, x, indices)


def _scattered_over(xp: Any, x: Any, indices: Any, shape: Any, count: Any, *, element_dtype: DType) -> Any:
    empty = _unset(element_dtype, _shape(shape), max(int(count), 0))
    found = None if empty is None else _scattered(xp, empty, x, indices)
    return None if found is None or 0 <= int(count) < found.kind.most else found


# Reading lists


def _got(xp: Any, handle: DenseList, index: Any, shape: Any, *, bounds: tuple[int, int] | None) -> Any:
    held = _told(handle, shape)
    return None if held is None or not _is_inside(held, index, bounds) else held.row(index)


def _stacked(xp: Any, handle: DenseList, shape: Any, *, num_elements: int) -> Any:
    held = _holding(handle, _shape(shape))
    if held is None or not held.kind.is_shaped:
        return None
    kind = held.kind
    count = kind.most if num_elements < 0 else num_elements
    if not kind.least <= count <= kind.most or (num_elements < 0 and not kind.is_exact):
        return None
    if not kind.is_exact:
        refuse_if(held.length != count, f"A list of another length can't be stacked to {count} tensors.")
    return lax.slice_in_dim(held.dense().items, 0, count)


def _gathered(xp: Any, handle: DenseList, indices: Any, shape: Any) -> Any:
    held = _told(handle, shape)
    if held is None or isinstance(held.kind.element, ListKind):
        return None
    places = jnp.asarray(indices)
    refuse_if(((places < 0) | (places >= held.length)).any(), "A list of tensors has no element at a place asked for.")
    return jnp.take(held.dense().items, places, axis=0, mode="clip")


def _joined(xp: Any, handle: DenseList, shape: Any, rows: Any) -> Any:
    held = _told(handle, shape)
    if held is None or isinstance(held.kind.element, ListKind) or not held.kind.is_exact:
        return None
    items = held.dense().items
    if items.ndim < 2 or any(int(row) != items.shape[1] for row in rows):
        return None
    count = held.kind.most
    joined = items[:count].reshape(count * items.shape[1], *items.shape[2:])
    return joined, np.full(count, items.shape[1], np.int64)


# Sums


def _added(xp: Any, a: DenseList, b: DenseList, *, node: Node) -> Any:
    """A sum may start before the length is known: an empty list adds nothing."""
    if not a.kind.most or not b.kind.most:
        return b if not a.kind.most else a
    held, other = _holding(_varied(a), b.kind.element), _holding(_varied(b), a.kind.element)
    if held is None or other is None or not held.kind.has_rows:
        return None
    if a.kind.is_exact and b.kind.is_exact:
        return _added_alike(held, other, node) if a.kind.most == b.kind.most else None
    refuse_if(
        (held.length != other.length) & (held.length != 0) & (other.length != 0),
        "Lists of tensors of different lengths can't be added.",
    )
    kind = replace(
        held.kind.settled,
        capacity=max(held.kind.capacity, other.kind.capacity),
        least=max(held.kind.least, other.kind.least),
        most=max(held.kind.most, other.kind.most),
    )
    left, right = (one.fit(replace(kind, least=0)).zeros_from(one.length) for one in (held, other))
    length = kind.least if kind.is_exact else jnp.maximum(left.length, right.length)
    return DenseList(kind, total(left, right), length)


def _added_alike(a: DenseList, b: DenseList, node: Node) -> DenseList:
    """The sum of lists of one known length."""
    if a.items is None:
        a, b = b, a
    if b.items is None and len(b.waiting) <= 1:
        waits = any(_waits(node, a, slot) for slot in range(len(node.inputs)))
        for place, value in b.waiting:
            a = a.with_row(place, a.row(place) + value, waits)
        return a
    capacity = max(a.kind.capacity, b.kind.capacity)
    a, b = (one.fit(replace(one.kind.settled, capacity=capacity)) for one in (a, b))
    return replace(a, items=total(a, b))


def _added_all(xp: Any, *handles: DenseList, node: Node) -> Any:
    found: Any = handles[0]
    for handle in handles[1:]:
        found = None if found is None else _added(xp, found, handle, node=node)
    return found


# The table


class Facts(NamedTuple):
    """What is known of a node's inputs besides shapes and kinds.

    Attributes:
        line: what an element is that each round of a loop pushes, once, to a list that was empty before the loop.
        bounds: the least and the greatest value of an index.
    """

    line: Counter | None = None
    bounds: tuple[int, int] | None = None


class ListKernel(NamedTuple):
    """How a list op is traced.

    Attributes:
        rule: its kernel.
        host: positions of the inputs that must be known before.
    """

    rule: BoundRule
    host: tuple[int, ...] = ()

    def bind(self, node: Node, facts: Facts) -> Callable[..., Any]:
        """The kernel for a node."""
        return self.rule.bind(node, {**node.attrs, **facts._asdict()})


def _kernel(function: Callable[..., Any], *host: int) -> ListKernel:
    return ListKernel(BoundRule(function), host)


LISTS: Mapping[str, ListKernel] = {
    "EmptyTensorList": _kernel(_empty, 0, 1),
    "TensorListReserve": _kernel(_reserved, 0, 1),
    "TensorListFromTensor": _kernel(_made, 1),
    "TensorListPushBack": _kernel(_pushed),
    "TensorListPopBack": _kernel(_popped, 1),
    "TensorListSetItem": _kernel(_set),
    "TensorListGetItem": _kernel(_got, 2),
    "TensorListResize": _kernel(_resized, 1),
    "TensorListScatter": _kernel(_scattered_alone, 1, 2),
    "TensorListScatterV2": _kernel(_scattered_over, 1, 2, 3),
    "TensorListScatterIntoExistingList": _kernel(_scattered, 2),
    "TensorListStack": _kernel(_stacked, 1),
    "TensorListGather": _kernel(_gathered, 2),
    "TensorListConcatV2": _kernel(_joined, 1, 2),
    "TensorListSplit": _kernel(_split, 1, 2),
    "TensorListLength": _kernel(lambda xp, handle: jnp.asarray(handle.length, jnp.int32)),
    "ZerosLike": _kernel(lambda xp, handle: handle.zeros_like()),
    "AddN": _kernel(_added_all),
    "AddV2": _kernel(_added),
    "Identity": _kernel(lambda xp, handle: handle),
    "StopGradient": _kernel(lambda xp, handle: handle),
    "PreventGradient": _kernel(lambda xp, handle: handle),
}
"""Op type to how it is traced where its lists are."""


def range_of(type_name: str, position: int, handle: ListKind) -> tuple[int, int] | None:
    """The least and the greatest value of an output that reads a list, where that is known."""
    if handle.line is None or not handle.most:
        return None
    if (type_name, position) == ("TensorListPopBack", 1):
        return handle.line.range(max(handle.least - 1, 0), handle.most - 1)
    return handle.line.range(0, handle.most - 1) if type_name == "TensorListGetItem" else None


def known_value(type_name: str, position: int, handle: ListKind, attrs: Mapping[str, Any]) -> Any:
    """What an output that is no list is worth where that follows from the list's kind; None elsewhere."""
    if (type_name, position) in (("TensorListPopBack", 1), ("TensorListGetItem", 0)) and handle.most:
        return None if handle.only is None else handle.only.value
    if type_name == "TensorListLength" and handle.is_exact:
        return np.array(handle.most, np.int32)
    if type_name == "TensorListElementShape" and handle.is_shaped and not isinstance(handle.element, ListKind):
        return np.array(handle.element, attrs["shape_type"].numpy)
    if type_name == "TensorListConcatV2" and position == 1 and handle.is_exact and handle.is_shaped and handle.most:
        return np.full(handle.most, handle.element[0], np.int64) if isinstance(handle.element, tuple) else None
    return None


def abstract(kind: ListKind) -> DenseList:
    """A list of a kind as `results` takes it."""
    if kind.is_exact:
        return jax.eval_shape(lambda: _like(kind, kind.least))
    return jax.eval_shape(lambda length: _like(kind, length), jax.ShapeDtypeStruct((), np.dtype(np.int32)))


def _like(kind: ListKind, length: Any) -> DenseList:
    zeros = DenseList.zeros(kind, length)
    if not kind.has_rows:
        return zeros
    if not kind.is_zero:
        return zeros.fit(kind)
    waiting = ((jnp.int32(0), zeros.row(0)),) * kind.waiting if kind.waiting else ()
    return DenseList(kind, None, length, waiting)


def results(node: Node, inputs: Sequence[Any], facts: Facts) -> list[Any] | None:
    """What a list op gives for such inputs (arrays for what is known, else shapes and kinds); None where it can't."""
    kernel = LISTS.get(node.type)
    if kernel is None:
        return None
    function = kernel.bind(node, facts)
    places = [k for k, value in enumerate(inputs) if not isinstance(value, np.ndarray)]

    def run(*given: Any) -> Any:
        values = list(inputs)
        for place, value in zip(places, given, strict=True):
            values[place] = value
        return function(jnp, *values)

    found = jax.eval_shape(run, *(inputs[place] for place in places))
    return None if found is None else list(found) if isinstance(found, tuple) else [found]
