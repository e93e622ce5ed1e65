"""Tensors as text for people to read: what `tf.print` and `tf.strings.format` are made of."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph.dtypes import DType
from gradserve.graph.op import NOT_DIFFERENTIABLE, call, define, scalar_shape
from gradserve.ops.strings import encoded

_ESCAPES = {
    ord("\n"): b"\\n",
    ord("\r"): b"\\r",
    ord("\t"): b"\\t",
    ord('"'): b'\\"',
    ord("'"): b"\\'",
    ord("\\"): b"\\\\",
}


def _quoted(text: bytes) -> bytes:
    """As C writes a string: what ASCII can't print in octal; other letters stay."""
    letters = (_ESCAPES.get(byte) or (b"\\%03o" % byte if byte < 32 or byte == 127 else bytes([byte])) for byte in text)
    return b'"' + b"".join(letters) + b'"'


def _number(value: float, kind: DType) -> str:
    """With as few digits as will do: 15 or 17 of a double, 6 or 9 of what is shorter."""
    few, many, back = (15, 17, np.float64) if kind.real.size == 8 else (6, 9, np.float32)
    short = f"{value:.{few}g}"
    return short if back(short) == back(value) or value != value else f"{value:.{many}g}"


def _entry(value: Any, kind: DType) -> bytes:
    if kind.kind == "s":
        return _quoted(value)
    if kind.kind == "c":
        return f"({_number(float(value.real), kind)},{_number(float(value.imag), kind)})".encode()
    if kind.kind == "f":
        return _number(float(value), kind).encode()
    return str(int(value)).encode()


def summarised(array: Any, kind: DType, count: int) -> bytes:
    """The first and the last `count` entries along every axis (all where it is negative), as `tf.print` shows them."""

    def shown(part: Any, depth: int) -> bytes:
        if part.ndim == 0:
            return _entry(part[()], kind)
        between = b" " if part.ndim == 1 else b"\n" * (part.ndim - 1) + b" " * (depth + 1)
        length = len(part)
        whole = count < 0 or length <= 2 * count
        places = range(length) if whole else [*range(count), *range(length - count, length)]
        pieces = [shown(part[place, ...], depth + 1) for place in places]
        if not whole:
            pieces.insert(count, b"...")
        return b"[" + between.join(pieces) + b"]"

    return shown(array, 0)


def _formatted(xp: Any, inputs: list[Any], *, T: list[DType], template: str, placeholder: str, summarize: int) -> Any:
    parts = encoded(template).split(encoded(placeholder)) if placeholder else [encoded(template)]
    if len(parts) != len(inputs) + 1:
        raise InvalidArgument(f"{template!r} has {len(parts) - 1} placeholders for {len(inputs)} tensors.")
    pieces = [parts[0]]
    for array, kind, part in zip(inputs, T, parts[1:], strict=True):
        pieces += [summarised(np.asarray(array), kind, summarize), part]
    result = np.empty((), object)
    result[()] = b"".join(pieces)
    return result


define(
    "StringFormat(inputs: T; T: list(type), template: string = '%s', placeholder: string = '%s', summarize: int = 3)"
    " -> (output: string)",
    shape=scalar_shape,
    gradient=NOT_DIFFERENTIABLE,
    kernel=_formatted,
    dynamic=True,
    examples=lambda draw: [
        call([draw.normal(*draw.shape()), draw.boolean(2)], template="x: {}, y: {}", placeholder="{}")
    ],
)
define(
    "PrintV2(input: string; output_stream: string = 'stderr', end: string = '\\n') -> ()",
    gradient=NOT_DIFFERENTIABLE,
    kernel=lambda xp, text: (),  # as Print: a server has no terminal of the client's
    stateful=True,
)
