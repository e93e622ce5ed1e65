"""Colours of images: RGB to HSV and back, and hue, saturation and contrast adjusted.

The last axis holds the three channels. h counts one turn as 1; with V the largest channel and C = V - smallest,
s = C / V and 6h = (next - next but one) / C + a constant, by the channel that is largest.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph import shapes
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.shapes import Shape
from gradserve.graph.symbolic import count_up, rank_of
from gradserve.ops.composites import composite
from gradserve.ops.precision import widen

_LAST = np.int32(-1)


def _three(x: Tensor, *_: Tensor) -> Shape:
    if x.shape is not None:
        if not x.shape:
            raise InvalidArgument(f"{x.name} is a scalar, and needs three channels.", tensor=x.name)
        shapes.merge_dimension(x.shape[-1], 3)
    return x.shape


# RGB to HSV


def _to_hsv(xp: Any, x: Any) -> Any:
    wide = widen(xp, x)
    red, green, blue = (wide[..., k] for k in range(3))
    value, least = xp.max(wide, axis=-1), xp.min(wide, axis=-1)
    chroma = value - least
    zero, one = xp.zeros_like(value), xp.ones_like(value)
    saturation = xp.where(value > 0, chroma / xp.where(value > 0, value, one), zero)
    norm = 1 / (6 * xp.where(chroma > 0, chroma, one))
    hue = xp.where(
        red == value,
        norm * (green - blue),
        xp.where(green == value, norm * (blue - red) + 2 / 6, norm * (red - green) + 4 / 6),
    )
    hue = xp.where(chroma > 0, hue, zero)
    return xp.stack([xp.where(hue < 0, hue + 1, hue), saturation, value], axis=-1).astype(x.dtype)


def _hot(place: Tensor, x: Tensor) -> Tensor:
    """1 at this channel, 0 at the others."""
    return raw.OneHot(place, np.int32(3), np.ones((), x.dtype.numpy), np.zeros((), x.dtype.numpy))


def _channels(dy: Tensor) -> tuple[Tensor, ...]:
    """The three channels, each with its axis kept as 1."""
    return raw.Split.outputs(_LAST, dy, num_split=3)


def _total(x: Tensor) -> Tensor:
    return raw.Sum(x, np.array([-1], np.int32), keep_dims=True)


def to_hsv_gradient(dy: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """dV is all the largest channel's; ds = (m/V² on the largest, -1/V on the smallest m) where the channel is over 0.

    6 dh = K / C - (K·x) / C² (largest - smallest), with K = 1 at the channel after the largest one, -1 at the next.
    Ties are TensorFlow's: the largest is the first, the smallest the last.
    """
    dh, ds, dv = _channels(dy)
    largest_place = raw.ArgMax(x, _LAST)
    largest, smallest = (
        _hot(largest_place, x),
        _hot(2 - raw.ArgMin(raw.ReverseV2(x, np.array([-1], np.int32)), _LAST), x),
    )
    following = _hot(raw.FloorMod(largest_place + 1, 3), x) - _hot(raw.FloorMod(largest_place + 2, 3), x)
    value, least = _total(largest * x), _total(smallest * x)
    chroma = value - least
    over = raw.Cast(raw.Greater(x, raw.ZerosLike(x)), DstT=x.dtype)
    lit = raw.Cast(raw.Greater(value, raw.ZerosLike(value)), DstT=x.dtype)
    one = raw.OnesLike(value)
    to_saturation = over * (largest * raw.DivNoNan(least, raw.Square(value)) - smallest * raw.DivNoNan(one, value))
    turned = raw.DivNoNan(_total(following * x), raw.Square(chroma))
    to_hue = lit * (following * raw.DivNoNan(one, chroma) - turned * (largest - smallest)) * (1 / 6)
    return dv * largest + ds * to_saturation + dh * to_hue


def _rgb_examples(draw: Any) -> list[Example]:
    """Channels that differ, all over 0."""
    lead = draw.shape(0, 2)
    steps = np.array([0.2, 0.45, 0.7])[draw.permutation(3)]
    return [call(np.broadcast_to(steps, (*lead, 3)) + 0.05 * draw.unit(*lead, 3))]


define(
    "RGBToHSV(images: T; T: floating = float32) -> (output: T)",
    shape=_three,
    gradient=to_hsv_gradient,
    kernel=_to_hsv,
    examples=_rgb_examples,
)


# HSV to RGB: channel = v (1 - s + s r), with the ramps r = clip(offset + slope |6h - centre|, 0, 1)

_OFFSETS, _SLOPES, _CENTRES = (-1.0, 2.0, 2.0), (1.0, -1.0, -1.0), (3.0, 2.0, 4.0)


def _to_rgb(xp: Any, x: Any) -> Any:
    wide = widen(xp, x)
    hue, saturation, value = (wide[..., k : k + 1] for k in range(3))
    offset, slope, centre = (xp.asarray(numbers, dtype=wide.dtype) for numbers in (_OFFSETS, _SLOPES, _CENTRES))
    ramp = xp.clip(offset + slope * xp.abs(hue * 6 - centre), 0, 1)
    return ((1 - saturation + saturation * ramp) * value).astype(x.dtype)


def to_rgb_gradient(dy: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """dh = 6 Σ dy v s r', ds = Σ dy v (r - 1), dv = Σ dy (1 - s + s r); r' is 0 where the ramp is clipped."""
    hue, saturation, value = _channels(x)
    offset, slope, centre = (np.array(numbers, x.dtype.numpy) for numbers in (_OFFSETS, _SLOPES, _CENTRES))
    distance = hue * 6 - centre
    free = raw.Abs(distance) * slope + offset
    ramp = raw.ClipByValue(free, 0, 1)
    inside = raw.LogicalAnd(raw.Greater(free, raw.ZerosLike(free)), raw.Less(free, raw.OnesLike(free)))
    rising = raw.Sign(distance) * slope * raw.Cast(inside, DstT=x.dtype)
    dh = _total(dy * rising) * value * saturation * 6
    ds = _total(dy * (ramp - 1)) * value
    dv = _total(dy * (1 - saturation + saturation * ramp))
    return raw.ConcatV2([dh, ds, dv], _LAST)


def _hsv_examples(draw: Any) -> list[Example]:
    """Hues between the corners of the ramps."""
    lead = draw.shape(0, 2)
    hue = (draw.integers(0, 6, *lead, 1) + draw.fraction(*lead, 1)) / 6
    return [call(np.concatenate([hue, draw.fraction(*lead, 2)], axis=-1))]


define(
    "HSVToRGB(images: T; T: floating = float32) -> (output: T)",
    shape=_three,
    gradient=to_rgb_gradient,
    kernel=_to_rgb,
    examples=_hsv_examples,
)


# Hue and saturation: by way of HSV


def _hue(xp: Any, x: Any, delta: Any) -> Any:
    hsv = _to_hsv(xp, widen(xp, x))
    turned = hsv[..., :1] + xp.asarray(delta, dtype=hsv.dtype)
    return _to_rgb(xp, xp.concatenate([turned - xp.floor(turned), hsv[..., 1:]], axis=-1)).astype(x.dtype)


def _saturation(xp: Any, x: Any, scale: Any) -> Any:
    hsv = _to_hsv(xp, widen(xp, x))
    scaled = xp.clip(hsv[..., 1:2] * xp.asarray(scale, dtype=hsv.dtype), 0, 1)
    return _to_rgb(xp, xp.concatenate([hsv[..., :1], scaled, hsv[..., 2:]], axis=-1)).astype(x.dtype)


def _hue_gradient(dy: Tensor, y: Tensor, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    hsv = raw.RGBToHSV(x)
    hue, saturation, value = _channels(hsv)
    turned = hue + raw.Cast(delta, DstT=x.dtype)
    d_hsv = to_rgb_gradient(dy, y, raw.ConcatV2([turned - raw.Floor(turned), saturation, value], _LAST))
    return to_hsv_gradient(d_hsv, hsv, x), _summed(_channels(d_hsv)[0], delta)


def _saturation_gradient(dy: Tensor, y: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    hsv = raw.RGBToHSV(x)
    hue, saturation, value = _channels(hsv)
    factor = raw.Cast(scale, DstT=x.dtype)
    free = saturation * factor
    scaled = raw.ClipByValue(free, 0, 1)
    dh, ds, dv = _channels(to_rgb_gradient(dy, y, raw.ConcatV2([hue, scaled, value], _LAST)))
    ds *= raw.Cast(raw.Equal(free, scaled), DstT=x.dtype)
    d_hsv = raw.ConcatV2([dh, ds * factor, dv], _LAST)
    return to_hsv_gradient(d_hsv, hsv, x), _summed(ds * saturation, scale)


def _summed(x: Tensor, like: Tensor) -> Tensor:
    """The sum of all, with the dtype of a scalar."""
    return raw.Cast(raw.Sum(x, count_up(0, rank_of(x))), DstT=like.dtype)


def _contrast(xp: Any, x: Any, factor: Any) -> Any:
    wide = widen(xp, x)
    mean = xp.sum(wide, axis=(-3, -2), keepdims=True) / max(x.shape[-3] * x.shape[-2], 1)
    return ((wide - mean) * xp.asarray(factor, dtype=wide.dtype) + mean).astype(x.dtype)


def _contrast_gradient(dy: Tensor, y: Tensor, x: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """The map is symmetric in x: dx = f (dy - mean dy) + mean dy, and df = Σ (dy - mean dy) x."""
    mean = raw.Mean(dy, np.array([-3, -2], np.int32), keep_dims=True)
    rest = dy - mean
    return rest * raw.Cast(factor, DstT=x.dtype) + mean, _summed(rest * x, factor)


def _adjusted_examples(draw: Any, number: float) -> list[Example]:
    """Of dtype float32, the widest that the ops take."""
    (example,) = _rgb_examples(draw)
    return [call(example.inputs[0].astype(np.float32), np.float32(number))]


for _name, _argument, _kernel, _rule, _number in (
    ("AdjustHue", "delta", _hue, _hue_gradient, 0.3),
    ("AdjustSaturation", "scale", _saturation, _saturation_gradient, 1.1),
):
    define(
        f"{_name}(images: T, {_argument}: float32; T: float16|float32 = float32) -> (output: T)",
        shape=_three,
        gradient=_rule,
        kernel=_kernel,
        examples=lambda draw, number=_number: _adjusted_examples(draw, number),
    )
define(
    "AdjustContrastv2(images: T, contrast_factor: float32; T: float16|float32 = float32) -> (output: T)",
    shape=lambda x, factor: x.shape,
    gradient=_contrast_gradient,
    kernel=_contrast,
    examples=lambda draw: [
        call(draw.normal(*draw.shape(0, 1), draw.size(0, 3), 2, draw.size(0, 3)).astype(np.float32), np.float32(1.7))
    ],
)


def _clipped_contrast(ops: Any, x: Any, factor: Any, least: Any, most: Any, *, node: Node) -> Any:
    """As AdjustContrastv2, of any real images, between bounds."""
    images = ops.Cast(x, DstT=factor.dtype)
    mean = ops.Mean(images, np.array([-3, -2], np.int32), keep_dims=True)
    return ops.Minimum(ops.Maximum((images - mean) * factor + mean, least), most)


composite(
    "AdjustContrast(images: T, contrast_factor: float32, min_value: float32, max_value: float32;"
    " T: float32|float64|int8|int16|int32|int64|uint8) -> (output: float32)",
    _clipped_contrast,
    examples=lambda draw: [
        call(draw.normal(*draw.shape(0, 1), 2, 2, 3).astype(np.float32), np.float32(1.7), np.float32(-9), np.float32(9))
    ],
)  # fmt: skip
