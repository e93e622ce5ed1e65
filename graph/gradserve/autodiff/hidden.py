"""Tensors inside of the branches that TF1's conditionals became.

An imported graph has a node of such a branch twice: by its name, beside the branch, and in the function that the
branch became, under the same name. What lies behind the conditional depends on the second. So an x in a branch has,
beside the gradient of what reads it by name, that of the functions which hold it; a stop is stopped there, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from gradserve.graph.functions import FORWARD
from gradserve.graph.graph import Graph, Node, Tensor
from gradserve.graph.library import Library
from gradserve.graph.raising import RAISED
from gradserve.ops.branches import branches_of
from gradserve.v1 import graph_pb2

_CONDITIONALS = frozenset(("If", "StatelessIf", "Case", "StatelessCase"))


class Hidden(NamedTuple):
    """Names of tensors to look for in branches: those that a gradient is asked for, and those where it stops."""

    xs: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.xs or self.stops)


NOTHING = Hidden()


def holders(graph: Graph, hidden: Hidden) -> dict[Node, Hidden]:
    """The conditionals of a graph that hold some of these tensors, and which ones."""
    if not hidden:
        return {}
    found: dict[Node, Hidden] = {}
    for node in graph.nodes:
        if node.type in _CONDITIONALS and (RAISED in node.attrs or FORWARD in node.attrs):
            inside = {name for function in branches_of(node) for name in _names(graph.library, function.name)}
            held = Hidden(*(tuple(name for name in names if _node(name) in inside) for names in hidden))
            if held:
                found[node] = held
    return found


def in_body(graph: Graph, names: Sequence[str]) -> list[Tensor]:
    """Those of these tensors that lie in a body itself."""
    return [graph.tensor(name) for name in names if _node(name) in graph]


def _node(name: str) -> str:
    return name.partition(":")[0]


def _names(library: Library, function: str) -> Iterator[str]:
    """The names of the nodes of a branch and of the branches in it."""
    definition = library.find(function)
    for node in () if definition is None else definition.node_def:
        yield node.name
        if node.op in _CONDITIONALS and (RAISED in node.attr or FORWARD in node.attr):
            for name in _functions(node):
                yield from _names(library, name)


def _functions(node: graph_pb2.NodeDef) -> Iterator[str]:
    for value in node.attr.values():
        yield from (called.name for called in value.list.func)
        if value.HasField("func"):
            yield value.func.name
