"""Says why an x got no gradient: no path, integers on the path, an op without derivative, or a stop."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import NoRule


class Cause(enum.Enum):
    """What cut the flow of gradients."""

    UNCONNECTED = "unconnected"
    INTEGER_PATH = "integer path"
    NOT_DIFFERENTIABLE = "not differentiable"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why there is no gradient.

    Attributes:
        cause: which of the four it is.
        node, op: the node that cut the flow and its type; "" where x is unconnected.
        path: the names of the nodes from x to that node.
        message: the same as a sentence.
    """

    cause: Cause
    node: str
    op: str
    path: tuple[str, ...]
    message: str

    def __str__(self) -> str:
        return self.message


def explain(ys: Sequence[Tensor], x: Tensor, stops: frozenset[Tensor]) -> Reason:
    """The first cut on a path from x to one of the ys; call it only for an x without a gradient."""
    useful = _ancestors(ys)
    came_from: dict[Tensor, Tensor | None] = {x: None}
    queue = deque([x])
    while queue:
        tensor = queue.popleft()
        if tensor in stops and (tensor is not x or tensor in ys):
            return _reason(Cause.STOPPED, tensor.node, _path(came_from, tensor), "is in stop_gradients")
        if not tensor.dtype.is_trainable and tensor.node in useful:
            what = f"gives {tensor.dtype}, and only floating and complex tensors carry gradients"
            return _reason(Cause.INTEGER_PATH, tensor.node, _path(came_from, tensor), what)
        for node, _ in tensor.consumers:
            if node not in useful:
                continue
            path = (*_path(came_from, tensor), node.name)
            if node.op is not None and isinstance(node.op.gradient, NoRule):
                return _reason(Cause.NOT_DIFFERENTIABLE, node, path, node.op.gradient.why)
            for output in node.outputs:
                if output not in came_from:
                    came_from[output] = tensor
                    queue.append(output)
    if x.node in useful and any(t.node in useful for t in came_from if t is not x):
        return _reason(Cause.NOT_DIFFERENTIABLE, x.node, (x.node.name,), "has a gradient of None on every path")
    return Reason(Cause.UNCONNECTED, "", "", (x.node.name,), f"{x.name} has no gradient: no y depends on it.")


def _ancestors(ys: Sequence[Tensor]) -> set[Node]:
    seen: set[Node] = set()
    stack = [y.node for y in ys]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(tensor.node for tensor in node.inputs)
    return seen


def _path(came_from: dict[Tensor, Tensor | None], tensor: Tensor) -> tuple[str, ...]:
    names: list[str] = []
    step: Tensor | None = tensor
    while step is not None:
        names.append(step.node.name)
        step = came_from[step]
    return tuple(reversed(names))


def _reason(cause: Cause, node: Node, path: tuple[str, ...], why: str) -> Reason:
    route = " -> ".join(path)
    return Reason(
        cause,
        node.name,
        node.type,
        path,
        f"No gradient: {node.name} ({node.type}) {why}. Path from x: {route}.",
    )
