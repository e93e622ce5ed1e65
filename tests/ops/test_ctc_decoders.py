"""CTC decoders: by hand for one step and two, and against all paths of a small example."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from tests.ops.differences import run


def _run(op: str, *inputs: Any, **attrs: Any) -> list[Any]:
    with Graph().as_default():
        return run(getattr(raw, op).outputs(*inputs, **attrs), [], [])


def _best(*labels: int, classes: int = 3) -> Any:
    """Logits of one sequence in which these classes are the largest, 2 over 0."""
    rows: Any = np.eye(classes)[list(labels)]
    return 2.0 * rows[:, None]


def test_blanks_part_what_repeats() -> None:
    at, values, shape, score = _run(
        "CTCGreedyDecoder", _best(0, 0, 2, 0, 1), np.array([5], np.int32), merge_repeated=True
    )
    assert values.tolist() == [0, 0, 1]
    assert at.tolist() == [[0, 0], [0, 1], [0, 2]]
    assert shape.tolist() == [1, 3]
    assert score.tolist() == [[-10.0]]


def test_repeats_stay_unless_they_are_merged_and_any_class_can_be_the_blank() -> None:
    lengths = np.array([4], np.int32)
    assert _run("CTCGreedyDecoder", _best(0, 0, 2, 1), lengths)[1].tolist() == [0, 0, 1]
    assert _run("CTCGreedyDecoder", _best(0, 0, 2, 1), lengths, blank_index=0)[1].tolist() == [2, 1]


def test_steps_after_the_end_do_not_count() -> None:
    assert _run("CTCGreedyDecoder", _best(0, 2, 1), np.array([1], np.int32))[1].tolist() == [0]


def test_a_wide_beam_adds_up_every_path() -> None:
    logits = np.random.default_rng(5).standard_normal((4, 1, 3))
    normal: Any = logits[:, 0] - np.log(np.exp(logits[:, 0]).sum(1, keepdims=True))
    totals: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(3), repeat=4):
        labels = tuple(label for label, _ in itertools.groupby(path) if label != 2)
        totals[labels] = totals.get(labels, 0.0) + float(
            np.exp(sum(normal[step, label] for step, label in enumerate(path)))
        )
    best = sorted(totals.items(), key=lambda entry: -entry[1])[:2]
    found = _run(
        "CTCBeamSearchDecoder", logits, np.array([4], np.int32), beam_width=50, top_paths=2, merge_repeated=False
    )  # fmt: skip
    assert [tuple(values.tolist()) for values in found[2:4]] == [labels for labels, _ in best]
    np.testing.assert_allclose(np.exp(found[-1][0]), [total for _, total in best])


def test_more_paths_than_the_beam_holds_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="beam of 1"):
        _run("CTCBeamSearchDecoder", _best(0), np.array([1], np.int32), beam_width=1, top_paths=2)


def test_a_narrow_beam_drops_and_takes_up_prefixes_in_the_middle_of_a_step() -> None:
    # TensorFlow 2.21's answer: what comes back into the beam within a step has lost the chances that it had.
    logits = np.array([[0.3, 0.8, 0.3], [-1.3, 0.9, 0.4], [-0.5, 0.6, 0.4]])[:, None]
    found = _run(
        "CTCBeamSearchDecoder", logits, np.array([3], np.int32), beam_width=2, top_paths=2, merge_repeated=False
    )
    assert [values.tolist() for values in found[2:4]] == [[1], [0, 1]]
    np.testing.assert_allclose(found[-1], [[-1.261816, -2.0032237]], rtol=1e-6)
