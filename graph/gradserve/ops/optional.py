"""Several tensors as one value: Optionals, which may be empty, and composite tensors. So are their gradients.

Source: TensorFlow's optional_ops and composite_tensor_ops; the values are gradserve.graph.variants.Components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Tensor
from gradserve.graph.op import MISSING, define, raw
from gradserve.graph.shapes import Shape
from gradserve.graph.variants import Components
from gradserve.ops.ways import ways


def _filled(cotangents: Sequence[Tensor | None], values: Sequence[Tensor]) -> list[Tensor]:
    return [raw.ZerosLike(y) if dy is None else dy for dy, y in zip(cotangents, values, strict=True)]


def _trainable(cotangents: Sequence[Tensor], values: Sequence[Tensor]) -> list[list[Tensor | None]]:
    return [[dx if x.dtype.is_trainable else None for dx, x in zip(cotangents, values, strict=True)]]


def _as_optional(x: Tensor) -> list[Tensor]:
    """An integer stands among the values."""
    whole = raw.OptionalFromValue([x, np.int32(3), raw.Sin(x)])
    kinds, shapes = [x.dtype.base, np.int32, x.dtype.base], [x.shape, (), x.shape]
    first, count, second = raw.OptionalGetValue.outputs(whole, output_types=kinds, output_shapes=shapes)
    return [first * second * raw.Cast(count, DstT=x.dtype.base)]


def _as_composite(x: Tensor) -> list[Tensor]:
    whole = raw.CompositeTensorVariantFromComponents([np.int64(2), raw.Sin(x)], metadata="")
    kinds = [np.int64, x.dtype.base]
    return [raw.CompositeTensorVariantToComponents.outputs(whole, metadata="", Tcomponents=kinds)[1]]


def _values(xp: Any, whole: Components) -> Sequence[Any]:
    if whole.values is None:
        raise InvalidArgument("An Optional without a value can't be read.")
    return list(whole.values)


define(
    "OptionalFromValue(components: Toutput_types; Toutput_types: list(type)) -> (optional: variant)",
    shape=lambda components: (),
    gradient=lambda dy, y, components: _trainable(
        raw.OptionalGetValue.outputs(
            dy, output_types=[x.dtype for x in components], output_shapes=[x.shape for x in components]
        ),
        components,
    ),
    kernel=lambda xp, components: Components(tuple(components)),
    dynamic=True,
    examples=ways(lambda draw: draw.shape(), _as_optional),
)
define(
    "OptionalNone() -> (optional: variant)",
    shape=lambda: (),
    gradient=MISSING,
    kernel=lambda xp: Components(None),
    dynamic=True,
)
define(
    "OptionalHasValue(optional: variant) -> (has_value: bool)",
    shape=lambda optional: (),
    gradient=MISSING,
    kernel=lambda xp, optional: xp.bool_(optional.values is not None),
    dynamic=True,
)


def _said(optional: Tensor, *, output_shapes: list[Shape]) -> list[Shape]:
    return output_shapes


define(
    "OptionalGetValue(optional: variant; output_types: list(type), output_shapes: list(shape))"
    " -> (components: output_types)",
    shape=_said,
    gradient=lambda dys, ys, optional: raw.OptionalFromValue(_filled(dys, ys)),
    kernel=_values,
    dynamic=True,
    examples=ways(lambda draw: draw.shape(), _as_optional),
)


def _from_components_gradient(
    dy: Tensor, y: Tensor, components: Sequence[Tensor], *, metadata: str, Tcomponents: list[DType]
) -> Any:
    parts = raw.CompositeTensorVariantToComponents.outputs(dy, metadata=metadata, Tcomponents=Tcomponents)
    return _trainable(parts, components)


define(
    "CompositeTensorVariantFromComponents(components: Tcomponents; metadata: string, Tcomponents: list(type))"
    " -> (encoded: variant)",
    shape=lambda components: (),
    gradient=_from_components_gradient,
    kernel=lambda xp, components: Components(tuple(components)),
    dynamic=True,
    examples=ways(lambda draw: draw.shape(), _as_composite),
)
define(
    "CompositeTensorVariantToComponents(encoded: variant; metadata: string, Tcomponents: list(type))"
    " -> (components: Tcomponents)",
    gradient=lambda dys, ys, encoded, *, metadata: raw.CompositeTensorVariantFromComponents(
        _filled(dys, ys), metadata=metadata
    ),
    kernel=_values,
    dynamic=True,
    examples=ways(lambda draw: draw.shape(), _as_composite),
)
