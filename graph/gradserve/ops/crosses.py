"""Feature crosses: every combination of one feature from each column of a row, joined as text or hashed.

Columns are sparse (indices [n, 2], values [n], shape [2]), dense [rows, features] or ragged (values, row splits).
Hashes are TensorFlow's, bit for bit: FarmHash fingerprints or keyed SipHash of the features, mixed pair by pair.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import dtypes
from gradserve.graph.dtypes import DType
from gradserve.graph.op import NOT_DIFFERENTIABLE, Example, call, define
from gradserve.ops.hashing import fingerprint, sip_hash
from gradserve.ops.strings import texts

Column = list[list[Any]]
"""The features of each row."""
Feature = Callable[[Any], int]

_ALL = (1 << 64) - 1
_MIX = 0xC6A4A7935BD1E995
_LARGEST = 2**63 - 1
_BETWEEN = b"_X_"


def _shifted(value: int) -> int:
    return value ^ value >> 47


def mixed(first: int, second: int) -> int:
    """Two 64-bit fingerprints as one, as TensorFlow's FingerprintCat64 does."""
    value = first ^ _MIX ^ _shifted(second * _MIX & _ALL) * _MIX & _ALL
    return _shifted(_shifted(value * _MIX & _ALL) * _MIX & _ALL)


# Columns


def _sparse_column(indices: Any, values: Any, shape: Any) -> Column:
    if np.shape(indices) != (len(values), 2) or np.shape(shape) != (2,):
        raise InvalidArgument(
            f"A sparse column has indices [n, 2], values [n] and a shape [2], not {np.shape(indices)},"
            f" {np.shape(values)} and {np.shape(shape)}."
        )
    column: Column = [[] for _ in range(int(shape[0]))]
    rows = indices[:, 0].tolist()
    if rows != sorted(rows) or any(not 0 <= row < len(column) for row in rows):
        raise InvalidArgument(f"The rows of a sparse column must rise from 0 to {len(column) - 1}: reorder it.")
    for row, value in zip(rows, values.tolist(), strict=True):
        column[row].append(value)
    return column


def _dense_column(values: Any) -> Column:
    if np.ndim(values) != 2:
        raise InvalidArgument(f"A dense column is a matrix, but its shape is {np.shape(values)}.")
    return values.tolist()


def _ragged_column(values: Any, splits: Any) -> Column:
    ends = splits.tolist()
    if not ends or ends[0] != 0 or ends != sorted(ends) or ends[-1] != len(values):
        raise InvalidArgument(f"Row splits must rise from 0 to {len(values)}, but are {ends[:8]}.")
    flat = values.tolist()
    return [flat[start:end] for start, end in itertools.pairwise(ends)]


def _rows(columns: Sequence[Column]) -> list[list[tuple[Any, ...]]]:
    """The combinations of each row; the last column runs fastest."""
    counts = {len(column) for column in columns}
    if len(counts) > 1:
        raise InvalidArgument(f"The columns of a cross must have equally many rows, not {sorted(counts)}.")
    return [list(itertools.product(*(column[row] for column in columns))) for row in range(max(counts, default=0))]


# What stands for a combination


def _joined(features: Sequence[Any], between: bytes) -> bytes:
    return between.join(feature if isinstance(feature, bytes) else str(feature).encode() for feature in features)


def _bucket(value: int, count: int) -> int:
    return value % (count if count > 0 else _LARGEST)


def _plain(feature: Any) -> int:
    return fingerprint(feature) if isinstance(feature, bytes) else feature & _ALL


def _low_bytes(feature: int) -> bytes:
    """What TensorFlow's newer hashed cross reads of an integer: four bytes of the eight."""
    return (feature & 0xFFFFFFFF).to_bytes(4, "little")


def _hashed(features: Sequence[Any], functions: Sequence[Feature], start: int | None, count: int) -> int:
    numbers = [function(feature) for function, feature in zip(functions, features, strict=True)]
    value, rest = (numbers[0], numbers[1:]) if start is None else (start & _ALL, numbers)
    for number in rest:
        value = mixed(value, number)
    return _bucket(value, count)


def _sparse(rows: list[list[tuple[Any, ...]]], value: Callable[[Sequence[Any]], Any], kind: DType) -> tuple[Any, ...]:
    at = [(row, place) for row, found in enumerate(rows) for place in range(len(found))]
    values = [value(features) for found in rows for features in found]
    longest = max((len(found) for found in rows), default=0)
    table = np.array(at, np.int64).reshape(-1, 2)
    return table, _array(values, kind), np.array([len(rows), longest], np.int64)


def _array(values: list[Any], kind: DType) -> Any:
    return texts(*values) if kind.kind == "s" else np.array(values, kind.numpy)


# The ops


def _columns(indices: list[Any], values: list[Any], shapes: list[Any], dense: list[Any]) -> list[Column]:
    if not indices and not dense:
        raise InvalidArgument("A cross needs a column.")
    return [*map(_sparse_column, indices, values, shapes), *map(_dense_column, dense)]


def _cross(
    xp: Any, indices: list[Any], values: list[Any], shapes: list[Any], dense: list[Any], *, hashed_output: bool,
    num_buckets: int, hash_key: int, out_type: DType,
) -> tuple[Any, ...]:  # fmt: skip
    columns = _columns(indices, values, shapes, dense)
    return _sparse(_rows(columns), _value(len(columns), hashed_output, num_buckets, hash_key), out_type)


def _value(columns: int, hashed: bool, buckets: int, key: int) -> Callable[[Sequence[Any]], Any]:
    if not hashed:
        return lambda features: _joined(features, _BETWEEN)
    return lambda features: _hashed(features, [_plain] * columns, key, buckets)


def _cross_joined(
    xp: Any, indices: list[Any], values: list[Any], shapes: list[Any], dense: list[Any], separator: Any
) -> tuple[Any, ...]:
    between = np.asarray(separator, object).item()
    rows = _rows(_columns(indices, values, shapes, dense))
    return _sparse(rows, lambda features: _joined(features, between), dtypes.string)


def _cross_hashed(
    xp: Any, indices: list[Any], values: list[Any], shapes: list[Any], dense: list[Any], buckets: Any, strong: Any,
    salt: Any,
) -> tuple[Any, ...]:  # fmt: skip
    first, second = (int(word) for word in np.ravel(salt))
    key = first & _ALL, second & _ALL

    def strong_hash(feature: Any) -> int:
        return sip_hash(feature if isinstance(feature, bytes) else _low_bytes(feature), key)

    def sparse_hash(feature: Any) -> int:
        return fingerprint(feature if isinstance(feature, bytes) else _low_bytes(feature))

    functions = [strong_hash if strong else sparse_hash] * len(indices) + [strong_hash if strong else _plain] * len(
        dense
    )
    rows = _rows(_columns(indices, values, shapes, dense))
    return _sparse(rows, lambda features: _hashed(features, functions, None, int(buckets)), dtypes.int64)


def _cross_ragged(
    xp: Any, ragged: list[Any], splits: list[Any], indices: list[Any], values: list[Any], shapes: list[Any],
    dense: list[Any], *, input_order: str, hashed_output: bool, num_buckets: int, hash_key: int,
    out_values_type: DType, out_row_splits_type: DType,
) -> tuple[Any, Any]:  # fmt: skip
    """`input_order` says which kind of column comes next: R, S or D."""
    kinds = {
        "R": map(_ragged_column, ragged, splits),
        "S": map(_sparse_column, indices, values, shapes),
        "D": map(_dense_column, dense),
    }
    if sorted(input_order) != sorted("R" * len(ragged) + "S" * len(indices) + "D" * len(dense)) or not input_order:
        raise InvalidArgument(
            f"input_order {input_order!r} doesn't name {len(ragged)} ragged (R), {len(indices)} sparse (S) and"
            f" {len(dense)} dense (D) columns."
        )
    columns = [next(kinds[letter]) for letter in input_order]
    rows = _rows(columns)
    value = _value(len(columns), hashed_output, num_buckets, hash_key)
    found = _array([value(features) for row in rows for features in row], out_values_type)
    return found, np.cumsum([0, *map(len, rows)]).astype(out_row_splits_type.numpy)


def _draw_columns(draw: Any) -> tuple[Any, ...]:
    at = draw.coordinates(2, 3)
    words = np.array([b"w%d" % k for k in range(len(at))] or [b""], object)[: len(at)]
    dense = draw.integers(0, 9, 2, draw.size(), dtype=np.int64)
    return [at], [words], [np.array([2, 3])], [dense]


def _examples(draw: Any) -> list[Example]:
    common: dict[str, Any] = {"num_buckets": 10, "hash_key": 7, "internal_type": "int64"}
    return [
        call(*_draw_columns(draw), hashed_output=True, out_type="int64", **common),
        call(*_draw_columns(draw), hashed_output=False, out_type="string", **common),
    ]


def _ragged_examples(draw: Any) -> list[Example]:
    table, words, shape, dense = _draw_columns(draw)
    ragged = [draw.integers(0, 5, 3, dtype=np.int64)], [np.array([0, 1, 3])]
    return [
        call(*ragged, table, words, shape, dense, input_order=order, hashed_output=hashed, num_buckets=0, hash_key=3,
             out_values_type="int64" if hashed else "string", out_row_splits_type="int64")
        for order in ("RSD", "DSR") for hashed in (False, True)
    ]  # fmt: skip


_INPUTS = "indices: N * int64, values: sparse_types, shapes: N * int64, dense_inputs: dense_types"
_TYPES = "sparse_types: list(int64|string), dense_types: list(int64|string)"
_SHAPES = [(None, 2), (None,), (2,)]
define(
    f"SparseCross({_INPUTS}; N: int, hashed_output: bool, num_buckets: int, hash_key: int, {_TYPES},"
    " out_type: int64|string, internal_type: int64|string)"
    " -> (output_indices: int64, output_values: out_type, output_shape: int64)",
    shape=lambda *inputs: _SHAPES, gradient=NOT_DIFFERENTIABLE, kernel=_cross, dynamic=True, examples=_examples,
)  # fmt: skip
define(
    f"SparseCrossV2({_INPUTS}, sep: string; N: int, {_TYPES})"
    " -> (output_indices: int64, output_values: string, output_shape: int64)",
    shape=lambda *inputs: _SHAPES, gradient=NOT_DIFFERENTIABLE, kernel=_cross_joined, dynamic=True,
    examples=lambda draw: [call(*_draw_columns(draw), np.array(b"-", object))],
)  # fmt: skip
define(
    f"SparseCrossHashed({_INPUTS}, num_buckets: int64, strong_hash: bool, salt: int64; N: int, {_TYPES})"
    " -> (output_indices: int64, output_values: int64, output_shape: int64)",
    shape=lambda *inputs: _SHAPES, gradient=NOT_DIFFERENTIABLE, kernel=_cross_hashed,
    host=("num_buckets", "strong_hash", "salt"), dynamic=True,
    examples=lambda draw: [
        call(*_draw_columns(draw), np.int64(9), np.array(strong), np.array([1, 2])) for strong in (False, True)
    ],
)  # fmt: skip
define(
    "RaggedCross(ragged_values: ragged_values_types, ragged_row_splits: ragged_splits_types,"
    " sparse_indices: Nsparse * int64, sparse_values: sparse_values_types, sparse_shape: Nsparse * int64,"
    " dense_inputs: dense_types; Nsparse: int, input_order: string, hashed_output: bool, num_buckets: int,"
    " hash_key: int, ragged_values_types: list(int64|string), ragged_splits_types: list(index),"
    " sparse_values_types: list(int64|string), dense_types: list(int64|string), out_values_type: int64|string,"
    " out_row_splits_type: index) -> (output_values: out_values_type, output_row_splits: out_row_splits_type)",
    shape=lambda *inputs: [(None,), (None,)], gradient=NOT_DIFFERENTIABLE, kernel=_cross_ragged, dynamic=True,
    examples=_ragged_examples,
)  # fmt: skip
