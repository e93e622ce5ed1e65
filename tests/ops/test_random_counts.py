"""Counts and bounded normal numbers are TensorFlow's; the expected ones were printed by TensorFlow 2.21."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.workers.engines import numpy as engine
from gradserve.workers.segment import Segment, State
from tests.ops.differences import run

_SEED = np.array([1, 2])
_SIZE = np.array([2, 3], np.int32)


def _numbers(name: str, size: Any, *inputs: Any, **attrs: Any) -> Any:
    with Graph().as_default() as graph:
        parameters = [graph.constant(np.asarray(value)) for value in inputs]
        return run([getattr(raw, name)(size, _SEED, *parameters, **attrs)], [], [])[0]


def test_poisson_numbers_of_small_and_large_rates() -> None:
    found = _numbers("StatelessRandomPoisson", _SIZE, [0.5, 4.0, 30.0], dtype="int64")
    assert found.tolist() == [[3, 6, 25], [2, 6, 35]]


def test_binomial_numbers_of_small_and_large_means() -> None:
    found = _numbers("StatelessRandomBinomial", _SIZE, [5.0, 60.0, 100.0], [0.3, 0.4, 0.9])
    assert found.tolist() == [[3, 30, 89], [2, 34, 89]]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-4.0, 4.0, [0.21537637996215758, 1.9812144923170183, -2.438095338887766]),  # from normal numbers
        (0.3, 0.9, [0.7514902523071081, 0.8818714635376492, 0.6088871230387332]),  # from uniform ones
        (2.5, np.inf, [4.647930943795778, 3.32069195984947, 2.7346270500204803]),  # from exponential ones
        (-np.inf, -2.0, [-3.9262462605444846, -2.7359895918838584, -2.2104115493237684]),  # mirrored
    ],
)
def test_normal_numbers_within_bounds(low: float, high: float, expected: list[float]) -> None:
    name, size = "StatelessParameterizedTruncatedNormal", np.array([3], np.int32)
    np.testing.assert_allclose(_numbers(name, size, 0.5, 2.0, low, high), expected, rtol=1e-12)


def test_bounds_that_admit_nothing_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="can't lie between"):
        _numbers("StatelessParameterizedTruncatedNormal", np.array([1], np.int32), 0.5, 2.0, 4.0, 3.0)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("UniformCandidateSampler", [[1, 4, 7, 6, 0], [4, 7, 2, 0, 5], [2, 6, 8, 7, 1]]),
        ("LogUniformCandidateSampler", [[0, 1, 4, 5, 6], [0, 4, 2, 1, 3], [8, 0, 1, 3, 7]]),
    ],
)
def test_sampled_classes_go_on_where_the_last_step_stopped(name: str, expected: list[list[int]]) -> None:
    with Graph().as_default() as graph:
        attrs = {"num_true": 2, "num_sampled": 5, "unique": True, "range_max": 9, "seed": 3, "seed2": 5}
        sampled = getattr(raw, name).outputs(np.array([[1, 2]]), **attrs)[0]
    compiled, state = engine.compile(Segment(graph, (), (sampled,))), State()
    assert [np.asarray(compiled([], state)[0]).tolist() for _ in range(3)] == expected


def test_classes_are_drawn_by_their_weights() -> None:
    attrs = {"num_true": 1, "num_sampled": 6, "unique": False, "range_max": 5, "seed": 3, "seed2": 5}
    weights = {"unigrams": [3.0, 1.0, 4.0, 5.0], "num_reserved_ids": 1, "distortion": 0.5}
    with Graph().as_default():
        outputs = raw.FixedUnigramCandidateSampler.outputs(np.array([[0], [3]]), **attrs, **weights)
        sampled, of_true, of_sampled = run(outputs, [], [])
    # TensorFlow 2.21's answer; 6 times the root of 3 over the sum of all roots is 1.4915.
    assert sampled.tolist() == [3, 2, 4, 1, 1, 1]
    np.testing.assert_allclose(of_true, [[0], [1.7221291]], rtol=1e-6)
    np.testing.assert_allclose(
        of_sampled, [1.7221291, 0.8610646, 1.9253988, 1.4914076, 1.4914076, 1.4914076], rtol=1e-6
    )


def test_sobols_sequence_begins_behind_the_origin() -> None:
    with Graph().as_default():
        points = [raw.SobolSample(np.int32(2), np.int32(3), np.int32(skip)) for skip in (0, 2)]
        found, behind = run(points, [], [])
    assert found.tolist() == [[0.5, 0.5], [0.75, 0.25], [0.25, 0.75]]
    assert behind[0].tolist() == found[2].tolist()


def test_parameters_that_do_not_end_the_shape_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="no last part of the shape"):
        _numbers("StatelessRandomPoisson", _SIZE, [1.0, 2.0], dtype="int64")


@pytest.mark.parametrize(("name", "attrs"), [("RandomGamma", {}), ("RandomPoissonV2", {"dtype": "float64"})])
def test_a_single_number_is_the_first_of_several(name: str, attrs: dict[str, Any]) -> None:
    found: list[Any] = []
    for size in ([], [1]):
        with Graph().as_default():
            draw = getattr(raw, name)(np.array(size, np.int32), np.float64(3), seed=5, seed2=6, **attrs)
            found += run([draw], [], [])
    assert np.shape(found[0]) == ()
    assert found[0] == found[1][0]
