"""Products of matrices, of batches of them, Einstein sums, and the cross product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument, InvalidShape
from gradserve.graph import shapes
from gradserve.graph.graph import Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.shapes import Dimension, Shape
from gradserve.graph.symbolic import shape_of
from gradserve.graph.unbroadcast import unbroadcast
from gradserve.ops.precision import widen


def _inner(a: Dimension, b: Dimension, x: Shape, y: Shape) -> None:
    if a is not None and b is not None and a != b:
        raise InvalidShape(f"The inner dimensions of {x} and {y} must be equal, but are {a} and {b}.", a=x, b=y)


# One matrix times one matrix


def _matmul_shape(a: Tensor, b: Tensor, *, transpose_a: bool, transpose_b: bool) -> Shape:
    for side in (a, b):
        if side.rank not in (None, 2):
            raise InvalidShape(f"{side.name} must be a matrix, but has shape {side.shape}.", tensor=side.name)
    left = (None, None) if a.shape is None else a.shape
    right = (None, None) if b.shape is None else b.shape
    _inner(left[0 if transpose_a else 1], right[1 if transpose_b else 0], a.shape, b.shape)
    return left[1 if transpose_a else 0], right[0 if transpose_b else 1]


def _matmul(xp: Any, a: Any, b: Any, *, transpose_a: bool, transpose_b: bool) -> Any:
    left, right = widen(xp, a), widen(xp, b)
    product = xp.matmul(left.T if transpose_a else left, right.T if transpose_b else right)
    return product.astype(a.dtype, copy=False)


def _matmul_gradient(
    dc: Tensor, c: Tensor, a: Tensor, b: Tensor, *, transpose_a: bool, transpose_b: bool
) -> tuple[Tensor, Tensor]:
    """dA = dC Bᵀ, dB = Aᵀ dC, and their transposes.   Giles 2008, section 2.2.2."""
    if not transpose_a:
        da = raw.MatMul(dc, b, transpose_b=not transpose_b)
    else:
        da = raw.MatMul(b, dc, transpose_a=transpose_b, transpose_b=True)
    if not transpose_b:
        db = raw.MatMul(a, dc, transpose_a=not transpose_a)
    else:
        db = raw.MatMul(dc, a, transpose_a=True, transpose_b=transpose_a)
    return da, db


def _matmul_examples(draw: Any, *domains: str) -> list[Example]:
    m, k, n = draw.size(), draw.size(), draw.size()
    ta, tb = bool(draw.size(0, 1)), bool(draw.size(0, 1))
    domain = getattr(draw, draw.pick(domains))
    a, b = domain(*((k, m) if ta else (m, k))), domain(*((n, k) if tb else (k, n)))
    return [call(a, b, transpose_a=ta, transpose_b=tb)]


define(
    "MatMul(a: T, b: T; transpose_a: bool = false, transpose_b: bool = false,"
    " T: inexact|index|uint8|uint16|uint32|uint64, grad_a: bool = false,"
    " grad_b: bool = false) -> (product: T)",
    shape=_matmul_shape,
    gradient=_matmul_gradient,
    kernel=_matmul,
    holomorphic=True,
    examples=lambda draw: _matmul_examples(draw, "normal", "complex"),
)


def _sparse_matmul(xp: Any, a: Any, b: Any, *, transpose_a: bool, transpose_b: bool) -> Any:
    left, right = a.astype(xp.float32), b.astype(xp.float32)
    return xp.matmul(left.T if transpose_a else left, right.T if transpose_b else right)


def _sparse_matmul_gradient(
    dc: Tensor, c: Tensor, a: Tensor, b: Tensor, *, transpose_a: bool, transpose_b: bool
) -> tuple[Tensor, Tensor]:
    """As for MatMul; sparse only hints at many zeros."""
    wide = [raw.Cast(side, DstT="float32") if side.dtype.name != "float32" else side for side in (a, b)]
    both = _matmul_gradient(dc, c, wide[0], wide[1], transpose_a=transpose_a, transpose_b=transpose_b)
    narrow = [
        raw.Cast(d, DstT=side.dtype) if side.dtype.name != "float32" else d
        for d, side in zip(both, (a, b), strict=True)
    ]
    return narrow[0], narrow[1]


define(
    "SparseMatMul(a: Ta, b: Tb; transpose_a: bool = false, transpose_b: bool = false, a_is_sparse: bool = false,"
    " b_is_sparse: bool = false, Ta: bfloat16|float32 = float32, Tb: bfloat16|float32 = float32) -> (product: float32)",
    shape=_matmul_shape,
    gradient=_sparse_matmul_gradient,
    kernel=_sparse_matmul,
    examples=lambda draw: [
        call(*(side.astype(np.float32) for side in example.inputs), step=0.1, **example.attrs)
        for example in _matmul_examples(draw, "normal")
    ],
)


# Batches of matrices


def _batch_shape(x: Tensor, y: Tensor, *, adj_x: bool, adj_y: bool) -> Shape:
    if x.shape is None or y.shape is None:
        return None
    for side in (x, y):
        if side.rank is not None and side.rank < 2:
            raise InvalidShape(f"{side.name} must have rank 2 or more, but has shape {side.shape}.", tensor=side.name)
    _inner(x.shape[-2 if adj_x else -1], y.shape[-1 if adj_y else -2], x.shape, y.shape)
    batch = shapes.broadcast(x.shape[:-2], y.shape[:-2])
    rows, columns = x.shape[-1 if adj_x else -2], y.shape[-2 if adj_y else -1]
    return None if batch is None else (*batch, rows, columns)


def _adjoint(xp: Any, x: Any) -> Any:
    return xp.conj(xp.swapaxes(x, -1, -2))


def _batch_matmul(xp: Any, x: Any, y: Any, *, adj_x: bool, adj_y: bool) -> Any:
    left, right = widen(xp, x), widen(xp, y)
    product = xp.matmul(_adjoint(xp, left) if adj_x else left, _adjoint(xp, right) if adj_y else right)
    return product.astype(x.dtype)


def _batch_matmul_mixed(xp: Any, x: Any, y: Any, *, adj_x: bool, adj_y: bool, Tout: Any) -> Any:
    wide = [
        side.astype(np.result_type(Tout.numpy, np.float32)) if Tout.size == 2 else side.astype(Tout.numpy)
        for side in (x, y)
    ]
    product = xp.matmul(_adjoint(xp, wide[0]) if adj_x else wide[0], _adjoint(xp, wide[1]) if adj_y else wide[1])
    return product.astype(Tout.numpy)


def _batch_gradient(dz: Tensor, z: Tensor, x: Tensor, y: Tensor, *, adj_x: bool, adj_y: bool) -> tuple[Tensor, Tensor]:
    """dX = dZ Yᴴ, dY = Xᴴ dZ, and their adjoints; the sweep sums over broadcast batch axes."""

    def product(a: Tensor, b: Tensor, adj_a: bool, adj_b: bool, like: Tensor) -> Tensor:
        if dz.dtype is like.dtype and a.dtype is b.dtype:
            return raw.BatchMatMulV2(a, b, adj_x=adj_a, adj_y=adj_b)
        return raw.BatchMatMulV3(a, b, Tout=like.dtype, adj_x=adj_a, adj_y=adj_b)

    dx = product(y, dz, adj_y, True, x) if adj_x else product(dz, y, False, not adj_y, x)
    dy = product(dz, x, True, adj_x, y) if adj_y else product(x, dz, not adj_x, False, y)
    return dx, dy


def _batch_examples(draw: Any) -> list[Example]:
    m, k, n = draw.size(), draw.size(), draw.size()
    before, beside = draw.broadcastable_shapes()
    ax, ay = bool(draw.size(0, 1)), bool(draw.size(0, 1))
    domain = draw.pick([draw.normal, draw.complex])
    x = domain(*before[:2], *((k, m) if ax else (m, k)))
    y = domain(*beside[:2] if len(before) < 3 and len(beside) < 3 else (), *((n, k) if ay else (k, n)))
    return [call(x, y, adj_x=ax, adj_y=ay)]


for _name, _types in (
    ("BatchMatMul", "inexact|index"),
    ("BatchMatMulV2", "inexact|index|int16|uint8|uint16|uint32|uint64"),
):
    define(
        f"{_name}(x: T, y: T; T: {_types}, adj_x: bool = false, adj_y: bool = false, grad_x: bool = false,"
        " grad_y: bool = false) -> (output: T)",
        shape=_batch_shape,
        gradient=_batch_gradient,
        kernel=_batch_matmul,
        broadcasts=True,
        examples=_batch_examples,
    )
_MIXED = "inexact|index|int16"
define(
    f"BatchMatMulV3(x: Ta, y: Tb; Ta: {_MIXED}|int8|uint8, Tb: {_MIXED}|int8|uint8, Tout: {_MIXED}, adj_x: bool = false,"
    " adj_y: bool = false, grad_x: bool = false, grad_y: bool = false) -> (output: Tout)",
    shape=_batch_shape,
    gradient=_batch_gradient,
    kernel=_batch_matmul_mixed,
    broadcasts=True,
    examples=lambda draw: [
        call(draw.normal(*draw.shape(1, 2), n := draw.size()), draw.normal(n, draw.size()), Tout="float64"),
        call(draw.complex(2, n), draw.complex(n, draw.size()), Tout="complex128"),
    ],
)


# Einstein sums

_ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _parse(equation: str, count: int) -> tuple[list[str], str]:
    """The labels of the inputs and of the output. Raises InvalidArgument."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    sides = left.split(",")
    if not arrow or len(sides) != count or count not in (1, 2):
        raise InvalidArgument(
            f"The equation {equation!r} does not fit {count} inputs: write 'ab,bc->ac'.", equation=equation
        )
    known = set(left.replace("...", "").replace(",", ""))
    unknown = set(right.replace("...", "")) - known
    if unknown:
        raise InvalidArgument(
            f"The equation {equation!r} has output labels without input: {sorted(unknown)}.", equation=equation
        )
    return sides, right


def _split_shape(labels: str, shape: tuple[Dimension, ...]) -> tuple[dict[str, Dimension], tuple[Dimension, ...]]:
    """Sizes by label, and the shape of the ellipsis. Raises InvalidShape."""
    head, dots, tail = labels.partition("...")
    middle = len(shape) - len(head) - len(tail)
    if middle < 0 or (middle and not dots):
        raise InvalidShape(f"The labels {labels!r} do not fit the shape {shape}.", labels=labels, shape=shape)
    sizes: dict[str, Dimension] = {}
    for label, size in [*zip(head, shape, strict=False), *zip(tail, shape[len(head) + middle :], strict=True)]:
        sizes[label] = shapes.merge_dimension(sizes.get(label), size)
    return sizes, shape[len(head) : len(head) + middle]


def _einsum_shape(inputs: Sequence[Tensor], *, equation: str) -> Shape:
    sides, right = _parse(equation, len(inputs))
    sizes: dict[str, Dimension] = {}
    batch: Shape = ()
    for labels, tensor in zip(sides, inputs, strict=True):
        if tensor.shape is None:
            return None if "..." in right else (None,) * len(right)
        own, middle = _split_shape(labels, tensor.shape)
        for label, size in own.items():
            known = sizes.get(label)
            sizes[label] = (
                size if known in (None, 1) else known if size in (None, 1) else shapes.merge_dimension(known, size)
            )
        batch = shapes.broadcast(batch, middle)
    head, dots, tail = right.partition("...")
    if dots and batch is None:
        return None
    return (*(sizes[label] for label in head), *(batch or ()), *(sizes[label] for label in tail))


def _einsum(xp: Any, inputs: Sequence[Any], *, equation: str) -> Any:
    """NumPy's einsum, and labels that occur twice in the output (a diagonal is filled)."""
    sides, right = _parse(equation, len(inputs))
    wide = [widen(xp, value) for value in inputs]
    labels = right.replace("...", "")
    fresh = iter(label for label in _ALPHABET if label not in set("".join(sides)))
    seen: set[str] = set()
    renamed = ""
    position = 0
    for label in labels:
        if label not in seen:
            seen.add(label)
            renamed += label
            continue
        other = next(fresh)
        size = next(
            value.shape[side.index(label) if "..." not in side[: side.index(label)] else side.index(label) - len(side)]
            for side, value in zip(sides, wide, strict=True) if label in side
        )  # fmt: skip
        sides.append(label + other)
        wide.append(xp.eye(size, dtype=wide[0].dtype))
        renamed += other
    if "..." in right:
        position = right.index("...")
        renamed = f"{renamed[:position]}...{renamed[position:]}"
    result = xp.einsum(f"{','.join(sides)}->{renamed}", *wide, optimize=True)
    return xp.asarray(result).astype(inputs[0].dtype)


def _einsum_gradient(dy: Tensor, y: Tensor, inputs: Sequence[Tensor], *, equation: str) -> list[list[Tensor]]:
    sides, right = _parse(equation, len(inputs))
    if len(inputs) == 1:
        return [[_operand_gradient(dy, right, sides[0], inputs[0], None, "")]]
    (a, b), (left, other) = inputs, sides
    return [[_operand_gradient(dy, right, left, a, b, other), _operand_gradient(dy, right, other, b, a, left)]]


def _operand_gradient(dy: Tensor, out: str, own: str, x: Tensor, other: Tensor | None, beside: str) -> Tensor:
    """The Einstein sum of dy and the other operand over the labels of x.

    Labels that only x has were summed over: dx is constant along them. An ellipsis may have been broadcast: it is
    led to the front, summed, and put back.
    """
    labels = own.replace("...", "")
    available = set(out) | set(beside)
    unique = "".join(dict.fromkeys(labels))
    shared = "".join(label for label in unique if label in available)
    dots = "..." if "..." in own else ""
    operands, sides = ([dy], out) if other is None else ([dy, other], f"{out},{beside}")
    batch = "..." if "..." in sides else ""
    dx = raw.Einsum(operands, equation=f"{sides}->{batch}{shared}")
    front = x if own == dots + unique else raw.Einsum([x], equation=f"{own}->{dots}{unique}")
    if shared != unique:
        dx = _insert(dx, shared, unique, front)
    dx = unbroadcast(dx, front)
    return dx if front is x else raw.Einsum([dx], equation=f"{dots}{unique}->{own}")


def _insert(dx: Tensor, shared: str, unique: str, like: Tensor) -> Tensor:
    """dx with an axis for each label that it lacks, broadcast to the sizes of `like`."""
    missing = [k - len(unique) for k, label in enumerate(unique) if label not in shared]
    for axis in sorted(missing):
        # Axes are counted from the end; those further right are still missing.
        later = sum(other > axis for other in missing)
        dx = raw.ExpandDims(dx, np.int32(axis + later))
    return raw.BroadcastTo(dx, _joint_shape(dx, like))


def _joint_shape(a: Tensor, b: Tensor) -> Any:
    joint = shapes.broadcast(a.shape, b.shape)
    if shapes.is_static(joint):
        return np.array(joint, np.int32)
    return raw.BroadcastArgs(raw.Shape(a), shape_of(b))


def _einsum_examples(draw: Any) -> list[Example]:
    a, b, c = draw.size(0, 3), draw.size(0, 3), draw.size(0, 3)
    domain = draw.pick([draw.normal, draw.complex])
    return [
        call([domain(a, b), domain(b, c)], equation="ab,bc->ac"),
        call([domain(a, b)], equation="ab->ba"),
        call([domain(a, b)], equation="ab->a"),
        call([domain(a, b), domain(b)], equation="ab,b->"),
        call([domain(a, a)], equation="aa->a"),
        call([domain(a)], equation="a->aa"),
        call([domain(2, a, b), domain(b, c)], equation="...ab,bc->...ac"),
        call([domain(2, 1, a, b), domain(3, b, c)], equation="...ab,...bc->...ac"),
        call([domain(a, b), domain(c)], equation="ab,c->c"),
        call([domain(a, 2, b)], equation="a...b->b..."),
    ]


define(
    "Einsum(inputs: N * T; equation: string, N: int, T: type) -> (output: T)",
    shape=_einsum_shape,
    gradient=_einsum_gradient,
    kernel=_einsum,
    holomorphic=True,
    examples=_einsum_examples,
)
define(
    "XlaEinsum(a: T, b: T; equation: string, T: bfloat16|complex64|float32) -> (product: T)",
    shape=lambda a, b, *, equation: _einsum_shape([a, b], equation=equation),
    gradient=lambda dy, y, a, b, *, equation: _einsum_gradient(dy, y, [a, b], equation=equation)[0],
    kernel=lambda xp, a, b, *, equation: _einsum(xp, [a, b], equation=equation),
    holomorphic=True,
    examples=lambda draw: [
        call(
            draw.normal(draw.size(), n := draw.size()).astype(np.float32),
            draw.normal(n, draw.size()).astype(np.float32),
            equation="ab,bc->ac",
            step=0.5,
        )
    ],
)

# The cross product

define(
    "Cross(a: T, b: T; T: real) -> (product: T)",
    shape=lambda a, b: shapes.merge(a.shape, b.shape),
    gradient=lambda dc, c, a, b: (raw.Cross(b, dc), raw.Cross(dc, a)),
    kernel=lambda xp, a, b: xp.cross(a, b),
    examples=lambda draw: [call(draw.normal(*(s := draw.shape(0, 2)), 3), draw.normal(*s, 3))],
)
