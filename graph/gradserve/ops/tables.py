"""Lookup tables: keys and values that live with the variables of a session, under the name of the table.

A table is two arrays, `<name>/keys` [n], which rises, and `<name>/values` [n, ...]. A HashTable is filled once; a
mutable one is there, empty, from the moment when it is named.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from gradserve.errors import FailedPrecondition, InvalidArgument
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, define
from gradserve.graph.shapes import Shape

Array = np.ndarray[Any, Any]


def parts(table: str) -> tuple[str, str]:
    """The names under which a table's keys and values are held."""
    return f"{table}/keys", f"{table}/values"


def _parts(handle: Any) -> tuple[Any, Any]:
    """The handles of the keys and of the values."""
    keys, values = parts(handle.variable)
    return replace(handle, variable=keys), replace(handle, variable=values)


def _read(handle: Any, state: Any) -> tuple[Array, Array]:
    keys, values = _parts(handle)
    if not state.is_initialised(keys):
        raise FailedPrecondition(
            f"The table {handle.variable} is read before it is filled: run its initialiser first.",
            variable=handle.variable,
        )
    return state.read(keys), state.read(values)


def _write(handle: Any, keys: Array, values: Array, state: Any) -> None:
    key_handle, value_handle = _parts(handle)
    state.assign(key_handle, keys)
    state.assign(value_handle, values)


def _merged(keys: Array, values: Array) -> tuple[Array, Array]:
    """Keys in order; of repeated ones the last counts."""
    if len(keys) != len(values):
        raise InvalidArgument(f"A table needs a value for each key, not {len(values)} for {len(keys)}.")
    ordered, first = np.unique(keys[::-1], return_index=True)
    return ordered, values[::-1][first]


def _places(keys: Array, wanted: Array) -> tuple[Array, Array]:
    """Where each wanted key stands (any place where it doesn't), and whether it does."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return place, np.asarray(keys[place] == wanted, bool)


# Making tables


def _named(xp: Any, *, node: Node, state: Any) -> Any:
    return state.handle(node)


def _made(xp: Any, *sentinels: Any, key_dtype: DType, value_dtype: DType, node: Node, state: Any) -> Any:
    handle = state.handle(node)
    if not state.is_initialised(_parts(handle)[0]):
        shape = node.attrs.get("value_shape") or ()
        if None in shape:
            raise InvalidArgument(f"{node.name} ({node.type}): the shape of the values must be known, but is {shape}.")
        _write(handle, np.empty(0, key_dtype.numpy), np.empty((0, *shape), value_dtype.numpy), state)
    return handle


_NAMES = "container: string = '', shared_name: string = '', use_node_name_sharing: bool = false"
_TYPES = "key_dtype: type, value_dtype: type"
_DENSE = ", value_shape: shape = [], initial_num_buckets: int = 131072, max_load_factor: float = 0.800000011920929"

for _version, _handle in (("V2", "resource"), ("", "ref(string)")):
    define(
        f"HashTable{_version}(; {_NAMES}, {_TYPES}) -> (table_handle: {_handle})",
        shape=lambda: (),
        gradient=NOT_DIFFERENTIABLE,
        kernel=_named,
        stateful=True,
        dynamic=True,
    )
    for _name, _inputs, _more in (
        ("MutableHashTable", "", ""),
        ("MutableHashTableOfTensors", "", ", value_shape: shape = []"),
        ("MutableDenseHashTable", "empty_key: key_dtype" + (", deleted_key: key_dtype" if _version else ""), _DENSE),
    ):
        define(
            f"{_name}{_version}({_inputs}; {_NAMES}, {_TYPES}{_more}) -> (table_handle: {_handle})",
            shape=lambda *sentinels: (),
            gradient=NOT_DIFFERENTIABLE,
            kernel=_made,
            stateful=True,
            dynamic=True,
        )

# One without a name bears that of its node.
for _name, _inputs, _kernel, _more in (
    ("HashTable", "", _named, ""),
    ("MutableHashTable", "", _made, ""),
    ("MutableHashTableOfTensors", "", _made, ", value_shape: shape = []"),
    ("MutableDenseHashTable", "empty_key: key_dtype, deleted_key: key_dtype", _made, _DENSE),
):
    define(
        f"Anonymous{_name}({_inputs}; {_TYPES}{_more}) -> (table_handle: resource)",
        shape=lambda *sentinels: (),
        gradient=NOT_DIFFERENTIABLE,
        kernel=_kernel,
        stateful=True,
        dynamic=True,
    )

# Filling and reading them


def _fill(xp: Any, handle: Any, keys: Any, values: Any, *, state: Any) -> tuple[()]:
    ordered, kept = _merged(keys, values)
    place, _ = _places(ordered, keys)
    if not np.array_equal(kept[place], values):
        raise InvalidArgument(f"The table {handle.variable} would get two values for one key.")
    if state.is_initialised(_parts(handle)[0]):
        old_keys, old_values = _read(handle, state)
        if not np.array_equal(old_keys, ordered) or not np.array_equal(old_values, kept):
            raise FailedPrecondition(f"The table {handle.variable} is filled already, with other values.")
    _write(handle, ordered, kept, state)
    return ()


def _find(xp: Any, handle: Any, keys: Any, default: Any, *, Tout: DType, state: Any) -> Any:
    known, values = _read(handle, state)
    wanted = np.asarray(keys)
    place, there = _places(known, wanted.reshape(-1))
    found = np.empty((wanted.size, *values.shape[1:]), Tout.numpy)
    found[...] = default
    found[there] = values[place[there]]
    return found.reshape((*wanted.shape, *values.shape[1:]))


def _insert(xp: Any, handle: Any, keys: Any, values: Any, *, state: Any) -> tuple[()]:
    old_keys, old_values = _read(handle, state)
    new_keys = np.asarray(keys).reshape(-1)
    new_values = np.asarray(values).reshape(-1, *old_values.shape[1:])
    _write(
        handle, *_merged(np.concatenate([old_keys, new_keys]), np.concatenate([old_values, new_values])), state
    )  # fmt: skip
    return ()


def _replace(xp: Any, handle: Any, keys: Any, values: Any, *, state: Any) -> tuple[()]:
    _write(handle, *_merged(keys, values), state)
    return ()


def _remove(xp: Any, handle: Any, keys: Any, *, state: Any) -> tuple[()]:
    known, values = _read(handle, state)
    place, there = _places(known, np.asarray(keys).reshape(-1))
    kept = np.ones(len(known), bool)
    kept[place[there]] = False
    _write(handle, known[kept], values[kept], state)
    return ()


def _found_shape(handle: Tensor, keys: Tensor, default: Tensor) -> Shape:
    """The keys' shape, then that of one value: the default's, where it is as good as a value."""
    if keys.shape is None or default.shape is None:
        return None
    return (*keys.shape, *default.shape) if default.shape else keys.shape if _scalars(handle) else None


def _scalars(handle: Tensor) -> bool:
    """Whether the table is known to hold scalars."""
    kind = handle.node.type.removeprefix("Anonymous")
    return kind in ("HashTable", "HashTableV2", "MutableHashTable", "MutableHashTableV2")


for _version, _handle in (("V2", "resource"), ("", "ref(string)")):
    define(
        f"InitializeTable{_version}(table_handle: {_handle}, keys: Tkey, values: Tval; Tkey: type, Tval: type) -> ()",
        gradient=NOT_DIFFERENTIABLE,
        kernel=_fill,
        stateful=True,
        dynamic=True,
    )
    define(
        f"LookupTableFind{_version}(table_handle: {_handle}, keys: Tin, default_value: Tout; Tin: type, Tout: type)"
        " -> (values: Tout)",
        shape=_found_shape,
        gradient=NOT_DIFFERENTIABLE,
        kernel=_find,
        stateful=True,
        dynamic=True,
    )
    define(
        f"LookupTableInsert{_version}(table_handle: {_handle}, keys: Tin, values: Tout; Tin: type, Tout: type) -> ()",
        gradient=NOT_DIFFERENTIABLE,
        kernel=_insert,
        stateful=True,
        dynamic=True,
    )
    define(
        f"LookupTableSize{_version}(table_handle: {_handle}) -> (size: int64)",
        shape=lambda handle: (),
        gradient=NOT_DIFFERENTIABLE,
        kernel=lambda xp, handle, *, state: np.int64(len(_read(handle, state)[0])),
        stateful=True,
        dynamic=True,
    )
    define(
        f"LookupTableImport{_version}(table_handle: {_handle}, keys: Tin, values: Tout; Tin: type, Tout: type) -> ()",
        gradient=NOT_DIFFERENTIABLE,
        kernel=_replace,
        stateful=True,
        dynamic=True,
    )
    define(
        f"LookupTableExport{_version}(table_handle: {_handle}; Tkeys: type, Tvalues: type)"
        " -> (keys: Tkeys, values: Tvalues)",
        shape=lambda handle: [(None,), None],
        gradient=NOT_DIFFERENTIABLE,
        kernel=lambda xp, handle, *, state: _read(handle, state),
        stateful=True,
        dynamic=True,
    )
define(
    "LookupTableRemoveV2(table_handle: resource, keys: Tin; Tin: type) -> ()",
    gradient=NOT_DIFFERENTIABLE,
    kernel=_remove,
    stateful=True,
    dynamic=True,
)
