"""Normalisation over batches and over neighbouring channels, and the ops of their gradients.

Vocabulary: n is the number of entries of a channel, m and v its mean and variance, r = 1/sqrt(v + epsilon), and
h = (x - m) r the normalised input; a, p, q are the cotangents of a gradient op's results dx, dscale, doffset.
The gradients of gradient ops are written with plain ops, so that they are differentiable to any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradserve.graph import dtypes, shapes
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import Example, call, define, raw, within
from gradserve.graph.shapes import Shape
from gradserve.graph.symbolic import concat, part, product, shape_of
from gradserve.ops.conv import channel_axis
from gradserve.ops.precision import is_narrow, widen

# Batch normalisation: the kernels


def _layout(rank: int, data_format: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes that a channel's entries lie along, and the shape that spreads a vector of channels over them."""
    channel = channel_axis(data_format) % rank
    spread = tuple(-1 if axis == channel else 1 for axis in range(rank))
    return tuple(axis for axis in range(rank) if axis != channel), spread


def _normalise(
    xp: Any, x: Any, scale: Any, offset: Any, mean: Any, variance: Any, *, node: Node
) -> tuple[Any, ...]:  # fmt: skip
    """y, the running mean and variance, and what the gradient op wants: the mean and variance that were used.

    Training takes them from the batch; the running variance is the unbiased one, (n - 1) in place of n.
    """
    attrs = node.attrs
    axes, spread = _layout(x.ndim, attrs["data_format"])
    wide, wide_scale, wide_offset = widen(xp, x), widen(xp, scale), widen(xp, offset)
    used_mean, used_variance = widen(xp, mean), widen(xp, variance)
    running = used_mean, used_variance
    if attrs["is_training"]:
        count = x.size // x.shape[channel_axis(attrs["data_format"])] if x.size else 0
        running = _batch_statistics(xp, wide, axes, spread, count)
        used_mean, used_variance = running
        running = used_mean, used_variance * (count / max(count - 1, 1))
        factor = attrs["exponential_avg_factor"]
        if factor != 1.0:
            old = widen(xp, mean), widen(xp, variance)
            running = tuple(xp.asarray(b * (1 - factor) + a * factor) for a, b in zip(running, old, strict=True))
        if not count:
            used_mean, used_variance = xp.zeros_like(used_mean), xp.zeros_like(used_variance)
    slope = wide_scale / xp.sqrt(used_variance + attrs["epsilon"])
    y = (wide - used_mean.reshape(spread)) * slope.reshape(spread) + wide_offset.reshape(spread)
    kept = tuple(value.astype(scale.dtype) for value in (*running, used_mean, used_variance))
    return y.astype(x.dtype), *kept


def _batch_statistics(xp: Any, x: Any, axes: Sequence[int], spread: Sequence[int], count: int) -> tuple[Any, Any]:
    """Mean and biased variance of each channel; NaN for an empty batch."""
    if not count:
        channels = x.shape[spread.index(-1)]
        nothing = xp.full((channels,), float("nan"), dtype=x.dtype)
        return nothing, nothing
    mean = xp.sum(x, axis=tuple(axes)) / count
    centred = x - mean.reshape(spread)
    return mean, xp.sum(centred * centred, axis=tuple(axes)) / count


def _normalise_with_reserve(
    xp: Any, x: Any, scale: Any, offset: Any, mean: Any, variance: Any, *, node: Node
) -> tuple[Any, ...]:  # fmt: skip
    """As `_normalise`; the last output is for GPUs and empty."""
    return *_normalise(xp, x, scale, offset, mean, variance, node=node), xp.zeros((0,), dtype=scale.dtype)


def _normalise_grad(
    xp: Any, dy: Any, x: Any, scale: Any, mean: Any, variance: Any, *unused: Any, node: Node
) -> tuple[Any, ...]:  # fmt: skip
    """dx, dscale, doffset; the two further outputs hold nothing.

    dx = scale r (dy - mean(dy) - h mean(dy h)) in training, else scale r dy.   Ioffe and Szegedy 2015, section 3.
    """
    attrs = node.attrs
    axes, spread = _layout(x.ndim, attrs["data_format"])
    wide, cotangent = widen(xp, x), widen(xp, dy)
    r = 1 / xp.sqrt(widen(xp, variance) + attrs["epsilon"])
    h = (wide - widen(xp, mean).reshape(spread)) * r.reshape(spread)
    doffset = xp.sum(cotangent, axis=axes)
    dscale = xp.sum(cotangent * h, axis=axes)
    slope = (widen(xp, scale) * r).reshape(spread)
    dx = cotangent * slope
    if attrs["is_training"]:
        count = max(x.size // max(doffset.size, 1), 1)
        dx = slope * (cotangent - (doffset / count).reshape(spread) - h * (dscale / count).reshape(spread))
    nothing = xp.zeros((), dtype=mean.dtype)
    return dx.astype(x.dtype), dscale.astype(mean.dtype), doffset.astype(mean.dtype), nothing, nothing


# Batch normalisation: shapes and gradients


def _normalised_shape(x: Tensor, *others: Tensor, node: Node) -> list[Shape]:
    channels = _channels(x, node)
    return [x.shape, *[channels] * 4]


def _normalised_shape_with_reserve(x: Tensor, *others: Tensor, node: Node) -> list[Shape]:
    return [*_normalised_shape(x, node=node), (0,)]


def _gradient_shape(dy: Tensor, x: Tensor, *others: Tensor, node: Node) -> list[Shape]:
    channels = _channels(x, node)
    return [shapes.merge(dy.shape, x.shape), channels, channels, (), ()]


def _channels(x: Tensor, node: Node) -> Shape:
    return (None,) if x.shape is None else (x.shape[channel_axis(node.attrs["data_format"])],)


def _cast(x: Tensor, dtype: dtypes.DType) -> Tensor:
    return x if x.dtype is dtype else raw.Cast(x, DstT=dtype)


def _widened(x: Tensor) -> Tensor:
    """16-bit floats as float32, as the kernels take them."""
    return raw.Cast(x, DstT=dtypes.float32) if is_narrow(x.dtype.numpy) else x


def _of_normalise(op: str) -> Any:
    """The gradient rule of a forward op; only y carries gradient, and the statistics that are fed take none."""

    def rule(dy: Tensor, *rest: Any, node: Node) -> Any:
        outputs, inputs = node.outputs, node.arguments()
        x, scale = inputs[0], inputs[1]
        attrs = {name: node.attrs[name] for name in ("epsilon", "data_format", "is_training")}
        reserves = outputs[3:] if attrs["is_training"] else (*inputs[3:5], *outputs[5:])
        narrow = [scale, *reserves]
        if op != "FusedBatchNormGrad":
            narrow = [_widened(tensor) for tensor in narrow]
        dx, dscale, doffset = getattr(raw, op).outputs(dy, x, *narrow, **attrs)[:3]
        return dx, _cast(dscale, scale.dtype), _cast(doffset, scale.dtype), None, None

    return rule


def _of_normalise_grad(*arguments: Any, node: Node) -> Any:
    """dy, x and scale by the total derivative, where the batch's mean and variance are functions of x.

    With sums over a channel A = Σ a, B = Σ dy, D = Σ dy h, G = Σ a h, H = Σ a dy and s = scale, the gradient op's
    results meet their cotangents in  s t + p D + q B,  t = r (H - A B/n - G D/n):
        ddy    = s r (a - A/n - h G/n) + p h + q
        dscale = t
        dh     = -s r (a D + dy G)/n + p dy =: u
        dx     = r (u - mean(u) - h mean(u h)) - s t r h/n      through h, and through r itself
    In inference m and v are constants: ddy = s r a + p h + q, dx = r p dy, dscale = r H.
    """
    attrs = node.attrs
    dy, x, scale, mean, variance = node.arguments()[:5]
    layout = _Channels(x, attrs["data_format"])
    a, p, q = (_widened(cotangent) for cotangent in arguments[:3])
    dy_wide, x_wide = _widened(dy), _widened(x)
    s, p, q = layout.spread(scale), layout.spread(p), layout.spread(q)
    if not attrs["is_training"]:
        r = raw.Rsqrt(layout.spread(variance) + attrs["epsilon"])
        h = (x_wide - layout.spread(mean)) * r
        found = s * r * a + p * h + q, r * p * dy_wide, r * layout.sum(a * dy_wide)
    else:
        centred = x_wide - layout.mean(x_wide)
        r = raw.Rsqrt(layout.mean(raw.Square(centred)) + attrs["epsilon"])
        h = centred * r
        mean_a, mean_dy = layout.mean(a), layout.mean(dy_wide)
        mean_dyh, mean_ah = layout.mean(dy_wide * h), layout.mean(a * h)
        # Means in place of sums keep the count n out: t = n mean_t.
        mean_t = r * (layout.mean(a * dy_wide) - mean_a * mean_dy - mean_ah * mean_dyh)
        t = r * layout.sum(a * (dy_wide - mean_dy - h * mean_dyh))
        u = p * dy_wide - s * r * (a * mean_dyh + dy_wide * mean_ah)
        ddy = s * r * (a - mean_a - h * mean_ah) + p * h + q
        dx = r * (u - layout.mean(u) - h * layout.mean(u * h)) - s * mean_t * r * h
        found = ddy, dx, t
    ddy, dx, dscale = found
    rest = [None] * (len(node.inputs) - 3)
    return _cast(ddy, dy.dtype), _cast(dx, x.dtype), layout.vector(dscale), *rest


class _Channels:
    """Sums over the entries of each channel of an image, its axes kept, and vectors spread over them."""

    def __init__(self, x: Tensor, data_format: str) -> None:
        rank = 5 if data_format in ("NDHWC", "NCDHW") else 4
        axes, spread = _layout(rank, data_format)
        self._axes, self._spread = np.array(axes, np.int32), np.array(spread, np.int32)

    def spread(self, vector: Tensor) -> Tensor:
        """A vector of the channels, to be broadcast with the image."""
        return raw.Reshape(vector, self._spread)

    def vector(self, kept: Tensor) -> Tensor:
        """A sum as a vector of the channels."""
        return raw.Reshape(kept, np.array([-1], np.int32))

    def sum(self, x: Tensor) -> Tensor:
        """[1, 1, 1, channels] or as the layout wants it."""
        return raw.Sum(x, self._axes, keep_dims=True)

    def mean(self, x: Tensor) -> Tensor:
        """[1, 1, 1, channels] or as the layout wants it; 0 for an empty batch."""
        return raw.DivNoNan(self.sum(x), self.sum(raw.OnesLike(x)))


# Batch normalisation: examples and ops. TensorFlow allows float32 at most; tests widen that to take differences.
# The mean and the variance, which follow y, carry no gradient, nor do those that are given. The gradient ops are
# differentiated for reserve spaces that follow from x: alone they agree with no differences.


def _drawn(draw: Any, *, volumes: bool) -> tuple[Any, int, dict[str, Any]]:
    names = ["NHWC", "NCHW", "NDHWC", "NCDHW"] if volumes else ["NHWC", "NCHW"]
    layout = draw.pick(names)
    channels = draw.size(1, 3)
    inner = [draw.size(1, 3) for _ in range(len(layout) - 2)]
    shape = [draw.size(0, 2), *inner]
    shape.insert(1 if channel_axis(layout) == 1 else len(shape), channels)
    return draw.normal(*shape), channels, {"data_format": layout, "is_training": bool(draw.size(0, 1))}


def _single(*arrays: Any) -> list[Any]:
    return [np.asarray(array, np.float32) for array in arrays]


def _normalise_examples(draw: Any, name: str, *, volumes: bool = False) -> list[Example]:
    x, channels, attrs = _drawn(draw, volumes=volumes)
    vectors = [draw.normal(channels), draw.normal(channels), draw.normal(channels), draw.positive(channels)]
    x, scale, offset, *moments = _single(x, *vectors)

    def normalised(x: Tensor, scale: Tensor, offset: Tensor) -> Sequence[Tensor]:
        """y alone. A large epsilon keeps high orders small where the entries of a channel are alike."""
        given = [raw.Cast(moment, DstT=scale.dtype) for moment in moments]
        return getattr(raw, name).outputs(x, scale, offset, *given, epsilon=0.5, **attrs)[:1]

    attrs["exponential_avg_factor"] = draw.pick([1.0, 0.25])
    return [
        call(x, scale, offset, *moments, differences=False, **attrs),
        within(normalised, x, scale, offset, order=3),
    ]


def _normalise_grad_examples(draw: Any, reserve: int = 0, *, volumes: bool = False) -> list[Example]:
    x, channels, attrs = _drawn(draw, volumes=volumes)
    vectors = [draw.normal(channels), draw.normal(channels), draw.positive(channels)]
    inputs = _single(draw.normal(*x.shape), x, *vectors, *[np.zeros(0)] * reserve)
    return [call(*inputs, differences=False, **attrs)]


_EPSILON = "epsilon: float = 9.999999747378752e-05"
_TRAINING = "data_format: string = 'NHWC', is_training: bool = true"
_FACTOR = "exponential_avg_factor: float = 1.0"
_NARROW = "bfloat16|float16|float32"

define(
    f"FusedBatchNorm(x: T, scale: T, offset: T, mean: T, variance: T; T: float32, {_EPSILON}, {_FACTOR}, {_TRAINING})"
    " -> (y: T, batch_mean: T, batch_variance: T, reserve_space_1: T, reserve_space_2: T)",
    shape=_normalised_shape,
    gradient=_of_normalise("FusedBatchNormGrad"),
    kernel=_normalise,
    examples=lambda draw: _normalise_examples(draw, "FusedBatchNorm"),
)
define(
    "FusedBatchNormV2(x: T, scale: U, offset: U, mean: U, variance: U;"
    f" T: {_NARROW}, U: float32, {_EPSILON}, {_FACTOR}, {_TRAINING})"
    " -> (y: T, batch_mean: U, batch_variance: U, reserve_space_1: U, reserve_space_2: U)",
    shape=_normalised_shape,
    gradient=_of_normalise("FusedBatchNormGradV2"),
    kernel=_normalise,
    examples=lambda draw: _normalise_examples(draw, "FusedBatchNormV2"),
)
define(
    "FusedBatchNormV3(x: T, scale: U, offset: U, mean: U, variance: U;"
    f" T: {_NARROW}, U: bfloat16|float32, {_EPSILON}, {_FACTOR}, {_TRAINING})"
    " -> (y: T, batch_mean: U, batch_variance: U, reserve_space_1: U, reserve_space_2: U, reserve_space_3: U)",
    shape=_normalised_shape_with_reserve,
    gradient=_of_normalise("FusedBatchNormGradV3"),
    kernel=_normalise_with_reserve,
    examples=lambda draw: _normalise_examples(draw, "FusedBatchNormV3", volumes=True),
)
define(
    "FusedBatchNormGrad(y_backprop: T, x: T, scale: T, reserve_space_1: T, reserve_space_2: T;"
    f" T: float32, {_EPSILON}, {_TRAINING})"
    " -> (x_backprop: T, scale_backprop: T, offset_backprop: T, reserve_space_3: T, reserve_space_4: T)",
    shape=_gradient_shape,
    gradient=_of_normalise_grad,
    kernel=_normalise_grad,
    examples=_normalise_grad_examples,
)
define(
    "FusedBatchNormGradV2(y_backprop: T, x: T, scale: float32, reserve_space_1: U, reserve_space_2: U;"
    f" T: {_NARROW}, U: float32, {_EPSILON}, {_TRAINING})"
    " -> (x_backprop: T, scale_backprop: U, offset_backprop: U, reserve_space_3: U, reserve_space_4: U)",
    shape=_gradient_shape,
    gradient=_of_normalise_grad,
    kernel=_normalise_grad,
    examples=_normalise_grad_examples,
)
define(
    "FusedBatchNormGradV3(y_backprop: T, x: T, scale: float32, reserve_space_1: U, reserve_space_2: U,"
    f" reserve_space_3: U; T: {_NARROW}, U: float32, {_EPSILON}, {_TRAINING})"
    " -> (x_backprop: T, scale_backprop: U, offset_backprop: U, reserve_space_4: U, reserve_space_5: U)",
    shape=_gradient_shape,
    gradient=_of_normalise_grad,
    kernel=_normalise_grad,
    examples=lambda draw: _normalise_grad_examples(draw, 1, volumes=True),
)


# TF1's batch normalisation by given statistics


def _globally(xp: Any, t: Any, m: Any, v: Any, beta: Any, gamma: Any, *, node: Node) -> Any:
    """(t - m) r gamma + beta, gamma only if scale_after_normalization."""
    wide, attrs = widen(xp, t), node.attrs
    slope = 1 / xp.sqrt(widen(xp, v) + attrs["variance_epsilon"])
    if attrs["scale_after_normalization"]:
        slope = slope * widen(xp, gamma)
    return ((wide - widen(xp, m)) * slope + widen(xp, beta)).astype(t.dtype)


def _globally_grad(xp: Any, t: Any, m: Any, v: Any, gamma: Any, dy: Any, *, node: Node) -> tuple[Any, ...]:
    """dt, dm, dv, dbeta, dgamma, with S = Σ dy (t - m)."""
    attrs = node.attrs
    wide, cotangent = widen(xp, t), widen(xp, dy)
    axes = tuple(range(t.ndim - 1))
    r = 1 / xp.sqrt(widen(xp, v) + attrs["variance_epsilon"])
    scaled = attrs["scale_after_normalization"]
    slope = r * widen(xp, gamma) if scaled else r
    total = xp.sum(cotangent, axis=axes)
    moment = xp.sum(cotangent * (wide - widen(xp, m)), axis=axes)
    dgamma = moment * r if scaled else xp.zeros_like(moment)
    found = cotangent * slope, -total * slope, moment * slope * r * r / -2, total, dgamma
    return tuple(value.astype(t.dtype) for value in found)


def _of_globally(
    dy: Tensor, y: Tensor, t: Tensor, m: Tensor, v: Tensor, beta: Tensor, gamma: Tensor, *, node: Node
) -> Any:
    attrs = {name: node.attrs[name] for name in ("variance_epsilon", "scale_after_normalization")}
    return raw.BatchNormWithGlobalNormalizationGrad.outputs(t, m, v, gamma, dy, **attrs)


def _of_globally_grad(*arguments: Any, node: Node) -> Any:
    """With B = Σ dy, S = Σ dy (t - m), H = Σ a dy, g = gamma or 1, and cotangents a, b, c, d, e of the five results:

    the results meet them in  r g H - b g r B - c g r³/2 S + d B + e r S, of which this is the derivative.
    """
    a, b, c, d, e = arguments[:5]
    t, m, v, gamma, dy = node.arguments()
    scaled = node.attrs["scale_after_normalization"]
    axes = np.arange(3, dtype=np.int32)
    r = raw.Rsqrt(v + node.attrs["variance_epsilon"])
    cube = r * raw.Square(r) / 2
    centred = t - m
    sum_dy, moment, mixed = raw.Sum(dy, axes), raw.Sum(dy * centred, axes), raw.Sum(a * dy, axes)
    of_g = r * mixed - b * r * sum_dy - c * cube * moment
    of_r = mixed - b * sum_dy - c * raw.Square(r) * moment * 1.5
    slope, of_moment = r, -c * cube
    if scaled:
        slope, of_moment, of_r = r * gamma, of_moment * gamma + e * r, of_r * gamma + e * moment
    dt = dy * of_moment
    ddy = a * slope - b * slope + d + centred * of_moment
    dgamma = of_g if scaled else raw.ZerosLike(gamma)
    return dt, -of_moment * sum_dy, -of_r * cube, dgamma, ddy


def _globally_examples(draw: Any) -> list[Example]:
    x, channels = draw.normal(*(draw.size(0, 2) for _ in range(3)), n := draw.size(0, 3)), n
    vectors = [draw.normal(channels), draw.positive(channels), draw.normal(channels), draw.normal(channels)]
    return [call(x, *vectors, variance_epsilon=0.1, scale_after_normalization=bool(draw.size(0, 1)))]


def _globally_grad_examples(draw: Any) -> list[Example]:
    x, channels = draw.normal(*(draw.size(0, 2) for _ in range(3)), n := draw.size(0, 3)), n
    vectors = [draw.normal(channels), draw.positive(channels), draw.normal(channels)]
    scaled = bool(draw.size(0, 1))
    return [call(x, *vectors, draw.normal(*x.shape), variance_epsilon=0.1, scale_after_normalization=scaled)]


_GLOBAL = "T: number, variance_epsilon: float, scale_after_normalization: bool"
define(
    f"BatchNormWithGlobalNormalization(t: T, m: T, v: T, beta: T, gamma: T; {_GLOBAL}) -> (result: T)",
    shape=lambda t, m, v, beta, gamma: t.shape,
    gradient=_of_globally,
    kernel=_globally,
    holomorphic=True,
    examples=_globally_examples,
)
define(
    f"BatchNormWithGlobalNormalizationGrad(t: T, m: T, v: T, gamma: T, backprop: T; {_GLOBAL})"
    " -> (dx: T, dm: T, dv: T, db: T, dg: T)",
    shape=lambda t, m, v, gamma, dy: [t.shape, *[m.shape] * 4],
    gradient=_of_globally_grad,
    kernel=_globally_grad,
    holomorphic=True,
    examples=_globally_grad_examples,
)


# Local response normalisation: y = x N^-beta, N = bias + alpha band(x²), where band sums over the neighbouring
# channels: a product with a banded matrix of ones.


def _band_matrix(xp: Any, channels: int, radius: int, dtype: Any) -> Any:
    numbers = xp.arange(channels)
    return (abs(numbers[:, None] - numbers[None, :]) <= radius).astype(dtype)


def _lrn(xp: Any, x: Any, *, depth_radius: int, bias: float, alpha: float, beta: float) -> Any:
    wide = widen(xp, x)
    norm = bias + alpha * xp.matmul(wide * wide, _band_matrix(xp, x.shape[-1], depth_radius, wide.dtype))
    return (wide * norm**-beta).astype(x.dtype)


def _lrn_grad(
    xp: Any, dy: Any, x: Any, y: Any, *, depth_radius: int, bias: float, alpha: float, beta: float
) -> Any:  # fmt: skip
    """dx = dy N^-beta - 2 alpha beta x band(dy y / N)."""
    wide, cotangent = widen(xp, x), widen(xp, dy)
    band = _band_matrix(xp, x.shape[-1], depth_radius, wide.dtype)
    norm = bias + alpha * xp.matmul(wide * wide, band)
    back = xp.matmul(cotangent * widen(xp, y) / norm, band)
    return (cotangent * norm**-beta - (2 * alpha * beta) * wide * back).astype(x.dtype)


_LRN_ATTRS = ("depth_radius", "bias", "alpha", "beta")


def _of_lrn(dy: Tensor, y: Tensor, x: Tensor, *, node: Node) -> Tensor:
    return raw.LRNGrad(dy, x, y, **{name: node.attrs[name] for name in _LRN_ATTRS})


def _of_lrn_grad(
    c: Tensor, z: Tensor, dy: Tensor, x: Tensor, y: Tensor,
    *, depth_radius: int, bias: float, alpha: float, beta: float,
) -> Any:  # fmt: skip
    """The result meets its cotangent c in Σ c dy N^-beta - 2 alpha beta Σ Q dy y / N,  Q = band(x c)."""
    band = _band(x, depth_radius)
    scale = 2 * alpha * beta

    def across(value: Tensor) -> Tensor:
        return raw.Reshape(raw.MatMul(raw.Reshape(value, _flat(x)), band), shape_of(x))

    norm = across(raw.Square(x)) * alpha + bias
    power = raw.Pow(norm, -beta)
    q = across(x * c)
    of_norm = q * dy * y / raw.Square(norm) * scale - c * dy * power / norm * beta
    of_dy = c * power - q * y / norm * scale
    of_x = x * across(of_norm) * (2 * alpha) - c * across(dy * y / norm) * scale
    return of_dy, of_x, -(q * dy / norm) * scale


def _flat(x: Tensor) -> Any:
    """The shape [pixels, channels]."""
    shape = shape_of(x)
    return concat(product(part(shape, 0, 3)), part(shape, 3))


def _band(x: Tensor, radius: int) -> Any:
    """The banded matrix of ones [channels, channels]."""
    channels = None if x.shape is None else x.shape[-1]
    if channels is not None:
        return _band_matrix(np, channels, radius, x.dtype.numpy)
    numbers = raw.Range(0, raw.Reshape(part(shape_of(x), 3), np.zeros(0, np.int32)), 1)
    apart = raw.Abs(raw.ExpandDims(numbers, 1) - raw.ExpandDims(numbers, 0))
    return raw.Cast(raw.LessEqual(apart, radius), DstT=x.dtype)


def _lrn_examples(draw: Any, which: str) -> list[Example]:
    x = draw.normal(draw.size(0, 2), 2, draw.size(1, 2), draw.size(1, 5))
    attrs: dict[str, Any] = {"depth_radius": draw.size(0, 2), "bias": 1.5, "alpha": 0.3, "beta": 0.6}
    if which == "forward":
        return [call(*_single(x), order=3, **attrs)]
    return [call(*_single(draw.normal(*x.shape), x, _lrn(np, x, **attrs)), **attrs)]


_LRN = f"depth_radius: int = 5, bias: float = 1.0, alpha: float = 1.0, beta: float = 0.5, T: {_NARROW} = float32"
define(
    f"LRN(input: T; {_LRN}) -> (output: T)",
    shape=lambda x: x.shape,
    gradient=_of_lrn,
    kernel=_lrn,
    examples=lambda draw: _lrn_examples(draw, "forward"),
)
define(
    f"LRNGrad(input_grads: T, input_image: T, output_image: T; {_LRN}) -> (output: T)",
    shape=lambda dy, x, y: x.shape,
    gradient=_of_lrn_grad,
    kernel=_lrn_grad,
    examples=lambda draw: _lrn_examples(draw, "grad"),
)
