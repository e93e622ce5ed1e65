"""The CTC loss: its gradient against differences, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.graph import op as catalogue
from gradserve.graph.graph import Tensor
from tests.ops.differences import Built, check, run

_OP = catalogue.lookup("CTCLoss")


def _example(**attrs: Any) -> catalogue.Example:
    """A repeated label and a sequence that is shorter than the other."""
    labels = np.array([[0, 0], [0, 1], [1, 0]]), np.array([1, 1, 2], np.int32), np.array([5, 3], np.int32)
    return catalogue.call(np.random.default_rng(3).standard_normal((5, 2, 4)), *labels, **attrs)


@pytest.mark.parametrize("known_shapes", [True, False])
@pytest.mark.parametrize("attrs", [{}, {"preprocess_collapse_repeated": True}, {"ctc_merge_repeated": False}])
def test_a_third_order_agrees_with_differences(attrs: dict[str, Any], known_shapes: bool) -> None:
    built = Built(_OP, _example(**attrs), known_shapes=known_shapes)
    (dx,) = gradients(built.outputs[0], built.sources)
    assert isinstance(dx, Tensor)
    check([dx], built.sources, built.values, order=2)


@pytest.mark.parametrize("known_shapes", [True, False])
def test_a_sequence_without_steps_labels_or_path_has_no_curvature(known_shapes: bool) -> None:
    labels = np.array([[1, 0], [1, 1], [1, 2]]), np.array([1, 1, 0], np.int32), np.array([3, 2, 0], np.int32)
    inputs = np.random.default_rng(0).standard_normal((3, 3, 3))
    example = catalogue.call(inputs, *labels, ignore_longer_outputs_than_inputs=True)
    built = Built(_OP, example, known_shapes=known_shapes)
    check(built.outputs, built.sources, built.values, order=2)
    (dx,) = gradients(built.outputs[1], built.sources, grad_ys=[inputs])
    assert isinstance(dx, Tensor)
    curved = run([dx], built.sources, built.values)[0]
    assert np.abs(curved[:, 0]).max() > 0
    assert not curved[:, 1:].any()


@pytest.mark.parametrize("known_shapes", [True, False])
@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (20, 1, 3)])
def test_no_steps_no_sequences_and_many_steps(shape: tuple[int, int, int], known_shapes: bool) -> None:
    steps, batch, _ = shape
    count = min(steps, 2) * batch
    at, values = np.zeros((count, 2), np.int64), np.arange(count, dtype=np.int32)
    at[:, 1] = values
    example = catalogue.call(
        np.random.default_rng(1).standard_normal(shape), at, values, np.full(batch, steps, np.int32)
    )
    built = Built(_OP, example, known_shapes=known_shapes)
    check(built.outputs, built.sources, built.values, order=2)


def test_too_many_labels_for_the_steps_are_an_error_that_names_the_sequence() -> None:
    example = _example()
    built = Built(_OP, example._replace(inputs=(*example.inputs[:3], np.array([1, 3], np.int32))))
    with pytest.raises(ValueError, match="Sequence 0 has 1 steps"):
        check(built.outputs[:1], built.sources, built.values, order=1)


def test_the_loss_is_what_its_definition_gives() -> None:
    # One step and no label: the only path is a blank, so the loss is -log of its probability, here 1/2.
    inputs = np.zeros((1, 1, 2))
    example = catalogue.call(inputs, np.zeros((0, 2), np.int64), np.zeros(0, np.int32), np.array([1], np.int32))
    built = Built(_OP, example)
    assert run(built.outputs[:1], built.sources, built.values)[0][0] == pytest.approx(np.log(2))
