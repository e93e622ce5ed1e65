"""What the functions share: arguments to tensors, axes to constants, rows of a table to functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Tensor
from gradserve.graph.op import current_graph, raw

TensorLike = Any
"""A Tensor, or a Python value or array that becomes a constant."""
Axis = int | tuple[int, ...] | list[int] | None


def as_tensor(x: TensorLike) -> Tensor:
    """x, or a constant of it in the current graph."""
    return x if isinstance(x, Tensor) else current_graph().constant(x)


def axes_of(x: Tensor, axis: Axis) -> Any:
    """The axes to reduce: those given, all of them for None."""
    if axis is not None:
        return np.array(axis, np.int32)
    return raw.Range(0, raw.Rank(x), 1) if x.rank is None else np.arange(x.rank, dtype=np.int32)


def rank_of(x: Tensor, what: str) -> int:
    """The rank. Raises InvalidArgument where it is not known."""
    if x.rank is None:
        raise InvalidArgument(f"The rank of {x.name} is not known, and {what} needs it.", tensor=x.name)
    return x.rank


def integers(values: Any) -> Any:
    """Shapes, multiples and the like: an int32 array unless a tensor is among them."""
    if isinstance(values, Tensor):
        return values
    if isinstance(values, (list, tuple)) and any(isinstance(value, Tensor) for value in values):
        return raw.Pack(list(values))
    return np.array(values, np.int32)


def unary(op: str, says: str) -> Callable[[TensorLike], Tensor]:
    """A function of one tensor."""

    def function(x: TensorLike) -> Tensor:
        return getattr(raw, op)(as_tensor(x))

    return _named(function, op, says)


def binary(op: str, says: str) -> Callable[[TensorLike, TensorLike], Tensor]:
    """A function of two tensors, broadcast together."""

    def function(x: TensorLike, y: TensorLike) -> Tensor:
        return getattr(raw, op)(x, y)

    return _named(function, op, says)


def reduction(op: str, says: str) -> Callable[..., Tensor]:
    """A function `(x, axis=None, keepdims=False)`; None reduces over all axes."""

    def function(x: TensorLike, axis: Axis = None, keepdims: bool = False) -> Tensor:
        tensor = as_tensor(x)
        return getattr(raw, op)(tensor, axes_of(tensor, axis), keep_dims=keepdims)

    return _named(function, op, says)


def _named(function: Callable[..., Tensor], op: str, says: str) -> Callable[..., Tensor]:
    function.__name__ = function.__qualname__ = op
    function.__doc__ = f"{says} (The op {op}.)"
    return function
