"""Splits a segment into pieces for engines that compile: host pieces run on NumPy, device pieces are traced.

Every node is one of three:
    trace   whole numbers that follow from shapes and constants and are wanted on the host (the target of a Reshape):
            NumPy computes them while a piece is traced, so that shape arithmetic costs nothing and breaks nothing
    host    it needs data on the host, has an output whose shape depends on data, holds strings, or draws from a
            stateful random stream
    device  everything else
Pieces alternate, host first; a node is in the first piece of its kind that comes after all its inputs. What is
computed again to save memory begins a piece of its own.
"""

from __future__ import annotations

import enum
from collections.abc import Container
from dataclasses import dataclass

from gradserve.graph.graph import Node, Tensor
from gradserve.graph.op import Op
from gradserve.workers.segment import Segment, controls

_HOST_ONLY = frozenset("sv")
# The attr of nodes that compute something again to save memory; those that wait for a control input begin a piece.
_AGAIN = "_recomputed"


class Kind(enum.Enum):
    """Where a node is computed."""

    TRACE = "trace"
    HOST = "host"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class Piece:
    """Nodes that run together.

    Attributes:
        kind: HOST or DEVICE.
        nodes: in order; trace nodes that they need are among them.
        inputs: tensors that come from feeds or earlier pieces.
        static: those of the inputs that are wanted on the host while tracing.
        outputs: tensors that later pieces or the fetches read.
    """

    kind: Kind
    nodes: tuple[Node, ...]
    inputs: tuple[Tensor, ...]
    static: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def split(segment: Segment, compiled: Container[str] = (), traced: Container[Node] = ()) -> list[Piece]:
    """The pieces of a segment, in the order in which they run.

    `compiled` are the op types that the engine can trace though their own kernel only runs on NumPy, `traced` the
    nodes: these need nothing on the host but constants.
    """
    nodes = segment.nodes()
    fed = frozenset(segment.feeds)
    wanted = _wanted_on_host(nodes, traced)
    kinds = _kinds(nodes, fed, wanted, compiled, traced)
    ranks = _ranks(nodes, fed, kinds, traced)
    pieces: list[Piece] = []
    own: dict[int, list[Node]] = {}
    for node in nodes:
        if kinds[node] is not Kind.TRACE:
            own.setdefault(ranks[node], []).append(node)
    fetched = [t.node for t in segment.fetches if t not in fed and kinds[t.node] is Kind.TRACE]
    if fetched:
        own.setdefault(max(own, default=0), []).extend(fetched)
    for rank in sorted(own):
        pieces.append(_piece(rank, own[rank], nodes, fed, kinds, wanted, traced))
    return _with_outputs(pieces, segment)


def is_one_trace(segment: Segment, compiled: Container[str], traced: Container[Node]) -> bool:
    """Whether all of a segment can be traced at once, whatever its feeds hold."""
    nodes = segment.nodes()
    fed = frozenset(segment.feeds)
    wanted = _wanted_on_host(nodes, traced)
    kinds = _kinds(nodes, fed, wanted, compiled, traced)
    if Kind.HOST in kinds.values():
        return False
    return not any(tensor in fed or kinds[tensor.node] is Kind.DEVICE for tensor in wanted)


def is_variable(tensor: Tensor) -> bool:
    """Whether the tensor is a handle of a variable."""
    return tensor.dtype.kind == "r" or tensor.dtype.is_reference


def host_positions(node: Node) -> frozenset[int]:
    """The positions among the node's inputs that its kernel takes as NumPy arrays."""
    if node.op is None or not node.op.host_slots:
        return frozenset()
    positions: set[int] = set()
    start = 0
    for slot, entry in enumerate(node.arguments()):
        width = len(entry) if isinstance(entry, list) else 1
        if slot in node.op.host_slots:
            positions.update(range(start, start + width))
        start += width
    return frozenset(positions)


def is_shape_arithmetic(node: Node) -> bool:
    """Whether all that the node takes and gives are whole numbers or truth values."""
    return all(tensor.dtype.kind in "iub" for tensor in (*node.inputs, *node.outputs))


def draws(node: Node, op: Op) -> bool:
    """Whether the node takes numbers from a stateful random stream (or another state that is no variable)."""
    if op.kernel is None or not op.kernel.wants_state:
        return False
    return not any(is_variable(tensor) for tensor in (*node.inputs, *node.outputs))


def _wanted_on_host(nodes: list[Node], traced: Container[Node]) -> set[Tensor]:
    """The tensors that some node takes as a NumPy array."""
    wanted: set[Tensor] = set()
    for node in reversed(nodes):
        op = node.op
        if op is None or node in traced:
            continue
        wanted.update(node.inputs[position] for position in host_positions(node))
        if op.static is None and any(tensor in wanted for tensor in node.outputs):  # a Shape needs no data
            wanted.update(tensor for tensor in node.inputs if not is_variable(tensor))
    return wanted


def _kinds(
    nodes: list[Node], fed: frozenset[Tensor], wanted: set[Tensor], compiled: Container[str], traced: Container[Node]
) -> dict[Node, Kind]:
    kinds: dict[Node, Kind] = {}
    for node in nodes:
        op = node.op
        if op is None or op.kernel is None:
            kinds[node] = Kind.HOST
        elif node.type == "Const":
            kinds[node] = Kind.TRACE
        elif node in traced:
            kinds[node] = Kind.DEVICE
        elif node.type in compiled:
            kinds[node] = Kind.HOST if any(tensor in wanted for tensor in node.outputs) else Kind.DEVICE
        elif op.dynamic or draws(node, op) or any(t.dtype.kind in _HOST_ONLY for t in (*node.inputs, *node.outputs)):
            kinds[node] = Kind.HOST
        elif op.static is not None:
            kinds[node] = Kind.TRACE
        elif (
            op.kernel is not None
            and op.kernel.wants_state
            and all(is_variable(t) for t in node.outputs)
            and not node.inputs
        ):
            kinds[node] = Kind.TRACE  # a variable's handle
        elif any(tensor in wanted for tensor in node.outputs):
            from_trace = all(t not in fed and kinds.get(t.node) is Kind.TRACE for t in node.inputs)
            is_shape = from_trace and not op.stateful and is_shape_arithmetic(node)
            kinds[node] = Kind.TRACE if is_shape else Kind.HOST
        else:
            kinds[node] = Kind.DEVICE
    return kinds


def _ranks(
    nodes: list[Node], fed: frozenset[Tensor], kinds: dict[Node, Kind], traced: Container[Node]
) -> dict[Node, int]:  # fmt: skip
    """The number of the piece of each node: even for host pieces, odd for device pieces."""
    ranks: dict[Node, int] = {}
    for node in nodes:
        before = [ranks[t.node] for t in node.inputs if t not in fed] + [ranks[c] for c in controls(node, fed)]
        if node not in traced:  # what a loop computes can be read on the host once it has run
            sources = [node.inputs[k] for k in host_positions(node)]
            before += [ranks[t.node] + 1 for t in sources if t not in fed and t.node in traced]
        least = max(before, default=0)
        if kinds[node] is Kind.TRACE:
            ranks[node] = least
        elif kinds[node] is Kind.HOST:
            ranks[node] = least + least % 2
        else:
            # Within one program the compiler would merge what is computed again with the first time.
            ranks[node] = least + 1 - least % 2 + 2 * (_AGAIN in node.attrs and bool(node.control_inputs))
    return ranks


def _piece(
    rank: int, own: list[Node], nodes: list[Node], fed: frozenset[Tensor],
    kinds: dict[Node, Kind], wanted: set[Tensor], traced: Container[Node],
) -> Piece:  # fmt: skip
    """A piece with the trace nodes that it needs, found by walking back from its own nodes."""
    members = set(own)
    stack = list(members)
    inputs: dict[Tensor, None] = {}
    while stack:
        node = stack.pop()
        for tensor in node.inputs:
            source = tensor.node
            if tensor not in fed and source in members:
                continue
            if tensor not in fed and kinds[source] is Kind.TRACE:
                members.add(source)
                stack.append(source)
            else:
                inputs[tensor] = None
    ordered = tuple(node for node in nodes if node in members)
    kind = Kind.DEVICE if rank % 2 else Kind.HOST
    static = tuple(t for t in inputs if t in wanted and _is_static_use(t, members, traced)) if rank % 2 else ()
    return Piece(kind, ordered, tuple(inputs), static, ())


def _is_static_use(tensor: Tensor, members: set[Node], traced: Container[Node]) -> bool:
    """Whether a node of the piece takes the tensor as a host array."""
    return any(
        node in members and node not in traced and flat in host_positions(node) for node, flat in tensor.consumers
    )


def _with_outputs(pieces: list[Piece], segment: Segment) -> list[Piece]:
    """Adds to each piece the outputs that a later piece or a fetch reads."""
    needed = set(segment.fetches)
    result: list[Piece] = []
    for piece in reversed(pieces):
        outputs = tuple(t for node in piece.nodes for t in node.outputs if t in needed)
        needed -= set(outputs)
        needed |= set(piece.inputs)
        result.append(Piece(piece.kind, piece.nodes, piece.inputs, piece.static, outputs))
    result.reverse()
    return result
