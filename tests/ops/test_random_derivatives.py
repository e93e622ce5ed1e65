"""Random numbers that keep their place in a distribution whose parameters move: against inverse distributions of SciPy.

Differences of the ops themselves would be wrong: a small change of a parameter may change which candidate is accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import special

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from tests.ops.differences import run

Array = np.ndarray[Any, Any]
_SIZE, _SEED = np.array([2, 3], np.int32), np.array([7, 3])


def _along(y: Tensor, xs: Sequence[Tensor], directions: Sequence[Array]) -> Tensor:
    """The derivative of the scalar y along the directions, which are all of the xs' shapes."""
    terms = []
    for dx, direction in zip(gradients([y], list(xs)), directions, strict=True):
        assert isinstance(dx, Tensor)
        terms.append(raw.Sum(dx * direction, np.arange(direction.ndim, dtype=np.int32)))
    return raw.AddN(terms)


def _agrees(
    sample: Callable[..., Tensor], moved: Callable[..., Array], parameters: Sequence[Array], along: Sequence[int],
    known_shapes: bool,
) -> None:  # fmt: skip
    """First and second derivatives by some of the parameters: `moved(numbers, old, new)` is where numbers move to."""
    generator = np.random.default_rng(1)
    weights = generator.standard_normal((2, 3))
    directions = [
        generator.standard_normal(value.shape) * (np.isfinite(value) & (k in along))
        for k, value in enumerate(parameters)
    ]
    with Graph().as_default():
        xs = [raw.Placeholder(dtype="float64", shape=value.shape if known_shapes else None) for value in parameters]
        y = sample(*xs)
        first = _along(raw.Sum(y * weights, np.array([0, 1], np.int32)), xs, directions)
        numbers, *found = run([y, first, _along(first, xs, directions)], xs, list(parameters))

    def loss(step: float) -> float:
        new = [value + step * direction for value, direction in zip(parameters, directions, strict=True)]
        return float(np.sum(weights * moved(numbers, parameters, new)))

    step = 1e-3
    before, now, after = loss(-step), loss(0), loss(step)
    assert now == pytest.approx(float(np.sum(weights * numbers)), rel=1e-9)
    np.testing.assert_allclose(found[0], (loss(step / 100) - loss(-step / 100)) / (step / 50), rtol=1e-6)
    np.testing.assert_allclose(found[1], (before - 2 * now + after) / step**2, rtol=1e-3, atol=1e-4)


def _moved_gamma(numbers: Array, old: Sequence[Array], new: Sequence[Array]) -> Array:
    return special.gammaincinv(new[0], special.gammainc(old[0], numbers))


_GAMMAS: dict[str, Callable[[Tensor], Tensor]] = {
    "RandomGamma": lambda alpha: raw.RandomGamma(_SIZE[:1], alpha, seed=5, seed2=6),
    "StatelessRandomGammaV2": lambda alpha: raw.StatelessRandomGammaV2(_SIZE, _SEED, alpha),
    "StatelessRandomGammaV3": lambda alpha: raw.StatelessRandomGammaV3(
        _SIZE, np.array([9], np.uint64), np.array([0, 4], np.uint64), np.int32(1), alpha
    ),
}


@pytest.mark.parametrize("known_shapes", [True, False])
@pytest.mark.parametrize("name", _GAMMAS)
def test_gamma_numbers(name: str, known_shapes: bool) -> None:
    _agrees(_GAMMAS[name], _moved_gamma, [np.array([0.6, 2.5, 7.0])], [0], known_shapes)


def _moved_by_bounds(numbers: Array, old: Sequence[Array], new: Sequence[Array]) -> Array:
    mean, deviation, low, high = old
    start, end = special.ndtr((low - mean) / deviation), special.ndtr((high - mean) / deviation)
    place = (special.ndtr((numbers - mean) / deviation) - start) / (end - start)
    start, end = special.ndtr((new[2] - mean) / deviation), special.ndtr((new[3] - mean) / deviation)
    return mean + deviation * special.ndtri(start + place * (end - start))


def _moved_with_bounds(numbers: Array, old: Sequence[Array], new: Sequence[Array]) -> Array:
    """By mean and deviation, as if the bounds moved along: TensorFlow's convention."""
    return new[0] + new[1] * (numbers - old[0]) / old[1]


@pytest.mark.parametrize("known_shapes", [True, False])
@pytest.mark.parametrize(("moved", "along"), [(_moved_by_bounds, (2, 3)), (_moved_with_bounds, (0, 1))])
@pytest.mark.parametrize(("low", "high"), [(-1.5, 1.0), (0.3, 0.9), (-0.5, np.inf), (-np.inf, 0.4)])
def test_normal_numbers_within_bounds(low: float, high: float, moved: Any, along: Any, known_shapes: bool) -> None:
    mean, deviation = np.array([0.1, -0.2, 0.3]), np.array([0.8, 1.0, 1.3])

    def sample(*given: Tensor) -> Tensor:
        return raw.StatelessParameterizedTruncatedNormal(_SIZE, _SEED, *given)

    _agrees(sample, moved, [mean, deviation, mean + low, mean + high], along, known_shapes)
