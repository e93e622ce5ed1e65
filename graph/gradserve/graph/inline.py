"""Puts the bodies of called functions in the place of their calls, and second forward nodes in that of the first.

Afterwards a graph says what runs, so that placement, fusion and folding see through calls. The gradient of a call
repeats the forward body: its nodes become those of the forward call. The gradient of a branch or a loop adds a node
that computes what the forward node does and more: it takes the forward node's place. Nothing is computed twice, and
what draws random numbers or changes variables does so once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gradserve.graph import functions, op
from gradserve.graph.functions import FORWARD, Function, Spec
from gradserve.graph.graph import FunctionName, Graph, Node, Tensor

CALLS = frozenset(("PartitionedCall", "StatefulPartitionedCall"))


_MOST_BODIES = 256
"""Kept in one library; the least recently used ones are made again."""


def body_of(graph: Graph, called: FunctionName, specs: Sequence[Spec]) -> Function:
    """The body of a function for arguments of which so much is known, the bodies that it calls put in their places.

    Raises NotFound and InvalidGraph as `read_body` does.
    """
    return kept(graph, called, specs, "inlined", lambda: _inlined(_read(graph, called, specs)))


def _read(graph: Graph, called: FunctionName, specs: Sequence[Spec]) -> Function:
    """The body as it was written."""
    return kept(graph, called, specs, "written", lambda: functions.read_body(graph.library, called, specs))


def kept(
    graph: Graph, called: FunctionName, specs: Sequence[Spec], kind: str, make: Callable[[], Function]
) -> Function:  # fmt: skip
    """A body of the library, made once for what is known of its arguments; `kind` tells what was made of it."""
    bodies = graph.library.bodies
    key = kind, called.name, repr(sorted(called.attrs.items())), tuple(specs)
    found = bodies.get(key)
    if found is None:
        found = bodies[key] = make()
        if len(bodies) > _MOST_BODIES:
            bodies.popitem(last=False)
    else:
        bodies.move_to_end(key)
    return found


def _inlined(function: Function) -> Function:
    outer = [*(tensor.node for tensor in (*function.inputs, *function.outputs)), *function.effects]
    # A node that took another's place keeps its own name here: gradients of gradients are written with it.
    # A call with a gradient of its own stays a call, to be differentiated as one.
    found = inline(function.graph, outer, keep_first_name=False, expand_custom=False)
    if found is None:
        return function
    return Function(
        function.name,
        found.graph,
        tuple(found.tensors[tensor] for tensor in function.inputs),
        tuple(found.tensors[tensor] for tensor in function.outputs),
        tuple(stand for node in function.effects for stand in found.nodes[node]),
    )


@dataclass(frozen=True, slots=True)
class Inlined:
    """A graph without calls.

    Attributes:
        graph: the new graph.
        tensors: what stands in it for the tensors of the old one.
        nodes: what stands in it for the nodes of the old one, where they are run for their effect.
    """

    graph: Graph
    tensors: Mapping[Tensor, Tensor]
    nodes: Mapping[Node, tuple[Node, ...]]

    def then(self, later: Inlined) -> Inlined:
        """This one and another one after it."""
        return Inlined(
            later.graph,
            {old: later.tensors[new] for old, new in self.tensors.items() if new in later.tensors},
            {
                old: tuple(
                    dict.fromkeys(stand for node in stands if node in later.nodes for stand in later.nodes[node])
                )
                for old, stands in self.nodes.items()
            },
        )


def inline(
    graph: Graph, roots: Iterable[Node], *, keep_first_name: bool = True, expand_custom: bool = True
) -> Inlined | None:
    """The part of a graph that the roots need, inlined; None where there is nothing to do.

    Calls go first, from the outside in, as they were written, so that what a gradient's body repeats is found in the
    forward body by its name. What a second forward node does more is found afterwards, wherever the two came from.
    """
    if not len(graph.library):
        return None
    found: Inlined | None = None
    wanted = list(roots)
    while True:
        needed = functions.needed(graph, wanted)
        expanded = {node for node in needed if _is_expanded(node) and (expand_custom or not _is_custom(node))}
        if expanded:
            step = _Expanding(graph, needed, expanded).run()
        elif any(FORWARD in node.attrs for node in needed):
            step = _Merging(graph, needed, keep_first_name).run()
        else:
            return found
        found = step if found is None else found.then(step)
        graph = step.graph
        wanted = [stand for node in wanted for stand in step.nodes[node]]


def _is_expanded(node: Node) -> bool:
    """Whether a node is a call of a function that does not call itself."""
    if node.type not in CALLS:
        return False
    name = node.attrs["f"].name
    inside = node.graph.library.needed([name])
    return not any(
        inner.op == name or any(value.HasField("func") and value.func.name == name for value in inner.attr.values())
        for definition in inside
        for inner in definition.node_def
    )


def _is_custom(node: Node) -> bool:
    """Whether a call has another gradient than its body."""
    return "_gradient_op_type" in node.attrs or node.attrs["f"].name in node.graph.library.gradients


class _Pass:
    """One pass over a graph. Invariant: what has been added has its inputs added before it."""

    def __init__(self, graph: Graph, needed: Sequence[Node]) -> None:
        self.order = needed
        self.into = functions.new_body(graph)
        self.into.source = None
        for node in graph.nodes:
            self.into.reserve_name(node.name)
        self.tensors: dict[Tensor, Tensor] = {}
        self.nodes: dict[Node, tuple[Node, ...]] = {}

    def run(self) -> Inlined:
        for node in self.order:
            self.add(node)
        return Inlined(self.into, self.tensors, self.nodes)

    def add(self, node: Node) -> None:
        raise NotImplementedError

    def _copy(self, node: Node, name: str, names: Mapping[str, str], device: str, after: Sequence[Node]) -> Node:
        """Adds a copy; `names` are the new names of nodes that it may speak of."""
        attrs = functions.with_forward(node, names)
        if "_class" in attrs and names:
            groups = [f"loc:@{names.get(text[5:], text[5:])}" for text in attrs["_class"]]
            attrs = {**attrs, "_class": groups}
        controls = [*after, *(control for old in node.control_inputs for control in self.nodes.get(old, ()))]
        copy = Node(
            self.into, name, node.type, node.op, tuple(self.tensors[tensor] for tensor in node.inputs), attrs,
            tuple(dict.fromkeys(controls)), device,
        )  # fmt: skip
        self.into.append(copy)
        if node.op is None:
            for tensor in node.outputs:
                copy.output(tensor.index)
        return copy


class _Expanding(_Pass):
    """Puts the bodies of calls in their places, one level deep."""

    def __init__(self, graph: Graph, needed: Sequence[Node], chosen: set[Node]) -> None:
        super().__init__(graph, needed)
        self.chosen = chosen
        self.names = {node.name: node.name for node in needed}
        self.expanded: dict[str, dict[str, Node]] = {}

    def add(self, node: Node) -> None:
        if node in self.chosen:
            self._expand(node)
            return
        copy = self._copy(node, node.name, self.names, node.device, [])
        self.nodes[node] = (copy,)
        self.tensors.update(zip(node.outputs, copy.outputs, strict=True))

    def _expand(self, call: Node) -> None:
        body = _read(call.graph, call.attrs["f"], [functions.spec_of(tensor) for tensor in call.inputs])
        self.tensors.update(zip(body.inputs, (self.tensors[tensor] for tensor in call.inputs), strict=True))
        shared = self.expanded.get(call.attrs.get(FORWARD, ""), {})
        made = self.expanded[call.name] = dict(shared)
        arguments = {tensor.node for tensor in body.inputs}
        # A body may speak of a forward node that it does not need itself.
        names = {name: copy.name for name, copy in shared.items()}
        names |= {node.name: f"{call.name}/{node.name}" for node in body.graph.nodes if node.name not in shared}
        after = [control for node in call.control_inputs for control in self.nodes[node]]
        for node in functions.needed(body.graph, [*(tensor.node for tensor in body.outputs), *body.effects]):
            if node in arguments:
                continue
            if node.name not in made:
                unique = self.into.unique_name(names[node.name])
                names[node.name] = unique
                made[node.name] = self._copy(node, unique, names, node.device or call.device, after)
            copy = made[node.name]
            names[node.name] = copy.name
            self.nodes[node] = (copy,)
            self.tensors.update(zip(node.outputs, copy.outputs, strict=True))
        self.tensors.update(zip(call.outputs, (self.tensors[tensor] for tensor in body.outputs), strict=True))
        last = [self.tensors[tensor].node for tensor in body.outputs] + [made[node.name] for node in body.effects]
        self.nodes[call] = tuple(dict.fromkeys(last))


class _Merging(_Pass):
    """Puts the second forward nodes of branches and loops in the place of the first ones, and third ones in theirs.

    Attributes:
        again: for a node the next one, which gives all that it gives and more.
    """

    def __init__(self, graph: Graph, needed: Sequence[Node], keep_first_name: bool) -> None:
        super().__init__(graph, needed)
        self.keep_first_name = keep_first_name
        self.again: dict[Node, Node] = {}
        members = {node.name: node for node in needed}
        alike: dict[str, list[Node]] = {}
        for node in needed:
            if FORWARD in node.attrs and node.type not in CALLS:
                name = node.attrs[FORWARD]
                alike.setdefault(name, [members[name]] if name in members else []).append(node)
        for nodes in alike.values():
            nodes.sort(key=lambda node: len(node.outputs))
            for first, second in itertools.pairwise(nodes):
                if second.inputs[: len(first.inputs)] == first.inputs:
                    self.again[first] = second

    def add(self, node: Node) -> None:
        if node in self.nodes:
            return
        chain = [node]
        while chain[-1] in self.again:
            chain.append(self.again[chain[-1]])
        last = chain[-1]
        for tensor in last.inputs:
            self.add(tensor.node)
        before = [
            control for member in chain[:-1] for old in member.control_inputs for control in self.nodes.get(old, ())
        ]
        copy = self._copy(last, (node if self.keep_first_name else last).name, {}, node.device, before)
        for member in chain:
            self.nodes[member] = (copy,)
            self.tensors.update(zip(member.outputs, copy.outputs, strict=False))


def target_of(found: Inlined, node: Node) -> Node:
    """The node to run for the effect of a node of the old graph."""
    stands = found.nodes[node]
    if len(stands) == 1:
        return stands[0]
    name = found.graph.unique_name(f"{node.name}/done")
    return found.graph.append(Node(found.graph, name, "NoOp", op.lookup("NoOp"), (), {}, stands))
