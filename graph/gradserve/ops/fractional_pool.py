"""Pooling by a ratio that need not be whole: windows of two neighbouring sizes in a random order (Graham 2014).

The order of the sizes along each axis is an output of the op, drawn by TensorFlow's generator (Philox) from its two
seeds; the gradient ops take it as an input. A window reaches up to the next one's first row, with `overlapping`
including that.
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import static
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.shapes import Dimension, Shape
from gradserve.graph.symbolic import part, shape_of
from gradserve.ops import windows
from gradserve.ops.philox import Philox, shuffle, unit_doubles
from gradserve.ops.windows import cut, entry, first_largest

# The order of the windows' sizes


def _sequence(length: int, count: int, generator: Philox, *, pseudo_random: bool) -> tuple[Any, Philox]:
    """Where the windows begin, and the end of the last: [count + 1]; and the generator behind what this took."""
    if pseudo_random:
        sizes: Any = _even_sizes(length, count, generator)
        used = 1
    else:
        whole, larger = divmod(length, count)
        ordered = np.array([whole + 1] * larger + [whole] * (count - larger))
        sizes, used = ordered[shuffle(generator, count)], -(-count // 4)
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), generator.skip(used)


def _even_sizes(length: int, count: int, generator: Philox) -> list[int]:
    """Differences of ceil(ratio (k + u)) for one random u."""
    ratio, whole = length / count, length // count
    limit = min((whole + 2) / ratio - 1, (length + 1 - whole) / ratio - (count - 1))
    words = generator.words(2)
    u = float(unit_doubles(words[:1], words[1:])[0]) * limit
    ends = [1, *(math.ceil(ratio * (k + u)) for k in range(1, count)), length + 1]
    return [after - before for before, after in itertools.pairwise(ends)]


def _counts(lengths: Sequence[Dimension], ratios: Sequence[float]) -> list[Dimension]:
    """The quotients are TensorFlow's, of float32: 8 windows of 1.6 leave 5, although float32's 1.6 is a little more."""
    return [
        None if n is None else math.floor(np.float32(n) / np.float32(ratio))
        for n, ratio in zip(lengths, ratios, strict=True)
    ]


def _sequences(x: Any, node: Node) -> list[Any]:
    attrs = node.attrs
    seeds = attrs["seed"], attrs["seed2"]
    if any(seeds) and not attrs["deterministic"]:
        raise InvalidArgument("Both seed and seed2 should be 0 if deterministic is false.", node=node.name)
    if not any(seeds):
        seeds = secrets.randbits(64), secrets.randbits(64)
    generator = Philox.from_seeds(*seeds)
    counts = _counts(x.shape, attrs["pooling_ratio"])
    if any(count is None or count < 1 for count in counts[1:3]):
        raise InvalidArgument(f"The pooling ratios leave no window of an image of shape {x.shape}.", node=node.name)
    rows, generator = _sequence(x.shape[1], counts[1] or 1, generator, pseudo_random=attrs["pseudo_random"])
    columns, _ = _sequence(x.shape[2], counts[2] or 1, generator, pseudo_random=attrs["pseudo_random"])
    return [rows, columns]


# Kernels. The sequences are known on the host.


def _covered(sequence: Any, length: int, overlapping: bool) -> tuple[Any, Any]:
    """[windows, positions]: what each window covers, its last entry repeated, and which of it are no repetitions."""
    begins = np.asarray(sequence)[:-1, None]
    ends = np.minimum(np.asarray(sequence)[1:, None] - (0 if overlapping else 1), length - 1)
    numbers = begins + np.arange(int(np.max(ends - begins, initial=0)) + 1)
    return np.minimum(numbers, ends), numbers <= ends


def _seen(xp: Any, x: Any, rows: Any, columns: Any) -> list[Any]:
    """For each position inside of the window, in scan order: what all windows see there."""
    by_row = [xp.take(x, places, axis=1) for places in rows.T]
    return [xp.take(piece, places, axis=2) for piece in by_row for places in columns.T]


def _put_back(xp: Any, parts: Sequence[Any], rows: Any, columns: Any, shape: Sequence[int]) -> Any:
    """The transpose of `_seen`, by one product with a matrix of zeros and ones an axis and position."""
    n, height, width, c = shape
    total: Any = 0
    for k, row in enumerate(rows.T):
        strip: Any = 0
        for j, column in enumerate(columns.T):
            piece = parts[k * columns.shape[1] + j]
            to_columns = xp.asarray((np.arange(width)[:, None] == column).astype(piece.dtype))
            strip = strip + xp.matmul(to_columns, piece)
        to_rows = xp.asarray((np.arange(height)[:, None] == row).astype(strip.dtype))
        total = total + xp.matmul(to_rows, strip.reshape(n, len(row), width * c))
    return total.reshape(n, height, width, c)


def _weights(row_real: Any, column_real: Any) -> list[Any]:
    """For each position inside of the window, [windows, windows, 1]: its share of the average."""
    counts = row_real.sum(1)[:, None] * column_real.sum(1)[None, :]
    return [(a[:, None] & b[None, :])[..., None] / counts[..., None] for a in row_real.T for b in column_real.T]


def _max_pool(xp: Any, x: Any, *, node: Node) -> tuple[Any, ...]:
    sequences = _sequences(x, node)
    overlapping = node.attrs["overlapping"]
    places = [_covered(sequences[k], x.shape[k + 1], overlapping)[0] for k in (0, 1)]
    return windows.largest(xp, _seen(xp, x, *places), x.dtype), *sequences


def _average_pool(xp: Any, x: Any, *, node: Node) -> tuple[Any, ...]:
    sequences = _sequences(x, node)
    overlapping = node.attrs["overlapping"]
    (rows, row_real), (columns, column_real) = (
        _covered(sequences[k], x.shape[k + 1], overlapping) for k in (0, 1)
    )  # fmt: skip
    total: Any = 0
    for piece, weight in zip(_seen(xp, x, rows, columns), _weights(row_real, column_real), strict=True):
        total = total + piece * xp.asarray(weight.astype(x.dtype if x.dtype.kind == "f" else np.float64))
    return total.astype(x.dtype), *sequences


def _max_pool_grad(
    xp: Any, x: Any, y: Any, dy: Any, row_sequence: Any, column_sequence: Any, *, overlapping: bool
) -> Any:  # fmt: skip
    rows, columns = (
        _covered(sequence, length, overlapping)[0]
        for sequence, length in zip((row_sequence, column_sequence), x.shape[1:3], strict=True)
    )
    seen = _seen(xp, x, rows, columns)
    hits = windows.hits(xp, seen, windows.largest(xp, seen, x.dtype))
    return _put_back(xp, [xp.where(hit, dy, xp.zeros_like(dy)) for hit in hits], rows, columns, x.shape)


def _average_pool_grad(
    xp: Any, shape: Any, dy: Any, row_sequence: Any, column_sequence: Any, *, overlapping: bool
) -> Any:  # fmt: skip
    lengths = [int(size) for size in shape]
    (rows, row_real), (columns, column_real) = (
        _covered(sequence, length, overlapping)
        for sequence, length in zip((row_sequence, column_sequence), lengths[1:3], strict=True)
    )
    parts = [dy * xp.asarray(weight.astype(dy.dtype)) for weight in _weights(row_real, column_real)]
    return _put_back(xp, parts, rows, columns, lengths)


# Gradients


def _of_max_pool(dy: Tensor, *rest: Any, node: Node) -> Tensor:
    y, rows, columns = node.outputs
    return raw.FractionalMaxPoolGrad(node.inputs[0], y, dy, rows, columns, overlapping=node.attrs["overlapping"])


def _of_average_pool(dy: Tensor, *rest: Any, node: Node) -> Tensor:
    _, rows, columns = node.outputs
    shape = shape_of(node.inputs[0])
    wide = raw.Cast(shape, DstT="int64") if isinstance(shape, Tensor) else shape.astype(np.int64)
    return raw.FractionalAvgPoolGrad(wide, dy, rows, columns, overlapping=node.attrs["overlapping"])


def _places(sequence: Tensor, length: Tensor, overlapping: bool) -> tuple[Tensor, Tensor]:
    """As `_covered`, in the graph."""
    begins = raw.ExpandDims(raw.StridedSlice(sequence, [0], [-1], [1]), 1)
    following = raw.ExpandDims(raw.StridedSlice(sequence, [1], [0], [1], end_mask=1), 1)
    ends = raw.Minimum(following - (0 if overlapping else 1), length - 1)
    most = raw.Max(ends - begins, np.array([0, 1], np.int32)) + 1
    numbers = begins + raw.Range(raw.ZerosLike(most), most, raw.OnesLike(most))
    return raw.Minimum(numbers, ends), raw.LessEqual(numbers, ends)


def _of_max_pool_grad(
    dz: Tensor, z: Tensor, x: Tensor, y: Tensor, dy: Tensor, rows: Tensor, columns: Tensor, *, overlapping: bool
) -> Any:  # fmt: skip
    """What was handed to the largest entries is read from there again; the images get zeros."""
    shape = raw.Cast(raw.Shape(x), DstT="int64")
    row_places, column_places = (
        _places(sequence, entry(shape, k), overlapping)[0] for k, sequence in ((1, rows), (2, columns))
    )  # fmt: skip
    mask = first_largest(cut(x, row_places, column_places))
    picked = raw.Sum(mask * cut(dz, row_places, column_places), np.array([3], np.int32))
    return raw.ZerosLike(x), raw.ZerosLike(y), picked, None, None


def _of_average_pool_grad(
    dz: Tensor, z: Tensor, shape: Tensor, dy: Tensor, rows: Tensor, columns: Tensor, *, overlapping: bool
) -> Any:  # fmt: skip
    """The average by the same windows."""
    (row_places, row_real), (column_places, column_real) = (
        _places(sequence, entry(shape, k), overlapping) for k, sequence in ((1, rows), (2, columns))
    )  # fmt: skip
    weight = _product_of(row_real, column_real, dz)
    total = raw.Sum(weight * cut(dz, row_places, column_places), np.array([3], np.int32))
    return None, total / raw.Sum(weight, np.array([2], np.int32)), None, None


def _product_of(rows: Tensor, columns: Tensor, like: Tensor) -> Tensor:
    """[windows, windows, positions, 1]: 1 where the position is no repetition."""
    for axis in (1, 3):
        rows = raw.ExpandDims(rows, axis)
    for axis in (0, 2):
        columns = raw.ExpandDims(columns, axis)
    both = raw.Cast(raw.LogicalAnd(rows, columns), DstT=like.dtype)
    shape = raw.Shape(both)
    count = raw.Reshape(raw.Prod(part(shape, 2), np.array([0], np.int32)), np.array([1], np.int32))
    return raw.Reshape(both, raw.ConcatV2([part(shape, 0, 2), count, np.array([1], np.int32)], np.int32(0)))


# Examples and ops


def _shape(x: Tensor, *, pooling_ratio: Sequence[float]) -> list[Shape]:
    if x.shape is None:
        return [(None,) * 4, (None,), (None,)]
    counts = _counts(x.shape, pooling_ratio)
    ends: list[Shape] = [(None if count is None else count + 1,) for count in counts[1:3]]
    return [tuple(counts), *ends]


def _asked_shape(shape: Tensor, dy: Tensor, rows: Tensor, columns: Tensor) -> Shape:
    known = static.shape_value(shape)
    return (None,) * 4 if known is None else known


def _examples(draw: Any) -> list[Example]:
    x = draw.distinct(draw.size(0, 2), draw.size(2, 7), draw.size(2, 7), draw.size(0, 2))
    flags: dict[str, Any] = {
        "pseudo_random": bool(draw.size(0, 1)),
        "overlapping": bool(draw.size(0, 1)),
        "deterministic": True,
    }
    return [call(x, pooling_ratio=[1.0, 1.44, 1.73, 1.0], seed=3, seed2=draw.size(1, 9), **flags)]


def _grad_examples(draw: Any, *, largest: bool) -> list[Example]:
    rows, columns = np.array([0, 1, 3, 5]), np.cumsum([0, draw.size(1, 2), draw.size(1, 2)])
    x = draw.distinct(draw.size(0, 2), 5, int(columns[-1]), draw.size(0, 2))
    y = draw.normal(x.shape[0], 3, 2, x.shape[3])
    overlapping = bool(draw.size(0, 1))
    sources = (x, y, draw.normal(*y.shape)) if largest else (np.array(x.shape, np.int64), y)
    return [call(*sources, rows, columns, overlapping=overlapping)]


_KINDS = "T: float32|float64|int32|int64"
_ATTRS = (
    "pooling_ratio: list(float), pseudo_random: bool = false, overlapping: bool = false,"
    f" deterministic: bool = false, seed: int = 0, seed2: int = 0, {_KINDS}"
)
_OUTPUTS = "(output: T, row_pooling_sequence: int64, col_pooling_sequence: int64)"
_SEQUENCES = "row_pooling_sequence: int64, col_pooling_sequence: int64; overlapping: bool = false"
for _name, _kernel, _gradient in (
    ("FractionalMaxPool", _max_pool, _of_max_pool),
    ("FractionalAvgPool", _average_pool, _of_average_pool),
):
    define(
        f"{_name}(value: T; {_ATTRS}) -> {_OUTPUTS}",
        shape=_shape,
        gradient=_gradient,
        kernel=_kernel,
        stateful=True,
        dynamic=True,
        examples=_examples,
    )
define(
    f"FractionalMaxPoolGrad(orig_input: T, orig_output: T, out_backprop: T, {_SEQUENCES}, {_KINDS}) -> (output: T)",
    shape=lambda x, y, dy, rows, columns: x.shape,
    gradient=_of_max_pool_grad,
    kernel=_max_pool_grad,
    host=("row_pooling_sequence", "col_pooling_sequence"),
    examples=lambda draw: _grad_examples(draw, largest=True),
)
define(
    f"FractionalAvgPoolGrad(orig_input_tensor_shape: int64, out_backprop: T, {_SEQUENCES}, {_KINDS}) -> (output: T)",
    shape=_asked_shape,
    gradient=_of_average_pool_grad,
    kernel=_average_pool_grad,
    host=("orig_input_tensor_shape", "row_pooling_sequence", "col_pooling_sequence"),
    examples=lambda draw: _grad_examples(draw, largest=False),
)
