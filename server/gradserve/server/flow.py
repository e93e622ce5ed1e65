"""What depends on what among the nodes of a request: by tensors, by control edges, and by touching one variable."""

from __future__ import annotations

from gradserve.graph.graph import Node, Tensor
from gradserve.ops.tables import parts
from gradserve.server.effects import is_handle
from gradserve.server.simplify import Work
from gradserve.workers.segment import State

LOOPS = frozenset(("While", "StatelessWhile"))


class Flow:
    """The edges of a request. Nodes are ranks in `nodes`, so that what is known of them can stand in lists.

    Attributes:
        nodes: those of the work, in an order in which they can run.
        sources: for each node, those that must have run: first the makers of its inputs (neither fed nor constant),
            one an input, then its control inputs, then those that touched one of its variables just before it.
        names: the variables that a node touches, for the nodes that touch any.
        turns: the last part of `sources`, for the nodes that have one: who touches a variable first keeps its turn,
            wherever cuts fall.
        tables: those of the names that are lookup tables, whose values are held in parts.
        handles: the tensors that stand for variables and not for values.
    """

    def __init__(self, work: Work) -> None:
        self.nodes = work.nodes
        self.sources: list[list[int]] = []
        self.names: dict[Node, list[str]] = {}
        self.tables: set[str] = set()
        self.turns: dict[Node, list[Node]] = {}
        self.handles: set[Tensor] = {tensor for tensor in work.feeds if is_handle(tensor)}
        given = frozenset(work.feeds).union(work.constants)
        ranks: dict[Node, int] = {}
        touched: dict[str, Node] = {}
        known: dict[Tensor, str] = {}
        for rank, node in enumerate(work.nodes):
            ranks[node] = rank
            inputs = work.inputs[node]
            sources = [ranks[tensor.node] for tensor in inputs if tensor not in given]
            if node.control_inputs:
                sources += [ranks[control] for control in work.controls[node]]
            passed = [tensor for tensor in node.outputs if is_handle(tensor)]
            names = [known[tensor] for tensor in inputs if tensor in known] if known else []
            if passed:
                self.handles.update(passed)
                own = variable_name(node)
                if own is not None:
                    names.append(own)
                    if node.op is not None and "key_dtype" in node.op.signature.attrs:
                        self.tables.add(own)
            if names:
                # Handles travel along edges, and through nodes that pass them on.
                known.update(dict.fromkeys(passed, names[0]))
                if node.type in LOOPS:
                    known.update({out: known[x] for x, out in zip(inputs, node.outputs, strict=True) if x in known})
                self.names[node] = names
                before = [touched[name] for name in names if name in touched]
                if before:
                    self.turns[node] = before
                    sources += [ranks[other] for other in before]
                touched.update(dict.fromkeys(names, node))
            self.sources.append(sources)

    def variables(self, node: Node) -> list[str]:
        """The names of the values that a node may read or write: a table's are its parts."""
        names = self.names.get(node, [])
        return [part for name in names for part in (parts(name) if name in self.tables else (name,))]


def variable_name(node: Node) -> str | None:
    """The variable whose handle a node makes, None for any other node."""
    if node.op is None or node.op.kernel is None or not node.op.kernel.wants_state:
        return None
    if not node.outputs or not is_handle(node.outputs[0]) or any(map(is_handle, node.inputs)):
        return None
    return State().handle(node).variable
