"""Products of matrices."""

from __future__ import annotations

from gradserve.client.functions.convert import TensorLike, as_tensor, rank_of
from gradserve.graph.graph import Tensor
from gradserve.graph.op import raw


def matmul(a: TensorLike, b: TensorLike, *, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
    """A B, batched over leading axes; `transpose_…` takes the (conjugate) transpose of a batch's matrices."""
    left, right = as_tensor(a), as_tensor(b)
    if left.rank == 2 and right.rank == 2 and not left.dtype.is_complex:
        return raw.MatMul(left, right, transpose_a=transpose_a, transpose_b=transpose_b)
    return raw.BatchMatMulV2(left, right, adj_x=transpose_a, adj_y=transpose_b)


def dot(a: TensorLike, b: TensorLike) -> Tensor:
    """The inner product of two vectors."""
    left = as_tensor(a)
    return raw.Sum(raw.Mul(left, b), [0])


def outer(a: TensorLike, b: TensorLike) -> Tensor:
    """The outer product of two vectors."""
    left, right = as_tensor(a), as_tensor(b)
    return raw.Mul(raw.ExpandDims(left, 1), raw.ExpandDims(right, 0))


def einsum(equation: str, *xs: TensorLike) -> Tensor:
    """Sums of products after a formula such as "bij,bjk->bik"."""
    return raw.Einsum([as_tensor(x) for x in xs], equation=equation)


def matrix_transpose(x: TensorLike) -> Tensor:
    """The last two axes swapped."""
    tensor = as_tensor(x)
    rank = rank_of(tensor, "matrix_transpose")
    return raw.Transpose(tensor, [*range(rank - 2), rank - 1, rank - 2])
