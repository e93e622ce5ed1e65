"""Ops that move elements: joining, cutting apart, turning round, repeating, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument, InvalidShape
from gradserve.graph import dtypes, shapes, static
from gradserve.graph.checks import refuse_outside
from gradserve.graph.graph import IndexedSlices, Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, Example, Rule, call, define, raw, same_shape
from gradserve.graph.shapes import Dimension, Shape
from gradserve.graph.symbolic import count_up, rank_of, shape_of
from gradserve.ops.slices import can_cut, cut_slices, densify


def _integer(value: Any) -> int:
    return int(np.reshape(value, ()))


def _integers(values: Any) -> list[int]:
    return [int(value) for value in np.ravel(values)]


# Joining and cutting apart


def _packed(values: Sequence[Tensor], *, axis: int) -> Shape:
    common: Shape = None
    for value in values:
        common = shapes.merge(common, value.shape)
    if common is None:
        return None
    place = shapes.normalise_axis(axis, len(common) + 1)
    return (*common[:place], len(values), *common[place:])


def _unpacked(value: Tensor, *, num: int, axis: int) -> list[Shape]:
    if value.shape is None:
        return [None] * num
    place = shapes.normalise_axis(axis, len(value.shape))
    shapes.merge_dimension(value.shape[place], num)
    return [value.shape[:place] + value.shape[place + 1 :]] * num


def _unpack(xp: Any, value: Any, *, num: int, axis: int) -> list[Any]:
    if value.shape[axis] != num:
        raise InvalidShape(f"Axis {axis} has size {value.shape[axis]}, but num is {num}.", axis=axis)
    return [xp.take(value, k, axis=axis) for k in range(num)]


define(
    "Pack(values: N * T; N: int, T: type, axis: int = 0) -> (output: T)",
    shape=_packed,
    gradient=lambda dy, y, values, *, axis: [list(raw.Unpack.outputs(dy, num=len(values), axis=axis))],
    kernel=lambda xp, values, *, axis: xp.stack(values, axis=axis),
    examples=lambda draw: [call([draw.normal(*(s := draw.shape(0, 2))), draw.normal(*s)], axis=draw.pick([0, -1]))],
)
define(
    "Unpack(value: T; num: int, T: type, axis: int = 0) -> (output: num * T)",
    shape=_unpacked,
    gradient=lambda dys, ys, value, *, axis: raw.Pack(dys, axis=axis),
    kernel=_unpack,
    examples=lambda draw: [call(draw.normal(3, draw.size()), num=3), call(draw.normal(2, 3), num=3, axis=-1)],
)


def _joined(values: Sequence[Tensor], axis: Tensor) -> Shape:
    known = [value.shape for value in values if value.shape is not None]
    if not known:
        return None
    rank = len(known[0])
    position = static.scalar(axis)
    if position is None:
        return (None,) * rank
    place = shapes.normalise_axis(position, rank)
    common: Shape = None
    total: Dimension = 0 if len(known) == len(values) else None
    for shape in known:
        common = shapes.merge(common, (*shape[:place], None, *shape[place + 1 :]))
        size = shape[place]
        total = None if total is None or size is None else total + size
    assert common is not None
    return (*common[:place], total, *common[place + 1 :])


def _cut_like(dy: Tensor, values: Sequence[Tensor], axis: Tensor) -> list[Tensor]:
    """dy cut into pieces of the values' sizes along an axis."""
    position = static.scalar(axis)
    sizes = [None if value.shape is None or position is None else value.shape[position] for value in values]
    if len(values) == 1:
        return [dy]
    if None not in sizes:
        return list(raw.SplitV.outputs(dy, np.array(sizes, np.int64), axis, num_split=len(values)))
    extents = raw.ShapeN.outputs(values)
    place = axis if axis.dtype is dtypes.int32 else raw.Cast(axis, DstT="int32")
    offsets = raw.ConcatOffset.outputs(raw.FloorMod(place, raw.Rank(values[0])), list(extents))
    return [raw.Slice(dy, offset, extent) for offset, extent in zip(offsets, extents, strict=True)]


def _cut(dy: Tensor | IndexedSlices, values: Sequence[Tensor], axis: Tensor) -> Any:
    """The cotangent of each value: slices of slices, where the axis is known."""
    if len(values) == 1:
        return [dy]
    if isinstance(dy, Tensor):
        return _cut_like(dy, values, axis)
    return cut_slices(dy, values, axis) if can_cut(values, axis) else _cut_like(densify(dy), values, axis)


def _join_examples(draw: Any) -> list[Example]:
    rest = draw.size()
    rows = [draw.normal(draw.size(), rest) for _ in range(draw.size(1, 3))]
    columns = [draw.normal(rest, draw.size()) for _ in range(2)]
    return [call(rows, np.int32(0)), call(columns, np.int32(-1))]


define(
    "ConcatV2(values: N * T, axis: Tidx; N: int, T: type, Tidx: index = int32) -> (output: T)",
    shape=_joined,
    gradient=lambda dy, y, values, axis: (_cut(dy, values, axis), None),
    takes_slices=True,
    kernel=lambda xp, values, axis: xp.concatenate(values, axis=_integer(axis)),
    host=("axis",),
    examples=_join_examples,
)
define(
    "Concat(concat_dim: int32, values: N * T; N: int, T: type) -> (output: T)",
    shape=lambda axis, values: _joined(values, axis),
    gradient=lambda dy, y, axis, values: (None, _cut(dy, values, axis)),
    takes_slices=True,
    kernel=lambda xp, axis, values: xp.concatenate(values, axis=_integer(axis)),
    host=("concat_dim",),
    examples=lambda draw: [call(e.inputs[1], e.inputs[0]) for e in _join_examples(draw)],
)


def _offsets(xp: Any, axis: Any, extents: Sequence[Any]) -> list[Any]:
    offsets: list[Any] = []
    start = 0
    for extent in extents:
        offset = np.zeros_like(extent)
        offset[_integer(axis)] = start
        offsets.append(offset)
        start += int(extent[_integer(axis)])
    return offsets


define(
    "ConcatOffset(concat_dim: int32, shape: N * shape_type; N: int, shape_type: index = int32)"
    " -> (offset: N * shape_type)",
    shape=lambda axis, extents: [extent.shape for extent in extents],
    gradient=NOT_DIFFERENTIABLE,
    kernel=_offsets,
    host=("concat_dim", "shape"),
    examples=lambda draw: [call(np.int32(1), [np.array([2, 3], np.int32), np.array([2, 5], np.int32)])],
)


def _split_shape(axis: Tensor, value: Tensor, *, num_split: int) -> list[Shape]:
    place = static.scalar(axis)
    if value.shape is None or place is None:
        return [None if value.shape is None else (None,) * len(value.shape)] * num_split
    place = shapes.normalise_axis(place, len(value.shape))
    size = value.shape[place]
    if size is not None and size % num_split:
        raise InvalidShape(f"{size} can't be split into {num_split} equal parts.", size=size)
    part = None if size is None else size // num_split
    return [(*value.shape[:place], part, *value.shape[place + 1 :])] * num_split


def _splitv_shape(value: Tensor, sizes: Tensor, axis: Tensor, *, num_split: int) -> list[Shape]:
    place, parts = static.scalar(axis), static.value(sizes)
    if value.shape is None or place is None:
        return [None if value.shape is None else (None,) * len(value.shape)] * num_split
    place = shapes.normalise_axis(place, len(value.shape))
    known: list[Dimension] = [None] * num_split if parts is None else _split_sizes(parts, value.shape[place])
    return [(*value.shape[:place], part, *value.shape[place + 1 :]) for part in known]


def _split_sizes(parts: Any, total: Dimension) -> list[Dimension]:
    """The sizes of the parts; one -1 takes what is left."""
    sizes: list[Dimension] = list(_integers(parts))
    if -1 in sizes:
        given = sum(size for size in _integers(parts) if size >= 0)
        sizes[sizes.index(-1)] = None if total is None else total - given
    return sizes


def _splitv(xp: Any, value: Any, sizes: Any, axis: Any, *, num_split: int) -> list[Any]:
    place = _integer(axis)
    parts = [size or 0 for size in _split_sizes(sizes, value.shape[place])]
    if sum(parts) != value.shape[place]:
        raise InvalidShape(f"The sizes {parts} do not add up to {value.shape[place]}.", sizes=parts)
    ends = np.cumsum(parts)[:-1]
    return list(xp.split(value, [int(end) for end in ends], axis=place))


define(
    "Split(split_dim: int32, value: T; num_split: int, T: type) -> (output: num_split * T)",
    shape=_split_shape,
    gradient=lambda dys, ys, axis, value: (None, raw.ConcatV2(dys, axis)),
    kernel=lambda xp, axis, value, *, num_split: list(xp.split(value, num_split, axis=_integer(axis))),
    host=("split_dim",),
    examples=lambda draw: [call(np.int32(-1), draw.normal(draw.size(), 4), num_split=2)],
)
define(
    "SplitV(value: T, size_splits: Tlen, split_dim: int32; num_split: int, T: type, Tlen: int32|int64|int8 = int64)"
    " -> (output: num_split * T)",
    shape=_splitv_shape,
    gradient=lambda dys, ys, value, sizes, axis: (raw.ConcatV2(dys, axis), None, None),
    kernel=_splitv,
    host=("size_splits", "split_dim"),
    examples=lambda draw: [call(draw.normal(5, draw.size()), np.array([2, -1, 0]), np.int32(0), num_split=3)],
)


# Turning round


def _transposed(x: Tensor, perm: Tensor) -> Shape:
    order = static.value(perm)
    if x.shape is None or order is None:
        size = (
            x.shape
            if x.shape is not None
            else (None if perm.shape is None or perm.shape[0] is None else (None,) * perm.shape[0])
        )
        return None if size is None else (None,) * len(size)
    if sorted(_integers(order)) != list(range(len(x.shape))):
        raise InvalidShape(f"{_integers(order)} is no permutation of the {len(x.shape)} axes of {x.shape}.", perm=order)
    return tuple(x.shape[axis] for axis in _integers(order))


def _inverse(perm: Tensor) -> Any:
    order = static.value(perm)
    return raw.InvertPermutation(perm) if order is None else np.argsort(order).astype(order.dtype)


def _transpose_examples(draw: Any) -> list[Example]:
    shape = draw.shape()
    return [call(draw.normal(*shape), draw.permutation(len(shape)))]


define(
    "Transpose(x: T, perm: Tperm; T: type, Tperm: index = int32) -> (y: T)",
    shape=_transposed,
    gradient=lambda dy, y, x, perm: (raw.Transpose(dy, _inverse(perm)), None),
    kernel=lambda xp, x, perm: xp.transpose(x, _integers(perm)),
    host=("perm",),
    examples=_transpose_examples,
)
define(
    "ConjugateTranspose(x: T, perm: Tperm; T: type, Tperm: index = int32) -> (y: T)",
    shape=_transposed,
    gradient=lambda dy, y, x, perm: (raw.ConjugateTranspose(dy, _inverse(perm)), None),
    kernel=lambda xp, x, perm: xp.conj(y) if (y := xp.transpose(x, _integers(perm))).dtype.kind == "c" else y,
    host=("perm",),
    examples=lambda draw: [call(draw.complex(*(s := draw.shape())), draw.permutation(len(s)))],
)


def _invert(xp: Any, permutation: Any) -> Any:
    if sorted(_integers(permutation)) != list(range(len(permutation))):
        raise InvalidArgument(f"{_integers(permutation)} is no permutation.")
    return np.argsort(permutation).astype(permutation.dtype)


define(
    "InvertPermutation(x: T; T: index = int32) -> (y: T)",
    shape=same_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_invert,
    host=("x",),
    examples=lambda draw: [call(draw.permutation(4))],
)


def _flip(xp: Any, x: Any, axes: Any) -> Any:
    return xp.flip(x, tuple(_integers(axes)))


define(
    "ReverseV2(tensor: T, axis: Tidx; Tidx: index = int32, T: arithmetic|bool|string) -> (output: T)",
    shape=lambda x, axis: x.shape,
    gradient=lambda dy, y, x, axis: (raw.ReverseV2(dy, axis), None),
    kernel=_flip,
    host=("axis",),
    examples=lambda draw: [call(draw.normal(draw.size(), 3), np.array(draw.pick([[0], [-1], [0, 1], []]), np.int32))],
)
define(
    "Reverse(tensor: T, dims: bool; T: arithmetic|bool|string) -> (output: T)",
    shape=lambda x, dims: x.shape,
    gradient=lambda dy, y, x, dims: (raw.Reverse(dy, dims), None),
    kernel=lambda xp, x, dims: _flip(xp, x, np.flatnonzero(dims)),
    host=("dims",),
    examples=lambda draw: [call(draw.normal(*(s := draw.shape(1))), draw.boolean(len(s)))],
)


def _reverse_sequence(xp: Any, x: Any, lengths: Any, *, seq_dim: int, batch_dim: int) -> Any:
    """The first lengths[b] elements of sequence b come in reverse order."""
    refuse_outside(lengths, x.shape[seq_dim] + 1, f"ReverseSequence, of an axis of {x.shape[seq_dim]}: the length")
    positions = xp.arange(x.shape[seq_dim]).reshape([-1 if k == seq_dim else 1 for k in range(x.ndim)])
    ends = xp.asarray(lengths).reshape([-1 if k == batch_dim else 1 for k in range(x.ndim)])
    source = xp.where(positions < ends, ends - 1 - positions, positions)
    return xp.take_along_axis(x, xp.broadcast_to(source, x.shape), axis=seq_dim)


define(
    "ReverseSequence(input: T, seq_lengths: Tlen; seq_dim: int, batch_dim: int = 0, T: type, Tlen: index = int64)"
    " -> (output: T)",
    shape=lambda x, lengths: x.shape,
    gradient=lambda dy, y, x, lengths, *, seq_dim, batch_dim: (
        raw.ReverseSequence(dy, lengths, seq_dim=seq_dim, batch_dim=batch_dim),
        None,
    ),
    kernel=_reverse_sequence,
    examples=lambda draw: [call(draw.normal(3, 4, draw.size()), draw.integers(0, 5, 3), seq_dim=1)],
)


def _roll(xp: Any, x: Any, shift: Any, axis: Any) -> Any:
    return xp.roll(x, tuple(_integers(shift)), tuple(_integers(axis)))


define(
    "Roll(input: T, shift: Tshift, axis: Taxis; T: type, Tshift: index, Taxis: index) -> (output: T)",
    shape=lambda x, shift, axis: x.shape,
    gradient=lambda dy, y, x, shift, axis: (raw.Roll(dy, -shift, axis), None, None),
    kernel=_roll,
    host=("shift", "axis"),
    examples=lambda draw: [
        call(draw.normal(4, draw.size()), np.int32(-1), np.int32(0)),
        call(draw.normal(2, 3), np.array([1, 2], np.int32), np.array([0, 1], np.int32)),
    ],
)


# Repeating


def _tiled(x: Tensor, multiples: Tensor) -> Shape:
    counts = static.shape_value(multiples)
    if x.shape is None or counts is None:
        return None if x.shape is None else (None,) * len(x.shape)
    return tuple(
        None if size is None or count is None else size * count for size, count in zip(x.shape, counts, strict=True)
    )


def _tile_gradient(dy: Tensor, y: Tensor, x: Tensor, multiples: Tensor) -> tuple[Tensor, None]:
    """dy as [multiple, size] for each axis, summed over the multiples."""
    counts = static.value(multiples)
    if counts is not None and x.shape is not None and shapes.is_static(x.shape):
        pairs: Any = np.array([entry for pair in zip(counts, x.shape, strict=True) for entry in pair], np.int32)
    else:
        wanted = multiples if multiples.dtype is dtypes.int32 else raw.Cast(multiples, DstT="int32")
        pairs = raw.Reshape(raw.Transpose(raw.Pack([wanted, raw.Shape(x)]), [1, 0]), [-1])
    rank = rank_of(x)
    axes = count_up(0, rank) * 2
    return raw.Reshape(raw.Sum(raw.Reshape(dy, pairs), axes), shape_of(x)), None


define(
    "Tile(input: T, multiples: Tmultiples; T: type, Tmultiples: index = int32) -> (output: T)",
    shape=_tiled,
    gradient=_tile_gradient,
    kernel=lambda xp, x, multiples: xp.tile(x, tuple(_integers(multiples))),
    host=("multiples",),
    examples=lambda draw: [call(draw.normal(*(s := draw.shape())), draw.integers(0, 3, len(s)))],
)


# Padding


def _padded(x: Tensor, paddings: Tensor, *_: Any, **__: Any) -> Shape:
    widths = static.value(paddings)
    if x.shape is None or widths is None:
        return None if x.shape is None else (None,) * len(x.shape)
    return tuple(None if size is None else size + int(sum(pair)) for size, pair in zip(x.shape, widths, strict=True))


def _widths(paddings: Any) -> list[tuple[int, int]]:
    return [(int(before), int(after)) for before, after in np.reshape(paddings, (-1, 2))]


def _before(paddings: Tensor) -> Any:
    """How much was put before each axis, as a vector."""
    widths = static.value(paddings)
    if widths is not None:
        return np.reshape(widths, (-1, 2))[:, 0]
    return raw.Reshape(raw.Slice(paddings, [0, 0], [-1, 1]), [-1])


def _unpad(dy: Tensor, x: Tensor, paddings: Tensor) -> Tensor:
    size = shape_of(x)
    if paddings.dtype is dtypes.int64:
        size = size.astype(np.int64) if isinstance(size, np.ndarray) else raw.Cast(size, DstT="int64")
    return raw.Slice(dy, _before(paddings), size)


def _pad(xp: Any, x: Any, paddings: Any, value: Any) -> Any:
    return xp.pad(x, _widths(paddings), constant_values=value) if x.ndim else x


def _paddings(draw: Any, rank: int, most: int = 2) -> Any:
    return draw.integers(0, most + 1, rank, 2)


define(
    "Pad(input: T, paddings: Tpaddings; T: type, Tpaddings: index = int32) -> (output: T)",
    shape=_padded,
    gradient=lambda dy, y, x, paddings: (_unpad(dy, x, paddings), None),
    kernel=lambda xp, x, paddings: _pad(xp, x, paddings, 0),
    host=("paddings",),
    examples=lambda draw: [call(draw.normal(*(s := draw.shape())), _paddings(draw, len(s)))],
)
define(
    "PadV2(input: T, paddings: Tpaddings, constant_values: T; T: type, Tpaddings: index = int32) -> (output: T)",
    shape=_padded,
    gradient=lambda dy, y, x, paddings, value: (_unpad(dy, x, paddings), None, None),
    kernel=_pad,
    host=("paddings",),
    examples=lambda draw: [
        call(draw.normal(*(s := draw.shape())), _paddings(draw, len(s)), draw.normal(), held=("constant_values",))
    ],
)


def _skipped(mode: str) -> int:
    """How many entries at an edge have no mirror image."""
    return 1 if mode == "REFLECT" else 0


def _mirror_pad(xp: Any, x: Any, paddings: Any, *, mode: str) -> Any:
    for axis, widths in enumerate(_widths(paddings)):
        size = x.shape[axis]
        if not any(widths):
            continue
        if max(widths) > size - _skipped(mode):
            raise InvalidArgument(f"An axis of {size} can't be padded by {max(widths)} in mode {mode}.", axis=axis)
        source = np.pad(np.arange(size), widths, mode="reflect" if mode == "REFLECT" else "symmetric")
        x = xp.take(x, source, axis=axis)
    return x


def _mirror_fold(xp: Any, dy: Any, paddings: Any, *, mode: str) -> Any:
    """The transpose of MirrorPad: what lies in the margins is added to where it came from."""
    skip = _skipped(mode)
    for axis, (before, after) in enumerate(_widths(paddings)):
        if not before and not after:
            continue
        size = dy.shape[axis] - before - after

        def along(start: int, stop: int, dy: Any = dy, axis: int = axis) -> Any:
            return dy[(slice(None),) * axis + (slice(start, stop),)]

        def placed(piece: Any, start: int, size: int = size, axis: int = axis) -> Any:
            widths = [(0, 0)] * piece.ndim
            widths[axis] = (start, size - start - piece.shape[axis])
            return xp.pad(piece, widths)

        left = xp.flip(along(0, before), axis)
        right = xp.flip(along(before + size, dy.shape[axis]), axis)
        dy = along(before, before + size) + placed(left, skip) + placed(right, size - after - skip)
    return dy


def _mirror_unpadded(x: Tensor, paddings: Tensor, **_: Any) -> Shape:
    widths = static.value(paddings)
    if x.shape is None or widths is None:
        return None if x.shape is None else (None,) * len(x.shape)
    return tuple(None if size is None else size - int(sum(pair)) for size, pair in zip(x.shape, widths, strict=True))


define(
    "MirrorPad(input: T, paddings: Tpaddings; T: type, Tpaddings: index = int32, mode: string) -> (output: T)",
    shape=_padded,
    gradient=lambda dy, y, x, paddings, *, mode: (raw.MirrorPadGrad(dy, paddings, mode=mode), None),
    kernel=_mirror_pad,
    host=("paddings",),
    examples=lambda draw: [
        call(draw.normal(3, draw.size(3, 5)), _paddings(draw, 2), mode=draw.pick(["REFLECT", "SYMMETRIC"])),
        call(draw.normal(*[n := draw.size()] * (rank := draw.size(0, 2))), _paddings(draw, rank, n), mode="SYMMETRIC"),
    ],
)
define(
    "MirrorPadGrad(input: T, paddings: Tpaddings; T: type, Tpaddings: index = int32, mode: string) -> (output: T)",
    shape=_mirror_unpadded,
    gradient=lambda dy, y, x, paddings, *, mode: (raw.MirrorPad(dy, paddings, mode=mode), None),
    kernel=_mirror_fold,
    host=("paddings",),
    examples=lambda draw: [
        call(draw.normal(7, draw.size(7, 9)), _paddings(draw, 2), mode=draw.pick(["REFLECT", "SYMMETRIC"]))
    ],
)


# Blocks of space, batches and channels


def _space_to_batch(xp: Any, x: Any, block: Any, paddings: Any) -> Any:
    sizes = _integers(block)
    count = len(sizes)
    x = xp.pad(x, [(0, 0), *_widths(paddings), *[(0, 0)] * (x.ndim - count - 1)])
    batch, space, rest = x.shape[0], x.shape[1 : count + 1], x.shape[count + 1 :]
    cut = [entry for size, step in zip(space, sizes, strict=True) for entry in (size // step, step)]
    order = [*range(2, 2 * count + 1, 2), 0, *range(1, 2 * count, 2), *range(2 * count + 1, 2 * count + 1 + len(rest))]
    outer = [size // step for size, step in zip(space, sizes, strict=True)]
    return xp.reshape(
        xp.transpose(xp.reshape(x, (batch, *cut, *rest)), order), (batch * int(np.prod(sizes)), *outer, *rest)
    )


def _batch_to_space(xp: Any, x: Any, block: Any, crops: Any) -> Any:
    sizes = _integers(block)
    count = len(sizes)
    batch = x.shape[0] // int(np.prod(sizes))
    space, rest = x.shape[1 : count + 1], x.shape[count + 1 :]
    order = [count]
    for axis in range(count):
        order += [count + 1 + axis, axis]
    order += range(2 * count + 1, 2 * count + 1 + len(rest))
    whole = [size * step for size, step in zip(space, sizes, strict=True)]
    x = xp.reshape(xp.transpose(xp.reshape(x, (*sizes, batch, *space, *rest)), order), (batch, *whole, *rest))
    kept = [slice(before, size - after) for (before, after), size in zip(_widths(crops), whole, strict=True)]
    return x[(slice(None), *kept)]


def _block_shape(x: Tensor, block: Any, margins: Any, *, grow: bool) -> Shape:
    if x.shape is None or block is None or margins is None:
        return None if x.shape is None else (None,) * len(x.shape)
    sizes, widths = _integers(block), _widths(margins)
    area = int(np.prod(sizes))
    batch = x.shape[0]
    result: list[Dimension] = [None if batch is None else batch // area if grow else batch * area]
    for size, step, (before, after) in zip(x.shape[1:], sizes, widths, strict=False):
        if size is None:
            result.append(None)
        else:
            result.append(size * step - before - after if grow else (size + before + after) // step)
    return (*result, *x.shape[len(sizes) + 1 :])


define(
    "SpaceToBatchND(input: T, block_shape: Tblock_shape, paddings: Tpaddings; T: type, Tblock_shape: index = int32,"
    " Tpaddings: index = int32) -> (output: T)",
    shape=lambda x, block, paddings: _block_shape(x, static.value(block), static.value(paddings), grow=False),
    gradient=lambda dy, y, x, block, paddings: (raw.BatchToSpaceND(dy, block, paddings), None, None),
    kernel=_space_to_batch,
    host=("block_shape", "paddings"),
    examples=lambda draw: [
        call(
            draw.normal(draw.size(), 3 * (b := draw.size(1, 3)) - 1, 2 * b, draw.size()),
            np.array([b, 2 * b], np.int32),
            np.array([[1, 0], [0, 2 * b]], np.int32),
        )
    ],
)
define(
    "BatchToSpaceND(input: T, block_shape: Tblock_shape, crops: Tcrops; T: type, Tblock_shape: index = int32,"
    " Tcrops: index = int32) -> (output: T)",
    shape=lambda x, block, crops: _block_shape(x, static.value(block), static.value(crops), grow=True),
    gradient=lambda dy, y, x, block, crops: (raw.SpaceToBatchND(dy, block, crops), None, None),
    kernel=_batch_to_space,
    host=("block_shape", "crops"),
    examples=lambda draw: [
        call(
            draw.normal(draw.size() * (b := draw.size(1, 3)) * 2, 2, 3, draw.size()),
            np.array([b, 2], np.int32),
            np.array([[b - 1, 0], [0, 2]], np.int32),
        )
    ],
)
define(
    "SpaceToBatch(input: T, paddings: Tpaddings; T: type, Tpaddings: index = int32, block_size: int) -> (output: T)",
    shape=lambda x, paddings, *, block_size: _block_shape(x, [block_size] * 2, static.value(paddings), grow=False),
    gradient=lambda dy, y, x, paddings, *, block_size: (raw.BatchToSpace(dy, paddings, block_size=block_size), None),
    kernel=lambda xp, x, paddings, *, block_size: _space_to_batch(xp, x, [block_size] * 2, paddings),
    host=("paddings",),
    examples=lambda draw: [
        call(draw.normal(draw.size(), 3, 4, draw.size()), np.array([[1, 0], [0, 2]], np.int32), block_size=2)
    ],
)
define(
    "BatchToSpace(input: T, crops: Tidx; T: type, block_size: int, Tidx: index = int32) -> (output: T)",
    shape=lambda x, crops, *, block_size: _block_shape(x, [block_size] * 2, static.value(crops), grow=True),
    gradient=lambda dy, y, x, crops, *, block_size: (raw.SpaceToBatch(dy, crops, block_size=block_size), None),
    kernel=lambda xp, x, crops, *, block_size: _batch_to_space(xp, x, [block_size] * 2, crops),
    host=("crops",),
    examples=lambda draw: [
        call(draw.normal(4 * draw.size(), 2, 3, draw.size()), np.array([[1, 0], [0, 2]], np.int32), block_size=2)
    ],
)


def _to_last(xp: Any, x: Any, data_format: str) -> Any:
    return x if data_format == "NHWC" else xp.moveaxis(x, 1, 3)


def _to_depth(xp: Any, x: Any, *, block_size: int, data_format: str) -> Any:
    x = _to_last(xp, x, data_format)
    n, h, w, c = x.shape
    b = block_size
    x = xp.reshape(x, (n, h // b, b, w // b, b, c)).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // b, w // b, b * b * c)
    return x if data_format == "NHWC" else xp.moveaxis(x, 3, 1)


def _to_space(xp: Any, x: Any, *, block_size: int, data_format: str) -> Any:
    x = _to_last(xp, x, data_format)
    n, h, w, c = x.shape
    b = block_size
    x = xp.reshape(x, (n, h, w, b, b, c // (b * b))).transpose(0, 1, 3, 2, 4, 5).reshape(n, h * b, w * b, c // (b * b))
    return x if data_format == "NHWC" else xp.moveaxis(x, 3, 1)


def _depth_shape(grow: bool) -> Rule:
    def rule(x: Tensor, *, block_size: int, data_format: str) -> Shape:
        if x.shape is None:
            return (None,) * 4
        channel = 3 if data_format == "NHWC" else 1

        def scaled(axis: int, size: Dimension) -> Dimension:
            if size is None or axis == 0:
                return size
            if axis == channel:
                return size // block_size**2 if grow else size * block_size**2
            return size * block_size if grow else size // block_size

        return tuple(scaled(axis, size) for axis, size in enumerate(x.shape))

    return rule


define(
    "SpaceToDepth(input: T; T: type, block_size: int, data_format: string = 'NHWC') -> (output: T)",
    shape=_depth_shape(grow=False),
    gradient=lambda dy, y, x, *, block_size, data_format: raw.DepthToSpace(
        dy, block_size=block_size, data_format=data_format
    ),
    kernel=_to_depth,
    examples=lambda draw: [
        call(draw.normal(draw.size(), 4, 2 * draw.size(1), draw.size()), block_size=2),
        call(draw.normal(draw.size(), draw.size(), 6, 3), block_size=3, data_format="NCHW"),
    ],
)
define(
    "DepthToSpace(input: T; T: type, block_size: int, data_format: string = 'NHWC') -> (output: T)",
    shape=_depth_shape(grow=True),
    gradient=lambda dy, y, x, *, block_size, data_format: raw.SpaceToDepth(
        dy, block_size=block_size, data_format=data_format
    ),
    kernel=_to_space,
    examples=lambda draw: [
        call(draw.normal(draw.size(), 1, draw.size(1), 4 * draw.size()), block_size=2),
        call(draw.normal(draw.size(), 9 * draw.size(), 1, draw.size(1)), block_size=3, data_format="NCHW"),
    ],
)
