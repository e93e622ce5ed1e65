"""What models of sound begin with: spectrograms, and their mel-frequency cepstral coefficients.

Both are computed in float64 and rounded once, as in TensorFlow's AudioSpectrogram and Mfcc, whose filters are those of
HTK   (Young et al., The HTK Book, section 5.4).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import call
from gradserve.graph.symbolic import part, shape_of
from gradserve.ops.composites import composite

Array = np.ndarray[Any, Any]

# Spectrograms


def _begins(ops: Any, x: Any, size: int, stride: int) -> Any:
    """Where the windows begin that lie within the samples."""
    samples = part(shape_of(x), 0, 1)
    if isinstance(samples, Tensor):
        end = ops.Maximum(ops.Reshape(samples, np.zeros(0, np.int32)) - (size - 1), 0)
        return ops.Range(0, end, stride)
    return np.arange(0, max(int(samples[0]) - size + 1, 0), stride, dtype=np.int32)


def _spectrogram(ops: Any, x: Any, *, node: Node) -> Any:
    """[channels, windows, frequencies] of samples [samples, channels].

    Windows are weighed by a periodic Hann window and filled up with zeros to a power of two.
    """
    size, stride = node.attrs["window_size"], node.attrs["stride"]
    if size < 2 or stride < 1:
        raise InvalidArgument(
            f"{node.name}: a window needs 2 samples and a step of 1 or more, not {size} and {stride}."
        )
    weights = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    places = ops.ExpandDims(_begins(ops, x, size, stride), np.int32(1)) + np.arange(size, dtype=np.int32)
    samples = ops.Transpose(ops.Cast(x, DstT="float64"), np.array([1, 0], np.int32))
    seen = ops.Mul(ops.GatherV2(samples, places, np.int32(1)), weights)
    length = np.array([1 << (size - 1).bit_length()], np.int32)
    waves = ops.RFFT(seen, length, Tcomplex="complex128")
    power = ops.Square(ops.Real(waves, Tout="float64")) + ops.Square(ops.Imag(waves, Tout="float64"))
    rounded = ops.Cast(power, DstT="float32")
    return rounded if node.attrs["magnitude_squared"] else ops.Sqrt(rounded)


composite(
    "AudioSpectrogram(input: float32; window_size: int, stride: int, magnitude_squared: bool = false)"
    " -> (spectrogram: float32)",
    _spectrogram,
    examples=lambda draw: [
        call(draw.normal(draw.size(3, 12), draw.size(1, 2)).astype(np.float32), window_size=draw.size(2, 5),
             stride=draw.size(1, 3), magnitude_squared=squared, differences=squared, step=0.1)
        for squared in (True, False)
    ],
)  # fmt: skip

# Cepstra


def _mel(frequency: float) -> float:
    return 1127.0 * math.log1p(frequency / 700.0)


def _filters(ops: Any, x: Any, rate: Any, node: Node) -> Any:
    """[frequencies, filters]: triangles on the mel scale, each from the middle of one neighbour to the other's.

    Source: TensorFlow's mfcc_mel_filterbank.
    """
    low, high = node.attrs["lower_frequency_limit"], node.attrs["upper_frequency_limit"]
    count = node.attrs["filterbank_channel_count"]
    if count < 1 or not 0 <= low < high:
        raise InvalidArgument(f"{node.name}: there are no {count} filters between {low} and {high} Hz.")
    bins = ops.Reshape(part(shape_of(x), -1), np.zeros(0, np.int32))
    hertz = ops.Cast(rate, DstT="float64") * 0.5 / ops.Cast(bins - 1, DstT="float64")
    numbers = ops.Cast(ops.Range(np.int32(0), bins, np.int32(1)), DstT="float64")
    if not isinstance(hertz, Tensor) and not 0 < high < hertz * len(numbers):
        raise InvalidArgument(
            f"{node.name}: {len(numbers)} frequencies at {rate} Hz end below upper_frequency_limit, {high} Hz."
        )
    edges = np.linspace(_mel(low), _mel(high), count + 2)
    place = ops.ExpandDims(ops.Log1p(numbers * (hertz / 700.0)) * 1127.0, np.int32(1))
    rises, falls = ((place - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - place) / np.diff(edges)[1:])
    first, last = (ops.Floor(bound) for bound in (low / hertz + 1.5, high / hertz))
    used = ops.LogicalAnd(ops.GreaterEqual(numbers, first), ops.LessEqual(numbers, last))
    triangles = ops.Maximum(ops.Minimum(rises, falls), np.float64(0))
    return triangles * ops.ExpandDims(ops.Cast(used, DstT="float64"), np.int32(1))


def _cosines(filters: int, coefficients: int) -> Array:
    """[filters, coefficients]: the discrete cosine transform, orthonormal but for its first row."""
    angles = np.outer(np.arange(filters) + 0.5, np.arange(coefficients)) * (np.pi / filters)
    return np.sqrt(2 / filters) * np.cos(angles)


def _mfcc(ops: Any, x: Any, rate: Any, *, node: Node) -> Any:
    """[channels, windows, coefficients] of squared magnitudes [channels, windows, frequencies]."""
    filters, coefficients = node.attrs["filterbank_channel_count"], node.attrs["dct_coefficient_count"]
    if not 1 <= coefficients <= filters:
        raise InvalidArgument(f"{node.name}: {filters} filters have no {coefficients} coefficients.")
    mel = ops.BatchMatMulV2(ops.Sqrt(ops.Cast(x, DstT="float64")), _filters(ops, x, rate, node))
    logs = ops.Log(ops.Maximum(mel, np.float64(1e-12)))
    found = ops.BatchMatMulV2(logs, _cosines(filters, coefficients))
    return ops.Cast(found, DstT=x.dtype)


composite(
    "Mfcc(spectrogram: float32, sample_rate: int32; upper_frequency_limit: float = 4000.0,"
    " lower_frequency_limit: float = 20.0, filterbank_channel_count: int = 40, dct_coefficient_count: int = 13)"
    " -> (output: float32)",
    _mfcc,
    host=("sample_rate",),
    examples=lambda draw: [
        call(draw.positive(1, draw.size(1, 2), 33).astype(np.float32), np.int32(8000), filterbank_channel_count=5,
             dct_coefficient_count=draw.size(1, 5))
    ],
)  # fmt: skip
