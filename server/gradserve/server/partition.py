"""Cuts a placed graph into segments: the pieces of each worker's share that run without waiting for another worker.

A node's level is how often the longest way to it changes workers; a segment is what one worker has on one level.
Edges between segments lead to higher levels only, so the segments are a DAG, and one walk over the nodes finds them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gradserve.graph.graph import Node, Tensor
from gradserve.server.place import variable_name
from gradserve.server.simplify import Work


@dataclass(slots=True)
class Piece:
    """One segment to be.

    Attributes:
        index: rank in an order in which the pieces can run.
        worker: who runs it.
        nodes: in an order in which they can run.
        inputs: tensors that come from feeds or other pieces.
        constants: the constants that it reads.
        outputs: tensors that other pieces or the request read.
        targets: nodes that run for their effect, or that nodes of other pieces wait for.
        after: the pieces that must have run.
        variables: the variables that it may read or write.
        controls: for its nodes, the nodes of the piece that they run after.
    """

    index: int
    worker: int
    nodes: list[Node] = field(default_factory=list)
    inputs: dict[Tensor, None] = field(default_factory=dict)
    constants: dict[Tensor, None] = field(default_factory=dict)
    outputs: dict[Tensor, None] = field(default_factory=dict)
    targets: dict[Node, None] = field(default_factory=dict)
    after: dict[int, None] = field(default_factory=dict)
    variables: dict[str, None] = field(default_factory=dict)
    controls: dict[Node, list[Node]] = field(default_factory=dict)


def partition(work: Work, workers: Mapping[Node, int]) -> list[Piece]:
    """The pieces, each after those that it waits for. Linear in nodes and edges."""
    fed = frozenset(work.feeds)
    levels: dict[Node, int] = {}
    touched: dict[str, Node] = {}
    variables: dict[Tensor, str] = {}
    turns: dict[Node, list[Node]] = {}
    for node in work.nodes:
        names = _variables(node, work.inputs[node], variables)
        # Who touches a variable first keeps its turn, wherever the cuts fall.
        turns[node] = [touched[name] for name in names if name in touched]
        touched.update(dict.fromkeys(names, node))
        level = 0
        for source in _sources(work, node, fed, turns[node]):
            level = max(level, levels[source] + (workers[source] != workers[node]))
        levels[node] = level
    pieces = _pieces(work, workers, levels)
    of = {node: piece for piece in pieces for node in piece.nodes}
    for piece in pieces:
        for node in piece.nodes:
            _connect(work, node, piece, of, fed, turns[node])
            piece.variables.update(dict.fromkeys(_variables(node, work.inputs[node], variables)))
    for tensor in work.fetches:
        if tensor not in fed and tensor not in work.constants:
            of[tensor.node].outputs[tensor] = None
    for node in work.targets:
        of[node].targets[node] = None
    return pieces


def _variables(node: Node, inputs: tuple[Tensor, ...], known: dict[Tensor, str]) -> list[str]:
    """The variables that a node touches; handles travel along edges, and through nodes that pass them on."""
    names = [known[tensor] for tensor in inputs if tensor in known]
    own = variable_name(node)
    if own is not None:
        names.append(own)
    passed = [tensor for tensor in node.outputs if tensor.dtype.kind == "r" or tensor.dtype.is_reference]
    if names:
        known.update(dict.fromkeys(passed, names[0]))
    return names


def _sources(work: Work, node: Node, fed: frozenset[Tensor], turns: list[Node]) -> list[Node]:
    data = [t.node for t in work.inputs[node] if t not in fed and t not in work.constants]
    return [*data, *work.controls[node], *turns]


def _pieces(work: Work, workers: Mapping[Node, int], levels: Mapping[Node, int]) -> list[Piece]:
    found: dict[tuple[int, int], Piece] = {}
    for node in work.nodes:
        place = levels[node], workers[node]
        piece = found.get(place)
        if piece is None:
            piece = found[place] = Piece(-1, workers[node])
        piece.nodes.append(node)
    ordered = [found[place] for place in sorted(found)]
    for index, piece in enumerate(ordered):
        piece.index = index
    return ordered


def _connect(
    work: Work, node: Node, piece: Piece, of: Mapping[Node, Piece], fed: frozenset[Tensor], turns: list[Node]
) -> None:
    """Enters a node's inputs in its piece, and what crosses in the piece that it comes from."""
    for tensor in work.inputs[node]:
        if tensor in fed:
            piece.inputs[tensor] = None
        elif tensor in work.constants:
            piece.constants[tensor] = None
        elif of[tensor.node] is not piece:
            piece.inputs[tensor] = None
            of[tensor.node].outputs[tensor] = None
            piece.after[of[tensor.node].index] = None
    own = [source for source in (*work.controls[node], *turns) if of[source] is piece]
    if own:
        piece.controls[node] = list(dict.fromkeys(own))
    for source in work.controls[node]:
        if of[source] is not piece:
            of[source].targets[source] = None
            piece.after[of[source].index] = None
    for source in turns:
        if of[source] is not piece:
            piece.after[of[source].index] = None
