"""Lists of tensors against central differences: each test is a way from arrays into a list and out of it again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.errors import GradserveError
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from tests.ops.differences import check, run
from tests.ops.draw import Draw

_ANY = np.int32(-1)
_KIND = {"element_dtype": "float64"}


def _indices(*values: int) -> Any:
    return np.array(values, np.int32)


def _row(x: Tensor, place: int) -> Tensor:
    return raw.GatherV2(x, np.int32(place), np.int32(0))


def _of_rows(x: Tensor) -> Tensor:
    return raw.TensorListFromTensor(x, _ANY, **_KIND)


def _stack(handle: Tensor) -> Tensor:
    return raw.TensorListStack(handle, _indices(2), **_KIND)


def _pushed_and_popped(x: Tensor) -> list[Tensor]:
    handle = raw.EmptyTensorList(_ANY, _ANY, **_KIND)
    for place in (2, 0, 1):
        handle = raw.TensorListPushBack(handle, _row(x, place), **_KIND)
    handle, last = raw.TensorListPopBack.outputs(handle, _indices(2), **_KIND)
    return [_stack(handle) * last]


def _set_and_read(x: Tensor) -> list[Tensor]:
    handle = raw.TensorListReserve(_indices(2), np.int32(4), **_KIND)
    handle = raw.TensorListSetItem(handle, np.int32(1), _row(x, 0) * _row(x, 1), **_KIND)
    handle = raw.TensorListSetItem(handle, np.int32(3), _row(x, 2), **_KIND)
    # The second write to 1 hides the first.
    handle = raw.TensorListSetItem(handle, np.int32(1), _row(x, 1), **_KIND)
    return [_stack(handle), raw.TensorListGetItem(handle, np.int32(1), _indices(2), **_KIND)]


def _set_past_the_end(x: Tensor) -> list[Tensor]:
    handle = raw.TensorListSetItem(_of_rows(x), np.int32(5), _row(x, 0), resize_if_index_out_of_bounds=True, **_KIND)
    return [_stack(handle)]


def _cut_and_grown(x: Tensor) -> list[Tensor]:
    return [_stack(raw.TensorListResize(_of_rows(x), np.int32(size))) for size in (2, 5)]


def _gathered_twice(x: Tensor) -> list[Tensor]:
    return [raw.TensorListGather(_of_rows(x), _indices(2, 0, 2), _indices(2), **_KIND)]


def _scattered(x: Tensor) -> list[Tensor]:
    handles = [
        raw.TensorListScatter(x, _indices(2, 0, 4), _indices(2), **_KIND),
        raw.TensorListScatterV2(x, _indices(2, 0, 1), _indices(2), np.int32(6), **_KIND),
        raw.TensorListScatterV2(x, _indices(2, 0, 1), _indices(2), _ANY, **_KIND),
    ]
    return [_stack(handle) for handle in handles]


def _scattered_to_one_place(x: Tensor) -> list[Tensor]:
    return [_stack(raw.TensorListScatter(x, _indices(1, 0, 1), _indices(2), **_KIND))]


def _scattered_over_others(x: Tensor) -> list[Tensor]:
    return [
        _stack(raw.TensorListScatterIntoExistingList(_of_rows(raw.Square(x)), x, _indices(0, 4, 0), **_KIND)),
    ]


def _split_and_joined(x: Tensor) -> list[Tensor]:
    handle = raw.TensorListSplit(x, _ANY, np.array([2, 0, 1]), **_KIND)
    joined = raw.TensorListConcatV2.outputs(handle, _indices(-1, 2), np.array([], np.int64), **_KIND)[0]
    first = raw.TensorListGetItem(handle, np.int32(0), _indices(2, 2), **_KIND)
    last = raw.TensorListGetItem(handle, np.int32(2), _indices(1, 2), **_KIND)
    return [joined, raw.TensorListConcat.outputs(handle, **_KIND)[0], first * last]


def _split_and_read_in_part(x: Tensor) -> list[Tensor]:
    handle = raw.TensorListSplit(x, _ANY, np.array([2, 1]), **_KIND)
    return [raw.TensorListGetItem(handle, np.int32(1), _indices(1, 2), **_KIND)]


def _lists_in_a_list(x: Tensor) -> list[Tensor]:
    outer = raw.EmptyTensorList(np.array([], np.int32), _ANY, element_dtype="variant")
    outer = raw.TensorListPushBack(outer, _of_rows(x), element_dtype="variant")
    outer = raw.TensorListPushBack(outer, _of_rows(raw.Square(x)), element_dtype="variant")
    inner = raw.TensorListGetItem(outer, np.int32(1), np.array([], np.int32), element_dtype="variant")
    return [_stack(inner)]


_WAYS = [
    _pushed_and_popped,
    _set_and_read,
    _set_past_the_end,
    _cut_and_grown,
    _gathered_twice,
    _scattered,
    _scattered_to_one_place,
    _scattered_over_others,
    _split_and_joined,
    _split_and_read_in_part,
    _lists_in_a_list,
]


@pytest.mark.parametrize("known_shapes", [True, False])
@pytest.mark.parametrize("way", _WAYS, ids=[way.__name__.strip("_") for way in _WAYS])
def test_three_orders_agree_with_central_differences(way: Callable[[Tensor], list[Tensor]], known_shapes: bool) -> None:
    graph = Graph()
    with graph.as_default():
        x = raw.Placeholder(dtype=np.float64, shape=(3, 2) if known_shapes else None)
        # Products make the higher orders more than zeros.
        outputs = [y * y for y in way(x)]
    check(outputs, [x], [Draw(lambda low, high: high).normal(3, 2)], order=3)


def _values(build: Callable[[], list[Tensor]]) -> list[Any]:
    with Graph().as_default():
        outputs = build()
    return run(outputs, (), ())


def test_length_and_shape_of_a_list() -> None:
    def build() -> list[Tensor]:
        handle = raw.TensorListReserve(_indices(-1, 2), np.int32(4), **_KIND)
        return [raw.TensorListLength(handle), raw.TensorListElementShape(handle, shape_type="int64")]

    length, shape = _values(build)
    assert length == 4
    assert shape.tolist() == [-1, 2]


def test_rows_that_nobody_has_set_are_zeros_of_the_others_kind() -> None:
    def build() -> list[Tensor]:
        handle = raw.TensorListReserve(_ANY, np.int32(2), **_KIND)
        handle = raw.TensorListSetItem(handle, np.int32(1), np.ones((1, 2)), **_KIND)
        return list(raw.TensorListConcatV2.outputs(handle, _ANY, np.array([2, 1]), **_KIND))

    rows, lengths = _values(build)
    assert rows.tolist() == [[0, 0], [0, 0], [1, 1]]
    assert lengths.tolist() == [2, 1]


def test_one_list_after_another() -> None:
    def build() -> list[Tensor]:
        a, b = (_of_rows(current.constant(np.full((rows, 2), 1.0 * rows))) for rows in (1, 2))
        return [_stack(raw.TensorListConcatLists(a, b, **_KIND))]

    current = Graph()
    with current.as_default():
        (stacked,) = run(build(), (), ())
    assert stacked.tolist() == [[1, 1], [2, 2], [2, 2]]


def test_one_row_to_each_list() -> None:
    graph = Graph()
    with graph.as_default():
        empty = raw.EmptyTensorList(_ANY, _ANY, **_KIND)
        both = raw.Pack([empty, empty])
        pushed = raw.TensorListPushBackBatch(both, np.array([[1.0, 2.0], [3.0, 4.0]]), **_KIND)
        second = _stack(raw.Unpack.outputs(pushed, num=2)[1])
    (value,) = run([second], (), ())
    assert value.tolist() == [[3, 4]]


def test_elements_of_different_shapes_each_get_a_cotangent() -> None:
    graph = Graph()
    with graph.as_default():
        xs = [raw.Placeholder(dtype=np.float64, shape=(size,)) for size in (2, 3)]
        handle = raw.EmptyTensorList(_ANY, _ANY, **_KIND)
        for x in xs:
            handle = raw.TensorListPushBack(handle, x, **_KIND)
        ys = [raw.TensorListGetItem(handle, np.int32(k), _indices(2 + k), **_KIND) for k in range(2)]
        dxs = gradients([raw.Square(y) for y in ys], xs)
    values = [np.arange(2.0), np.arange(3.0)]
    for dx, value in zip(run(dxs, xs, values), values, strict=True):  # type: ignore[arg-type]
        np.testing.assert_array_equal(dx, 2 * value)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda x: raw.TensorListGetItem(_of_rows(x), np.int32(7), _indices(2), **_KIND), "no element 7"),
        (lambda x: raw.TensorListScatter(x, _indices(0, 1), _ANY, **_KIND), "3 rows can't be put at 2 places"),
        (lambda x: raw.TensorListStack(_of_rows(x), _indices(2), num_elements=5, **_KIND), "can't be stacked to 5"),
        (lambda x: raw.TensorListSplit(x, _ANY, np.array([1, 1]), **_KIND), "can't be split into pieces of 2"),
    ],
)
def test_what_does_not_fit_is_refused(build: Callable[[Tensor], Tensor], message: str) -> None:
    graph = Graph()
    with graph.as_default():
        x = graph.constant(np.ones((3, 2)))
        y = build(x)
        fetch = y if y.dtype.kind != "v" else raw.TensorListLength(y)
    with pytest.raises(GradserveError, match=message):
        run([fetch], (), ())
