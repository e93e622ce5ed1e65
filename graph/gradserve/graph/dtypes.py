"""Element types: TensorFlow's names and enum numbers, NumPy's arrays.

A `DType` is a singleton, compared by identity. Reference types (TF1's `Ref(float)`) keep the number that
the wire gives them and answer every question like their base type.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from gradserve.errors import InvalidType

REFERENCE_OFFSET = 100


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class DType:
    """One element type.

    Attributes:
        name: TensorFlow's short name, for example ``float32``.
        number: the value of TensorFlow's DataType enum.
        numpy: the NumPy dtype of its arrays (object for strings, resources and variants).
        kind: ``f`` floating, ``c`` complex, ``i`` signed, ``u`` unsigned, ``b`` bool, ``s`` string,
            ``q`` quantised, ``r`` resource, ``v`` variant.
    """

    name: str
    number: int
    numpy: np.dtype[Any]
    kind: str

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        return from_number, (self.number,)

    @property
    def is_reference(self) -> bool:
        return self.number > REFERENCE_OFFSET

    @property
    def base(self) -> DType:
        """The type behind a reference type; itself otherwise."""
        return _BY_NUMBER[self.number - REFERENCE_OFFSET] if self.is_reference else self

    @property
    def is_floating(self) -> bool:
        return self.kind == "f"

    @property
    def is_complex(self) -> bool:
        return self.kind == "c"

    @property
    def is_integer(self) -> bool:
        return self.kind in "iu"

    @property
    def is_numeric(self) -> bool:
        return self.kind in "fciu"

    @property
    def is_trainable(self) -> bool:
        """Whether gradients flow through tensors of this type (SEMANTICS.md part 2, section 2)."""
        return self.base in _TRAINABLE

    @property
    def real(self) -> DType:
        """The type of the real part."""
        return {complex64: float32, complex128: float64}.get(self, self)

    @property
    def size(self) -> int:
        """Bytes an element; 0 where an element has no fixed size."""
        return 0 if self.numpy == np.dtype(object) else self.numpy.itemsize


def _make(name: str, number: int, array: Any, kind: str) -> DType:
    return DType(name, number, np.dtype(array), kind)


float32 = _make("float32", 1, np.float32, "f")
float64 = _make("float64", 2, np.float64, "f")
int32 = _make("int32", 3, np.int32, "i")
uint8 = _make("uint8", 4, np.uint8, "u")
int16 = _make("int16", 5, np.int16, "i")
int8 = _make("int8", 6, np.int8, "i")
string = _make("string", 7, object, "s")
complex64 = _make("complex64", 8, np.complex64, "c")
int64 = _make("int64", 9, np.int64, "i")
bool_ = _make("bool", 10, np.bool_, "b")
qint8 = _make("qint8", 11, np.int8, "q")
quint8 = _make("quint8", 12, np.uint8, "q")
qint32 = _make("qint32", 13, np.int32, "q")
bfloat16 = _make("bfloat16", 14, ml_dtypes.bfloat16, "f")
qint16 = _make("qint16", 15, np.int16, "q")
quint16 = _make("quint16", 16, np.uint16, "q")
uint16 = _make("uint16", 17, np.uint16, "u")
complex128 = _make("complex128", 18, np.complex128, "c")
float16 = _make("float16", 19, np.float16, "f")
resource = _make("resource", 20, object, "r")
variant = _make("variant", 21, object, "v")
uint32 = _make("uint32", 22, np.uint32, "u")
uint64 = _make("uint64", 23, np.uint64, "u")
float8_e5m2 = _make("float8_e5m2", 24, ml_dtypes.float8_e5m2, "f")
float8_e4m3fn = _make("float8_e4m3fn", 25, ml_dtypes.float8_e4m3fn, "f")
float8_e4m3fnuz = _make("float8_e4m3fnuz", 26, ml_dtypes.float8_e4m3fnuz, "f")
float8_e4m3b11fnuz = _make("float8_e4m3b11fnuz", 27, ml_dtypes.float8_e4m3b11fnuz, "f")
float8_e5m2fnuz = _make("float8_e5m2fnuz", 28, ml_dtypes.float8_e5m2fnuz, "f")
int4 = _make("int4", 29, ml_dtypes.int4, "i")
uint4 = _make("uint4", 30, ml_dtypes.uint4, "u")

_BASE = [value for value in list(globals().values()) if isinstance(value, DType)]
_BY_NUMBER = {dtype.number: dtype for dtype in _BASE} | {
    dtype.number + REFERENCE_OFFSET: DType(
        f"{dtype.name}_ref", dtype.number + REFERENCE_OFFSET, dtype.numpy, dtype.kind
    )
    for dtype in _BASE
}
_BY_NAME = {dtype.name: dtype for dtype in _BY_NUMBER.values()} | {
    "half": float16,
    "float": float32,
    "double": float64,
}
_BY_NUMPY = {dtype.numpy: dtype for dtype in _BASE if dtype.kind not in "qsrv"}
_TRAINABLE = frozenset({float16, float32, float64, bfloat16, complex64, complex128, resource, variant})


def from_number(number: int) -> DType:
    """The type with this DataType enum value. Raises InvalidType for one that does not exist."""
    try:
        return _BY_NUMBER[number]
    except KeyError:
        raise InvalidType(f"There is no data type with the number {number}.", number=number) from None


def reference(dtype: DType) -> DType:
    """TF1's reference type of a base type."""
    return _BY_NUMBER[dtype.base.number + REFERENCE_OFFSET]


def as_dtype(value: Any) -> DType:
    """The DType that a DType, an enum number, a name, or a NumPy dtype means.

    Raises InvalidType where nothing fits.
    """
    if isinstance(value, DType):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return from_number(value)
    if isinstance(value, str) and value in _BY_NAME:
        return _BY_NAME[value]
    try:
        array_type: np.dtype[Any] = np.dtype(value)  # pyright: ignore[reportArgumentType, reportCallIssue]
    except TypeError:
        raise InvalidType(f"{value!r} is not a data type.", value=value) from None
    if array_type in _BY_NUMPY:
        return _BY_NUMPY[array_type]
    if array_type.kind in "OSU":
        return string
    raise InvalidType(f"NumPy's {array_type} has no data type here.", value=array_type)
