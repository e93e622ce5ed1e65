"""The loss of connectionist temporal classification.   Graves, Fernández, Gomez and Schmidhuber 2006."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from gradserve.errors import InvalidArgument
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import Example, call, define, raw
from gradserve.graph.symbolic import is_zero
from gradserve.ops.ctc_curvature import hessian_times

Array = np.ndarray[Any, Any]


def _targets(indices: Any, values: Any, batch: int, collapse: bool) -> list[list[int]]:
    """The labels of each sequence; runs of equal ones as one if asked for."""
    rows: list[list[int]] = [[] for _ in range(batch)]
    for (row, _), value in zip(indices.tolist(), values.tolist(), strict=True):
        if not collapse or not rows[row] or rows[row][-1] != value:
            rows[row].append(value)
    return rows


def _forward(log_probabilities: Array, extended: Array, blank: int, merge: bool) -> Array:
    """log α[t, u]: of all beginnings of a path that emit the first u entries of the extended labels by time t."""
    steps, count = len(log_probabilities), len(extended)
    emitted = log_probabilities[:, extended]
    log_alpha = np.full((steps, count), -np.inf)
    log_alpha[0, :2] = emitted[0, :2]
    stays = np.where(merge | (extended == blank), 0.0, -np.inf)
    skips = np.full(count, -np.inf)
    skips[2:][(extended[2:] != blank) & ~(merge & (extended[2:] == extended[:-2]))] = 0.0
    for t in range(1, steps):
        before = log_alpha[t - 1]
        reached = before + stays
        reached[1:] = np.logaddexp(reached[1:], before[:-1])
        reached[2:] = np.logaddexp(reached[2:], before[:-2] + skips[2:])
        log_alpha[t] = emitted[t] + reached
    return log_alpha


def _one(logits: Array, labels: list[int], blank: int, merge: bool) -> tuple[float, Array]:
    """Loss and its gradient with respect to the logits [time, classes] of one sequence."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    extended = np.full(2 * len(labels) + 1, blank)
    extended[1::2] = labels
    ahead = _forward(log_probabilities, extended, blank, merge)
    # Paths read backwards are paths of the reversed labels; an entry is in both halves, hence subtracted once.
    behind = _forward(log_probabilities[::-1], extended[::-1], blank, merge)[::-1, ::-1]
    log_likelihood = np.logaddexp.reduce(ahead[-1, -2:])
    if not np.isfinite(log_likelihood):
        return np.inf, np.zeros_like(logits)
    occupied = np.exp(ahead + behind - log_probabilities[:, extended] - log_likelihood)
    share = np.zeros_like(log_probabilities)
    np.add.at(share.T, extended, occupied.T)
    return -log_likelihood, np.exp(log_probabilities) - share


def _loss(
    inputs: Any, indices: Any, values: Any, lengths: Any, blank: int, collapse: bool, merge: bool, ignore: bool
) -> tuple[Array, Array]:
    _, batch, _ = inputs.shape
    loss, gradient = np.zeros(batch, inputs.dtype), np.zeros_like(inputs)
    for row, labels in enumerate(_targets(indices, values, batch, collapse)):
        steps = int(lengths[row])
        repeats = sum(a == b for a, b in itertools.pairwise(labels)) if merge else 0
        if len(labels) + repeats > steps:
            if ignore:
                continue
            raise InvalidArgument(
                f"Sequence {row} has {steps} steps, too few for its {len(labels)} labels: "
                "set ignore_longer_outputs_than_inputs to give such sequences the loss 0.",
                sequence=row,
            )
        if steps:
            loss[row], gradient[:steps, row] = _one(inputs[:steps, row].astype(np.float64), labels, blank, merge)
    return loss, gradient


def _kernel(
    xp: Any, inputs: Any, indices: Any, values: Any, lengths: Any, *, preprocess_collapse_repeated: bool,
    ctc_merge_repeated: bool, ignore_longer_outputs_than_inputs: bool, node: Node,
) -> tuple[Array, Array]:  # fmt: skip
    blank = 0 if node.type == "CTCLossV2" else inputs.shape[2] - 1
    return _loss(
        inputs, indices, values, lengths, blank, preprocess_collapse_repeated, ctc_merge_repeated,
        ignore_longer_outputs_than_inputs,
    )  # fmt: skip


def _loss_gradient(
    dloss: Tensor, dgradient: Tensor, loss: Tensor, gradient: Tensor, inputs: Tensor, indices: Tensor, values: Tensor,
    lengths: Tensor, *, preprocess_collapse_repeated: bool, ctc_merge_repeated: bool, node: Node,
) -> Any:  # fmt: skip
    """The op's second output is the derivative of the first one; its own is the Hessian (TensorFlow has none)."""
    scale = raw.ExpandDims(raw.ExpandDims(dloss, np.int32(0)), np.int32(-1))
    dinputs = scale * gradient
    if not is_zero(dgradient):
        dinputs += hessian_times(
            dgradient, inputs, indices, values, lengths, blank=0 if node.type == "CTCLossV2" else None,
            collapse=preprocess_collapse_repeated, merge=ctc_merge_repeated,
        )  # fmt: skip
    return dinputs, None, None, None


def _examples(draw: Any, kind: Any) -> list[Example]:
    """Up to two labels a sequence, which may be the same one and are no blank, and steps enough for them."""
    steps, batch, classes = draw.size(3, 5), draw.size(0, 2), draw.size(3, 4)
    rows = [(row, place) for row in range(batch) for place in range(draw.size(0, 2))]
    at = np.array(rows, np.int64).reshape(-1, 2)
    labels, lengths = draw.integers(1, classes - 1, len(rows)), draw.integers(3, steps + 1, batch)
    attr = draw.pick(["preprocess_collapse_repeated", "ctc_merge_repeated"])
    x = draw.normal(steps, batch, classes).astype(kind)
    return [call(x, at, labels, lengths, **{attr: draw.pick([True, False])})]


for _name in ("CTCLoss", "CTCLossV2"):
    _type, _attr = ("T", ", T: float32|float64 = float32") if _name == "CTCLoss" else ("float32", "")

    define(
        f"{_name}(inputs: {_type}, labels_indices: int64, labels_values: int32, sequence_length: int32;"
        " preprocess_collapse_repeated: bool = false, ctc_merge_repeated: bool = true,"
        f" ignore_longer_outputs_than_inputs: bool = false{_attr}) -> (loss: {_type}, gradient: {_type})",
        shape=lambda inputs, *labels: [None if inputs.shape is None else (inputs.shape[1],), inputs.shape],
        gradient=_loss_gradient,
        kernel=_kernel,
        dynamic=True,
        examples=lambda draw, kind=np.float64 if _type == "T" else np.float32: _examples(draw, kind),
    )
