"""Strings: object arrays of bytes. None of these ops is differentiable.

Formats and edge cases are TensorFlow's: C's printf for numbers, base64 for the web, raw bytes in either order.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import codec, shapes, static
from gradserve.graph.dtypes import DType, float64
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import NOT_DIFFERENTIABLE, call, define, same_shape
from gradserve.graph.shapes import Shape
from gradserve.graph.variants import each
from gradserve.v1 import tensor_pb2

Array = np.ndarray[Any, Any]


def texts(*values: Any) -> Array:
    """An object array of these bytes."""
    array = np.empty(len(values), object)
    array[:] = values
    return array


def encoded(attr: str) -> bytes:
    """A string attr as bytes."""
    return attr.encode("utf-8", "surrogateescape")


_WORDS = texts(b"a b  c", b" d", b"")

# Numbers to strings and back


def _as_string(
    xp: Any, x: Any, *, T: DType, precision: int, scientific: bool, shortest: bool, width: int, fill: str
) -> Array:
    if scientific and shortest:
        raise InvalidArgument("AsString can be scientific or shortest, not both.")
    if fill not in ("", " ", "0", "-", "+", "#"):
        raise InvalidArgument(f"AsString can't fill with {fill!r}: give one of ' ', '0', '-', '+' or '#'.")
    if T.kind not in "fc" and (precision >= 0 or scientific or shortest):
        raise InvalidArgument(f"AsString knows precision, scientific and shortest for floats only, not for {T}.")
    wide = f"{fill}{width}" if width >= 0 else ""
    places = f".{precision}" if precision >= 0 else ""
    letter = "d" if T.is_integer else "s" if T.kind in "bs" else "e" if scientific else "g" if shortest else "f"
    form = f"%{wide}{places}{letter}"

    def number(value: float) -> str:
        return (form if np.isfinite(value) else form.replace("%0", "%")) % value

    def text(value: Any) -> bytes:
        if T.kind == "s":
            return value
        if T.is_complex:
            return f"({number(float(value.real))},{number(float(value.imag))})".encode()
        if T.is_floating:
            return number(float(value)).encode()
        return (form % (int(value) if T.is_integer else "true" if value else "false")).encode()

    return each(text, np.asarray(x).astype(object) if T.kind in "bsiu" else np.asarray(x))


define(
    "AsString(input: T; T: arithmetic|bool|string|variant, precision: int = -1, scientific: bool = false, shortest: bool = false,"
    " width: int = -1, fill: string = '') -> (output: string)",
    shape=same_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_as_string,
    dynamic=True,
    examples=lambda draw: [call(draw.integers(0, 9, *draw.shape())), call(draw.boolean(2)), call(_WORDS)],
)

_DECIMAL = re.compile(rb"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf(inity)?|nan)\Z", re.IGNORECASE)
_HEXADECIMAL = re.compile(rb"[+-]?0x[0-9a-f]+(\.[0-9a-f]*)?(p[+-]?\d+)?\Z", re.IGNORECASE)
_INTEGER = re.compile(rb"[+-]?\d+\Z")


def number_of(text: bytes, kind: DType) -> Any:
    """The number that a text is, as C's strtol and strtod read it. Raises InvalidArgument."""
    trimmed = text.strip()
    if kind.is_floating and _DECIMAL.match(trimmed):
        return float(trimmed)
    if kind.is_floating and _HEXADECIMAL.match(trimmed):
        return float.fromhex(trimmed.decode())
    if kind.is_integer and _INTEGER.match(trimmed):
        value, limits = int(trimmed), np.iinfo(kind.numpy)
        if limits.min <= value <= limits.max:
            return value
    raise InvalidArgument(f"{text!r} can't be read as a number of type {kind}.")


def _to_number(xp: Any, x: Any, *, out_type: DType) -> Array:
    with np.errstate(over="ignore"):
        values = [number_of(text, out_type) for text in x.reshape(-1)]
        if out_type.is_integer:
            return np.array(values, out_type.numpy).reshape(x.shape)
        return np.array(values, np.float64).astype(out_type.numpy).reshape(x.shape)


define(
    "StringToNumber(string_tensor: string; out_type: float32|float64|int32|int64|uint32|uint64 = float32)"
    " -> (output: out_type)",
    shape=same_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_to_number,
    dynamic=True,
    examples=lambda draw: [call(texts(b"1.5", b" -2e3 ", b"inf")), call(texts(b"7"), out_type="int64")],
)

# Joining and splitting


def _joined(xp: Any, inputs: list[Any], *, separator: str) -> Array:
    shape = np.broadcast_shapes(*(x.shape for x in inputs))
    if any(x.shape not in ((), shape) for x in inputs):
        raise InvalidArgument(f"Strings of shapes {[x.shape for x in inputs]} can't be joined: only scalars spread.")
    spread: list[Any] = [np.broadcast_to(x, shape) for x in inputs]
    rows = np.empty(shape, object)
    for place in np.ndindex(shape):
        rows[place] = encoded(separator).join(x[place] for x in spread)
    return rows


def _joined_shape(inputs: list[Tensor]) -> Shape:
    return next((x.shape for x in inputs if x.shape != ()), ())


define(
    "StringJoin(inputs: N * string; N: int, separator: string = '') -> (output: string)",
    shape=_joined_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_joined,
    dynamic=True,
    examples=lambda draw: [call([_WORDS, np.array(b"x", object)], separator="-")],
)


def _reduced(xp: Any, x: Any, axes: Any, *, keep_dims: bool, separator: str) -> Array:
    """The axis named first runs fastest."""
    chosen = [shapes.normalise_axis(int(axis), x.ndim) for axis in np.ravel(axes)]
    if len(set(chosen)) < len(chosen):
        raise InvalidArgument(f"The axes {list(axes)} to join along repeat.")
    if not chosen:
        return x
    kept = [axis for axis in range(x.ndim) if axis not in chosen]
    moved = np.transpose(x, [*kept, *reversed(chosen)])
    result = np.empty([x.shape[axis] for axis in kept], object)
    for place in np.ndindex(result.shape):
        result[place] = encoded(separator).join(moved[place].reshape(-1) if kept else moved.reshape(-1))
    return result.reshape([1 if axis in chosen else size for axis, size in enumerate(x.shape)]) if keep_dims else result


def _reduced_shape(x: Tensor, axes: Tensor, *, keep_dims: bool) -> Shape:
    known = static.value(axes)
    if x.shape is None or known is None:
        return None
    chosen = {shapes.normalise_axis(int(axis), len(x.shape)) for axis in known.reshape(-1)}
    if keep_dims:
        return tuple(1 if axis in chosen else size for axis, size in enumerate(x.shape))
    return tuple(size for axis, size in enumerate(x.shape) if axis not in chosen)


define(
    "ReduceJoin(inputs: string, reduction_indices: int32; keep_dims: bool = false, separator: string = '')"
    " -> (output: string)",
    shape=_reduced_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_reduced,
    host=("reduction_indices",),
    dynamic=True,
    examples=lambda draw: [
        call(_WORDS.reshape(1, 3), axes, keep_dims=keep)
        for axes in (np.array([0, 1], np.int32), np.array([-1], np.int32), np.array([], np.int32))
        for keep in (False, True)
    ],
)


def _table(rows: list[list[bytes]]) -> tuple[Array, Array, Array]:
    """Rows of different lengths as a sparse tensor."""
    at = [(row, place) for row, found in enumerate(rows) for place in range(len(found))]
    values = texts(*(text for found in rows for text in found))
    longest = max((len(found) for found in rows), default=0)
    return np.array(at, np.int64).reshape(-1, 2), values, np.array([len(rows), longest], np.int64)


def _split(xp: Any, x: Any, delimiter: Any, *, skip_empty: bool) -> tuple[Array, Array, Array]:
    """Each byte of the delimiter ends a piece; without one every byte is a piece."""
    letters = np.asarray(delimiter).reshape(-1)[0]
    ends = re.compile(b"[" + re.escape(letters) + b"]") if letters else None

    def pieces(text: bytes) -> list[bytes]:
        found = [text[k : k + 1] for k in range(len(text))] if ends is None else ends.split(text) if text else []
        return [piece for piece in found if piece or not skip_empty]

    return _table([pieces(text) for text in x])


def _split_at(xp: Any, x: Any, separator: Any, *, maxsplit: int) -> tuple[Array, Array, Array]:
    """As Python's bytes.split, without a separator at runs of white space; TensorFlow then counts an empty rest too."""
    ends = np.asarray(separator).item()

    def pieces(text: bytes) -> list[bytes]:
        if ends or maxsplit < 0:
            return text.split(ends or None, maxsplit)
        found = text.split(None, maxsplit) if maxsplit else [text]
        return [*found, b""] if len(found) == maxsplit else found

    return _table([pieces(text) for text in x])


_SPARSE = "(indices: int64, values: string, shape: int64)"
define(
    f"StringSplit(input: string, delimiter: string; skip_empty: bool = true) -> {_SPARSE}",
    shape=lambda x, delimiter: [(None, 2), (None,), (2,)],
    gradient=NOT_DIFFERENTIABLE,
    kernel=_split,
    dynamic=True,
    examples=lambda draw: [call(_WORDS, np.array(letters, object)) for letters in (b" ", b"", b"a ")],
)
define(
    f"StringSplitV2(input: string, sep: string; maxsplit: int = -1) -> {_SPARSE}",
    shape=lambda x, separator: [(None, 2), (None,), (2,)],
    gradient=NOT_DIFFERENTIABLE,
    kernel=_split_at,
    dynamic=True,
    examples=lambda draw: [call(_WORDS, np.array(separator, object), maxsplit=1) for separator in (b"", b" ")],
)

# Letters


def _lengths(xp: Any, x: Any, *, unit: str) -> Array:
    counted = [len(text if unit == "BYTE" else text.decode("utf-8", "replace")) for text in x.reshape(-1)]
    return np.array(counted, np.int32).reshape(x.shape)


define(
    "StringLength(input: string; unit: string = 'BYTE') -> (output: int32)",
    shape=same_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_lengths,
    dynamic=True,
    examples=lambda draw: [call(_WORDS)],
)


def _cased(text: bytes, encoding: str, upper: bool) -> bytes:
    """Letters of ASCII, or of Unicode where the encoding is utf-8."""
    if encoding:
        letters = text.decode("utf-8", "surrogateescape")
        return (letters.upper() if upper else letters.lower()).encode("utf-8", "surrogateescape")
    return text.upper() if upper else text.lower()


for _name in ("StringLower", "StringUpper"):
    define(
        f"{_name}(input: string; encoding: string = '') -> (output: string)",
        shape=same_shape,
        gradient=NOT_DIFFERENTIABLE,
        kernel=lambda xp, x, *, encoding, node: each(
            lambda text: _cased(text, encoding, node.type == "StringUpper"), x
        ),
        dynamic=True,
        examples=lambda draw: [call(_WORDS), call(_WORDS, encoding="utf-8")],
    )
define(
    "StringStrip(input: string) -> (output: string)",
    shape=same_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x: each(lambda text: text.strip(), x),
    dynamic=True,
    examples=lambda draw: [call(_WORDS)],
)

# Bytes


def _decoded(text: bytes) -> bytes:
    body = text.rstrip(b"=")
    if not re.fullmatch(rb"[A-Za-z0-9_-]*", body):
        raise InvalidArgument(f"{text[:40]!r} is no web-safe base64: it has a character outside of A-Z a-z 0-9 - _.")
    try:
        return base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4))
    except binascii.Error:
        raise InvalidArgument(f"{text[:40]!r} is no base64: its length is wrong.") from None


def _coded(text: bytes, pad: bool) -> bytes:
    code = base64.urlsafe_b64encode(text)
    return code if pad else code.rstrip(b"=")


define(
    "EncodeBase64(input: string; pad: bool = false) -> (output: string)",
    shape=same_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x, *, pad: each(lambda text: _coded(text, pad), x),
    dynamic=True,
    examples=lambda draw: [call(_WORDS)],
)
define(
    "DecodeBase64(input: string) -> (output: string)",
    shape=same_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x: each(_decoded, x),
    dynamic=True,
    examples=lambda draw: [call(texts(b"aGVsbG8_", b""))],
)


def _from_bytes(x: Any, length: int, kind: DType, little_endian: bool) -> Array:
    """Rows of numbers: the first `length` bytes of each string, zeros where it is shorter."""
    if length % kind.size:
        raise InvalidArgument(f"{length} bytes are no whole number of {kind} numbers of {kind.size} bytes.")
    order = kind.numpy if kind.size == 1 or little_endian else kind.numpy.newbyteorder(">")
    whole = b"".join(text[:length].ljust(length, b"\0") for text in x.reshape(-1))
    return np.frombuffer(whole, order).astype(kind.numpy).reshape(*x.shape, length // kind.size)


def _decode_raw(xp: Any, x: Any, *, out_type: DType, little_endian: bool) -> Array:
    lengths = {len(text) for text in x.reshape(-1)}
    if len(lengths) > 1:
        raise InvalidArgument(f"DecodeRaw wants strings of one length, but they have {sorted(lengths)[:5]} bytes.")
    return _from_bytes(x, max(lengths, default=0), out_type, little_endian)


_BYTES = (
    "float16|float32|float64|int16|int32|int64|int8|uint16|uint8, little_endian: bool = true) -> (output: out_type)"
)
define(
    f"DecodeRaw(bytes: string; out_type: bfloat16|bool|complex128|complex64|{_BYTES}",
    shape=lambda x: None if x.shape is None else (*x.shape, None),
    gradient=NOT_DIFFERENTIABLE,
    kernel=_decode_raw,
    dynamic=True,
    examples=lambda draw: [
        call(texts(b"\1\0\2\0", b"\3\0\4\0"), out_type=kind) for kind in ("int16", "uint8", "float32")
    ],
)
define(
    f"DecodePaddedRaw(input_bytes: string, fixed_length: int32; out_type: bfloat16|{_BYTES}",
    shape=lambda x, length, *, out_type: (
        None
        if x.shape is None
        else (*x.shape, None if (known := static.scalar(length)) is None else known // out_type.size)
    ),
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, x, length, *, out_type, little_endian: _from_bytes(x, int(length), out_type, little_endian),
    host=("fixed_length",),
    dynamic=True,
    examples=lambda draw: [call(texts(b"\1\0\2", b""), np.int32(4), out_type="int16")],
)


def _serialised(xp: Any, x: Any, *, T: DType) -> Array:
    result = np.empty((), object)
    result[()] = codec.array_to_message(np.asarray(x), T).SerializeToString(deterministic=True)
    return result


def _parsed(xp: Any, serialised: Any, *, out_type: DType, node: Node) -> Array:
    text = np.asarray(serialised).item()
    array = codec.array_from_message(tensor_pb2.TensorProto.FromString(text))
    if array.dtype != out_type.numpy:
        raise InvalidArgument(
            f"{node.name} (ParseTensor) wants a tensor of {out_type}, but the string holds one of {array.dtype}.",
            node=node.name,
        )
    return array


define(
    "SerializeTensor(tensor: T; T: type) -> (serialized: string)",
    shape=lambda x: (),
    gradient=NOT_DIFFERENTIABLE,
    kernel=_serialised,
    dynamic=True,
    examples=lambda draw: [call(draw.normal(*draw.shape()))],
)
define(
    "ParseTensor(serialized: string; out_type: type) -> (output: out_type)",
    gradient=NOT_DIFFERENTIABLE,
    kernel=_parsed,
    dynamic=True,
    examples=lambda draw: [call(_serialised(np, draw.normal(*draw.shape()), T=float64), out_type="float64")],
)
