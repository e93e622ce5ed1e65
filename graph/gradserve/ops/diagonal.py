"""Diagonals and bands of matrices: taking them out, putting them in, and matrices made of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import static
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import Rule, call, define, raw
from gradserve.graph.shapes import Shape

# Bands


def _band(xp: Any, x: Any, lower: Any, upper: Any) -> Any:
    row, column = np.arange(x.shape[-2])[:, None], np.arange(x.shape[-1])[None, :]
    below, above = int(lower), int(upper)
    inside = ((below < 0) | (row - column <= below)) & ((above < 0) | (column - row <= above))
    return xp.where(xp.asarray(inside), x, xp.zeros_like(x))


define(
    "MatrixBandPart(input: T, num_lower: Tindex, num_upper: Tindex; T: type, Tindex: index = int64) -> (band: T)",
    shape=lambda x, lower, upper: x.shape,
    gradient=lambda dy, y, x, lower, upper: (raw.MatrixBandPart(dy, lower, upper), None, None),
    kernel=_band,
    host=("num_lower", "num_upper"),
    examples=lambda draw: [call(draw.normal(2, 3, draw.size(0, 4)), np.int64(draw.size(0, 2) - 1), np.int64(0))],
)


# The diagonals from k[0] to k[1] of a matrix, stored as rows of one length


class _Layout(NamedTuple):
    """Which entry of the stored diagonals stands where in the matrix.

    Attributes:
        row, column: of each stored entry, [diagonals, longest].
        stored: whether it stands for one, not for padding.
        diagonal, place: of each entry of the matrix, [rows, columns].
        inside: whether it lies on one of the diagonals.
    """

    row: Any
    column: Any
    stored: Any
    diagonal: Any
    place: Any
    inside: Any


def _bounds(k: Any) -> tuple[int, int]:
    values = [int(entry) for entry in np.ravel(k)]
    if not values or values[0] > values[-1]:
        raise InvalidArgument(f"k must be one diagonal or a range of them, not {values}.", k=values)
    return values[0], values[-1]


def _layout(rows: int, columns: int, k: Any, align: str) -> _Layout:
    first, last = _bounds(k)
    above, below = align.split("_")
    numbers = np.arange(last, first - 1, -1)
    lengths = np.minimum(rows + np.minimum(numbers, 0), columns - np.maximum(numbers, 0))
    longest = int(lengths.max())
    right = np.where(numbers >= 0, above == "RIGHT", below == "RIGHT")
    shift = np.where(right, longest - lengths, 0)
    along = np.arange(longest) - shift[:, None]
    stored = (along >= 0) & (along < lengths[:, None])
    row = np.where(stored, along - np.minimum(numbers, 0)[:, None], 0)
    column = np.where(stored, along + np.maximum(numbers, 0)[:, None], 0)
    r, c = np.arange(rows)[:, None], np.arange(columns)[None, :]
    number = c - r
    inside = (number >= first) & (number <= last)
    diagonal = np.where(inside, last - number, 0)
    place = np.where(inside, np.minimum(r, c) + shift[diagonal], 0)
    return _Layout(row, column, stored, diagonal, place, inside)


def _with_rows(xp: Any, diagonal: Any, k: Any) -> Any:
    """One diagonal may come without its axis."""
    first, last = _bounds(k)
    return diagonal[..., None, :] if first == last else diagonal


def _take(xp: Any, x: Any, k: Any, padding: Any, *, align: str) -> Any:
    layout = _layout(x.shape[-2], x.shape[-1], k, align)
    found = xp.where(xp.asarray(layout.stored), x[..., layout.row, layout.column], xp.asarray(padding, x.dtype))
    return found[..., 0, :] if len(layout.row) == 1 else found


def _put(xp: Any, x: Any, diagonal: Any, k: Any, *, align: str) -> Any:
    layout = _layout(x.shape[-2], x.shape[-1], k, align)
    rows = _with_rows(xp, diagonal, k)
    if not rows.shape[-1]:
        return x
    return xp.where(xp.asarray(layout.inside), rows[..., layout.diagonal, layout.place], x)


def _size(longest: int, k: Any, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of the matrix; -1 stands for as few as there can be, and for square where both are -1."""
    first, last = _bounds(k)
    least = longest - min(last, 0), longest + max(first, 0)
    if rows < 0 and columns < 0:
        return max(least), max(least)
    return (least[0] if rows < 0 else rows), (least[1] if columns < 0 else columns)


def _make(xp: Any, diagonal: Any, k: Any, rows: Any, columns: Any, padding: Any, *, align: str) -> Any:
    stacked = _with_rows(xp, diagonal, k)
    size = _size(stacked.shape[-1], k, int(rows), int(columns))
    if not stacked.shape[-1]:
        return xp.full((*stacked.shape[:-2], *size), padding, diagonal.dtype)
    layout = _layout(*size, k, align)
    return xp.where(
        xp.asarray(layout.inside), stacked[..., layout.diagonal, layout.place], xp.asarray(padding, diagonal.dtype)
    )


def _taken_shape(x: Tensor, k: Tensor, *_: Any) -> Shape:
    known = static.value(k)
    if x.shape is None or known is None:
        return None
    rows, columns = x.shape[-2:]
    first, last = _bounds(known)
    longest = None if rows is None or columns is None else min(rows + min(last, 0), columns - max(first, 0))
    return (*x.shape[:-2], *(() if first == last else (last - first + 1,)), longest)


def _made_shape(diagonal: Tensor, k: Tensor, rows: Tensor, columns: Tensor, *_: Any) -> Shape:
    known = [static.value(entry) for entry in (k, rows, columns)]
    if diagonal.shape is None or diagonal.shape[-1] is None or any(entry is None for entry in known):
        return None
    first, last = _bounds(known[0])
    lead = diagonal.shape[: -1 if first == last else -2]
    return (*lead, *_size(diagonal.shape[-1], known[0], int(known[1]), int(known[2])))  # pyright: ignore[reportArgumentType]


def _zero(x: Tensor) -> Any:
    return np.zeros((), x.dtype.numpy)


_K = np.array([-1, 1], np.int32)


def _alignment(node: Node) -> str:
    """V2 has no say in it."""
    return "LEFT_LEFT" if node.type.endswith("V2") else node.attrs["align"]


def _aligned(kernel: Rule) -> Rule:
    return lambda xp, *inputs, node: kernel(xp, *inputs, align=_alignment(node))


def _part_gradient(dy: Tensor, y: Tensor, x: Tensor, k: Tensor, padding: Tensor, *, node: Node) -> Any:
    return raw.MatrixSetDiagV3(raw.ZerosLike(x), dy, k, align=_alignment(node)), None, None


def _make_gradient(dy: Tensor, y: Tensor, diagonal: Tensor, k: Tensor, *rest: Tensor, node: Node) -> Any:
    return raw.MatrixDiagPartV3(dy, k, _zero(dy), align=_alignment(node)), None, None, None, None


def _set_gradient(dy: Tensor, y: Tensor, x: Tensor, diagonal: Tensor, k: Tensor, *, node: Node) -> Any:
    align = _alignment(node)
    dx = raw.MatrixSetDiagV3(dy, raw.ZerosLike(diagonal), k, align=align)
    return dx, raw.MatrixDiagPartV3(dy, k, _zero(dy), align=align), None


for _version, _attr in (("V2", ""), ("V3", ", align: string = 'RIGHT_LEFT'")):
    define(
        f"MatrixDiagPart{_version}(input: T, k: int32, padding_value: T; T: type{_attr}) -> (diagonal: T)",
        shape=_taken_shape,
        gradient=_part_gradient,
        kernel=_aligned(_take),
        host=("k",),
        examples=lambda draw: [
            call(draw.normal(draw.size(), 3, draw.size(3, 5)), _K, draw.normal(), held=("padding_value",)),
            call(draw.normal(3, draw.size(1)), np.int32(-draw.size(0, 2)), np.zeros(()), held=("padding_value",)),
        ],
    )
    define(
        f"MatrixDiag{_version}(diagonal: T, k: int32, num_rows: int32, num_cols: int32, padding_value: T; T: type{_attr})"
        " -> (output: T)",
        shape=_made_shape,
        gradient=_make_gradient,
        kernel=_aligned(_make),
        host=("k", "num_rows", "num_cols"),
        examples=lambda draw: [
            call(
                draw.normal(draw.size(), draw.size()),
                np.int32(draw.size() - 2),
                np.int32(-1),
                np.int32(-1),
                np.zeros(()),
                held=("padding_value",),
            ),
            call(
                draw.normal(*draw.shape(0, 1), 3, 3),
                _K,
                np.int32(3),
                np.int32(4),
                draw.normal(),
                held=("padding_value",),
            ),
        ],
    )
    define(
        f"MatrixSetDiag{_version}(input: T, diagonal: T, k: int32; T: type{_attr}) -> (output: T)",
        shape=lambda x, diagonal, k: x.shape,
        gradient=_set_gradient,
        kernel=_aligned(_put),
        host=("k",),
        examples=lambda draw: [call(draw.normal(*(s := draw.shape(0, 1)), 3, 4), draw.normal(*s, 3, 3), _K)],
    )


# The main diagonal alone

define(
    "MatrixDiag(diagonal: T; T: type) -> (output: T)",
    shape=lambda x: None if x.shape is None else (*x.shape, x.shape[-1]),
    gradient=lambda dy, y, x: raw.MatrixDiagPart(dy),
    kernel=lambda xp, x: _make(xp, x, 0, -1, -1, 0, align="LEFT_LEFT"),
    examples=lambda draw: [call(draw.normal(*draw.shape(1)))],
)
define(
    "MatrixDiagPart(input: T; T: type) -> (diagonal: T)",
    shape=lambda x: None if x.shape is None or None in x.shape[-2:] else (*x.shape[:-2], min(x.shape[-2:])),
    gradient=lambda dy, y, x: raw.MatrixSetDiag(raw.ZerosLike(x), dy),
    kernel=lambda xp, x: _take(xp, x, 0, 0, align="LEFT_LEFT"),
    examples=lambda draw: [call(draw.normal(*draw.shape(2)))],
)
define(
    "MatrixSetDiag(input: T, diagonal: T; T: type) -> (output: T)",
    shape=lambda x, diagonal: x.shape,
    gradient=lambda dy, y, x, diagonal: (
        raw.MatrixSetDiag(dy, raw.ZerosLike(diagonal)),
        raw.MatrixDiagPart(dy),
    ),
    kernel=lambda xp, x, diagonal: _put(xp, x, diagonal, 0, align="LEFT_LEFT"),
    examples=lambda draw: [
        call(draw.normal(*(s := draw.shape(0, 1)), n := draw.size(), n + draw.size(0, 1)), draw.normal(*s, n))
    ],
)


# Diagonals of tensors: all axes at once


def _whole_diagonal(xp: Any, x: Any) -> Any:
    count = int(np.prod(x.shape, dtype=np.int64))
    return xp.reshape(xp.diag(xp.ravel(x)) if count else xp.zeros((0, 0), x.dtype), (*x.shape, *x.shape))


def _whole_diagonal_part(xp: Any, x: Any) -> Any:
    shape = x.shape[: x.ndim // 2]
    count = int(np.prod(shape, dtype=np.int64))
    return xp.reshape(xp.diagonal(xp.reshape(x, (count, count))), shape)


define(
    "Diag(diagonal: T; T: inexact|index) -> (output: T)",
    shape=lambda x: None if x.shape is None else (*x.shape, *x.shape),
    gradient=lambda dy, y, x: raw.DiagPart(dy),
    kernel=_whole_diagonal,
    examples=lambda draw: [call(draw.normal(*draw.shape(1)))],
)
define(
    "DiagPart(input: T; T: inexact|index) -> (diagonal: T)",
    shape=lambda x: None if x.shape is None else x.shape[: len(x.shape) // 2],
    gradient=lambda dy, y, x: raw.Diag(dy),
    kernel=_whole_diagonal_part,
    examples=lambda draw: [call(draw.normal(m := draw.size(), n := draw.size(), m, n))],
)
