"""Losses: one value an example, for `mean` to average, unless said otherwise."""

from __future__ import annotations

from gradserve.client.functions.convert import TensorLike, as_tensor
from gradserve.client.functions.reductions import mean
from gradserve.graph.graph import Tensor
from gradserve.graph.op import raw


def softmax_cross_entropy(logits: TensorLike, labels: TensorLike) -> Tensor:
    """-Σ labels log softmax(logits) over the last axis of `[batch, classes]`; labels are probabilities."""
    return raw.SoftmaxCrossEntropyWithLogits.outputs(as_tensor(logits), labels)[0]


def sparse_softmax_cross_entropy(logits: TensorLike, labels: TensorLike) -> Tensor:
    """-log softmax(logits)[label]; labels are the numbers of classes, int32 or int64."""
    return raw.SparseSoftmaxCrossEntropyWithLogits.outputs(as_tensor(logits), labels)[0]


def sigmoid_cross_entropy(logits: TensorLike, labels: TensorLike) -> Tensor:
    """-labels log σ(x) - (1 - labels) log(1 - σ(x)) for each element, as softplus(x) - x labels."""
    tensor = as_tensor(logits)
    return raw.Softplus(tensor) - tensor * labels


def mean_squared_error(x: TensorLike, y: TensorLike) -> Tensor:
    """The mean of (x - y)² over everything, a scalar."""
    return mean(raw.SquaredDifference(as_tensor(x), y))


def mean_absolute_error(x: TensorLike, y: TensorLike) -> Tensor:
    """The mean of |x - y| over everything, a scalar."""
    return mean(raw.Abs(as_tensor(x) - y))


def huber(x: TensorLike, y: TensorLike, delta: float = 1.0) -> Tensor:
    """(x - y)²/2 up to a distance of delta, linear beyond it, for each element."""
    distance = raw.Abs(as_tensor(x) - y)
    near = raw.Minimum(distance, delta)
    return near * near * 0.5 + (distance - near) * delta


def l2_loss(x: TensorLike) -> Tensor:
    """Σ x²/2, a scalar."""
    return raw.L2Loss(as_tensor(x))
