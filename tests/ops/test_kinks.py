"""Values and gradients at kinks, ties, zeros and bounds: conventions of the contract, not of the calculus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.errors import InvalidArgument, NoGradient
from gradserve.graph.dtypes import as_dtype
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from tests.ops.differences import run

Function = Callable[..., Tensor]


# fmt: off
_ONE_INPUT: list[tuple[Function, float, float]] = [
    (raw.Relu,                                 0.0, 0.0),
    (raw.Relu6,                                0.0, 0.0),
    (raw.Relu6,                                6.0, 0.0),
    (raw.LeakyRelu,                            0.0, 0.2),
    (raw.Elu,                                  0.0, 1.0),
    (raw.Selu,                                 0.0, 1.0507009873554805),
    (raw.Abs,                                  0.0, 0.0),
    (raw.Sign,                                 0.0, 0.0),
    (raw.Softsign,                             0.0, 1.0),
    (raw.Sqrt,                                 0.0, np.inf),
    (raw.Rsqrt,                                0.0, -np.inf),
    (raw.Log,                                  0.0, np.inf),
    (raw.Reciprocal,                           0.0, -np.inf),
    (lambda x: raw.FloorMod(x, 2.0),           4.0, 1.0),
    (lambda x: raw.ClipByValue(x, 1.0, 3.0),   1.0, 1.0),
    (lambda x: raw.ClipByValue(x, 1.0, 3.0),   3.0, 1.0),
    (lambda x: raw.DivNoNan(x, 0.0),           2.0, 0.0),
]
_TWO_INPUTS: list[tuple[Function, float, float, float, float]] = [
    (raw.Maximum, 1.0, 1.0, 1.0,    0.0),
    (raw.Minimum, 1.0, 1.0, 1.0,    0.0),
    (raw.Xlogy,   0.0, 0.0, 0.0,    0.0),
    (raw.Pow,     0.0, 0.0, np.nan, 0.0),
    (raw.Atan2,   0.0, 0.0, np.nan, np.nan),
]
# fmt: on


def _gradient(function: Function, *values: Any, dtype: Any = np.float32) -> list[Any]:
    graph = Graph()
    arrays = [np.asarray(value, dtype) for value in values]
    with graph.as_default():
        xs = [raw.Placeholder(dtype=array.dtype, shape=array.shape) for array in arrays]
        found = gradients([function(*xs)], xs)
    assert all(dx is not None for dx in found)
    return run([dx for dx in found if isinstance(dx, Tensor)], xs, arrays)


@pytest.mark.parametrize(("function", "x", "expected"), _ONE_INPUT)
def test_gradient_of_one_input(function: Function, x: float, expected: float) -> None:
    assert _gradient(function, x) == [np.float32(expected)]


@pytest.mark.parametrize(("function", "x", "y", "dx", "dy"), _TWO_INPUTS)
def test_gradient_of_two_inputs(function: Function, x: float, y: float, dx: float, dy: float) -> None:
    np.testing.assert_array_equal(_gradient(function, x, y), np.array([dx, dy], np.float32))


def test_an_infinity_in_the_branch_not_taken_gives_nan() -> None:
    dx = _gradient(lambda x: raw.SelectV2(raw.Greater(x, 0), raw.Log(x), x), 0.0)
    assert np.isnan(dx[0])


def test_a_root_in_the_branch_not_taken_gives_none_of_its_infinity() -> None:
    # TensorFlow's SqrtGrad gives 0 for a cotangent of 0, whatever the root is.
    dx = _gradient(lambda x: raw.SelectV2(raw.Greater(x, 0), raw.Sqrt(x), x), 0.0)
    np.testing.assert_array_equal(dx[0], 1)


def test_top_k_takes_the_first_of_equal_entries() -> None:
    dx = _gradient(lambda x: raw.TopKV2.outputs(x, 2)[0], [1.0, 3.0, 2.0, 3.0, 3.0])
    np.testing.assert_array_equal(dx[0], [0, 1, 0, 1, 0])


def test_unsorted_top_k_lies_as_in_a_heap() -> None:
    # The heap of 5, 1, 9, 3 without its worst is 3, 5, 9. For 7 the 3 goes: 5, 9, then 7. For 2 nothing changes.
    graph = Graph()
    with graph.as_default():
        values, indices = raw.TopKV2.outputs(graph.constant([5.0, 1.0, 9.0, 3.0, 7.0, 2.0]), 3, sorted=False)
    for got, expected in zip(run([values, indices], [], []), ([5, 9, 7], [0, 2, 4]), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_equal_entries_share_the_gradient_of_the_nth_element() -> None:
    dx = _gradient(lambda x: raw.NthElement(x, 1), [1.0, 3.0, 3.0, 4.0])
    np.testing.assert_array_equal(dx[0], [0, 0.5, 0.5, 0])


def test_a_bound_below_the_other_wins_as_the_lower_one() -> None:
    assert _value(lambda x: raw.ClipByValue(x, 2.0, 1.0), 1.5) == 2.0


def test_floor_division_floors_the_rounded_quotient() -> None:
    # 1/0.1 rounds to 10 in float32, although 10 * float32(0.1) is a little more than 1.
    assert _value(lambda x: raw.FloorDiv(x, 0.1), 1.0) == 10.0


def _value(function: Function, x: float) -> Any:
    graph = Graph()
    with graph.as_default():
        return run([function(graph.constant(np.float32(x)))], [], [])[0]


def test_cross_entropy_counts_labels_that_do_not_sum_to_one() -> None:
    # loss = Σ l (log Σ exp x - x); at x = 0 with two classes and l = [1, 1]: dx = 2 [1/2, 1/2] - [1, 1] = 0.
    def loss(features: Tensor) -> Tensor:
        return raw.SoftmaxCrossEntropyWithLogits.outputs(features, np.ones((1, 2), np.float32))[0]

    np.testing.assert_allclose(_gradient(loss, [[0.0, 0.0]])[0], [[0, 0]], atol=1e-6)


def test_prevent_gradient_refuses() -> None:
    with pytest.raises(NoGradient, match="explicitly disabled"):
        _gradient(raw.PreventGradient, 1.0)


def test_check_numerics_names_what_it_found() -> None:
    graph = Graph()
    with graph.as_default():
        y = raw.CheckNumerics(graph.constant(np.array([1, np.nan, np.inf], np.float32)), message="weights")
    with pytest.raises(InvalidArgument, match=r"weights : Tensor had \+Inf and NaN values"):
        run([y], [], [])


def test_equal_neighbours_are_not_pooled() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype=np.float64, shape=(4,))
        y, _ = raw.IsotonicRegression.outputs(x, output_dtype="float64")
        seed = np.array([1.0, 2.0, 3.0, 5.0])
        found = gradients([y], [x], [seed])[0]
        assert isinstance(found, Tensor)
        # 1, 1 stand; 0, 2 violate the order and share a mean, as 1 with them does not
        assert run([found], [x], [np.array([3.0, 3.0, 0.0, 2.0])])[0].tolist() == [1, 2, 4, 4]


@pytest.mark.parametrize("function", [raw.Log, raw.Sqrt])
def test_a_complex_pole_is_nan_in_both_parts(function: Function) -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype=np.complex128, shape=())
        found = gradients([function(x)], [x], [np.array(1 + 2j)])[0]
        assert isinstance(found, Tensor)
        (dx,) = run([found], [x], [np.array(0j)])
    assert np.isnan(dx.real)
    assert np.isnan(dx.imag)


def test_poles_of_digamma_are_nan_where_their_sides_differ() -> None:
    x = np.array([0.0, -1.0, -2.5, 0.5])
    with Graph().as_default():
        place = raw.Placeholder(dtype=np.float64, shape=(4,))
        ys = [raw.Digamma(place), raw.Polygamma(1.0, place), raw.Polygamma(2.0, place)]
        digamma, first, second = run(ys, [place], [x])
    assert np.isnan(digamma).tolist() == [True, True, False, False]
    assert np.isposinf(first).tolist() == [True, True, False, False]
    assert np.isnan(second).tolist() == [True, True, False, False]


def test_outside_of_their_domain_bessel_functions_keep_the_value_at_zero() -> None:
    x = np.array([-2.0, -0.5])
    with Graph().as_default():
        place = raw.Placeholder(dtype=np.float64, shape=(2,))
        ys = [raw.BesselK0(place), raw.BesselK1e(place), raw.BesselY0(place), raw.BesselY1(place), raw.Expint(place)]
        assert [y.tolist()[0] for y in run(ys, [place], [x])][:4] == [np.inf, np.inf, -np.inf, -np.inf]
        assert np.isnan(run(ys[4:], [place], [x])[0]).all()


@pytest.mark.parametrize(
    ("left", "right", "axes"),
    [
        ([1, 3], [1, 3], ([], [])),
        ([1], [1, 1], ([0, 1], [0, 1])),
        ([1, 1], [1, 3], ([0, 1], [0])),
        ([2, 3], [3], ([], [0])),
        ([0, 1], [], ([1], [0, 1])),
    ],
)
def test_axes_of_broadcasting_are_all_with_a_one(left: list[int], right: list[int], axes: tuple[Any, Any]) -> None:
    with Graph().as_default():
        sizes = [raw.Placeholder(dtype=np.int32, shape=(len(shape),)) for shape in (left, right)]
        found = run(
            list(raw.BroadcastGradientArgs.outputs(*sizes)), sizes, [np.array(s, np.int32) for s in (left, right)]
        )
    assert tuple(side.tolist() for side in found) == axes


NAN, INFINITY, LOWEST = np.nan, np.inf, np.finfo(np.float32).min


def _values(function: Function, *values: Any) -> list[Any]:
    graph = Graph()
    with graph.as_default():
        return run([function(*(graph.constant(np.asarray(value)) for value in values))], [], [])[0].tolist()


def test_a_pool_passes_over_nan_and_has_no_value_below_the_lowest() -> None:
    rows = np.array([[NAN, 1, 2], [3, NAN, 2], [NAN, NAN, NAN], [-INFINITY, -INFINITY, -INFINITY]], np.float32)
    image = rows.reshape(4, 1, 3, 1)
    sizes = {"ksize": [1, 1, 3, 1], "strides": [1, 1, 3, 1], "padding": "VALID"}
    expected = np.array([2, 3, LOWEST, LOWEST], np.float32).tolist()
    assert np.ravel(_values(lambda x: raw.MaxPool(x, **sizes), image)).tolist() == expected
    nothing = {"strides": [1, 1, 3, 1], "rates": [1, 1, 1, 1], "padding": "VALID"}
    flat = np.zeros((1, 3, 1), np.float32)
    assert np.ravel(_values(lambda x, f: raw.Dilation2D(x, f, **nothing), image, flat)).tolist() == expected
    # The gradient goes where the value comes from, and to the first entry where there is none.
    (dx,) = _gradient(lambda x: raw.MaxPool(x, **sizes), image)
    assert dx.reshape(4, 3).tolist() == [[0, 0, 1], [1, 0, 0], [1, 0, 0], [1, 0, 0]]


def test_nan_is_no_extreme_among_others() -> None:
    x = np.array([NAN, 1, 3, NAN], np.float32)
    assert _values(lambda x: raw.ArgMax(x, 0), x) == 2
    assert _values(lambda x: raw.ArgMin(x, 0), x) == 1
    assert _values(lambda x: raw.ArgMax(x, 0), np.full(2, NAN)) == 0


def test_a_bound_that_is_nan_bounds_nothing() -> None:
    x = np.array([5, -5, 1, NAN])
    np.testing.assert_array_equal(_values(raw.ClipByValue, x, NAN, 2.0), [2, -5, 1, NAN])
    np.testing.assert_array_equal(_values(raw.ClipByValue, x, -2.0, NAN), [5, -2, 1, NAN])


def test_complex_numbers_are_clipped_part_by_part() -> None:
    x = np.array([1 + 2j, 3 - 1j, -2 + 0.5j])
    assert _values(raw.ClipByValue, x, np.array(0.5 + 0j), np.array(2 + 1j)) == [1 + 1j, 2 + 0j, 0.5 + 0.5j]


def test_the_log_of_no_sum_is_minus_infinity() -> None:
    found = _values(lambda x: raw.CumulativeLogsumexp(x, 0, exclusive=True), np.zeros(3))
    np.testing.assert_allclose(found, [-INFINITY, 0, np.log(2)])


def test_a_segment_holds_its_infinity_where_all_have_rows() -> None:
    x = np.array([-INFINITY, 1, -INFINITY], np.float32)
    assert _values(lambda x: raw.SegmentMax(x, np.array([0, 2, 2], np.int32)), x) == [-INFINITY, 0, 1]
    assert _values(lambda x: raw.UnsortedSegmentMax(x, np.array([0, 1, 1], np.int32), 3), x) == [LOWEST, 1, LOWEST]


def test_a_line_ends_where_it_is_to_end() -> None:
    # TensorFlow 2.21's numbers: start + i step in float32, and the end itself.
    expected = [
        0.1,
        0.19999998807907104,
        0.29999998211860657,
        0.3999999761581421,
        0.4999999701976776,
        0.5999999642372131,
        0.7,
    ]
    found = _values(lambda a, b: raw.LinSpace(a, b, 7), np.float32(0.1), np.float32(0.7))
    assert found == np.array(expected, np.float32).tolist()
    assert _values(lambda a, b: raw.LinSpace(a, b, 3), INFINITY, -1.0)[::2] == [INFINITY, -1]


def test_gamma_is_infinite_at_both_ends() -> None:
    assert _values(raw.Lgamma, np.array([-INFINITY, INFINITY, 0.0])) == [INFINITY] * 3


def test_a_transposed_matrix_of_truth_values_holds_truth_values() -> None:
    found = _values(lambda x: raw.ConjugateTranspose(x, np.array([1, 0], np.int32)), np.array([[True, False]]))
    assert found == [[True], [False]]
    assert found[0][0] is True


def test_classes_without_a_finite_logit_are_not_drawn() -> None:
    logits = np.array([[NAN, 1, -INFINITY, 2]])
    drawn = _values(lambda x: raw.Multinomial(x, np.int32(50), seed=1, seed2=2), logits)[0]
    assert set(drawn) == {1, 3}


@pytest.mark.parametrize("kind", ["float32", "float64", "float16", "bfloat16"])
def test_nan_is_like_nothing_else(kind: str) -> None:
    x = np.array([NAN, 1, NAN, 0, 1]).astype(as_dtype(kind).numpy)
    assert _values(lambda x: raw.Unique.outputs(x)[1], x) == [0, 1, 2, 3, 1]
    assert _values(lambda x: raw.UniqueV2.outputs(x, np.array([0], np.int32))[1], x[:, None]) == [0, 1, 2, 3, 1]


def test_what_lies_outside_of_a_tridiagonal_matrix_does_not_count() -> None:
    above, main, below = np.array([[[2, NAN]], [[1, 1]], [[INFINITY, 3]]])
    assert _values(raw.TridiagonalMatMul, above, main, below, np.array([[1.0], [10.0]])) == [[21], [13]]
