"""Training examples that are sequences: a context, read as an Example's features, and lists of features, one a step.

A dense list has as many values in each step, and is padded with zeros to the longest sequence; a sparse or ragged one
has as many as there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import MISSING, Example, call, define
from gradserve.graph.shapes import Shape
from gradserve.ops import messages
from gradserve.ops.parse_examples import (
    KINDS,
    Examples,
    Values,
    dense_of,
    joined,
    parts,
    ragged_of,
    read_feature,
    sparse_of,
    texts_of,
)
from gradserve.ops.strings import encoded, texts

Array = np.ndarray[Any, Any]
Steps = list[Values]

# Lists of features


class _Sequences(Examples):
    """Serialised sequence examples [batch], or a single one."""

    def __init__(self, serialised: Any, names: Any, node: Node) -> None:
        super().__init__(serialised, names, node)
        self._lists = [_lists(text) for text in np.ravel(serialised).tolist()]

    def steps(self, key: bytes, kind: DType) -> list[Steps | None]:
        """The values of each step, of each example; None where it lacks the list."""
        return [
            None if key not in lists else [self._values(row, key, text, kind) for text in lists[key]]
            for row, lists in enumerate(self._lists)
        ]

    def _values(self, row: int, key: bytes, text: bytes, kind: DType) -> Values:
        found = read_feature(text)
        if found is not None and KINDS[found[0]] != kind.name:
            raise self.error(row, f"has values of {KINDS[found[0]]} in the list {key!r}, which must be {kind.name}.")
        return [] if found is None else found[1]


def _lists(text: bytes) -> dict[bytes, list[bytes]]:
    """Each list's features by its name, still serialised."""
    entries = [entry for lists in parts(text, 2) for entry in parts(lists, 1)]
    return {
        b"".join(parts(entry, 1)): [step for held in parts(entry, 2) for step in parts(held, 1)] for entry in entries
    }


# Tensors of them


def _sparse_list(examples: _Sequences, key: bytes, kind: DType) -> tuple[Array, Array, Array]:
    rows = [steps or [] for steps in examples.steps(key, kind)]
    at = [
        (row, step, place)
        for row, steps in enumerate(rows)
        for step, values in enumerate(steps)
        for place in range(len(values))
    ]
    most = max((len(values) for steps in rows for values in steps), default=0)
    shape = [len(rows), max(map(len, rows), default=0), most]
    first = 1 if examples.single else 0
    indices = np.array(at, np.int64).reshape(-1, 3)[:, first:]
    return indices, joined([values for steps in rows for values in steps], kind), np.array(shape[first:], np.int64)


def _ragged_list(examples: _Sequences, key: bytes, kind: DType, splits: DType) -> tuple[Array, Array, Array]:
    """The values, where each example's steps end, and where each step's values end."""
    rows = [steps or [] for steps in examples.steps(key, kind)]
    steps = [values for row in rows for values in row]
    outer = [] if examples.single else np.cumsum([0, *map(len, rows)])
    return joined(steps, kind), np.array(outer, splits.numpy), np.cumsum([0, *map(len, steps)]).astype(splits.numpy)


def _dense_list(examples: _Sequences, key: bytes, kind: DType, shape: Shape, may_lack: bool) -> tuple[Array, Array]:
    """[batch, steps, *shape], or without the batch of a single example; and the number of steps."""
    if shape is None or None in shape:
        raise InvalidArgument(f"The shape of a step of {key!r} must be known, but is {shape}.")
    count = math.prod(size or 0 for size in shape)
    found = examples.steps(key, kind)
    rows: list[Steps] = []
    for number, steps in enumerate(found):
        if steps is None and not may_lack:
            raise examples.error(number, f"lacks the list {key!r}, which is not said to be empty where it is missing.")
        for values in steps or []:
            if len(values) != count:
                raise examples.error(number, f"has {len(values)} values in a step of {key!r}, which takes {count}.")
        rows.append(steps or [])
    longest = max(map(len, rows), default=0)
    nothing: Values = [b"" if kind.kind == "s" else 0] * count
    padded = [values for steps in rows for values in [*steps, *[nothing] * (longest - len(steps))]]
    lengths = np.array([len(steps) for steps in rows], np.int64)
    whole = joined(padded, kind).reshape(len(rows), longest, *(size or 0 for size in shape))
    return (whole[0], lengths[0]) if examples.single else (whole, lengths)


# The ops


def _parsed(
    examples: _Sequences,
    node: Node,
    keys: Mapping[str, Sequence[bytes]],
    defaults: Sequence[Any],
    may_lack: Sequence[bool],
) -> list[Array]:
    """All outputs in order; `keys` by the kind of what they name."""
    attrs = node.attrs

    def columns(read: Any, name: str, *more: Iterable[Any]) -> list[tuple[Array, ...]]:
        """What is read of each key, one tuple an output."""
        found = [read(examples, *entry) for entry in zip(keys[name], *more, strict=True)]
        return list(zip(*found, strict=True))

    context = columns(sparse_of, "context_sparse", attrs["context_sparse_types"])
    dense = columns(
        lambda *entry: (dense_of(*entry),),
        "context_dense",
        attrs["Tcontext_dense"],
        attrs["context_dense_shapes"],
        defaults,
    )
    lists = columns(_sparse_list, "feature_list_sparse", attrs["feature_list_sparse_types"])
    steps = columns(
        _dense_list,
        "feature_list_dense",
        attrs["feature_list_dense_types"],
        attrs["feature_list_dense_shapes"],
        may_lack,
    )
    ragged: list[tuple[Array, ...]] = []
    ragged_lists: list[tuple[Array, ...]] = []
    if "context_ragged" in keys:
        kinds = attrs["context_ragged_value_types"], attrs["context_ragged_split_types"]
        ragged = columns(ragged_of, "context_ragged", *kinds)
        kinds = attrs["feature_list_ragged_value_types"], attrs["feature_list_ragged_split_types"]
        ragged_lists = columns(_ragged_list, "feature_list_ragged", *kinds)
    if node.type == "ParseSingleSequenceExample":
        steps = steps[:1]
    groups = [*context, *dense, *ragged, *lists, *steps, *ragged_lists]
    return [array for group in groups for array in group]


def _batch(xp: Any, serialised: Any, names: Any, defaults: list[Any], *, node: Node) -> list[Array]:
    attrs = node.attrs
    kinds = ("context_sparse", "context_dense", "feature_list_sparse", "feature_list_dense")
    keys = {kind: list(map(encoded, attrs[f"{kind}_keys"])) for kind in kinds}
    empty = set(map(encoded, attrs["feature_list_dense_missing_assumed_empty"]))
    may_lack = [key in empty for key in keys["feature_list_dense"]]
    return _parsed(_Sequences(serialised, names, node), node, keys, defaults, may_lack)


def _batch_with_ragged(
    xp: Any, serialised: Any, names: Any, context_sparse: Any, context_dense: Any, context_ragged: Any,
    list_sparse: Any, list_dense: Any, list_ragged: Any, may_lack: Any, defaults: list[Any], *, node: Node,
) -> list[Array]:  # fmt: skip
    keys = {
        "context_sparse": context_sparse, "context_dense": context_dense, "context_ragged": context_ragged,
        "feature_list_sparse": list_sparse, "feature_list_dense": list_dense, "feature_list_ragged": list_ragged,
    }  # fmt: skip
    named = {kind: texts_of(entries) for kind, entries in keys.items()}
    return _parsed(_Sequences(serialised, names, node), node, named, defaults, np.ravel(may_lack).tolist())


def _single(
    xp: Any, serialised: Any, empty: Any, context_sparse: Any, context_dense: Any, list_sparse: Any, list_dense: Any,
    defaults: list[Any], name: Any, *, node: Node,
) -> list[Array]:  # fmt: skip
    if np.ndim(serialised):
        raise InvalidArgument(f"{node.name}: wants one example, not {np.shape(serialised)}.", node=node.name)
    keys = {
        "context_sparse": context_sparse, "context_dense": context_dense, "feature_list_sparse": list_sparse,
        "feature_list_dense": list_dense,
    }  # fmt: skip
    named = {kind: texts_of(entries) for kind, entries in keys.items()}
    may_lack = [key in np.ravel(empty).tolist() for key in named["feature_list_dense"]]
    return _parsed(_Sequences(serialised, name, node), node, named, defaults, may_lack)


def _shapes(serialised: Tensor, *others: Any, node: Node) -> list[Shape]:
    attrs, lead = node.attrs, serialised.shape
    rank = None if lead is None else len(lead)

    def sparse(kinds: Sequence[Any], axes: int) -> list[Shape]:
        width = None if rank is None else rank + axes
        return [*[(None, width)] * len(kinds), *[(None,)] * len(kinds), *[(width,)] * len(kinds)]

    def dense(shapes: Sequence[Shape], *steps: None) -> list[Shape]:
        return [None if lead is None or shape is None else (*lead, *steps, *shape) for shape in shapes]

    lists, single = attrs["feature_list_dense_shapes"], node.type == "ParseSingleSequenceExample"
    return [
        *sparse(attrs["context_sparse_types"], 1),
        *dense(attrs["context_dense_shapes"]),
        *[(None,)] * (2 * len(attrs.get("context_ragged_value_types", ()))),
        *sparse(attrs["feature_list_sparse_types"], 2),
        *dense(lists, None),
        *([] if single else [lead] * len(lists)),
        *[(None,)] * (3 * len(attrs.get("feature_list_ragged_value_types", ()))),
    ]


def _entry(name: bytes, value: bytes) -> bytes:
    return messages.bytes_field(1, messages.bytes_field(1, name) + messages.bytes_field(2, value))


def _integers(*numbers: int) -> bytes:
    return messages.bytes_field(3, b"".join(messages.integer_field(1, number) for number in numbers))


def _list(*steps: bytes) -> bytes:
    return b"".join(messages.bytes_field(1, step) for step in steps)


_ONE = messages.bytes_field(1, _entry(b"c", _integers(5, 6)) + _entry(b"d", _integers(7))) + messages.bytes_field(
    2, _entry(b"s", _list(_integers(1, 2), b"", _integers(3))) + _entry(b"e", _list(_integers(8, 9)))
)
_OTHER = messages.bytes_field(1, _entry(b"d", _integers(4)))


def _attrs(**more: Any) -> dict[str, Any]:
    return {
        "context_sparse_types": ["int64"], "context_dense_shapes": [(1,)], "feature_list_sparse_types": ["int64"],
        "feature_list_dense_types": ["int64"], "feature_list_dense_shapes": [(2,)], **more,
    }  # fmt: skip


def _scalar(text: bytes) -> Array:
    return np.array(text, object)


def _batch_examples(draw: Any) -> list[Example]:
    rows = texts(*[_ONE, _OTHER][: draw.size(0, 2)])
    keys = {
        "context_sparse_keys": ["c"], "context_dense_keys": ["d"], "feature_list_sparse_keys": ["s"],
        "feature_list_dense_keys": ["e"], "feature_list_dense_missing_assumed_empty": ["e"], "Ncontext_sparse": 1,
        "Ncontext_dense": 1, "Nfeature_list_sparse": 1, "Nfeature_list_dense": 1,
    }  # fmt: skip
    return [call(rows, texts(), [np.zeros(0, np.int64)], **_attrs(**keys))]


def _ragged_examples(draw: Any) -> list[Example]:
    keys = [texts(b"c"), texts(b"d"), texts(b"c"), texts(b"s"), texts(b"e"), texts(b"s")]
    kinds = {
        f"{part}_ragged_{what}_types": [kind]
        for part in ("context", "feature_list")
        for what, kind in (("value", "int64"), ("split", "int32"))
    }
    counts = {"Ncontext_sparse": 1, "Nfeature_list_sparse": 1, "Nfeature_list_dense": 1}
    rows = draw.pick([texts(_ONE, _OTHER), texts(), _scalar(_ONE)])
    return [call(rows, texts(), *keys, np.array([True]), [np.zeros(0, np.int64)], **_attrs(**kinds, **counts))]


_KIND = "list(float32|int64|string)"
_CONTEXT = (
    "context_sparse_indices: Ncontext_sparse * int64, context_sparse_values: context_sparse_types,"
    " context_sparse_shapes: Ncontext_sparse * int64, context_dense_values: Tcontext_dense"
)
_LISTS = (
    "feature_list_sparse_indices: Nfeature_list_sparse * int64, feature_list_sparse_values: feature_list_sparse_types,"
    " feature_list_sparse_shapes: Nfeature_list_sparse * int64, feature_list_dense_values: feature_list_dense_types"
)
_LENGTHS = "feature_list_dense_lengths: Nfeature_list_dense * int64"
_COUNTS = (
    "Ncontext_sparse: int = 0, Ncontext_dense: int = 0, Nfeature_list_sparse: int = 0, Nfeature_list_dense: int = 0"
)
_TYPES = (
    f"context_sparse_types: {_KIND} = [], Tcontext_dense: {_KIND} = [], feature_list_dense_types: {_KIND} = [],"
    f" context_dense_shapes: list(shape) = [], feature_list_sparse_types: {_KIND} = [],"
    " feature_list_dense_shapes: list(shape) = []"
)
_KEYS = (
    "context_sparse_keys: list(string), context_dense_keys: list(string), feature_list_sparse_keys: list(string),"
    " feature_list_dense_keys: list(string)"
)
define(
    "ParseSequenceExample(serialized: string, debug_name: string, context_dense_defaults: Tcontext_dense;"
    f" feature_list_dense_missing_assumed_empty: list(string), {_KEYS}, {_COUNTS}, {_TYPES})"
    f" -> ({_CONTEXT}, {_LISTS}, {_LENGTHS})",
    shape=_shapes, gradient=MISSING, kernel=_batch, dynamic=True, examples=_batch_examples,
)  # fmt: skip
define(
    "ParseSequenceExampleV2(serialized: string, debug_name: string, context_sparse_keys: string,"
    " context_dense_keys: string, context_ragged_keys: string, feature_list_sparse_keys: string,"
    " feature_list_dense_keys: string, feature_list_ragged_keys: string,"
    " feature_list_dense_missing_assumed_empty: bool, context_dense_defaults: Tcontext_dense;"
    " Ncontext_sparse: int = 0, Nfeature_list_sparse: int = 0, Nfeature_list_dense: int = 0,"
    f" context_ragged_value_types: {_KIND} = [], context_ragged_split_types: list(index) = [],"
    f" feature_list_ragged_value_types: {_KIND} = [], feature_list_ragged_split_types: list(index) = [], {_TYPES})"
    f" -> ({_CONTEXT}, context_ragged_values: context_ragged_value_types,"
    f" context_ragged_row_splits: context_ragged_split_types, {_LISTS}, {_LENGTHS},"
    " feature_list_ragged_values: feature_list_ragged_value_types,"
    " feature_list_ragged_outer_splits: feature_list_ragged_split_types,"
    " feature_list_ragged_inner_splits: feature_list_ragged_split_types)",
    shape=_shapes, gradient=MISSING, kernel=_batch_with_ragged, dynamic=True, examples=_ragged_examples,
)  # fmt: skip
define(
    "ParseSingleSequenceExample(serialized: string, feature_list_dense_missing_assumed_empty: string,"
    " context_sparse_keys: Ncontext_sparse * string, context_dense_keys: Ncontext_dense * string,"
    " feature_list_sparse_keys: Nfeature_list_sparse * string, feature_list_dense_keys: Nfeature_list_dense * string,"
    f" context_dense_defaults: Tcontext_dense, debug_name: string; {_COUNTS}, {_TYPES}) -> ({_CONTEXT}, {_LISTS})",
    shape=_shapes, gradient=MISSING, kernel=_single, dynamic=True,
    examples=lambda draw: [
        call(_scalar(draw.pick([_ONE, _OTHER])), texts(b"e"), *([_scalar(key)] for key in (b"c", b"d", b"s", b"e")),
             [np.zeros(0, np.int64)], _scalar(b"name"), **_attrs())
    ],
)  # fmt: skip
