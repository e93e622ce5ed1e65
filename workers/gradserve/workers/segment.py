"""A segment: a piece of a graph that one worker runs without waiting for another.

It is a pure function from the fed tensors, and the variables' values, to the fetched tensors and new values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

from gradserve.errors import FailedPrecondition, InvalidArgument
from gradserve.graph.graph import Graph, Node, Tensor

_RANK = attrgetter("id")
_PLACEHOLDERS = ("Placeholder", "PlaceholderV2")


@dataclass(frozen=True, slots=True)
class Segment:
    """What to run.

    Attributes:
        graph: holds the nodes; more of them than are needed is fine.
        feeds: the tensors whose values are given, in the order of the call's arguments.
        fetches: the tensors to return.
        targets: nodes to run for their effect.
    """

    graph: Graph
    feeds: tuple[Tensor, ...]
    fetches: tuple[Tensor, ...]
    targets: tuple[Node, ...] = ()

    def nodes(self) -> list[Node]:
        """The nodes that run, each after its inputs and control inputs."""
        return needed(self.fetches, self.targets, frozenset(self.feeds))


@dataclass(frozen=True, slots=True)
class Handle:
    """The run-time value of a resource or reference tensor: the name of a variable."""

    variable: str


@dataclass(slots=True)
class State:
    """Values of variables during one run. Changes gather in `updates` and are kept only if the step succeeds.

    Attributes:
        values: as they were before the step.
        updates: what the step has assigned so far.
        draws: numbers taken so far from each stateful random op, by node name; carried from step to step.
    """

    values: dict[str, Any] = field(default_factory=dict)
    updates: dict[str, Any] = field(default_factory=dict)
    draws: dict[str, int] = field(default_factory=dict)

    def handle(self, node: Node) -> Handle:
        """The handle of the variable that a node declares: its shared name, or else the node's own."""
        container = node.attrs.get("container", "")
        name = node.attrs.get("shared_name") or node.attrs.get("var_name") or node.name
        return Handle(f"{container}/{name}" if container else name)

    def forget(self, handle: Handle) -> None:
        """The variable has no value any more, from now on in this step."""
        self.updates.pop(handle.variable, None)
        self.values = {name: value for name, value in self.values.items() if name != handle.variable}

    def read(self, handle: Handle) -> Any:
        """The current value. Raises FailedPrecondition where nothing has been assigned yet."""
        name = handle.variable
        if name in self.updates:
            return self.updates[name]
        try:
            return self.values[name]
        except KeyError:
            raise FailedPrecondition(
                f"The variable {name} is read before it is initialised: run its initialiser first.",
                variable=name,
            ) from None

    def is_initialised(self, handle: Handle) -> bool:
        """Whether the variable has a value."""
        return handle.variable in self.updates or handle.variable in self.values

    def assign(self, handle: Handle, value: Any) -> None:
        """Gives the variable a value, seen by what runs later in this step."""
        self.updates[handle.variable] = value

    def take(self, node: str, count: int) -> int:
        """Reserves `count` numbers of a node's random stream and returns how many were taken before."""
        before = self.draws.get(node, 0)
        self.draws[node] = before + count
        return before


def last_reads(groups: Sequence[Iterable[Tensor]], kept: Iterable[Tensor]) -> list[list[Tensor]]:
    """For each group of tensors that are read or made together those that no later group has; never what is kept."""
    last: dict[Tensor, int] = {}
    for index, group in enumerate(groups):
        last.update(dict.fromkeys(group, index))
    dying: list[list[Tensor]] = [[] for _ in groups]
    for tensor in last.keys() - set(kept):
        dying[last[tensor]].append(tensor)
    return dying


def controls(node: Node, fed: Collection[Tensor]) -> list[Node]:
    """What a node runs after. A placeholder that is fed does not run, so that nothing waits for it."""
    return [
        source for source in node.control_inputs if source.type not in _PLACEHOLDERS or source.outputs[0] not in fed
    ]


def needed(fetches: Iterable[Tensor], targets: Iterable[Node], fed: frozenset[Tensor]) -> list[Node]:
    """The nodes that these fetches and targets need, in topological order. Ties keep the order of creation.

    Raises InvalidArgument where a placeholder that nothing feeds is needed.
    """
    stack = [tensor.node for tensor in fetches if tensor not in fed] + list(targets)
    wanted: set[Node] = set()
    rising = True
    while stack:
        node = stack.pop()
        if node in wanted:
            continue
        wanted.add(node)
        if node.type in _PLACEHOLDERS and node.outputs[0] not in fed:
            raise InvalidArgument(
                f"The placeholder {node.name} is not fed: give {node.name}:0 a value.", node=node.name
            )
        rank = node.id
        for tensor in node.inputs:
            if tensor not in fed:
                source = tensor.node
                rising = rising and source.id < rank
                if source not in wanted:
                    stack.append(source)
        if node.control_inputs:
            for source in controls(node, fed):
                rising = rising and source.id < rank
                stack.append(source)
    ordered = sorted(wanted, key=_RANK)
    return ordered if rising else _sorted(ordered, fed)


def _sources(node: Node, fed: frozenset[Tensor]) -> list[Node]:
    return [tensor.node for tensor in node.inputs if tensor not in fed] + controls(node, fed)


def _sorted(nodes: Sequence[Node], fed: frozenset[Tensor]) -> list[Node]:
    members = set(nodes)
    waiting = {node: sum(source in members for source in _sources(node, fed)) for node in nodes}
    readers: dict[Node, list[Node]] = {}
    for node in nodes:
        for source in _sources(node, fed):
            readers.setdefault(source, []).append(node)
    queue = deque(node for node in nodes if not waiting[node])
    order: list[Node] = []
    while queue:
        node = queue.popleft()
        order.append(node)
        for reader in readers.get(node, ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                queue.append(reader)
    if len(order) != len(nodes):
        raise InvalidArgument("What is fetched lies in a cycle.")
    return order
