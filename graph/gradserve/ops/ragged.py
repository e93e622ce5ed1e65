"""Ragged tensors: values with nested row splits. Row i of a level is what stands between splits[i] and splits[i+1].

Values keep their order or are picked by position, so a gradient sends positions through the same op.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import dtypes, static
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import IndexedSlices, Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, Example, call, define, raw, within
from gradserve.graph.shapes import Shape, broadcast
from gradserve.graph.symbolic import part, shape_of
from gradserve.graph.unbroadcast import unbroadcast
from gradserve.graph.variants import Variant, each
from gradserve.ops.coordinates import flat

Array = np.ndarray[Any, Any]
FIRST = np.int32(0)


def checked(splits: Any, count: int) -> Array:
    """Row splits of `count` rows or values. Raises InvalidArgument where they don't rise from 0 to it."""
    if splits.ndim != 1 or not len(splits) or splits[0] != 0 or (np.diff(splits) < 0).any() or splits[-1] != count:
        raise InvalidArgument(f"Row splits must rise from 0 to {count}, but are {splits[:8].tolist()}.")
    return splits


def _check_nested(nested: Sequence[Any], values: Any) -> None:
    counts = [*(len(splits) - 1 for splits in nested[1:]), len(values)] if nested else []
    for splits, count in zip(nested, counts, strict=True):
        checked(splits, count)


def _nested_draw(draw: Any, levels: int) -> tuple[list[Array], int]:
    """Row splits of so many levels, and the number of values."""
    nested: list[Array] = []
    rows = draw.size()
    for _ in range(levels):
        nested.append(np.concatenate([[0], np.cumsum(draw.integers(0, 3, rows))]).astype(np.int64))
        rows = int(nested[-1][-1])
    return nested, rows


# To sparse


def _owners(splits: Any) -> Array:
    """The row of each value, and its place in it."""
    lengths = np.diff(splits)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    return np.stack([rows, np.arange(int(splits[-1])) - splits[rows] if len(rows) else rows], 1).astype(np.int64)


def _to_sparse(xp: Any, nested: list[Any], values: Any) -> tuple[Any, ...]:
    _check_nested(nested, values)
    table, sizes = np.arange(len(nested[0]) - 1)[:, None], [len(nested[0]) - 1]
    for splits in nested:
        owners = _owners(splits)
        table = np.concatenate([table[owners[:, 0]], owners[:, 1:]], 1)
        sizes.append(int(np.diff(splits).max(initial=0)))
    inner = np.argwhere(np.ones(values.shape[1:]))
    table = np.concatenate([np.repeat(table, len(inner), 0), np.tile(inner, (len(table), 1))], 1)
    return table.astype(np.int64), values.reshape(-1), np.array([*sizes, *values.shape[1:]], np.int64)


def _to_sparse_shapes(nested: list[Tensor], values: Tensor) -> list[Shape]:
    rank = None if values.shape is None else len(nested) + len(values.shape)
    return [(None, rank), (None,), (rank,)]


def _to_sparse_gradient(
    _: Any, dy: Tensor, __: Any, at: Tensor, y: Tensor, size: Tensor, nested: list[Tensor], values: Tensor
) -> tuple[Any, ...]:
    return [None] * len(nested), raw.Reshape(dy, shape_of(values))


def _to_sparse_examples(draw: Any) -> list[Any]:
    examples: list[Any] = []
    for levels in (1, 2):
        nested, count = _nested_draw(draw, levels)
        examples.append(call(nested, draw.normal(count)))
        examples.append(call(nested, draw.normal(count, draw.size())))
    return examples


define(
    "RaggedTensorToSparse(rt_nested_splits: RAGGED_RANK * Tsplits, rt_dense_values: T; RAGGED_RANK: int, T: type,"
    " Tsplits: index = int64) -> (sparse_indices: int64, sparse_values: T, sparse_dense_shape: int64)",
    shape=_to_sparse_shapes,
    gradient=_to_sparse_gradient,
    kernel=_to_sparse,
    dynamic=True,
    examples=_to_sparse_examples,
)

# To dense


def _places(kind: str, partition: Any, rows: int) -> tuple[Array, int]:
    """Owner and place of each entry that a partition divides among the rows, and the longest row."""
    if kind == "ROW_SPLITS":
        splits = checked(partition, int(partition[-1]) if len(partition) else 0)
        if len(splits) - 1 != rows:
            raise InvalidArgument(f"{len(splits) - 1} row splits follow on {rows} rows.")
        return _owners(splits), int(np.diff(splits).max(initial=0))
    if kind != "VALUE_ROWIDS":
        raise InvalidArgument(
            f"A row partition of the type {kind} can't be used: give ROW_SPLITS or VALUE_ROWIDS after FIRST_DIM_SIZE."
        )
    if (np.diff(partition) < 0).any():
        raise InvalidArgument(f"Row ids must rise, but are {partition[:8].tolist()}.")
    flat(np, partition[:, None], (rows,))
    places = np.arange(len(partition)) - np.searchsorted(partition, np.arange(rows))[partition]
    return np.stack([partition, places], 1).astype(np.int64), int(places.max(initial=-1)) + 1


def _positions(partitions: list[Any], kinds: list[str], count: int) -> tuple[Array, list[int]]:
    """Coordinates of each of `count` values in the ragged axes, and the sizes that these need."""
    if kinds[0] == "FIRST_DIM_SIZE":
        rows, partitions, kinds = int(partitions[0]), partitions[1:], kinds[1:]
    elif kinds[0] == "ROW_SPLITS":
        rows = len(partitions[0]) - 1
    else:
        raise InvalidArgument(f"The first row partition is {kinds[0]}: it must be FIRST_DIM_SIZE or ROW_SPLITS.")
    table, sizes = np.arange(rows)[:, None], [rows]
    for kind, partition in zip(kinds, partitions, strict=True):
        owners, longest = _places(kind, partition, len(table))
        table = np.concatenate([table[owners[:, 0]], owners[:, 1:]], 1)
        sizes.append(longest)
    if len(table) != count:
        raise InvalidArgument(f"The row partitions divide {len(table)} values, but there are {count}.")
    return table, sizes


def _to_dense(
    xp: Any, shape: Any, values: Any, default: Any, partitions: list[Any], *, row_partition_types: list[str]
) -> Any:
    if not row_partition_types or len(row_partition_types) != len(partitions):
        raise InvalidArgument(f"{len(partitions)} row partitions have {len(row_partition_types)} types.")
    table, sizes = _positions(partitions, row_partition_types, len(values))
    wanted = [-1] * (len(sizes) + values.ndim - 1) if np.ndim(shape) == 0 else [int(size) for size in shape]
    known = [*sizes, *values.shape[1:]]
    if len(wanted) != len(known):
        raise InvalidArgument(f"A ragged tensor of rank {len(known)} can't take the shape {wanted}.")
    whole = [size if size >= 0 else own for size, own in zip(wanted, known, strict=True)]
    if whole[len(sizes) :] != list(values.shape[1:]):
        raise InvalidArgument(f"Values of shape {values.shape} don't fit the shape {wanted}.")
    dense = np.empty(whole, values.dtype)
    dense[...] = default
    inside = (table < np.array(whole[: len(sizes)])).all(1)
    dense[tuple(table[inside].T)] = values[inside]
    return dense


def _to_dense_shape(
    shape: Tensor, values: Tensor, default: Tensor, partitions: list[Tensor], *, row_partition_types: list[str]
) -> Shape:
    if values.shape is None:
        return None
    ragged = len(partitions) + (row_partition_types[:1] != ["FIRST_DIM_SIZE"])
    whole: Shape = (*(None for _ in range(ragged)), *values.shape[1:])
    wanted = static.shape_value(shape) if shape.shape != () else None
    if wanted is None or len(wanted) != len(whole):
        return whole
    return tuple(own if size is None else size for size, own in zip(wanted, whole, strict=True))


def _to_dense_gradient(
    dy: Tensor, y: Tensor, shape: Tensor, values: Tensor, default: Tensor, partitions: list[Tensor], *,
    row_partition_types: list[str],
) -> tuple[Any, ...]:  # fmt: skip
    """The same op on the values' numbers, -1 for the default, says which cell came from where."""
    ragged = len(partitions) + (row_partition_types[:1] != ["FIRST_DIM_SIZE"])
    cells = part(raw.Shape(dy), 0, ragged)  # what the given shape has made of the ragged axes
    places = raw.RaggedTensorToTensor(
        cells, _numbers(values), np.int32(-1), partitions, row_partition_types=row_partition_types
    )
    mine = raw.Where(raw.NotEqual(places, np.int32(-1)))
    dvalues = IndexedSlices(raw.GatherNd(dy, mine), raw.GatherNd(places, mine), _beside(values))
    rest = raw.GatherNd(dy, raw.Where(raw.Equal(places, np.int32(-1))))
    return None, dvalues, _default_gradient(rest, default), [None] * len(partitions)


def _default_gradient(rest: Tensor, default: Tensor) -> Tensor:
    """The cells that hold the default, [n, ...], summed to its shape; its own leading axes of size 1 count as none."""
    if default.shape == ():
        return raw.Sum(raw.Reshape(rest, np.array([-1], np.int32)), np.array([0], np.int32))
    return unbroadcast(raw.Sum(rest, np.array([0], np.int32)), default)


def _numbers(values: Tensor) -> Tensor:
    """0 to n-1 for n values."""
    count = shape_of(values)[0] if values.shape is None or values.shape[0] is None else np.int32(values.shape[0])
    return raw.Range(FIRST, count, np.int32(1))


def _beside(values: Tensor) -> Tensor:
    """The shape of the values as a tensor."""
    known = shape_of(values)
    return known if isinstance(known, Tensor) else values.graph.constant(known, dtypes.int32, name="Shape")


def _to_dense_examples(draw: Any) -> list[Any]:
    (splits, inner), count = _nested_draw(draw, 2)
    size, ids = np.int64(len(splits) - 1), _owners(splits)[:, 0]
    rows = len(ids)
    whole = np.int64(-1)
    return [
        call(
            whole, draw.normal(rows), draw.normal(), [size, ids], row_partition_types=["FIRST_DIM_SIZE", "VALUE_ROWIDS"]
        ),
        call(whole, draw.normal(rows, 2), draw.normal(2), [splits], row_partition_types=["ROW_SPLITS"]),
        call(
            np.array([2, -1, 2, 2]),
            draw.normal(count, 2),
            draw.normal(1),
            [splits, inner],
            row_partition_types=["ROW_SPLITS"] * 2,
        ),
        call(np.array([3, 2]), draw.complex(rows), draw.complex(), [splits], row_partition_types=["ROW_SPLITS"]),
    ]


define(
    "RaggedTensorToTensor(shape: Tshape, values: T, default_value: T,"
    " row_partition_tensors: num_row_partition_tensors * Tindex; T: type, Tindex: index, Tshape: index,"
    " num_row_partition_tensors: int, row_partition_types: list(string)) -> (result: T)",
    shape=_to_dense_shape,
    gradient=_to_dense_gradient,
    kernel=_to_dense,
    dynamic=True,
    examples=_to_dense_examples,
)

# Gather


def _ranges(starts: Any, limits: Any) -> tuple[Array, Array]:
    """The numbers of all ranges, one after another, and the splits between them."""
    lengths = limits - starts
    splits = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    numbers = np.arange(splits[-1]) - np.repeat(splits[:-1] - starts, lengths)
    return numbers.astype(np.int64), splits


def _gather(xp: Any, nested: list[Any], values: Any, indices: Any) -> tuple[Any, ...]:
    _check_nested(nested, values)
    chosen = indices.reshape(-1).astype(np.int64)
    flat(np, chosen[:, None], (len(nested[0]) - 1,))
    kept: list[Any] = []
    for size in reversed(indices.shape[1:]):  # the outer axes of indices are levels with rows of one length
        rows = int(np.prod(indices.shape[: indices.ndim - 1 - len(kept)], dtype=np.int64))
        kept.insert(0, np.arange(rows + 1, dtype=np.int64) * size)
    for splits in nested:
        chosen, level = _ranges(splits[chosen], splits[chosen + 1])
        kept.append(level)
    return (*(level.astype(nested[0].dtype) for level in kept), values[chosen])


def _gather_gradient(*arguments: Any, node: Any) -> tuple[Any, ...]:
    """Rows of the cotangent, each at the number of the value that it belongs to."""
    dy, (nested, values, indices) = arguments[1], arguments[-3:]
    rank = node.attrs["OUTPUT_RAGGED_RANK"]
    places = raw.RaggedGather.outputs(nested, _numbers(values), indices, OUTPUT_RAGGED_RANK=rank)[-1]
    return [None] * len(nested), IndexedSlices(dy, places, _beside(values)), None


def _gather_shapes(
    nested: list[Tensor], values: Tensor, indices: Tensor, *, OUTPUT_RAGGED_RANK: int
) -> list[Shape]:  # fmt: skip
    tail = None if values.shape is None else (None, *values.shape[1:])
    return [*[(None,)] * OUTPUT_RAGGED_RANK, tail]


def _gather_examples(draw: Any) -> list[Any]:
    nested, count = _nested_draw(draw, 2)
    rows = len(nested[0]) - 1
    shape = (draw.size() if rows else 0,)
    one = (nested[-1:], draw.normal(count, 2), draw.integers(0, r := len(nested[1]) - 1, draw.size() if r else 0))
    return [
        call(nested, draw.normal(count), draw.integers(0, rows, *shape), OUTPUT_RAGGED_RANK=2),
        call(nested, draw.normal(count), draw.integers(0, rows, *shape, 2), OUTPUT_RAGGED_RANK=3),
        call(*one, OUTPUT_RAGGED_RANK=1),
    ]


define(
    "RaggedGather(params_nested_splits: PARAMS_RAGGED_RANK * Tsplits, params_dense_values: Tvalues,"
    " indices: Tindices; Tvalues: type, Tindices: index, Tsplits: index = int64, PARAMS_RAGGED_RANK: int,"
    " OUTPUT_RAGGED_RANK: int) -> (output_nested_splits: OUTPUT_RAGGED_RANK * Tsplits, output_dense_values: Tvalues)",
    shape=_gather_shapes,
    gradient=_gather_gradient,
    kernel=_gather,
    dynamic=True,
    examples=_gather_examples,
)

# Range


def _range(xp: Any, starts: Any, limits: Any, deltas: Any, *, Tsplits: DType) -> tuple[Any, Any]:
    """One range a row; a scalar stands for every row."""
    first, last, step = np.broadcast_arrays(starts, limits, deltas)
    first, last, step = (np.atleast_1d(x) for x in (first, last, step))
    if (step == 0).any():
        raise InvalidArgument("A range can't have the step 0.")
    wide = [x.astype(np.float64 if x.dtype.kind in "fV" else x.dtype) for x in (first, last, step)]
    if first.dtype.kind in "iu":
        lengths = np.maximum(-(-(wide[1] - wide[0]) // wide[2]), 0)
    else:
        lengths = np.maximum(np.ceil(np.abs((wide[1] - wide[0]) / wide[2])), 0)
        lengths = np.where((wide[1] - wide[0]) * wide[2] > 0, lengths, 0)
    lengths = lengths.astype(np.int64)
    splits = np.concatenate([[0], np.cumsum(lengths)])
    place = (np.arange(splits[-1]) - np.repeat(splits[:-1], lengths)).astype(first.dtype)
    return splits.astype(Tsplits.numpy), np.repeat(first, lengths) + place * np.repeat(step, lengths)


define(
    "RaggedRange(starts: T, limits: T, deltas: T; T: bfloat16|float32|float64|int32|int64 = int32,"
    " Tsplits: index = int64) -> (rt_nested_splits: Tsplits, rt_dense_values: T)",
    shape=lambda starts, limits, deltas: [
        None if (rows := broadcast(broadcast(starts.shape, limits.shape), deltas.shape)) is None
        else ((rows[0] + 1 if rows and rows[0] is not None else None) if rows else 2,),
        (None,),
    ],
    gradient=NOT_DIFFERENTIABLE,
    kernel=_range,
    dynamic=True,
    examples=lambda draw: [
        call(draw.integers(0, 4, n := draw.size()), draw.integers(0, 9, n), draw.integers(1, 3, n)),
        call(np.float64(0.5), draw.positive(draw.size()) * 4, np.float64(0.4)),
    ],
)  # fmt: skip

# As values of dtype variant


@dataclass(frozen=True, slots=True, eq=False)
class RaggedValue(Variant):
    """A ragged tensor as one value.

    Attributes:
        nested: row splits from the outermost level on; none for a plain tensor.
        values: what the innermost rows are made of.
    """

    nested: tuple[Array, ...]
    values: Array

    def row(self, index: int) -> RaggedValue:
        """One row of the outermost level."""
        if not self.nested:
            return RaggedValue((), self.values[index])
        start, stop = int(self.nested[0][index]), int(self.nested[0][index + 1])
        inner: list[Array] = []
        for splits in self.nested[1:]:
            inner.append(splits[start : stop + 1] - splits[start])
            start, stop = int(splits[start]), int(splits[stop])
        return RaggedValue(tuple(inner), self.values[start:stop])

    def zeros_like(self) -> RaggedValue:
        return RaggedValue(self.nested, np.zeros_like(self.values))

    def plus(self, other: RaggedValue) -> RaggedValue:
        if self.values.shape != other.values.shape:
            raise InvalidArgument(
                f"Ragged values of shapes {self.values.shape} and {other.values.shape} can't be added."
            )
        longer = max(self.nested, other.nested, key=len)  # a cotangent may come without the splits
        return RaggedValue(longer, self.values + other.values)


def _to_variant(xp: Any, nested: list[Any], values: Any, *, batched_input: bool) -> Any:
    _check_nested(nested, values)
    whole = RaggedValue(tuple(nested), values)
    if not batched_input:
        return whole
    rows = len(nested[0]) - 1 if nested else len(values)
    return each(lambda index: whole.row(int(index)), np.arange(rows).astype(object))


def _to_variant_gradient(
    dy: Tensor, y: Tensor, nested: list[Tensor], values: Tensor, *, batched_input: bool
) -> tuple[Any, ...]:
    """A batch has one variant a row; without one there is nothing to put together."""
    splits: Any = np.int64(0)
    if batched_input and nested:
        splits = nested[0]
        for level in nested[1:]:
            splits = raw.GatherV2(level, splits, FIRST)
    dvalues = raw.RaggedTensorToVariantGradient(dy, splits, shape_of(values), Tvalues=values.dtype)
    return [None] * len(nested), dvalues


def _to_variant_shape(nested: list[Tensor], values: Tensor, *, batched_input: bool) -> Shape:
    if not batched_input:
        return ()
    if nested:
        rows = nested[0].shape[0] if nested[0].shape else None
        return (None if rows is None else rows - 1,)
    return (values.shape[0] if values.shape else None,)


def _variant_examples(draw: Any) -> list[Example]:
    """Into variants, one or one a row, and back; of a batch a part may come back, too."""
    nested, count = _nested_draw(draw, levels := draw.size(0, 2))
    batched = bool(draw.size(0, 1))
    rank = max(levels, 1) if batched else levels

    def there_and_back(x: Tensor) -> list[Tensor]:
        encoded = raw.RaggedTensorToVariant(nested, raw.Sin(x), batched_input=batched)
        inner = levels - 1 if batched and levels else 0 if batched else levels
        attrs: dict[str, Any] = {"input_ragged_rank": inner, "output_ragged_rank": rank, "Tvalues": x.dtype.base}
        values = raw.RaggedTensorFromVariant.outputs(encoded, Tsplits="int64", **attrs)[-1]
        if not batched:
            return [values]
        pair = raw.RaggedTensorFromVariant.outputs(encoded[:1], Tsplits="int64", **attrs)[-1]
        return [values, pair]

    return [within(there_and_back, draw.normal(count, draw.size(1, 2)), order=3)]


define(
    "RaggedTensorToVariant(rt_nested_splits: RAGGED_RANK * Tsplits, rt_dense_values: Tvalues; RAGGED_RANK: int,"
    " Tvalues: type, Tsplits: index = int64, batched_input: bool) -> (encoded_ragged: variant)",
    shape=_to_variant_shape,
    gradient=_to_variant_gradient,
    kernel=_to_variant,
    dynamic=True,
    examples=_variant_examples,
)


def _pieces(encoded: Any) -> list[RaggedValue]:
    pieces: list[RaggedValue] = []
    for piece in [encoded] if isinstance(encoded, Variant) else encoded.reshape(-1):
        if not isinstance(piece, RaggedValue):
            raise InvalidArgument("A variant that holds no ragged tensor can't be read as one.")
        pieces.append(piece)
    return pieces


def _to_variant_back(xp: Any, encoded: Any, splits: Any, shape: Any, *, Tvalues: DType) -> Any:
    """The cotangent of the values: the pieces one after another, zeros for one that was never written."""
    sizes = tuple(int(size) for size in shape)
    result = np.zeros(sizes, Tvalues.numpy)
    is_one = isinstance(encoded, Variant)
    ends = [0, sizes[0]] if is_one else splits.tolist() if np.ndim(splits) else range(sizes[0] + 1)
    written = [encoded] if is_one else encoded.reshape(-1)
    for entry, (start, stop) in zip(written, itertools.pairwise(ends), strict=True):
        if not isinstance(entry, int):
            (piece,) = _pieces(entry)
            result[start:stop] = piece.values.reshape(stop - start, *sizes[1:])
    return result


def _back_gradient(
    dvalues: Tensor, values: Tensor, encoded: Tensor, splits: Tensor, shape: Tensor
) -> tuple[Any, ...]:  # fmt: skip
    """Cut into the pieces again. Without splits there was one variant, or one for each row of the values."""
    if splits.shape == ():
        batched = encoded.shape != ()
        return raw.RaggedTensorToVariant([], dvalues, Tsplits=splits.dtype, batched_input=batched), None, None
    return raw.RaggedTensorToVariant([splits], dvalues, batched_input=True), None, None


define(
    "RaggedTensorToVariantGradient(encoded_ragged_grad: variant, row_splits: Tsplits, dense_values_shape: int32;"
    " Tvalues: type, Tsplits: index = int64) -> (dense_values_grad: Tvalues)",
    shape=lambda encoded, splits, shape: static.shape_value(shape),
    gradient=_back_gradient,
    kernel=_to_variant_back,
    dynamic=True,
    examples=_variant_examples,
)


def _from_variant(
    xp: Any, encoded: Any, *, input_ragged_rank: int, output_ragged_rank: int, Tvalues: DType, Tsplits: DType
) -> list[Any]:
    """The ragged tensors of the variants, stacked along the variants' own axes."""
    pieces = _pieces(encoded)
    outer = () if isinstance(encoded, Variant) else encoded.shape
    inner = output_ragged_rank - len(outer) if input_ragged_rank == -1 else input_ragged_rank
    if inner < 0 or inner + len(outer) != output_ragged_rank or any(len(piece.nested) != inner for piece in pieces):
        raise InvalidArgument(
            f"Variants of shape {outer} that hold ragged tensors of rank {[len(p.nested) for p in pieces[:4]]} "
            f"make none of rank {output_ragged_rank}."
        )
    kept = [
        np.arange(int(np.prod(outer[:axis], dtype=np.int64)) + 1) * outer[axis] for axis in range(1, len(outer))
    ]  # fmt: skip
    if outer:
        counts = [len(piece.nested[0]) - 1 if inner else len(piece.values) for piece in pieces]
        kept.append(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))
    for level in range(inner):
        offsets = np.cumsum([0, *(int(piece.nested[level][-1]) for piece in pieces)])
        rows = [piece.nested[level][1:] + offset for piece, offset in zip(pieces, offsets, strict=False)]
        kept.append(np.concatenate([[0], *rows]))
    empty = [np.zeros(0, Tvalues.numpy)] if not pieces else []
    values = np.concatenate([*empty, *(piece.values for piece in pieces)]) if outer else pieces[0].values
    return [*(splits.astype(Tsplits.numpy) for splits in kept), values]


def _from_variant_gradient(
    _: Any, dvalues: Tensor, nested: list[Tensor], values: Tensor, encoded: Tensor, *, input_ragged_rank: int
) -> Tensor:
    rank = encoded.rank
    if rank is None:  # not known, and not said either: one axis at most
        rank = min(len(nested), 1) if input_ragged_rank < 0 else len(nested) - input_ragged_rank
    if rank < 2:
        return raw.RaggedTensorToVariant(nested, dvalues, batched_input=rank == 1)
    rows = raw.RaggedTensorToVariant(nested[rank - 1 :], dvalues, batched_input=True)
    return raw.Reshape(rows, shape_of(encoded))


define(
    "RaggedTensorFromVariant(encoded_ragged: variant; input_ragged_rank: int, output_ragged_rank: int,"
    " Tvalues: type, Tsplits: index = int64)"
    " -> (output_nested_splits: output_ragged_rank * Tsplits, output_dense_values: Tvalues)",
    shape=lambda encoded, *, output_ragged_rank: [*[(None,)] * output_ragged_rank, None],
    gradient=_from_variant_gradient,
    kernel=_from_variant,
    dynamic=True,
    examples=_variant_examples,
)
