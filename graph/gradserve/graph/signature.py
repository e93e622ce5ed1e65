"""What an op takes and gives, read from one line of text.

    MatMul(a: T, b: T; T: number, transpose_a: bool = false) -> (product: T)

Before the semicolon stand the inputs, after it the attrs, behind the arrow the outputs; names are TensorFlow's.
An input or output is `T` (one tensor whose dtype is the attr T), `int32` (a fixed dtype), `N * T` (a list of N
tensors of one dtype), `Tin` where `Tin: list(type)` (a list of any dtypes), or `ref(T)` (a TF1 reference).
An attr is `T: number` (a type out of named sets and single ones, `floating|int32`, or any, `type`), `int`, `float`,
`bool`, `string`, `shape`, `tensor`, `func`, or `list(...)` of one, with an optional default (that of a tensor is its
dtype and its entries: `tensor = uint8 [255, 0]`).
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradserve.graph import dtypes
from gradserve.graph.dtypes import DType

_FLOAT = (dtypes.bfloat16, dtypes.float16, dtypes.float32, dtypes.float64)
_COMPLEX = (dtypes.complex64, dtypes.complex128)
_INTEGER = tuple(
    dtypes.as_dtype(name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
)
_QUANTISED = (dtypes.qint8, dtypes.quint8, dtypes.qint32, dtypes.qint16, dtypes.quint16)

TYPE_SETS: dict[str, frozenset[DType]] = {
    "number": frozenset(_FLOAT + _COMPLEX + _INTEGER + _QUANTISED),
    "arithmetic": frozenset(_FLOAT + _COMPLEX + _INTEGER),
    "ordered": frozenset(_FLOAT + _INTEGER + _QUANTISED),
    "summable": frozenset((*_FLOAT, *_COMPLEX, *_INTEGER, *_QUANTISED, dtypes.variant)),
    "real": frozenset(_FLOAT + _INTEGER),
    "inexact": frozenset(_FLOAT + _COMPLEX),
    "floating": frozenset(_FLOAT),
    "complex": frozenset(_COMPLEX),
    "factorable": frozenset((dtypes.float16, dtypes.float32, dtypes.float64, *_COMPLEX)),
    "integer": frozenset(_INTEGER),
    "index": frozenset((dtypes.int32, dtypes.int64)),
}
REQUIRED: Any = object()


@dataclass(frozen=True, slots=True)
class Argument:
    """One input or output: its dtype is fixed, or named by an attr; it may stand for a list of tensors."""

    name: str
    dtype: DType | None = None
    type_attr: str = ""
    number_attr: str = ""
    type_list_attr: str = ""
    is_reference: bool = False

    @property
    def is_list(self) -> bool:
        return bool(self.number_attr or self.type_list_attr)


@dataclass(frozen=True, slots=True)
class Attr:
    """One attr: kind as in the module's docstring, `allowed` types (None: all), `default` or REQUIRED."""

    name: str
    kind: str
    allowed: frozenset[DType] | None = None
    default: Any = REQUIRED


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs, attrs and outputs of one op.

    Attributes:
        typed_attrs: the attrs whose types are restricted.
        has_lists: whether an input or output stands for a list.
    """

    name: str
    inputs: tuple[Argument, ...]
    attrs: dict[str, Attr]
    outputs: tuple[Argument, ...]
    typed_attrs: tuple[Attr, ...] = ()
    has_lists: bool = False


_LINE = re.compile(r"\s*(\w+)\s*\((.*?)(?:;(.*))?\)\s*->\s*\(?(.*?)\)?\s*$", re.DOTALL)


def parse(text: str) -> Signature:
    """The signature that one line describes. Raises ValueError where it can't be read."""
    match = _LINE.match(text)
    if match is None:
        raise ValueError(f"{text!r} is not a signature.")
    name, inputs, attr_text, outputs = match.groups()
    attrs = {attr.name: attr for attr in map(_attr, _split(attr_text or ""))}
    arguments = [tuple(_argument(part, attrs) for part in _split(side)) for side in (inputs, outputs)]
    return Signature(
        name,
        arguments[0],
        attrs,
        arguments[1],
        tuple(attr for attr in attrs.values() if attr.allowed is not None),
        any(argument.is_list for side in arguments for argument in side),
    )


def _split(text: str) -> list[str]:
    """Parts between the commas that stand outside brackets and quotes."""
    parts: list[str] = []
    depth, start, quoted = 0, 0, False
    for position, character in enumerate(text):
        if character == "'":
            quoted = not quoted
        elif not quoted and character in "([":
            depth += 1
        elif not quoted and character in ")]":
            depth -= 1
        elif character == "," and depth == 0 and not quoted:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return [part.strip() for part in parts if part.strip()]


def _argument(text: str, attrs: dict[str, Attr]) -> Argument:
    name, _, kind = (part.strip() for part in text.partition(":"))
    is_reference = kind.startswith("ref(")
    if is_reference:
        kind = kind[4:-1].strip()
    number = ""
    if "*" in kind:
        number, kind = (part.strip() for part in kind.split("*"))
    if kind in attrs:
        if attrs[kind].kind == "list(type)":
            return Argument(name, type_list_attr=kind)
        return Argument(name, type_attr=kind, number_attr=number, is_reference=is_reference)
    return Argument(name, dtypes.as_dtype(kind), number_attr=number, is_reference=is_reference)


def _attr(text: str) -> Attr:
    head, equals, default_text = text.partition("=")
    name, _, kind = (part.strip() for part in head.partition(":"))
    inner = kind[5:-1].strip() if kind.startswith("list(") else kind
    allowed: frozenset[DType] | None = None
    if inner not in ("int", "float", "bool", "string", "shape", "tensor", "func"):
        allowed = _allowed(inner)
        inner = "type"
    kind = f"list({inner})" if kind.startswith("list(") else inner
    default = _default(kind, default_text.strip()) if equals else REQUIRED
    return Attr(name, kind, allowed, default)


def _allowed(text: str) -> frozenset[DType] | None:
    if text == "type":
        return None
    parts = [part.strip() for part in text.split("|")]
    return frozenset[DType]().union(*(TYPE_SETS.get(part) or (dtypes.as_dtype(part),) for part in parts))


def _default(kind: str, text: str) -> Any:
    if kind == "type":
        return dtypes.as_dtype(text)
    if kind == "list(type)":
        return [dtypes.as_dtype(part) for part in _split(text.strip("[]"))]
    if kind == "shape":
        return None if text == "unknown" else tuple(ast.literal_eval(text))
    if kind == "tensor":
        dtype, _, values = text.partition(" ")
        return np.array(ast.literal_eval(values), dtypes.as_dtype(dtype).numpy)
    if text in ("true", "false"):
        return text == "true"
    value = ast.literal_eval(text)
    return float(value) if kind == "float" else value
