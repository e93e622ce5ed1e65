"""Lists of tensors as values. The gradient of a list is a list: each gradient op is another list op.

Sources: TensorFlow's list_ops; the values are gradserve.graph.variants.TensorList.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import static
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, Example, define, raw
from gradserve.graph.shapes import Shape, merge
from gradserve.graph.symbolic import concat, part, product, shape_of
from gradserve.graph.variants import TensorList
from gradserve.ops.ways import Way, ways

_SHAPED = "element_dtype: type, shape_type: index"


def _shape(value: Any) -> Shape:
    """The shape that a host vector means: -1 alone is an unknown one."""
    sizes = np.asarray(value)
    if sizes.ndim == 0:
        return None if sizes < 0 else ()
    return tuple([None if size < 0 else size for size in sizes.tolist()])


def _known(element_shape: Tensor) -> Shape:
    value = static.value(element_shape)
    return static.shape_value(element_shape) if value is None else _shape(value)


# Examples

_ANY = np.int32(-1)


def _ways(*functions: Way) -> Callable[[Any], list[Example]]:
    return ways(lambda draw: (3, draw.size(0, 2)), *functions)


def _rows(x: Tensor) -> list[Tensor]:
    return [raw.GatherV2(x, np.int32(place), np.int32(0)) for place in range(3)]


def _of_rows(x: Tensor) -> Tensor:
    return raw.TensorListFromTensor(x, _ANY, element_dtype=x.dtype.base)


def _stack(handle: Tensor, x: Tensor) -> Tensor:
    """The elements, which are like rows of x."""
    return raw.TensorListStack(handle, part(shape_of(x), 1), element_dtype=x.dtype.base)


def _item(handle: Tensor, place: int, like: Tensor) -> Tensor:
    return raw.TensorListGetItem(handle, np.int32(place), shape_of(like), element_dtype=like.dtype.base)


def _pushed_and_popped(x: Tensor) -> list[Tensor]:
    kind: Any = {"element_dtype": x.dtype.base}
    handle = raw.EmptyTensorList(_ANY, _ANY, **kind)
    for row in _rows(x):
        handle = raw.TensorListPushBack(handle, row, **kind)
    handle, last = raw.TensorListPopBack.outputs(handle, part(shape_of(x), 1), **kind)
    return [_stack(handle, x) * last]


def _set_and_read(x: Tensor) -> list[Tensor]:
    """An element that is set twice, one that is not set, and one past the end."""
    kind: Any = {"element_dtype": x.dtype.base}
    first, second, third = _rows(x)
    handle = raw.TensorListReserve(part(shape_of(x), 1), np.int32(4), **kind)
    for place, row in ((1, first * second), (3, third), (1, second)):
        handle = raw.TensorListSetItem(handle, np.int32(place), row, **kind)
    longer = raw.TensorListSetItem(_of_rows(x), np.int32(5), first, resize_if_index_out_of_bounds=True, **kind)
    return [_stack(handle, x), _item(handle, 1, first), _stack(longer, x)]


def _cut_and_grown(x: Tensor) -> list[Tensor]:
    return [_stack(raw.TensorListResize(_of_rows(x), np.int32(size)), x) for size in (2, 5)]


def _gathered_again(x: Tensor) -> list[Tensor]:
    places = np.array([2, 0, 2], np.int32)
    return [raw.TensorListGather(_of_rows(x), places, part(shape_of(x), 1), element_dtype=x.dtype.base)]


def _scattered_to(op: str, *places: int) -> Way:
    """Rows of x at these places: of a new list of any length, of length 6, or over another one."""
    indices = np.array(places, np.int32)

    def way(x: Tensor) -> list[Tensor]:
        kind: Any = {"element_dtype": x.dtype.base}
        shape, define_list = part(shape_of(x), 1), getattr(raw, op)
        if op == "TensorListScatterIntoExistingList":
            return [_stack(define_list(_of_rows(raw.Sin(x)), x, indices, **kind), x)]
        if op == "TensorListScatter":
            return [_stack(define_list(x, indices, shape, **kind), x)]
        return [_stack(define_list(x, indices, shape, np.int32(count), **kind), x) for count in (6, -1)]

    return way


def _split_and_joined(x: Tensor) -> list[Tensor]:
    kind: Any = {"element_dtype": x.dtype.base}
    handle = raw.TensorListSplit(x, _ANY, np.array([2, 0, 1]), **kind)
    shape = concat(np.array([-1], np.int32), part(shape_of(x), 1))
    joined = raw.TensorListConcatV2.outputs(handle, shape, np.array([], np.int64), **kind)[0]
    first, last = _item(handle, 0, x[:2]), _item(handle, 2, x[2:])
    return [joined, raw.TensorListConcat.outputs(handle, **kind)[0], first * last]


def _split_and_read_in_part(x: Tensor) -> list[Tensor]:
    handle = raw.TensorListSplit(x, _ANY, np.array([2, 1]), element_dtype=x.dtype.base)
    return [_item(handle, 1, x[2:])]


def _lists_in_a_list(x: Tensor) -> list[Tensor]:
    kind: Any = {"element_dtype": "variant"}
    outer = raw.EmptyTensorList(np.array([], np.int32), _ANY, **kind)
    for inner in (x, raw.Sin(x)):
        outer = raw.TensorListPushBack(outer, _of_rows(inner), **kind)
    return [_stack(raw.TensorListGetItem(outer, np.int32(1), np.array([], np.int32), **kind), x)]


# Making lists

define(
    f"EmptyTensorList(element_shape: shape_type, max_num_elements: int32; {_SHAPED}) -> (handle: variant)",
    shape=lambda shape, most: (),
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, shape, most, *, element_dtype: TensorList(element_dtype, _shape(shape)),
    host=("element_shape", "max_num_elements"),
    dynamic=True,
)
define(
    f"TensorListReserve(element_shape: shape_type, num_elements: int32; {_SHAPED}) -> (handle: variant)",
    shape=lambda shape, count: (),
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, shape, count, *, element_dtype: TensorList(element_dtype, _shape(shape), (None,) * int(count)),
    host=("element_shape", "num_elements"),
    dynamic=True,
)


def _from_tensor(xp: Any, x: Any, shape: Any, *, element_dtype: DType) -> TensorList:
    return TensorList(element_dtype, merge(_shape(shape), tuple(x.shape[1:])), tuple(x))


define(
    f"TensorListFromTensor(tensor: element_dtype, element_shape: shape_type; {_SHAPED}) -> (output_handle: variant)",
    shape=lambda x, shape: (),
    gradient=lambda dy, y, x, shape, *, element_dtype: (
        raw.TensorListStack(
            dy,
            part(shape_of(x), 1),
            element_dtype=element_dtype,
            num_elements=-1 if not x.shape or x.shape[0] is None else x.shape[0],
        ),
        None,
    ),
    kernel=_from_tensor,
    host=("element_shape",),
    dynamic=True,
    examples=_ways(_cut_and_grown),
)


# Changing lists


def _push_gradient(dy: Tensor, y: Tensor, handle: Tensor, x: Tensor, *, element_dtype: DType) -> Any:
    return raw.TensorListPopBack.outputs(dy, _any_shape(x), element_dtype=element_dtype)


def _any_shape(x: Tensor) -> Any:
    """The shape of x for an op that only checks elements with it: -1 leaves it open."""
    return shape_of(x) if x.dtype.kind != "v" else np.array([], np.int32)


define(
    "TensorListPushBack(input_handle: variant, tensor: element_dtype; element_dtype: type) -> (output_handle: variant)",
    shape=lambda handle, x: (),
    gradient=_push_gradient,
    kernel=lambda xp, handle, x: handle.with_items((*handle.items, x)),
    dynamic=True,
    examples=_ways(_pushed_and_popped, _lists_in_a_list),
)


def _pop(xp: Any, handle: TensorList, shape: Any) -> tuple[TensorList, Any]:
    if not handle.items:
        raise InvalidArgument("An empty list of tensors has no last element.")
    return handle.with_items(handle.items[:-1]), handle.item(len(handle) - 1, _shape(shape))


def _pop_gradient(
    dlist: Tensor, dx: Tensor | None, rest: Tensor, x: Tensor, handle: Tensor, shape: Tensor, *, element_dtype: DType
) -> Any:
    return raw.TensorListPushBack(dlist, raw.ZerosLike(x) if dx is None else dx, element_dtype=element_dtype), None


define(
    "TensorListPopBack(input_handle: variant, element_shape: int32; element_dtype: type)"
    " -> (output_handle: variant, tensor: element_dtype)",
    shape=lambda handle, shape: [(), _known(shape)],
    gradient=_pop_gradient,
    kernel=_pop,
    host=("element_shape",),
    dynamic=True,
    examples=_ways(_pushed_and_popped),
)


def _set(
    xp: Any, handle: TensorList, index: Any, item: Any, *, resize_if_index_out_of_bounds: bool
) -> TensorList:  # fmt: skip
    place, items = int(index), list(handle.items)
    if resize_if_index_out_of_bounds and place >= len(items):
        items.extend([None] * (place + 1 - len(items)))
    handle = handle.with_items(tuple(items))
    handle.check(place)
    items[place] = item
    return handle.with_items(tuple(items))


def _set_gradient(
    dy: Tensor, y: Tensor, handle: Tensor, index: Tensor, item: Tensor, *, element_dtype: DType,
    resize_if_index_out_of_bounds: bool,
) -> Any:  # fmt: skip
    zeros = raw.ZerosLike(item)
    dlist = raw.TensorListSetItem(dy, index, zeros, element_dtype=element_dtype)
    if resize_if_index_out_of_bounds:
        dlist = raw.TensorListResize(dlist, raw.TensorListLength(handle))
    ditem = raw.TensorListGetItem(dy, index, _any_shape(item), element_dtype=element_dtype)
    return dlist, None, ditem if element_dtype.is_trainable else None


define(
    "TensorListSetItem(input_handle: variant, index: int32, item: element_dtype; element_dtype: type,"
    " resize_if_index_out_of_bounds: bool = false) -> (output_handle: variant)",
    shape=lambda handle, index, item: (),
    gradient=_set_gradient,
    kernel=_set,
    host=("index",),
    dynamic=True,
    examples=_ways(_set_and_read),
)


def _resized(xp: Any, handle: TensorList, size: Any) -> TensorList:
    count = int(size)
    if count < 0:
        raise InvalidArgument(f"A list can't have {count} elements.")
    return handle.with_items((*handle.items[:count], *[None] * (count - len(handle))))


define(
    "TensorListResize(input_handle: variant, size: int32) -> (output_handle: variant)",
    shape=lambda handle, size: (),
    gradient=lambda dy, y, handle, size: (raw.TensorListResize(dy, raw.TensorListLength(handle)), None),
    kernel=_resized,
    host=("size",),
    dynamic=True,
    examples=_ways(_cut_and_grown),
)


# Rows of a tensor as elements


def _scattered(xp: Any, handle: TensorList, x: Any, indices: Any) -> TensorList:
    """Later rows win; the list grows where an index is past its end."""
    if len(indices) != len(x):
        raise InvalidArgument(f"{len(x)} rows can't be put at {len(indices)} places of a list.")
    if len(indices) and np.min(indices) < 0:
        raise InvalidArgument(f"A list of tensors has no element {np.min(indices)}.")
    items = list(handle.items)
    items.extend([None] * (int(np.max(indices, initial=-1)) + 1 - len(items)))
    for place, row in zip(indices, x, strict=True):
        items[int(place)] = row
    return handle.with_items(tuple(items))


def _rows_gradient(dy: Tensor, x: Tensor, indices: Tensor, element_dtype: DType) -> Tensor:
    """The elements of dy that the rows of x became; zeros for rows that a later one replaced."""
    dx = raw.TensorListGather(dy, indices, part(shape_of(x), 1), element_dtype=element_dtype)
    if _distinct(indices):
        return dx
    places, slots = raw.Unique.outputs(indices)
    order = raw.Range(0, raw.Size(indices), 1)
    last = raw.UnsortedSegmentMax(order, slots, raw.Size(places))
    stays = raw.Cast(raw.Equal(order, raw.GatherV2(last, slots, np.int32(0))), DstT=x.dtype)
    return raw.Reshape(raw.Reshape(stays, [-1, 1]) * raw.Reshape(dx, _flat(x)), shape_of(x))


def _flat(x: Tensor) -> Any:
    """The shape of x as a matrix: -1 can't be used where there may be no rows."""
    return concat(part(shape_of(x), 0, 1), product(part(shape_of(x), 1)))


define(
    f"TensorListScatter(tensor: element_dtype, indices: int32, element_shape: shape_type; {_SHAPED})"
    " -> (output_handle: variant)",
    shape=lambda x, indices, shape: (),
    gradient=lambda dy, y, x, indices, shape, *, element_dtype: (
        _rows_gradient(dy, x, indices, element_dtype),
        None,
        None,
    ),
    kernel=lambda xp, x, indices, shape, *, element_dtype: _scattered(
        xp, TensorList(element_dtype, _shape(shape)), x, indices
    ),
    host=("indices", "element_shape"),
    dynamic=True,
    examples=_ways(_scattered_to("TensorListScatter", 2, 0, 4), _scattered_to("TensorListScatter", 1, 0, 1)),
)


def _scattered_over(xp: Any, x: Any, indices: Any, shape: Any, count: Any, *, element_dtype: DType) -> TensorList:
    """A list of so many elements; -1 leaves the number to the indices."""
    least = max(int(count), 0)
    found = _scattered(xp, TensorList(element_dtype, _shape(shape), (None,) * least), x, indices)
    if int(count) >= 0 and len(found) > least:
        raise InvalidArgument(f"A list of {least} tensors has no element {int(np.max(indices))}.")
    return found


define(
    "TensorListScatterV2(tensor: element_dtype, indices: int32, element_shape: shape_type, num_elements: int32;"
    f" {_SHAPED}) -> (output_handle: variant)",
    shape=lambda x, indices, shape, count: (),
    gradient=lambda dy, y, x, indices, shape, count, *, element_dtype: (
        _rows_gradient(dy, x, indices, element_dtype),
        None,
        None,
        None,
    ),
    kernel=_scattered_over,
    host=("indices", "element_shape", "num_elements"),
    dynamic=True,
    examples=_ways(_scattered_to("TensorListScatterV2", 2, 0, 1)),
)


def _scattered_gradient(
    dy: Tensor, y: Tensor, handle: Tensor, x: Tensor, indices: Tensor, *, element_dtype: DType
) -> Any:
    kept = raw.TensorListScatterIntoExistingList(dy, raw.ZerosLike(x), indices, element_dtype=element_dtype)
    dhandle = raw.TensorListResize(kept, raw.TensorListLength(handle))
    return dhandle, _rows_gradient(dy, x, indices, element_dtype), None


define(
    "TensorListScatterIntoExistingList(input_handle: variant, tensor: element_dtype, indices: int32;"
    " element_dtype: type) -> (output_handle: variant)",
    shape=lambda handle, x, indices: (),
    gradient=_scattered_gradient,
    kernel=_scattered,
    host=("indices",),
    dynamic=True,
    examples=_ways(_scattered_to("TensorListScatterIntoExistingList", 0, 4, 0)),
)

# Several lists


def _pushed_each(xp: Any, handles: Any, x: Any) -> Any:
    """One row to each list."""
    lists = np.asarray(handles, dtype=object)
    if lists.ndim != 1 or len(lists) != len(x):
        raise InvalidArgument(f"{len(x)} rows can't be pushed to lists of shape {lists.shape}, one to each.")
    pushed = np.empty(len(lists), dtype=object)
    for place, (handle, row) in enumerate(zip(lists, x, strict=True)):
        pushed[place] = handle.with_items((*handle.items, row))
    return pushed


define(
    "TensorListPushBackBatch(input_handles: variant, tensor: element_dtype; element_dtype: type)"
    " -> (output_handles: variant)",
    shape=lambda handles, x: handles.shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_pushed_each,
    dynamic=True,
)


def _chained(xp: Any, a: Any, b: Any) -> Any:
    if isinstance(a, TensorList):
        return TensorList(a.dtype, merge(a.shape, b.shape), (*a.items, *b.items))
    pairs = [_chained(xp, *pair) for pair in zip(a.ravel(), b.ravel(), strict=True)]
    joined = np.empty(len(pairs), dtype=object)
    joined[:] = pairs
    return joined.reshape(a.shape)


define(
    "TensorListConcatLists(input_a: variant, input_b: variant; element_dtype: type) -> (output: variant)",
    shape=lambda a, b: a.shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_chained,
    dynamic=True,
)


# Reading lists


def _unset_like(handle: Tensor, element_dtype: DType) -> Tensor:
    """A list as long as this one, of zeros: unset elements, since they may have different shapes; lists in a list."""
    if element_dtype.kind == "v":
        return raw.ZerosLike(handle)
    shape = raw.TensorListElementShape(handle, shape_type="int32")
    return raw.TensorListReserve(shape, raw.TensorListLength(handle), element_dtype=element_dtype)


def _item_gradient(dy: Tensor, y: Tensor, handle: Tensor, index: Tensor, shape: Tensor, *, element_dtype: DType) -> Any:
    return raw.TensorListSetItem(_unset_like(handle, element_dtype), index, dy, element_dtype=element_dtype), None, None


define(
    "TensorListGetItem(input_handle: variant, index: int32, element_shape: Tshape; element_dtype: type,"
    " Tshape: index = int32) -> (item: element_dtype)",
    shape=lambda handle, index, shape: _known(shape),
    gradient=_item_gradient,
    kernel=lambda xp, handle, index, shape: handle.item(int(index), _shape(shape)),
    host=("index", "element_shape"),
    dynamic=True,
    examples=_ways(_set_and_read, _lists_in_a_list),
)


def _stacked(xp: Any, handle: TensorList, shape: Any, *, num_elements: int, element_dtype: DType) -> Any:
    if num_elements not in (-1, len(handle)):
        raise InvalidArgument(f"A list of {len(handle)} tensors can't be stacked to {num_elements}.")
    return _gathered(xp, handle, range(len(handle)), shape, element_dtype=element_dtype)


def _gathered(xp: Any, handle: TensorList, places: Iterable[Any], shape: Any, *, element_dtype: DType) -> Any:
    """The elements at these places, along a new first axis."""
    known = merge(handle.shape, _shape(shape))
    items = [handle.item(int(place), known) for place in places]
    if not items:
        return np.zeros([0, *(size or 0 for size in known or ())], element_dtype.numpy)
    if len({np.shape(item) for item in items}) > 1:
        raise InvalidArgument("The tensors of the list have different shapes, so they can't be stacked.")
    return np.stack(items)


def _stacked_shape(handle: Tensor, shape: Tensor, *, num_elements: int) -> Shape:
    element = _known(shape)
    return None if element is None else (None if num_elements < 0 else num_elements, *element)


define(
    "TensorListStack(input_handle: variant, element_shape: int32; element_dtype: type, num_elements: int = -1)"
    " -> (tensor: element_dtype)",
    shape=_stacked_shape,
    gradient=lambda dy, y, handle, shape, *, element_dtype: (
        raw.TensorListFromTensor(dy, part(shape_of(dy), 1), element_dtype=element_dtype),
        None,
    ),
    kernel=_stacked,
    host=("element_shape",),
    dynamic=True,
    examples=_ways(_pushed_and_popped),
)


def _distinct(indices: Tensor) -> bool:
    """Whether it is known that no index appears twice."""
    known = static.value(indices)
    return known is not None and len(np.unique(known)) == known.size


def _gathered_gradient(
    dy: Tensor, y: Tensor, handle: Tensor, indices: Tensor, shape: Tensor, *, element_dtype: DType
) -> Any:
    """Rows of dy that belong to one element are summed."""
    rows, places = dy, indices
    if not _distinct(indices):
        places, slots = raw.Unique.outputs(indices)
        rows = raw.UnsortedSegmentSum(dy, slots, raw.Size(places))
    unset = _unset_like(handle, element_dtype)
    return raw.TensorListScatterIntoExistingList(unset, rows, places, element_dtype=element_dtype), None, None


def _gathered_shape(handle: Tensor, indices: Tensor, shape: Tensor) -> Shape:
    element = _known(shape)
    return None if element is None or indices.shape is None else (*indices.shape, *element)


define(
    "TensorListGather(input_handle: variant, indices: int32, element_shape: int32; element_dtype: type)"
    " -> (values: element_dtype)",
    shape=_gathered_shape,
    gradient=_gathered_gradient,
    kernel=_gathered,
    host=("indices", "element_shape"),
    dynamic=True,
    examples=_ways(_gathered_again),
)
define(
    "TensorListLength(input_handle: variant) -> (length: int32)",
    shape=lambda handle: (),
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, handle: np.int32(len(handle)),
    dynamic=True,
)


def _element_shape(xp: Any, handle: TensorList, *, shape_type: DType) -> Any:
    if handle.shape is None:
        return np.array(-1, shape_type.numpy)
    return np.array([-1 if size is None else size for size in handle.shape], shape_type.numpy)


define(
    "TensorListElementShape(input_handle: variant; shape_type: index) -> (element_shape: shape_type)",
    gradient=NOT_DIFFERENTIABLE,
    kernel=_element_shape,
    dynamic=True,
)


# Lists of rows: tensors that are joined along their first axis


def _tail(handle: TensorList) -> Shape:
    """What is known of the shape of one row."""
    rows = next((np.shape(item)[1:] for item in handle.items if item is not None), None)
    return rows if handle.shape is None else merge(handle.shape[1:], rows)


def _joined(xp: Any, handle: TensorList, *, element_dtype: DType, rows: Any = ()) -> tuple[Any, Any]:
    tail = _tail(handle)
    items = [
        handle.item(place, (int(rows[place]), *tail) if len(rows) and tail is not None else None)
        for place in range(len(handle))
    ]
    lengths = np.array([len(item) for item in items], np.int64)
    if not items:
        tail = [size or 0 for size in (handle.shape or (None,))[1:]]
        return np.zeros([0, *tail], element_dtype.numpy), lengths
    return np.concatenate(items), lengths


def _joined_gradient(dy: Tensor, lengths: Tensor, element_dtype: DType) -> Tensor:
    """The pieces of dy, each with so many rows as went in."""
    return raw.TensorListSplit(dy, _pieces_of(dy), lengths, element_dtype=element_dtype)


def _pieces_of(x: Tensor) -> Any:
    """The shape of some rows of x: how many of them is open."""
    return concat(np.array([-1], np.int32), part(shape_of(x), 1))


define(
    "TensorListConcatV2(input_handle: variant, element_shape: shape_type, leading_dims: int64;"
    f" {_SHAPED}) -> (tensor: element_dtype, lengths: int64)",
    shape=lambda handle, shape, rows: [None if (e := _known(shape)) is None else (None, *e[1:]), (None,)],
    gradient=lambda dy, _, y, lengths, handle, shape, rows, *, element_dtype: (
        _joined_gradient(dy, lengths, element_dtype),
        None,
        None,
    ),
    kernel=lambda xp, handle, shape, rows, *, element_dtype: _joined(
        xp,
        TensorList(handle.dtype, merge(handle.shape, _shape(shape)), handle.items),
        element_dtype=element_dtype,
        rows=rows,
    ),
    host=("element_shape", "leading_dims"),
    dynamic=True,
    examples=_ways(_split_and_joined),
)
define(
    "TensorListConcat(input_handle: variant; element_dtype: type, element_shape: shape = unknown)"
    " -> (tensor: element_dtype, lengths: int64)",
    shape=lambda handle, *, element_shape: [None if element_shape is None else (None, *element_shape[1:]), (None,)],
    gradient=lambda dy, _, y, lengths, handle, *, element_dtype: _joined_gradient(dy, lengths, element_dtype),
    kernel=lambda xp, handle, *, element_dtype: _joined(xp, handle, element_dtype=element_dtype),
    dynamic=True,
    examples=_ways(_split_and_joined),
)


def _split(xp: Any, x: Any, shape: Any, lengths: Any, *, element_dtype: DType) -> TensorList:
    if int(np.sum(lengths)) != len(x):
        raise InvalidArgument(f"{len(x)} rows can't be split into pieces of {int(np.sum(lengths))} in all.")
    ends = np.cumsum(lengths)[:-1]
    return TensorList(element_dtype, _shape(shape), tuple(np.split(x, ends)) if len(lengths) else ())


define(
    f"TensorListSplit(tensor: element_dtype, element_shape: shape_type, lengths: int64; {_SHAPED})"
    " -> (output_handle: variant)",
    shape=lambda x, shape, lengths: (),
    gradient=lambda dy, y, x, shape, lengths, *, element_dtype: (
        raw.TensorListConcatV2.outputs(dy, _pieces_of(x), lengths, element_dtype=element_dtype)[0],
        None,
        None,
    ),
    kernel=_split,
    host=("element_shape", "lengths"),
    dynamic=True,
    examples=_ways(_split_and_joined, _split_and_read_in_part),
)
