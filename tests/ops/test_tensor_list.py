"""Lists of tensors: what they hold, elements of different shapes, and what is refused."""

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
from tests.ops.differences import run

_ANY = np.int32(-1)
_KIND = {"element_dtype": "float64"}


def _indices(*values: int) -> Any:
    return np.array(values, np.int32)


def _of_rows(x: Tensor) -> Tensor:
    return raw.TensorListFromTensor(x, _ANY, **_KIND)


def _stack(handle: Tensor) -> Tensor:
    return raw.TensorListStack(handle, _indices(2), **_KIND)


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
