"""Training examples read from their messages: what a served model of `tf.io.parse_example` begins with.

An Example is a map from names to features, each a list of strings, floats or integers. A dense feature has as many
values in each example, or is padded to the longest; a sparse or ragged one has as many as there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import MISSING, Example, call, define
from gradserve.graph.shapes import Shape
from gradserve.ops import messages
from gradserve.ops.messages import fields
from gradserve.ops.strings import encoded, texts

Array = np.ndarray[Any, Any]
Values = list[Any]

KINDS = {1: "string", 2: "float32", 3: "int64"}
_SIGNED = 1 << 63

# Messages


def _integers(way: int, value: int | bytes) -> Values:
    if isinstance(value, int):
        numbers = [value]
    elif way == messages.BYTES:
        numbers, at = list[int](), 0
        while at < len(value):
            number, at = messages.read_varint(value, at)
            numbers.append(number)
    else:
        raise InvalidArgument("An integer feature holds something else.")
    return [(number ^ _SIGNED) - _SIGNED for number in numbers]


def _floats(way: int, value: int | bytes) -> Values:
    if isinstance(value, int) or way == messages.EIGHT_BYTES or len(value) % 4:
        raise InvalidArgument("A float feature holds something else.")
    return np.frombuffer(value, "<f4").tolist()


def _strings(way: int, value: int | bytes) -> Values:
    if way != messages.BYTES:
        raise InvalidArgument("A string feature holds something else.")
    return [value]


_READERS = {1: _strings, 2: _floats, 3: _integers}


def read_feature(text: bytes) -> tuple[int, Values] | None:
    """Its kind (as in `KINDS`) and its values; None where it is empty."""
    found = None
    for kind, _, entries in fields(text):
        if kind in _READERS and isinstance(entries, bytes):
            found = kind, [entry for _, way, value in fields(entries) for entry in _READERS[kind](way, value)]
    return found


def parts(text: bytes, number: int) -> list[bytes]:
    return [value for field, _, value in fields(text) if field == number and isinstance(value, bytes)]


def _features(text: bytes) -> dict[bytes, bytes]:
    """Each feature by its name, still serialised; of several with one name the last counts."""
    entries = [entry for features in parts(text, 1) for entry in parts(features, 1)]
    return {b"".join(parts(entry, 1)): b"".join(parts(entry, 2)) for entry in entries}


class Examples:
    """Serialised examples [batch], or a single one."""

    def __init__(self, serialised: Any, names: Any, node: Node) -> None:
        self.single = np.ndim(serialised) == 0
        if np.ndim(serialised) > 1:
            raise InvalidArgument(f"{node.name}: wants one example or a vector of them, not {np.shape(serialised)}.")
        self._node = node
        self._names = [repr(name) for name in np.ravel(names).tolist()]
        self._rows: list[dict[bytes, bytes]] = []
        for row, text in enumerate(np.ravel(serialised).tolist()):
            try:
                self._rows.append(_features(text))
            except InvalidArgument as error:
                raise self.error(row, f"is no serialised Example. {error}") from None

    def error(self, row: int, what: str) -> InvalidArgument:
        name = self._names[row] if row < len(self._names) else f"number {row}"
        return InvalidArgument(f"{self._node.name}: example {name} {what}", node=self._node.name)

    def values(self, key: bytes, kind: DType) -> list[Values | None]:
        """Of each example; None where it lacks the feature."""
        found: list[Values | None] = []
        for row, features in enumerate(self._rows):
            feature = read_feature(features[key]) if key in features else None
            if feature is not None and KINDS[feature[0]] != kind.name:
                raise self.error(row, f"has values of {KINDS[feature[0]]} for {key!r}, which must be {kind.name}.")
            found.append(None if feature is None else feature[1])
        return found


# Tensors of them


def _array(values: Values, kind: DType) -> Array:
    return texts(*values) if kind.kind == "s" else np.array(values, kind.numpy)


def joined(rows: list[Values], kind: DType) -> Array:
    return _array([value for row in rows for value in row], kind)


def sparse_of(examples: Examples, key: bytes, kind: DType) -> tuple[Array, Array, Array]:
    rows = [row or [] for row in examples.values(key, kind)]
    at = [(number, place) for number, row in enumerate(rows) for place in range(len(row))]
    shape = [len(rows), max(map(len, rows), default=0)]
    first = 1 if examples.single else 0
    indices = np.array(at, np.int64).reshape(-1, 2)[:, first:]
    return indices, joined(rows, kind), np.array(shape[first:], np.int64)


def ragged_of(examples: Examples, key: bytes, kind: DType, splits: DType) -> tuple[Array, Array]:
    rows = [row or [] for row in examples.values(key, kind)]
    ends = [] if examples.single else np.cumsum([0, *map(len, rows)])
    return joined(rows, kind), np.array(ends, splits.numpy)


def dense_of(examples: Examples, key: bytes, kind: DType, shape: Shape, default: Any) -> Array:
    """[batch, *shape], or the shape alone of a single example."""
    sizes = tuple(shape or ())
    if any(size is None for size in sizes[1:]):
        raise InvalidArgument(f"Only the first axis of the dense feature {key!r} can be open, but it is {sizes}.")
    stride = math.prod(size for size in sizes[1:] if size is not None)
    rows = examples.values(key, kind)
    fill = np.ravel(default).tolist()
    if sizes and sizes[0] is None:
        return _padded(examples, key, kind, (stride, sizes[1:]), [row or [] for row in rows], fill)
    count = stride * (sizes[0] or 0) if sizes else 1
    whole: list[Values] = []
    for number, row in enumerate(rows):
        if row is None and len(fill) != count:
            raise examples.error(number, f"lacks the feature {key!r}, which has no default.")
        if row is not None and len(row) != count:
            raise examples.error(number, f"has {len(row)} values for {key!r}, which takes {count}.")
        whole.append(fill if row is None else row)
    return joined(whole, kind).reshape([*([] if examples.single else [len(rows)]), *(size or 0 for size in sizes)])


def _padded(
    examples: Examples, key: bytes, kind: DType, form: tuple[int, Any], rows: list[Values], fill: Values
) -> Array:
    """Short examples are filled up to the longest."""
    stride, inner = form
    for number, row in enumerate(rows):
        if len(row) % max(stride, 1):
            raise examples.error(number, f"has {len(row)} values for {key!r}, which takes multiples of {stride}.")
    longest = max(map(len, rows), default=0)
    if len(fill) != 1 and not examples.single:
        raise InvalidArgument(f"The feature {key!r} is padded: its default must be one value, not {len(fill)}.")
    whole = joined([row + fill * (longest - len(row)) for row in rows], kind)
    return whole.reshape(*([] if examples.single else [len(rows)]), longest // max(stride, 1), *inner)


# The ops


def _parsed(
    examples: Examples, sparse: Sequence[tuple[bytes, DType]], dense: Sequence[tuple[bytes, DType, Shape, Any]],
    ragged: Sequence[tuple[bytes, DType, DType]] = (),
) -> list[Array]:  # fmt: skip
    columns = [sparse_of(examples, *entry) for entry in sparse]
    rows = [ragged_of(examples, *entry) for entry in ragged]
    return [
        *(column[part] for part in range(3) for column in columns),
        *(dense_of(examples, *entry) for entry in dense),
        *(row[part] for part in range(2) for row in rows),
    ]


def texts_of(keys: Any) -> list[bytes]:
    return [np.asarray(key, object).item() for key in keys]


def _batch(
    xp: Any, serialised: Any, names: Any, sparse: Any, dense: Any, defaults: list[Any], *, sparse_types: list[DType],
    Tdense: list[DType], dense_shapes: list[Shape], node: Node,
) -> list[Array]:  # fmt: skip
    wanted = zip(texts_of(dense), Tdense, dense_shapes, defaults, strict=True)
    examples = Examples(serialised, names, node)
    return _parsed(examples, list(zip(texts_of(sparse), sparse_types, strict=True)), list(wanted))


def _batch_with_ragged(
    xp: Any, serialised: Any, names: Any, sparse: Any, dense: Any, ragged: Any, defaults: list[Any], *,
    sparse_types: list[DType], Tdense: list[DType], dense_shapes: list[Shape], ragged_value_types: list[DType],
    ragged_split_types: list[DType], node: Node,
) -> list[Array]:  # fmt: skip
    return _parsed(
        Examples(serialised, names, node),
        list(zip(texts_of(sparse), sparse_types, strict=True)),
        list(zip(texts_of(dense), Tdense, dense_shapes, defaults, strict=True)),
        list(zip(texts_of(ragged), ragged_value_types, ragged_split_types, strict=True)),
    )


def _single(
    xp: Any, serialised: Any, defaults: list[Any], *, sparse_keys: list[str], dense_keys: list[str],
    sparse_types: list[DType], Tdense: list[DType], dense_shapes: list[Shape], node: Node,
) -> list[Array]:  # fmt: skip
    return _parsed(
        Examples(serialised, [], node),
        list(zip(map(encoded, sparse_keys), sparse_types, strict=True)),
        list(zip(map(encoded, dense_keys), Tdense, dense_shapes, defaults, strict=True)),
    )


def _shapes(serialised: Tensor, *others: Any, node: Node) -> list[Shape]:
    attrs = node.attrs
    sparse, ragged = len(attrs["sparse_types"]), len(attrs.get("ragged_value_types", ()))
    if serialised.shape is None:
        rank, lead = None, None
    else:
        rank, lead = 1 + len(serialised.shape), serialised.shape
    dense: list[Shape] = [None if lead is None or shape is None else (*lead, *shape) for shape in attrs["dense_shapes"]]
    return [*[(None, rank)] * sparse, *[(None,)] * sparse, *[(rank,)] * sparse, *dense, *[(None,)] * (2 * ragged)]


def _message(**features: tuple[int, bytes]) -> bytes:
    """An Example of features of such kinds, whose lists are given as they are serialised."""
    entries = [
        messages.bytes_field(1, name.encode()) + messages.bytes_field(2, messages.bytes_field(kind, values))
        for name, (kind, values) in features.items()
    ]
    return messages.bytes_field(1, b"".join(messages.bytes_field(1, entry) for entry in entries))


_ONE = _message(
    x=(2, messages.bytes_field(1, np.array([1.5, 2.5], "<f4").tobytes())),
    w=(1, messages.bytes_field(1, b"p") + messages.bytes_field(1, b"q")),
)
_OTHER = _message(x=(2, messages.bytes_field(1, bytes(8))), i=(3, messages.bytes_field(1, b"\x07")))


def _examples(ragged: bool) -> Any:
    def examples(draw: Any) -> list[Example]:
        serialised = texts(*[_ONE, _OTHER][: draw.size(0, 2)])
        sparse, dense = texts(b"w"), texts(b"x", b"i")
        keys: Any = [sparse, dense, texts(b"i")] if ragged else [list(map(_scalar, sparse)), list(map(_scalar, dense))]
        defaults = [np.zeros(0, np.float32), np.array([3])]
        attrs: dict[str, Any] = {"sparse_types": ["string"], "dense_shapes": [(2,), (1,)]}
        if ragged:
            keys[1], defaults, attrs["dense_shapes"] = texts(b"x"), defaults[:1], [(2,)]
            attrs |= {"num_sparse": 1, "ragged_value_types": ["int64"], "ragged_split_types": ["int32"]}
        return [call(serialised, texts(), *keys, defaults, **attrs)]

    return examples


def _scalar(text: Any) -> Array:
    return np.array(text, object)


_KIND = "list(float32|int64|string)"
_SPARSE = "sparse_indices: {0} * int64, sparse_values: sparse_types, sparse_shapes: {0} * int64, dense_values: Tdense"
define(
    "ParseExample(serialized: string, names: string, sparse_keys: Nsparse * string, dense_keys: Ndense * string,"
    f" dense_defaults: Tdense; Nsparse: int, Ndense: int, sparse_types: {_KIND}, Tdense: {_KIND},"
    f" dense_shapes: list(shape)) -> ({_SPARSE.format('Nsparse')})",
    shape=_shapes, gradient=MISSING, kernel=_batch, dynamic=True, examples=_examples(False),
)  # fmt: skip
define(
    "ParseExampleV2(serialized: string, names: string, sparse_keys: string, dense_keys: string, ragged_keys: string,"
    f" dense_defaults: Tdense; Tdense: {_KIND}, num_sparse: int, sparse_types: {_KIND}, ragged_value_types: {_KIND},"
    " ragged_split_types: list(index), dense_shapes: list(shape))"
    f" -> ({_SPARSE.format('num_sparse')}, ragged_values: ragged_value_types, ragged_row_splits: ragged_split_types)",
    shape=_shapes, gradient=MISSING, kernel=_batch_with_ragged, dynamic=True, examples=_examples(True),
)  # fmt: skip
define(
    "ParseSingleExample(serialized: string, dense_defaults: Tdense; num_sparse: int, sparse_keys: list(string),"
    f" dense_keys: list(string), sparse_types: {_KIND}, Tdense: {_KIND}, dense_shapes: list(shape))"
    f" -> ({_SPARSE.format('num_sparse')})",
    shape=_shapes, gradient=MISSING, kernel=_single, dynamic=True,
    examples=lambda draw: [
        call(_scalar(_ONE), [np.zeros(0, np.float32)], num_sparse=1, sparse_keys=["w"], dense_keys=["x"],
             sparse_types=["string"], dense_shapes=[(2,)])
    ],
)  # fmt: skip
