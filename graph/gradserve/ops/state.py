"""Variables: resources and TF1's references, reading and assigning.

A kernel gets the keyword `state`, which holds the values: `state.handle(node)` names a variable, `state.read` and
`state.assign` use it. What a step assigns is seen by what runs later in the step, and kept if the step succeeds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gradserve.graph import shapes
from gradserve.graph.checks import refuse_outside
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.handles import held_by
from gradserve.graph.op import NOT_DIFFERENTIABLE, Rule, define, raw
from gradserve.graph.shapes import Shape
from gradserve.ops.gather import combine, dense_gather_gradient, sparse_gradient

# Making, reading, assigning


def _handle(xp: Any, *, node: Node, state: Any) -> Any:
    return state.handle(node)


_NAMES = "container: string = '', shared_name: string = ''"

define(
    f"VarHandleOp(; {_NAMES}, debug_name: string = '', dtype: type, shape: shape, allowed_devices: list(string) = [])"
    " -> (resource: resource)",
    shape=lambda: (),
    gradient=NOT_DIFFERENTIABLE,
    kernel=_handle,
    stateful=True,
)
for _name in ("VariableV2", "Variable"):
    define(
        f"{_name}(; shape: shape, dtype: type, {_NAMES}) -> (ref: ref(dtype))",
        shape=lambda *, shape: shape,
        gradient=NOT_DIFFERENTIABLE,
        kernel=_handle,
        stateful=True,
    )
define(
    "ReadVariableOp(resource: resource; dtype: type) -> (value: dtype)",
    shape=lambda handle: held_by(handle)[1],
    gradient=lambda dy, y, handle: dy,
    kernel=lambda xp, handle, *, state: state.read(handle),
    stateful=True,
    takes_slices=True,
)


def _assigned(combination: Callable[[Any, Any], Any] | None) -> Rule:
    """A kernel that replaces the value, or combines it with the given one; returns the handle."""

    def kernel(xp: Any, handle: Any, value: Any, *, state: Any) -> Any:
        state.assign(handle, value if combination is None else combination(state.read(handle), value))
        return handle

    return kernel


def without_output(kernel: Rule) -> Rule:
    """The kernel for an op without outputs."""

    def run(xp: Any, *inputs: Any, state: Any) -> tuple[()]:
        kernel(xp, *inputs, state=state)
        return ()

    return run


for _name, _combination, _types, _tail in (
    ("Assign", None, "type", ", validate_shape: bool = false"),
    ("AssignAdd", lambda old, value: old + value, "number", ""),
    ("AssignSub", lambda old, value: old - value, "number", ""),
):
    define(
        f"{_name}VariableOp(resource: resource, value: dtype; dtype: type{_tail}) -> ()",
        gradient=NOT_DIFFERENTIABLE,
        kernel=without_output(_assigned(_combination)),
        stateful=True,
    )
    _default = "true, validate_shape: bool = true" if _name == "Assign" else "false"
    define(
        f"{_name}(ref: ref(T), value: T; T: {_types}, use_locking: bool = {_default}) -> (output_ref: ref(T))",
        shape=lambda ref, value: value.shape if value.shape is not None else ref.shape,
        gradient=NOT_DIFFERENTIABLE,
        kernel=_assigned(_combination),
        stateful=True,
    )
define(
    "RefIdentity(input: ref(T); T: type) -> (output: ref(T))",
    shape=lambda ref: ref.shape,
    gradient=lambda dy, y, ref: dy,
    kernel=lambda xp, handle: handle,
    stateful=True,
)
define(
    "VarIsInitializedOp(resource: resource) -> (is_initialized: bool)",
    shape=lambda handle: (),
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, handle, *, state: np.bool_(state.is_initialised(handle)),
    stateful=True,
)
define(
    "IsVariableInitialized(ref: ref(dtype); dtype: type) -> (is_initialized: bool)",
    shape=lambda ref: (),
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, handle, *, state: np.bool_(state.is_initialised(handle)),
    stateful=True,
)
define(
    "VariableShape(input: resource; out_type: index = int32) -> (output: out_type)",
    shape=lambda handle: (None if (held := held_by(handle)[1]) is None else len(held),),
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, handle, *, out_type, state: np.array(state.read(handle).shape, out_type.numpy),
    static=lambda handle, *, out_type: (
        np.array(held_by(handle)[1], out_type.numpy) if shapes.is_static(held_by(handle)[1]) else None
    ),
    stateful=True,
)
define(
    "DestroyResourceOp(resource: resource; ignore_lookup_error: bool = true) -> ()",
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, handle, *, state: state.forget(handle) or (),
    stateful=True,
)


# Reading and writing rows


def _variable_shape(handle: Tensor) -> Any:
    held = held_by(handle)[1]
    return np.array(held, np.int32) if shapes.is_static(held) else raw.VariableShape(handle)


def _looked_up(handle: Tensor, indices: Tensor, *, batch_dims: int) -> Shape:
    held = held_by(handle)[1]
    return None if held is None or indices.shape is None else (*indices.shape, *held[1 + batch_dims :])


def _look_up(xp: Any, handle: Any, indices: Any, *, batch_dims: int, state: Any) -> Any:
    value = state.read(handle)
    refuse_outside(indices, value.shape[batch_dims], "Index")
    if not batch_dims:
        return xp.take(value, indices, axis=0)
    rows = int(np.prod(indices.shape[:batch_dims], dtype=np.int64))
    flat = xp.reshape(value, (rows, *value.shape[batch_dims:]))
    chosen = flat[xp.arange(rows)[:, None], xp.reshape(indices, (rows, -1))]
    return xp.reshape(chosen, (*indices.shape, *value.shape[batch_dims + 1 :]))


def _look_up_gradient(dy: Tensor, y: Tensor, handle: Tensor, indices: Tensor, *, batch_dims: int) -> Any:
    if batch_dims:
        kept = raw.ReadVariableOp(handle, dtype=dy.dtype)
        return dense_gather_gradient(dy, kept, indices, np.int32(batch_dims), batch_dims), None
    return sparse_gradient(dy, handle, indices, _variable_shape(handle)), None


define(
    "ResourceGather(resource: resource, indices: Tindices; batch_dims: int = 0, validate_indices: bool = true,"
    " dtype: type, Tindices: index) -> (output: dtype)",
    shape=_looked_up,
    gradient=_look_up_gradient,
    kernel=_look_up,
    stateful=True,
)


def _look_up_rows(xp: Any, handle: Any, indices: Any, *, state: Any) -> Any:
    value = state.read(handle)
    columns = tuple(indices[..., axis] for axis in range(indices.shape[-1]))
    for axis, column in enumerate(columns):
        refuse_outside(column, value.shape[axis], f"Index of axis {axis}")
    return value[columns]


def _looked_up_rows(handle: Tensor, indices: Tensor) -> Shape:
    held = held_by(handle)[1]
    if held is None or indices.shape is None or indices.shape[-1] is None:
        return None
    return (*indices.shape[:-1], *held[indices.shape[-1] :])


def _look_up_rows_gradient(dy: Tensor, y: Tensor, handle: Tensor, indices: Tensor) -> Any:
    """As for GatherNd: IndexedSlices where the index rows have one entry, else dense."""
    shape = _variable_shape(handle)
    if indices.rank == 2 and indices.shape is not None and indices.shape[-1] == 1:
        return sparse_gradient(dy, handle, raw.Squeeze(indices, squeeze_dims=[-1]), shape), None
    wanted = shape.astype(indices.dtype.numpy) if isinstance(shape, np.ndarray) else raw.Cast(shape, DstT=indices.dtype)
    return raw.ScatterNd(indices, dy, wanted), None


define(
    "ResourceGatherNd(resource: resource, indices: Tindices; dtype: type, Tindices: index) -> (output: dtype)",
    shape=_looked_up_rows,
    gradient=_look_up_rows_gradient,
    kernel=_look_up_rows,
    stateful=True,
)


def _scattered(how: str) -> Rule:
    def kernel(xp: Any, handle: Any, indices: Any, updates: Any, *, state: Any) -> Any:
        value = state.read(handle)
        refuse_outside(indices, value.shape[0], "Index")
        state.assign(handle, combine(xp, how, value, indices, updates))
        return handle

    return kernel


for _name, _how, _types in (
    ("Update", "set", "type"),
    ("Add", "add", "number"),
    ("Sub", "subtract", "number"),
    ("Mul", "multiply", "number"),
    ("Max", "maximum", "floating|index"),
    ("Min", "minimum", "floating|index"),
):
    _resource_types = "type" if _name == "Update" else "number"
    define(
        f"ResourceScatter{_name}(resource: resource, indices: Tindices, updates: dtype; dtype: {_resource_types}, Tindices: index) -> ()",
        gradient=NOT_DIFFERENTIABLE,
        kernel=without_output(_scattered(_how)),
        stateful=True,
    )
    define(
        f"Scatter{_name}(ref: ref(T), indices: Tindices, updates: T; T: {_types}, Tindices: index,"
        f" use_locking: bool = {'true' if _name == 'Update' else 'false'}) -> (output_ref: ref(T))",
        shape=lambda ref, indices, updates: ref.shape,
        gradient=NOT_DIFFERENTIABLE,
        kernel=_scattered(_how),
        stateful=True,
    )
