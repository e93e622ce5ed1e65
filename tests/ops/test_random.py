"""Random sources give TensorFlow's numbers; the expected ones were printed by TensorFlow 2.21."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import special

import gradserve.ops  # noqa: F401
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.workers.engines import numpy as engine
from gradserve.workers.segment import Segment, State

_SHAPE = np.array([3], np.int32)

_EXPECTED: list[tuple[str, dict[str, Any], list[list[float]]]] = [
    (
        "RandomUniform",
        {"dtype": "float32", "seed": 87654321, "seed2": 5},
        [
            [0.3883112668991089, 0.6636828184127808, 0.1919107437133789],
            [0.05274152755737305, 0.07105469703674316, 0.8058198690414429],
        ],
    ),
    (
        "RandomUniform",
        {"dtype": "float64", "seed": 87654321, "seed2": 5},
        [
            [0.10649075668991137, 0.5352865750082818, 0.7054680331168384],
            [0.4219329451602971, 0.4465596235137119, 0.2907530296618206],
        ],
    ),
    (
        "RandomStandardNormal",
        {"dtype": "float32", "seed": 87654321, "seed2": 5},
        [
            [-1.178082823753357, -0.7099413871765137, -1.7481579780578613],
            [1.0473957061767578, 2.1880736351013184, 0.5587972402572632],
        ],
    ),
    (
        "RandomStandardNormal",
        {"dtype": "float64", "seed": 87654321, "seed2": 5},
        [
            [-0.46540936664254984, -2.0646521014272525, -0.7490927202357748],
            [0.4328676888372711, -1.2403399995779065, -1.0192750789479164],
        ],
    ),
    (
        "TruncatedNormal",
        {"dtype": "float32", "seed": 87654321, "seed2": 5},
        [
            [-1.178082823753357, -0.7099413871765137, -1.7481579780578613],
            [1.0473957061767578, 0.5587972402572632, -0.3457394242286682],
        ],
    ),
    (
        "TruncatedNormal",
        {"dtype": "float64", "seed": 87654321, "seed2": 5},
        [
            [-0.46540936664254984, -0.7490927202357748, -0.49661495908212616],
            [0.4328676888372711, -1.2403399995779065, 0.6318399708456744],
        ],
    ),
]


def _run(name: str, *inputs: Any, runs: int = 1, **attrs: Any) -> list[list[float]]:
    graph = Graph()
    with graph.as_default():
        y = getattr(raw, name)(*inputs, **attrs)
    compiled, state = engine.compile(Segment(graph, (), (y,))), State()
    return [np.asarray(compiled([], state)[0]).ravel().tolist() for _ in range(runs)]


@pytest.mark.parametrize(("name", "attrs", "expected"), _EXPECTED)
def test_numbers_are_those_of_tensorflow(name: str, attrs: dict[str, Any], expected: list[list[float]]) -> None:
    got = _run(name, _SHAPE, runs=2, **attrs)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_a_seed_of_zero_starts_somewhere_new() -> None:
    first, second = _run("RandomUniform", _SHAPE, runs=2, dtype="float32")
    assert first != second


def test_stateless_numbers_depend_on_the_seed_alone() -> None:
    first, second = _run("StatelessRandomNormal", _SHAPE, np.array([7, -3]), runs=2)
    assert first == second


def test_truncated_numbers_stay_within_two() -> None:
    (values,) = _run("TruncatedNormal", np.array([1000], np.int32), seed=1, seed2=2, dtype="float64")
    assert np.abs(values).max() < 2
    assert np.std(values) == pytest.approx(0.88, abs=0.05)  # of a normal cut off at 2


def test_gamma_samples_follow_their_shape_parameter() -> None:
    (values,) = _run("StatelessRandomGammaV2", np.array([4000], np.int32), np.array([1, 2]), np.float64(3))
    assert np.mean(values) == pytest.approx(3, abs=0.15)
    assert np.var(values) == pytest.approx(3, abs=0.3)


def test_gamma_samples_of_no_shape_are_0() -> None:
    (values,) = _run("StatelessRandomGammaV2", np.array([5, 1], np.int32), np.array([1, 2]), np.zeros(1))
    assert not np.any(values)


def test_the_gradient_of_a_gamma_sample_keeps_its_place_in_the_distribution() -> None:
    alpha, sample, step = 2.5, 1.7, 1e-6
    place = special.gammainc(alpha, sample)
    moved = [special.gammaincinv(alpha + side * step, place) for side in (1, -1)]
    ((slope,),) = _run("RandomGammaGrad", np.float64(alpha), np.float64(sample))
    assert slope == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-7)
