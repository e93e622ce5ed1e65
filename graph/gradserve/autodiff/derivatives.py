"""Other derivatives on the same walk: along a direction, second ones times a vector, and whole matrices of them.

Everything here is `gradients` applied once or more, so it adds nodes and nothing else, names its nodes under a scope
of its own, and raises what `gradients` raises.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from gradserve.autodiff.aggregate import Cotangent
from gradserve.autodiff.gradients import gradients, live
from gradserve.errors import InvalidArgument, InvalidShape, InvalidType
from gradserve.graph import shapes
from gradserve.graph.graph import Graph, IndexedSlices, Tensor
from gradserve.graph.op import raw
from gradserve.graph.symbolic import concat
from gradserve.ops.slices import densify

MOST_ROWS = 4096
"""Of a Jacobian: each row is a backward graph of its own."""


def jvp(ys: Any, xs: Any, tangents: Any, name: str = "jvp") -> list[Tensor | None]:
    """The derivative of each y along `tangents`, one of x's shape and dtype for each x (forward mode).

    The gradient is linear in its seed u, and its transpose is the derivative along a direction: differentiated with
    respect to u, with the tangents as seeds, it gives Σ dy/dx · tangent.

    Returns: a tensor of y's shape and dtype for each y, or None where no x is connected to it.
    """
    y_list, x_list = _tensors("ys", ys), _tensors("xs", xs)
    along = _one_each("tangents", tangents, x_list)
    if not y_list:
        return []
    with _added_to(y_list[0].graph, name) as results:
        seeds = [raw.ZerosLike(y, name="seed") for y in y_list]
        found = _pulled(gradients(y_list, x_list, seeds, name="reverse"), seeds, along, name="along")
        results += [None if dy is None else densify(dy) for dy in found]
    return results


def hvp(y: Any, xs: Any, vectors: Any, name: str = "hvp") -> list[Cotangent | None]:
    """The Hessian of y (summed over its elements) times a vector, one of x's shape and dtype for each x.

    Returns: for each x what `gradients` would give, None where the gradient does not depend on it.
    """
    y_list, x_list = _tensors("y", y), _tensors("xs", xs)
    along = _one_each("vectors", vectors, x_list)
    if not y_list:
        return [None] * len(x_list)
    with _added_to(y_list[0].graph, name) as results:
        results += _pulled(gradients(y_list, x_list, name="first"), x_list, along, name="second")
    return results


def jacobian(y: Tensor, x: Tensor, name: str = "jacobian") -> Tensor | None:
    """All partial derivatives of y's elements with respect to x's, [*y's shape, *x's shape].

    For a y of one loss an example, these are the gradients by example.

    Returns: the tensor, or None where y does not depend on x.

    Raises:
        InvalidShape: the shape of y is not static, or it has more than MOST_ROWS elements.
    """
    (y,), (x,) = _tensors("y", [y]), _tensors("x", [x])
    sizes = _row_sizes(y)
    with _added_to(y.graph, name) as results:
        count = math.prod(sizes)
        units = np.eye(count, dtype=y.dtype.base.numpy).reshape(count, *sizes)
        rows = [gradients(y, x, unit, name="row")[0] for unit in units]
        tail = np.array(x.shape, np.int32) if shapes.is_static(x.shape) else raw.Shape(x)
        whole = concat(np.array(sizes, np.int32), tail)
        if not rows:
            results.append(raw.Fill(whole, raw.Cast(np.float32(0), DstT=x.dtype.base)))
        elif any(row is None for row in rows):
            results.append(None)
        else:
            results.append(raw.Reshape(raw.Pack([densify(row) for row in rows if row is not None]), whole))
    return results[0]


def hessian(y: Tensor, x: Tensor, name: str = "hessian") -> Tensor | None:
    """All second derivatives of y (summed over its elements), [*x's shape, *x's shape]; None where it is linear in x.

    Raises InvalidShape as `jacobian` does, here for the shape of x.
    """
    (y,), (x,) = _tensors("y", [y]), _tensors("x", [x])
    with _added_to(y.graph, name) as results:
        (slope,) = gradients(y, x, name="slope")
        results.append(None if slope is None else jacobian(densify(slope), x, name="rows"))
    return results[0]


@contextlib.contextmanager
def _added_to(graph: Graph, name: str) -> Generator[list[Any]]:
    """Yields a list for the results. Of the nodes added inside, those that a result needs stay; none if it raises."""
    results: list[Any] = []
    with graph.transaction() as start, graph.as_default(), graph.name_scope(name):
        yield results
        graph.keep(start, live(start, results))


def _pulled(
    found: Sequence[Cotangent | None], xs: Sequence[Tensor], along: Sequence[Any], name: str
) -> Sequence[Cotangent | None]:
    """The gradients of what was found, each seeded with what meets it of `along`."""
    ys: list[Tensor] = []
    seeds: list[Any] = []
    for dx, vector in zip(found, along, strict=True):
        if isinstance(dx, IndexedSlices):
            ys.append(dx.values)
            seeds.append(raw.GatherV2(vector, dx.indices, np.int32(0)))
        elif dx is not None:
            ys.append(dx)
            seeds.append(vector)
    return gradients(ys, xs, seeds, name=name) if ys else [None] * len(xs)


def _row_sizes(y: Tensor) -> list[int]:
    sizes = [] if y.shape is None else [int(size) for size in y.shape if size is not None]
    if y.shape is None or len(sizes) < len(y.shape):
        raise InvalidShape(f"The Jacobian of {y.name} needs its static shape, but it is {y.shape}.", tensor=y.name)
    if math.prod(sizes) > MOST_ROWS:
        raise InvalidShape(
            f"{y.name} has {math.prod(sizes)} elements and a Jacobian at most {MOST_ROWS} rows: use jvp, or gradients "
            "with grad_ys, for products with it.",
            tensor=y.name,
        )
    return sizes


def _tensors(what: str, values: Any) -> list[Tensor]:
    entries: list[Any] = list(values) if isinstance(values, (list, tuple)) else [values]
    for position, entry in enumerate(entries):
        if not isinstance(entry, Tensor):
            raise InvalidType(f"{what}[{position}] is {type(entry).__name__}, not a tensor.", position=position)
    return entries


def _one_each(what: str, values: Any, xs: Sequence[Tensor]) -> list[Any]:
    entries: list[Any] = list(values) if isinstance(values, (list, tuple)) else [values]
    if len(entries) != len(xs):
        raise InvalidArgument(f"There are {len(entries)} {what} for {len(xs)} xs: give one for each.")
    return entries
