"""cuDNN's recurrent networks: values from TensorFlow's Keras layers, derivatives against central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.errors import GradserveError, Unsupported
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from tests.ops.differences import run


def _ramp(*shape: int) -> Any:
    """The same numbers everywhere: sines of 1, 2, 3, …"""
    return np.sin(np.arange(1, 1 + int(np.prod(shape)))).reshape(shape)


def _outputs(mode: str, params: Any, **attrs: Any) -> list[Any]:
    directions = 2 if attrs.get("direction") == "bidirectional" else 1
    state = np.zeros((directions, 2, 2))
    with Graph().as_default() as graph:
        inputs = [graph.constant(value) for value in (_ramp(3, 2, 3), state, state, params)]
        if "lengths" in attrs:
            lengths = graph.constant(np.array(attrs.pop("lengths"), np.int32))
            return run(raw.CudnnRNNV3.outputs(*inputs, lengths, rnn_mode=mode, **attrs)[:3], (), ())
        return run(raw.CudnnRNN.outputs(*inputs, rnn_mode=mode, **attrs)[:3], (), ())


def test_an_lstm_is_that_of_keras() -> None:
    output, _, c = _outputs("lstm", _ramp(56))
    expected = [
        [-0.0014273550276020148, 0.22552319807407006],
        [-0.0017679386258058637, 0.43852945662574405],
        [-0.0011166803913457333, 0.5733937840527802],
    ]
    np.testing.assert_allclose(output[:, 1], expected, rtol=1e-9)
    np.testing.assert_allclose(c[0, 1], [-0.012191388750910777, 1.529947992547041], rtol=1e-9)


def test_a_gru_is_that_of_keras_with_the_reset_after_the_product() -> None:
    output, _, c = _outputs("gru", _ramp(42))
    expected = [
        [-0.38275815035996, -0.025877730680939716],
        [-0.5708613522700214, -0.02635756710445768],
        [-0.6758919438548912, -0.01702457275225666],
    ]
    np.testing.assert_allclose(output[:, 1], expected, rtol=1e-9)
    assert c.shape == ()


def test_both_directions_stand_side_by_side() -> None:
    output, _, _ = _outputs("lstm", _ramp(112), direction="bidirectional")
    expected = [
        [-0.04197787306435373, 0.14854687845709663, 0.502053832041749, 0.005344287007140729],
        [-0.05625470579473345, 0.3065131060370662, 0.53328669593745, 0.0006136245624057793],
        [-0.07004658016424704, 0.3598978046233406, 0.3943683704910298, -0.0004988249297354543],
    ]
    np.testing.assert_allclose(output[:, 1], expected, rtol=1e-9)


def test_a_short_sequence_keeps_its_last_state() -> None:
    output, h, c = _outputs("lstm", _ramp(56), lengths=[3, 1])
    assert not output[1:, 1].any()
    expected = [[0.5082974085803067, -0.010364170275987405], [-0.0014273550276020148, 0.22552319807407006]]
    np.testing.assert_allclose(h[0], expected, rtol=1e-9)
    np.testing.assert_allclose(
        c[0], [[1.324069435158341, -0.1139649065749335], [-0.013070486541232775, 0.5575440133322163]], rtol=1e-9
    )


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"rnn_mode": "lstm", "params": 55}, "must have 56 entries"),
        ({"rnn_mode": "lstm", "params": 56, "dropout": 0.5}, "dropout draws numbers of its own"),
        ({"rnn_mode": "lstm", "params": 56, "input_mode": "skip_input"}, "skip their input matrix"),
        ({"rnn_mode": "elman", "params": 56}, "rnn_mode is 'elman'"),
    ],
)
def test_what_can_not_be_computed_is_refused(attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(GradserveError, match=message):
        _outputs(attrs.pop("rnn_mode"), _ramp(attrs.pop("params")), **attrs)


def _derivative(mode: str, order: int, unknown: Any) -> Any:
    """A derivative by x of two layers in both directions; `unknown` names a size that the graph leaves open."""
    sizes = {"steps": 3, "batch": 1, "inputs": 5, "units": 2, "states": 4}
    shapes = [("steps", "batch", "inputs"), *[("states", "batch", "units")] * 2]
    values = [_ramp(*(sizes[axis] for axis in shape)) for shape in shapes]
    gates = {"lstm": 4, "gru": 3}[mode]
    params = _ramp(2 * gates * 2 * (5 + 2 + 2 + 4 + 2 + 2)) * 0.7
    with Graph().as_default():
        xs = [
            raw.Placeholder(
                dtype=np.float64,
                shape=None if unknown == "everything" else tuple(None if k == unknown else sizes[k] for k in shape),
            )
            for shape in shapes
        ]
        y = raw.CudnnRNN.outputs(*xs, params, rnn_mode=mode, direction="bidirectional")[0]
        for _ in range(order):
            (y,) = gradients([raw.Square(y)], xs[:1])  # type: ignore[list-item]
        return run([y], xs, values)[0]  # type: ignore[list-item]


@pytest.mark.parametrize("mode", ["lstm", "gru"])
@pytest.mark.parametrize(
    ("order", "unknown"), [(3, "steps"), (3, "batch"), (3, "units"), (3, "states"), (2, "everything")]
)
def test_what_is_not_known_gives_the_derivatives_of_what_is(mode: str, order: int, unknown: str) -> None:
    expected = _derivative(mode, order, "nothing")
    assert np.abs(expected).min() > 1e-9
    np.testing.assert_allclose(_derivative(mode, order, unknown), expected, rtol=1e-8)


def test_layers_that_turn_out_to_skip_their_input_matrix_have_no_derivative_either() -> None:
    x, state = _ramp(3, 2, 2), np.zeros((1, 2, 2))
    with Graph().as_default():
        source = raw.Placeholder(dtype=np.float64, shape=None)
        y = raw.CudnnRNN.outputs(source, state, state, _ramp(48), input_mode="auto_select")[0]
        (dx,) = gradients([y], [source])
    with pytest.raises(Unsupported, match="skip their input matrix"):
        run([dx], [source], [x])  # type: ignore[list-item]
