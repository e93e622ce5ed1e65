"""Examples in other dtypes: in float64 what TensorFlow has in float32 at most, and of complex numbers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from gradserve.graph import dtypes
from gradserve.graph import op as catalogue
from gradserve.graph.signature import Argument, Attr

_WIDER = {dtypes.float32: dtypes.float64, dtypes.complex64: dtypes.complex128}
_WIDER_ARRAYS = {narrow.numpy: wide.numpy for narrow, wide in _WIDER.items()}
_WIDER_NAMES = {narrow.name: wide.name for narrow, wide in _WIDER.items()}


@contextlib.contextmanager
def in_double_precision() -> Generator[None]:
    """Within, every op takes float64 and complex128 where its signature has half of it at most."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalogue, "_catalogue", _wide())
        yield


@functools.cache
def _wide() -> dict[str, catalogue.Op]:
    return {name: _widened(op) for name, op in catalogue.catalogue().items()}


def doubled(example: catalogue.Example) -> catalogue.Example:
    """An example with numbers of twice the precision."""
    attrs = {
        key: _WIDER_NAMES.get(value, value) if isinstance(value, str) else value for key, value in example.attrs.items()
    }
    return example._replace(inputs=tuple(map(_doubled, example.inputs)), attrs=attrs)


def _doubled(value: Any) -> Any:
    if isinstance(value, list):
        return [_doubled(entry) for entry in value]
    array = np.asarray(value)
    return array.astype(_WIDER_ARRAYS.get(array.dtype, array.dtype))


def complexified(op: catalogue.Op, example: catalogue.Example) -> catalogue.Example:
    """An example with complex numbers wherever the op takes them."""
    generator = np.random.default_rng(2)
    turned: list[Any] = []
    for argument, value in zip(op.signature.inputs, example.inputs, strict=True):
        allowed = op.signature.attrs[argument.type_attr].allowed if argument.type_attr else frozenset()
        takes_it = allowed is None or dtypes.complex128 in allowed
        turned.append(_turned(value, generator) if takes_it else value)
    return example._replace(inputs=tuple(turned))


def _turned(value: Any, generator: np.random.Generator) -> Any:
    if isinstance(value, list):
        return [_turned(entry, generator) for entry in value]
    array = np.asarray(value)
    return array + 0.5j * generator.standard_normal(array.shape) if array.dtype == np.float64 else array


def has_complex(value: Any) -> bool:
    """Whether an array is of complex numbers, or one in a list."""
    return any(map(has_complex, value)) if isinstance(value, list) else np.asarray(value).dtype.kind == "c"


def _widened(op: catalogue.Op) -> catalogue.Op:
    """The op with twice the precision wherever its signature has no more than half of it."""

    def argument(given: Argument) -> Argument:
        return given if given.dtype is None else replace(given, dtype=_WIDER.get(given.dtype, given.dtype))

    def attr(given: Attr) -> Attr:
        if given.allowed is None:
            return given
        return replace(given, allowed=given.allowed | {_WIDER[kind] for kind in given.allowed if kind in _WIDER})

    signature = op.signature
    attrs = {name: attr(given) for name, given in signature.attrs.items()}
    wide = replace(
        signature,
        inputs=tuple(map(argument, signature.inputs)),
        outputs=tuple(map(argument, signature.outputs)),
        attrs=attrs,
        typed_attrs=tuple(attr for attr in attrs.values() if attr.allowed is not None),
    )
    return replace(op, signature=wide)
