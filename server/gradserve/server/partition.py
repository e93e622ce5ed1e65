"""Cuts a placed graph into segments: the pieces of each worker's share that run without waiting for another worker.

A node's level is how often the longest way to it changes workers; a segment is what one worker has on one level.
What others wait for comes first: where a share holds enough besides, that is a segment of its own, run while the
others work. Edges between segments lead to higher levels, or from the awaited to the other half of one, so the
segments are a DAG.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gradserve.graph.graph import Node, Tensor
from gradserve.server.flow import Flow
from gradserve.server.simplify import Work


@dataclass(slots=True, eq=False)
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
        before: the pieces that must have run.
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
    before: dict[Piece, None] = field(default_factory=dict)
    variables: dict[str, None] = field(default_factory=dict)
    controls: dict[Node, list[Node]] = field(default_factory=dict)

    @property
    def after(self) -> tuple[int, ...]:
        """The indices of the pieces that must have run."""
        return tuple([piece.index for piece in self.before])


def partition(
    work: Work, flow: Flow, workers: Mapping[Node, int], seconds: Mapping[Node, float], worth_parting: float
) -> list[Piece]:
    """The pieces, each after those that it waits for. Linear in nodes and edges.

    Args:
        work, flow, workers: what to cut, what depends on what in it, and where its nodes run.
        seconds: an estimate of a node's time.
        worth_parting: the least time of work that is worth a segment of its own while others wait.
    """
    places = _places(flow, workers, seconds, worth_parting)
    found: dict[tuple[int, int, int], Piece] = {}
    of: dict[Node, Piece] = {}
    given = frozenset(work.feeds)
    constants = work.constants
    for node, place in zip(work.nodes, places, strict=True):
        piece = found.get(place)
        if piece is None:
            piece = found[place] = Piece(-1, place[2])
        piece.nodes.append(node)
        of[node] = piece
        for tensor in work.inputs[node]:
            if tensor in given:
                piece.inputs[tensor] = None
            elif tensor in constants:
                piece.constants[tensor] = None
            else:
                source = of[tensor.node]
                if source is not piece:
                    piece.inputs[tensor] = None
                    source.outputs[tensor] = None
                    piece.before[source] = None
        waits = flow.turns.get(node, ())
        if waits or work.controls[node]:
            _order(work, node, piece, of, waits)
        if node in flow.names:
            piece.variables.update(dict.fromkeys(flow.variables(node)))
    pieces = [found[place] for place in sorted(found)]
    for index, piece in enumerate(pieces):
        piece.index = index
    for tensor in work.fetches:
        if tensor not in given and tensor not in constants:
            of[tensor.node].outputs[tensor] = None
    for node in work.targets:
        of[node].targets[node] = None
    return pieces


def _places(
    flow: Flow, workers: Mapping[Node, int], seconds: Mapping[Node, float], worth_parting: float
) -> list[tuple[int, int, int]]:
    """For each node its level, 0 where another worker waits for it and 1 elsewhere, and its worker."""
    where = [workers[node] for node in flow.nodes]
    if len(set(where)) <= 1:
        return [(0, 0, worker) for worker in where]
    levels: list[int] = []
    for found, worker in zip(flow.sources, where, strict=True):
        level = 0
        for source in found:
            own = levels[source]
            if where[source] != worker:
                own += 1
            if own > level:
                level = own
        levels.append(level)
    awaited = _awaited(flow.sources, where, levels)
    spare: dict[tuple[int, int], float] = {}
    for rank, node in enumerate(flow.nodes):
        if not awaited[rank]:
            share = levels[rank], where[rank]
            spare[share] = spare.get(share, 0.0) + seconds[node]
    worth = {share for share, time in spare.items() if time > worth_parting}
    return [
        (level, int(not waited and (level, worker) in worth), worker)
        for level, waited, worker in zip(levels, awaited, where, strict=True)
    ]


def _awaited(sources: Sequence[Sequence[int]], where: Sequence[int], levels: Sequence[int]) -> list[bool]:
    """Whether other workers wait for a node, or it is needed on its own level by one that they wait for."""
    awaited = [False] * len(where)
    for rank in range(len(where) - 1, -1, -1):
        worker, level, waiting = where[rank], levels[rank], awaited[rank]
        for source in sources[rank]:
            if where[source] != worker or (waiting and levels[source] == level):
                awaited[source] = True
    return awaited


def _order(work: Work, node: Node, piece: Piece, of: Mapping[Node, Piece], turns: list[Node] | tuple[()]) -> None:
    """Enters what a node runs after."""
    own = [source for source in (*work.controls[node], *turns) if of[source] is piece]
    if own:
        piece.controls[node] = list(dict.fromkeys(own))
    for source in work.controls[node]:
        if of[source] is not piece:
            of[source].targets[source] = None
            piece.before[of[source]] = None
    for source in turns:
        if of[source] is not piece:
            piece.before[of[source]] = None
