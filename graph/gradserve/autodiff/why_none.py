"""Says why an x got no gradient: no path, integers on the path, an op without derivative, or a stop.

A node that calls functions is looked into: what cuts every path through its bodies is the reason.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from gradserve.graph.functions import Function, spec_of
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.inline import CALLS, body_of
from gradserve.graph.op import NoRule
from gradserve.ops.branches import branches_of
from gradserve.ops.loops import loop_specs

_LOOPS = frozenset(("While", "StatelessWhile"))
_SWITCHES = frozenset(("Switch", "RefSwitch", "_SwitchN"))
_BRANCHES = frozenset(("If", "StatelessIf", "Case", "StatelessCase"))


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
        for node, slot in tensor.consumers:
            if node not in useful:
                continue
            path = (*_path(came_from, tensor), node.name)
            if node.op is not None and isinstance(node.op.gradient, NoRule):
                return _reason(Cause.NOT_DIFFERENTIABLE, node, path, node.op.gradient.why)
            passed = _passed(node, slot)
            if not passed:
                reasons = [explain(body.outputs, body.inputs[k], frozenset()) for body, k in _bodies(node, slot)]
                found = next((reason for reason in reasons if reason.cause is not Cause.UNCONNECTED), None)
                if found is not None:
                    return _inside(node, path, found)
            for output in passed:
                if output not in came_from:
                    came_from[output] = tensor
                    queue.append(output)
    if any(y in came_from for y in ys):
        return _reason(Cause.NOT_DIFFERENTIABLE, x.node, (x.node.name,), "has a gradient of None on every path")
    message = f"{x.name} has no gradient: no y depends on it."
    if x.node.type in _SWITCHES:
        message += f" A branch is given it in place of {x.node.inputs[0].name}: ask for the gradient of that."
    return Reason(Cause.UNCONNECTED, "", "", (x.node.name,), message)


def _bodies(node: Node, slot: int) -> list[tuple[Function, int]]:
    """The bodies that an input of a node is an argument of, with its position there."""
    if node.type in CALLS:
        return [(body_of(node.graph, node.attrs["f"], [spec_of(x) for x in node.inputs]), slot)]
    if node.type in _LOOPS:
        return [(body_of(node.graph, node.attrs["body"], loop_specs(node)), slot)]
    if node.type in _BRANCHES and slot:
        specs = [spec_of(x) for x in node.inputs[1:]]
        return [(body_of(node.graph, branch, specs), slot - 1) for branch in branches_of(node)]
    return []


def _passed(node: Node, slot: int) -> list[Tensor]:
    """The outputs that an input reaches; all, for a node without bodies. A loop may run any number of rounds."""
    bodies = _bodies(node, slot)
    if not bodies:
        return list(node.outputs)
    looping = node.type in _LOOPS
    reached = {slot} if looping else set[int]()
    queue = [k for _, k in bodies[:1]]
    while queue:
        k = queue.pop()
        for body, first in bodies:
            argument = body.inputs[k if looping else first]
            new = {j for j, y in enumerate(body.outputs) if j not in reached and _flows(argument, [y])}
            reached |= new
            queue += new if looping else ()
    return [node.outputs[j] for j in sorted(reached)]


def _flows(x: Tensor, ys: Sequence[Tensor]) -> bool:
    """Whether a gradient can flow from one of the ys to x."""
    wanted, seen, stack = set(ys), {x}, [x]
    while stack:
        tensor = stack.pop()
        if not tensor.dtype.is_trainable:
            continue
        if tensor in wanted:
            return True
        for node, slot in tensor.consumers:
            if node.op is not None and isinstance(node.op.gradient, NoRule):
                continue
            for output in _passed(node, slot):
                if output not in seen:
                    seen.add(output)
                    stack.append(output)
    return False


def _inside(call: Node, path: tuple[str, ...], found: Reason) -> Reason:
    """A reason of a body, as seen from the graph that calls it."""
    path = (*path, *(f"{call.name}/{name}" for name in found.path[1:]))
    node = f"{call.name}/{found.node}"
    what = found.message.partition(" (")[2].partition(". Path from x:")[0]
    return Reason(found.cause, node, found.op, path, f"No gradient: {node} ({what}. Path from x: {' -> '.join(path)}.")


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
