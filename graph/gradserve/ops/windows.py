"""Windows that slide over the axes of an array: what convolution, pooling and patches have in common.

A window has a size, a stride and a dilation on every axis of the array, also on those that it doesn't move along
(1, 1, 1), so a layout such as NCHW needs no transposition. A kernel loops over the positions inside of the window,
in scan order, never over those of the image: for each position a strided slice of the padded array holds what all
windows see there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument, InvalidShape
from gradserve.graph.graph import Tensor
from gradserve.graph.op import raw
from gradserve.graph.shapes import Dimension
from gradserve.graph.symbolic import concat, part, product
from gradserve.ops.precision import lowest


@dataclass(frozen=True, slots=True)
class Axis:
    """The window along one axis: `before` and `after` is the padding, `count` the number of windows."""

    size: int
    stride: int
    dilation: int
    before: int
    after: int
    count: int

    @property
    def extent(self) -> int:
        """From the first entry that a window covers to its last, both included."""
        return (self.size - 1) * self.dilation + 1


def output_size(
    length: Dimension, size: Dimension, stride: int, dilation: int, padding: str, explicit: tuple[int, int] = (0, 0)
) -> Dimension:
    """How many windows there are along an axis of this length; None where that is not known.

    Raises InvalidArgument for a size, a stride, a dilation or a padding that can't be, InvalidShape for a window larger than
    the padded axis.
    """
    if stride < 1 or dilation < 1:
        raise InvalidArgument(f"Strides and dilations must be 1 or more, but are {stride} and {dilation}.")
    if size is not None and size < 1:
        raise InvalidArgument(f"A window must be 1 or more in size, but is {size}.", size=size)
    if padding not in ("SAME", "VALID", "EXPLICIT"):
        raise InvalidArgument(f"The padding must be SAME, VALID or EXPLICIT, but is {padding!r}.", padding=padding)
    if length is None:
        return None
    if padding == "SAME":
        return -(-length // stride)
    if size is None:
        return None
    count = (length + sum(explicit) - (size - 1) * dilation - 1) // stride + 1
    if count < 0:
        raise InvalidShape(f"A window of size {size} (dilation {dilation}) is larger than the axis: {length}.")
    return count


def axis(length: int, size: int, stride: int, dilation: int, padding: str, explicit: tuple[int, int] = (0, 0)) -> Axis:
    """The window along an axis of this length. SAME puts the odd entry of padding behind."""
    count = output_size(length, size, stride, dilation, padding, explicit)
    assert count is not None
    if padding != "SAME":
        return Axis(size, stride, dilation, *explicit, count)
    total = max((count - 1) * stride + (size - 1) * dilation + 1 - length, 0)
    return Axis(size, stride, dilation, total // 2, total - total // 2, count)


def axes(
    lengths: Sequence[int],
    sizes: Sequence[int],
    strides: Sequence[int],
    padding: str,
    explicit: Sequence[int] = (),
    dilations: Sequence[int] | None = None,
) -> list[Axis]:
    """The windows along all axes; `explicit` is TensorFlow's explicit_paddings: before and after, axis by axis."""
    pads = pairs(explicit, len(lengths))
    steps = dilations or [1] * len(lengths)
    columns = zip(lengths, sizes, strides, steps, pads, strict=True)
    return [axis(length, size, stride, step, padding, pad) for length, size, stride, step, pad in columns]


def pairs(explicit: Sequence[int], rank: int) -> list[tuple[int, int]]:
    """TensorFlow's explicit_paddings as (before, after) of each axis. Raises InvalidArgument."""
    if not explicit:
        return [(0, 0)] * rank
    if len(explicit) != 2 * rank:
        raise InvalidArgument(f"explicit_paddings must have {2 * rank} entries, but has {len(explicit)}.")
    return [(explicit[2 * k], explicit[2 * k + 1]) for k in range(rank)]


def positions(windows: Sequence[Axis]) -> Iterator[tuple[int, ...]]:
    """The positions inside of a window, in scan order."""
    return itertools.product(*(range(window.size) for window in windows))


def _slices(windows: Sequence[Axis], position: Sequence[int]) -> tuple[slice, ...]:
    return tuple(
        slice(k * w.dilation, k * w.dilation + (w.count - 1) * w.stride + 1 if w.count else k * w.dilation, w.stride)
        for k, w in zip(position, windows, strict=True)
    )


def pieces(xp: Any, x: Any, windows: Sequence[Axis], fill: Any = 0) -> Iterator[Any]:
    """For each position inside of the window: what all windows see there; `fill` in the padding."""
    pads = [(window.before, window.after) for window in windows]
    padded = xp.pad(x, pads, constant_values=fill) if any(sum(pad) for pad in pads) else x
    return (padded[_slices(windows, position)] for position in positions(windows))


def largest(xp: Any, seen: Iterable[Any], kind: Any) -> Any:
    """The largest of what windows see, entry by entry: NaN is none, and -∞ the lowest finite number, as in TensorFlow."""
    total = xp.asarray(lowest(kind), dtype=kind)
    for piece in seen:
        total = xp.fmax(total, piece)
    return total


def hits(xp: Any, seen: Iterable[Any], best: Any, inside: Iterable[Any] | None = None) -> Iterator[Any]:
    """For each position inside of the window: where it holds the first of the largest entries, which are `best`.

    `inside` says of each piece where it lies inside of the image: the padding holds no entry.
    """
    least = xp.asarray(lowest(best.dtype), dtype=best.dtype)
    taken: Any = None
    for hit in equals(xp, (xp.fmax(piece, least) for piece in seen), best, inside):
        first = hit if taken is None else hit & ~taken
        taken = hit if taken is None else taken | hit
        yield first


def equals(xp: Any, seen: Iterable[Any], best: Any, inside: Iterable[Any] | None = None) -> Iterator[Any]:
    """For each position inside of the window: where it holds any of the entries that equal `best`."""
    for piece, real in zip(seen, inside or itertools.repeat(True), strict=False):
        equal = piece == best
        yield equal if real is True else equal & xp.asarray(real)


def put_back(xp: Any, parts: Iterable[Any], windows: Sequence[Axis], shape: Sequence[int], dtype: Any) -> Any:
    """The adjoint of `pieces`: an array of this shape to which each part is added where its piece came from."""
    pads = [(window.before, window.after) for window in windows]
    padded = [length + sum(pad) for length, pad in zip(shape, pads, strict=True)]
    total = xp.zeros(padded, dtype=dtype)
    for position, addend in zip(positions(windows), parts, strict=True):
        total = _add(total, _slices(windows, position), addend)
    if not any(sum(pad) for pad in pads):
        return total
    return total[tuple(slice(pad[0], pad[0] + length) for pad, length in zip(pads, shape, strict=True))]


def _add(total: Any, index: tuple[slice, ...], part: Any) -> Any:
    if hasattr(total, "at"):  # arrays that can't be written to, as JAX's
        return total.at[index].add(part)
    total[index] += part
    return total


# In a graph, for the gradients of gradient ops whose transpose TensorFlow has no op for


def cut(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """What each window of an image [n, h, w, c] sees, as one more axis: [n, windows.., windows.., positions, c].

    `rows` and `columns` are [windows, positions along the axis].
    """
    taken = raw.GatherV2(raw.GatherV2(x, rows, np.int32(1)), columns, np.int32(3))
    ordered = raw.Transpose(taken, np.array([0, 1, 3, 2, 4, 5], np.int32))
    shape = raw.Shape(ordered)
    return raw.Reshape(ordered, concat(part(shape, 0, 3), product(part(shape, 3, 5)), part(shape, 5)))


def first_largest(cuts: Tensor) -> Tensor:
    """1 where the first of the largest numbers of each window stands, 0 elsewhere."""
    one, zero = np.array([1, 0], cuts.dtype.numpy)
    depth = entry(raw.Shape(cuts), 3)
    return raw.OneHot(raw.ArgMax(cuts, np.int32(3)), depth, one, zero, axis=3)


def entry(vector: Tensor, k: int) -> Tensor:
    """One entry of an integer vector as a scalar."""
    return raw.Reshape(part(vector, k, k + 1), np.zeros(0, np.int32))
