"""Ragged tensors: as variants and back, ranges, padding, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from tests.ops.differences import check, run

OUTER = np.array([0, 2, 2, 3])
INNER = np.array([0, 1, 3, 6])
VALUES = np.arange(1.0, 7.0)


def _run(op: str, *inputs: Any, **attrs: Any) -> list[Any]:
    with Graph().as_default():
        return run(getattr(raw, op).outputs(*inputs, **attrs), [], [])


@pytest.mark.parametrize("known_shapes", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("nested", [[OUTER, INNER], [INNER], []])
def test_a_ragged_tensor_becomes_a_variant_and_comes_back(nested: Any, batched: bool, known_shapes: bool) -> None:
    levels = len(nested)
    rank = max(levels, 1) if batched else levels

    def back(x: Tensor) -> tuple[Tensor, ...]:
        encoded = raw.RaggedTensorToVariant(nested, x, batched_input=batched)
        return raw.RaggedTensorFromVariant.outputs(
            encoded, input_ragged_rank=-1 if levels or not batched else 0, output_ragged_rank=rank,
            Tvalues="float64", Tsplits="int64",
        )  # fmt: skip

    values = VALUES.reshape(6, 1) if not nested else VALUES
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=values.shape if known_shapes else None)
        *splits, y = back(x * x)
        check([y], [x], [values], order=2)
        *found, result = run([*splits, y], [x], [values])
    assert result.reshape(-1).tolist() == (VALUES**2).tolist()
    assert [level.tolist() for level in found[-levels:] if levels] == [level.tolist() for level in nested]


def test_a_slice_of_a_batch_gets_the_gradient_of_its_rows() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(6,))
        encoded = raw.RaggedTensorToVariant([OUTER, INNER], x, batched_input=True)
        _, whole = raw.RaggedTensorFromVariant.outputs(
            encoded, input_ragged_rank=1, output_ragged_rank=2, Tvalues="float64"
        )[1:]
        again = raw.RaggedTensorFromVariant.outputs(
            encoded, input_ragged_rank=1, output_ragged_rank=2, Tvalues="float64"
        )[2]
        check([whole * again], [x], [VALUES], order=2)


def test_a_row_without_splits_is_an_array() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(6,))
        rows = raw.RaggedTensorToVariant([INNER], x, batched_input=True)
        none, variants = np.array([], np.int32), {"element_dtype": "variant"}
        row = raw.TensorListGetItem(raw.TensorListFromTensor(rows, none, **variants), np.int32(1), none, **variants)
        values = raw.RaggedTensorFromVariant.outputs(
            row, input_ragged_rank=-1, output_ragged_rank=0, Tvalues="float64"
        )[0]
        check([raw.Square(values)], [x], [VALUES], order=2)


def test_ranges_of_one_step_each() -> None:
    splits, values = _run("RaggedRange", np.array([0, 5, 3]), np.array([3, 2, 3]), np.array([1, -1, 2]))
    assert splits.tolist() == [0, 3, 6, 6]
    assert values.tolist() == [0, 1, 2, 5, 4, 3]


def test_a_step_of_zero_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="step 0"):
        _run("RaggedRange", np.int32(0), np.int32(3), np.int32(0))


def test_rows_are_padded_and_cut_to_the_shape() -> None:
    found = _run("RaggedTensorToTensor", np.array([2, 2]), VALUES, 0.0, [INNER], row_partition_types=["ROW_SPLITS"])
    assert found[0].tolist() == [[1.0, 0.0], [2.0, 3.0]]


def test_trailing_rows_without_a_value_are_kept() -> None:
    kinds = ["FIRST_DIM_SIZE", "VALUE_ROWIDS", "VALUE_ROWIDS"]
    partitions = [np.int64(2), np.array([0, 0, 1]), np.array([0, 1])]
    found = _run("RaggedTensorToTensor", np.int64(-1), VALUES[:2], 0.0, partitions, row_partition_types=kinds)
    assert found[0].tolist() == [[[1.0], [2.0]], [[0.0], [0.0]]]


@pytest.mark.parametrize("splits", [[0, 2, 1], [1, 6], [0, 5], []])
def test_splits_that_do_not_divide_the_values_are_refused(splits: Any) -> None:
    with pytest.raises(InvalidArgument, match="Row splits must rise"):
        _run("RaggedTensorToSparse", [np.array(splits, np.int64)], VALUES)
