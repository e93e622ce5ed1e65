"""Random tensors, drawn on the server: the same seed gives the same stream in every session."""

from __future__ import annotations

from typing import Any

import numpy as np

from gradserve.client.functions.convert import integers
from gradserve.graph.dtypes import as_dtype
from gradserve.graph.graph import Tensor
from gradserve.graph.op import raw


def random_normal(
    shape: Any, mean: float = 0.0, deviation: float = 1.0, dtype: Any = "float32", seed: int = 0
) -> Tensor:
    """Normally distributed numbers."""
    return raw.RandomStandardNormal(integers(shape), dtype=as_dtype(dtype), seed=seed, seed2=seed) * deviation + mean


def truncated_normal(
    shape: Any, mean: float = 0.0, deviation: float = 1.0, dtype: Any = "float32", seed: int = 0
) -> Tensor:
    """Normally distributed numbers, drawn again where they are over two deviations from the mean."""
    return raw.TruncatedNormal(integers(shape), dtype=as_dtype(dtype), seed=seed, seed2=seed) * deviation + mean


def random_uniform(shape: Any, low: float = 0.0, high: float = 1.0, dtype: Any = "float32", seed: int = 0) -> Tensor:
    """Numbers from low to before high, all as likely."""
    return raw.RandomUniform(integers(shape), dtype=as_dtype(dtype), seed=seed, seed2=seed) * (high - low) + low


def glorot_uniform(fan_in: int, fan_out: int, dtype: Any = "float32", seed: int = 0) -> Tensor:
    """A weight matrix `[fan_in, fan_out]` after Glorot and Bengio 2010, equation 16."""
    limit = float(np.sqrt(6.0 / (fan_in + fan_out)))
    return random_uniform((fan_in, fan_out), -limit, limit, dtype, seed)
