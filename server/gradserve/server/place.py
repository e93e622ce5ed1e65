"""Says which worker runs each node: explicit device strings, then colocation groups, then a cost model.

What may not be parted is one group (union-find): nodes that name each other in `_class`, and all that touches one
variable. A group's devices are those that every device string in it allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradserve.errors import InvalidPlacement
from gradserve.graph import devices
from gradserve.graph.graph import Node, Tensor
from gradserve.server.cost import LINK_BYTES_PER_SECOND, LINK_SECONDS, Sizes
from gradserve.server.simplify import Work
from gradserve.workers.segment import Handle, State

# Spreading must promise this much of the time on one worker, or the graph stays whole.
_WORTH_SPREADING = 0.75
_LEAST_SECONDS = 2e-3


@dataclass(frozen=True, slots=True)
class Placement:
    """Where nodes run.

    Attributes:
        workers: the worker of each node.
        why: ``device``, ``colocated``, ``soft``, ``small`` or ``cost``, with what decided.
        floating: nothing ties the graph to worker 0: any one worker may run it whole.
    """

    workers: Mapping[Node, int]
    why: Mapping[Node, str]
    floating: bool


def place(work: Work, fleet: Sequence[str], soft: bool, sizes: Sizes) -> Placement:
    """A worker for every node, out of a fleet of full device strings.

    Raises InvalidPlacement where a device is not there and `soft` is false, or where two nodes that must stand
    together name different devices.
    """
    full = [devices.parse(text) for text in fleet]
    groups = _groups(work)
    allowed, why = _allowed(work, groups, full, fleet, soft)
    roots = [groups.find(node) for node in work.nodes]
    if not any(len(options) < len(fleet) for options in allowed.values()):
        workers = {} if len(fleet) == 1 else _spread(work, roots, allowed, len(fleet), sizes)
        if len(set(workers.values())) <= 1:
            reason = "small: one worker is as fast"
            return Placement(dict.fromkeys(work.nodes, 0), dict.fromkeys(work.nodes, reason), True)
        return Placement(workers, _reasons(work, roots, why), False)
    return Placement(_schedule(work, roots, allowed, len(fleet), sizes)[0], _reasons(work, roots, why), False)


def variable_name(node: Node) -> str | None:
    """The variable whose handle a node makes, None for any other node."""
    if node.inputs or node.op is None or node.op.kernel is None or not node.op.kernel.wants_state:
        return None
    if not node.outputs or not (node.outputs[0].dtype.kind == "r" or node.outputs[0].dtype.is_reference):
        return None
    handle = node.op.kernel.bind(node, node.attrs)(np, state=State())
    return handle.variable if isinstance(handle, Handle) else None


class _Groups:
    """Union-find over nodes. Colocation names of nodes that are not there join groups too."""

    def __init__(self) -> None:
        self._parents: dict[Any, Any] = {}

    def find(self, member: Any) -> Any:
        parents = self._parents
        root = member
        while (parent := parents.get(root, root)) is not root:
            root = parent
        while (parent := parents.get(member, member)) is not root:
            parents[member] = root
            member = parent
        return root

    def join(self, a: Any, b: Any) -> None:
        root, other = self.find(a), self.find(b)
        if root is not other:
            self._parents[other] = root


def _groups(work: Work) -> _Groups:
    groups = _Groups()
    by_name: dict[str, Any] = {node.name: node for node in work.nodes}
    fed = frozenset(work.feeds)
    variables: dict[str, Node] = {}
    for node in work.nodes:
        for name in node.colocation_groups:
            anchor = by_name.setdefault(name, ("class", name))
            if anchor is not node:
                groups.join(anchor, node)
        variable = variable_name(node)
        if variable is not None:
            groups.join(variables.setdefault(variable, node), node)
        for tensor in work.inputs[node]:
            if _ties(tensor, node) and tensor not in fed:
                groups.join(tensor.node, node)
    return groups


def _ties(tensor: Tensor, reader: Node) -> bool:
    """Whether a reader must stand where the tensor is made: it gets a variable and not a value."""
    if tensor.dtype.is_reference:
        return not reader.device
    return tensor.dtype.kind == "r"


def _allowed(
    work: Work, groups: _Groups, full: Sequence[devices.Device], fleet: Sequence[str], soft: bool
) -> tuple[dict[Any, tuple[int, ...]], dict[Any, tuple[Node, str]]]:
    """The workers that each group may stand on, and which node's device decided."""
    everywhere = tuple(range(len(full)))
    allowed: dict[Any, tuple[int, ...]] = {}
    deciders: dict[Any, tuple[Node, str]] = {}
    matches: dict[str, tuple[int, ...]] = {}
    for node in work.nodes:
        root = groups.find(node)
        options = allowed.setdefault(root, everywhere)
        if not node.device:
            continue
        fitting = matches.get(node.device)
        if fitting is None:
            wanted = devices.parse(node.device)
            fitting = matches[node.device] = tuple(k for k in everywhere if wanted.matches(full[k]))
        if not fitting:
            if soft:
                deciders.setdefault(root, (node, "soft"))
                continue
            raise InvalidPlacement(
                f"{node.name} asks for the device {node.device}, which is not there. There are: {', '.join(fleet)}. "
                "Name one of them, or allow soft placement.",
                node=node.name, device=node.device, devices=", ".join(fleet),
            )  # fmt: skip
        both = tuple(k for k in options if k in fitting)
        if not both:
            other = deciders[root][0]
            if soft:
                continue
            raise InvalidPlacement(
                f"{other.name} on {other.device} and {node.name} on {node.device} must stand on one device: they are "
                "colocated or share a variable.",
                node=node.name, device=node.device, other=other.name, other_device=other.device,
            )  # fmt: skip
        if root not in deciders or len(both) < len(options):
            deciders[root] = (node, "device")
        allowed[root] = both
    return allowed, deciders


def _reasons(work: Work, roots: Sequence[Any], deciders: Mapping[Any, tuple[Node, str]]) -> dict[Node, str]:
    reasons: dict[Node, str] = {}
    for node, root in zip(work.nodes, roots, strict=True):
        decider, kind = deciders.get(root, (None, "cost"))
        if decider is None:
            reasons[node] = "cost: earliest finish"
        elif kind == "soft":
            reasons[node] = f"soft: {decider.device} is not there"
        elif decider is node:
            reasons[node] = f"device: {node.device}"
        else:
            reasons[node] = f"colocated: with {decider.name} on {decider.device}"
    return reasons


def _spread(
    work: Work, roots: Sequence[Any], allowed: Mapping[Any, tuple[int, ...]], count: int, sizes: Sizes
) -> dict[Node, int]:
    """A free graph over the fleet, or all of it on one worker where that is about as fast."""
    alone = sum(sizes.seconds(node, work.inputs[node]) for node in work.nodes)
    together = dict.fromkeys(work.nodes, 0)
    if alone < _LEAST_SECONDS:
        return together
    workers, finish = _schedule(work, roots, allowed, count, sizes)
    return workers if finish < alone * _WORTH_SPREADING else together


def _schedule(
    work: Work, roots: Sequence[Any], allowed: Mapping[Any, tuple[int, ...]], count: int, sizes: Sizes
) -> tuple[dict[Node, int], float]:
    """List scheduling: each node in turn where it would finish first. Returns the workers and the last finish."""
    fed = frozenset(work.feeds)
    free = [0.0] * count
    finish: dict[Node, float] = {}
    workers: dict[Node, int] = {}
    settled: dict[Any, int] = {}
    for node, root in zip(work.nodes, roots, strict=True):
        inputs = work.inputs[node]
        seconds = sizes.seconds(node, inputs)
        before = [(finish[t.node], workers[t.node], sizes.bytes(t) / LINK_BYTES_PER_SECOND + LINK_SECONDS)
                  for t in inputs if t not in fed and t not in work.constants]  # fmt: skip
        before += [(finish[control], workers[control], LINK_SECONDS) for control in work.controls[node]]
        best, best_finish = -1, 0.0
        for worker in (settled[root],) if root in settled else allowed[root]:
            start = free[worker]
            for done, where, transfer in before:
                start = max(start, done if where == worker else done + transfer)
            if best < 0 or start + seconds < best_finish:
                best, best_finish = worker, start + seconds
        settled[root] = workers[node] = best
        finish[node] = free[best] = best_finish
    return workers, max(free)
