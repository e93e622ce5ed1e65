"""A plan: what a request compiles to. Immutable, and good for any number of runs.

`make_plan` puts the passes together; `PlanCache` keeps the plans used last; `report` tells what a plan does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gradserve.errors import InvalidArgument, InvalidShape, InvalidType
from gradserve.graph import codec
from gradserve.graph.graph import Graph, Node, Tensor
from gradserve.graph.shapes import Shape, StaticShape, compatible
from gradserve.server.cost import Sizes
from gradserve.server.fleet.base import Array, Kept, Program
from gradserve.server.partition import Piece, partition
from gradserve.server.place import Placement, place
from gradserve.server.simplify import Work, simplify
from gradserve.v1 import graph_pb2

FEED = -1
CONSTANT = -2
# What touches a variable and is not named here is taken to write it.
_READERS = frozenset((
    "VarHandleOp", "Variable", "VariableV2", "TemporaryVariable", "ReadVariableOp", "VarIsInitializedOp",
    "IsVariableInitialized", "VariableShape", "ResourceGather", "ResourceGatherNd", "Identity",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class StepOptions:
    """How a request wants to be run.

    Attributes:
        allow_soft_placement: a device that the fleet lacks is passed over instead of an error.
    """

    allow_soft_placement: bool = False


class Feed(NamedTuple):
    """What is known of a fed array when a plan is made."""

    name: str
    dtype: np.dtype[Any]
    shape: StaticShape


class Source(NamedTuple):
    """Where a value comes from: output `position` of a segment, or of FEED or CONSTANT."""

    segment: int
    position: int


@dataclass(frozen=True, slots=True)
class PlannedSegment:
    """One segment of a plan.

    Attributes:
        worker: who runs it (any one worker, in a floating plan).
        program: what travels to the worker.
        inputs: where each of its inputs comes from; Kept where the worker has it already. A Source's position
            counts the outputs that are sent.
        waits: how many segments must have run before it.
        followers: the segments that wait for it.
        variables: names of the variables that it may touch.
        draws: whether it takes numbers from stateful random streams.
    """

    worker: int
    program: Program
    inputs: tuple[Source | Kept, ...]
    waits: int
    followers: tuple[int, ...]
    variables: tuple[str, ...]
    draws: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """What a request compiles to.

    Attributes:
        segments: in an order in which they could run.
        fetches: where each fetched value comes from.
        constants: the fetched values that are known already.
        floating: its only segment may run on any worker.
        uses_state: it touches variables or random streams.
        writes: it may change them.
        details: what `report` tells of it.
    """

    segments: tuple[PlannedSegment, ...]
    fetches: tuple[Source, ...]
    constants: tuple[Array, ...]
    floating: bool
    uses_state: bool
    writes: bool
    details: PlanReport


@dataclass(frozen=True, slots=True)
class PlacedNode:
    """A node that runs: where, and why there."""

    name: str
    type: str
    worker: int
    device: str
    why: str


@dataclass(frozen=True, slots=True)
class SegmentReport:
    """A segment: its worker, its nodes, what it waits for and an estimate of what it costs."""

    worker: int
    nodes: tuple[str, ...]
    after: tuple[int, ...]
    flops: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Crossing:
    """A tensor that goes from one worker to another, once; `^node` with 0 bytes for a mere order."""

    tensor: str
    source: int
    target: int
    bytes: int


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What a plan does.

    Attributes:
        nodes: every node that runs.
        segments: in the order of the plan.
        crossings: what goes between workers.
        flops: estimate for the whole step.
        peak_bytes: estimate of the most memory that tensors take at once, by worker.
        crossing_bytes: the sum over the crossings.
        simplified: how many nodes of the request need not run.
        cached: whether the plan was there already.
    """

    nodes: tuple[PlacedNode, ...]
    segments: tuple[SegmentReport, ...]
    crossings: tuple[Crossing, ...]
    flops: int
    peak_bytes: tuple[int, ...]
    crossing_bytes: int
    simplified: int
    cached: bool = False


class PlanCache:
    """The plans used last."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._plans: OrderedDict[Hashable, Plan] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self._plans

    def __len__(self) -> int:
        return len(self._plans)

    def get(self, key: Hashable) -> Plan | None:
        """The plan of a key, which becomes the most recently used one."""
        plan = self._plans.get(key)
        if plan is not None:
            self._plans.move_to_end(key)
        return plan

    def put(self, key: Hashable, plan: Plan) -> None:
        """Adds a plan; the least recently used one makes room."""
        self._plans[key] = plan
        if len(self._plans) > self._limit:
            self._plans.popitem(last=False)


def make_plan(
    graph: Graph,
    feeds: Sequence[Feed],
    fetches: Sequence[str],
    targets: Sequence[str],
    options: StepOptions,
    fleet: Sequence[str],
    numbers: Iterator[int],
) -> Plan:
    """The plan of a request on a fleet of these devices; `numbers` gives each program its own.

    Raises InvalidArgument, InvalidShape, InvalidType, InvalidPlacement, NotFound: the request can't be planned.
    """
    fed = [_fed_tensor(graph, feed) for feed in feeds]
    if len(set(fed)) < len(fed):
        raise InvalidArgument("A tensor is fed twice.", feeds=", ".join(feed.name for feed in feeds))
    wanted = [graph.tensor(name) for name in fetches]
    for tensor in wanted:
        if tensor.dtype.kind in "rv" and not tensor.dtype.is_reference:
            raise InvalidType(f"{tensor.name} is a {tensor.dtype}: only its value can be fetched.", tensor=tensor.name)
    work = simplify(fed, wanted, [graph.node(name) for name in targets])
    sizes = Sizes(_batch(fed, feeds))
    placement = place(work, fleet, options.allow_soft_placement, sizes)
    pieces = partition(work, placement.workers)
    return _assemble(graph, work, placement, pieces, feeds, fleet, numbers, sizes)


def report(plan: Plan, *, cached: bool) -> PlanReport:
    """What a plan does."""
    details = plan.details
    return PlanReport(
        details.nodes, details.segments, details.crossings, details.flops, details.peak_bytes,
        details.crossing_bytes, details.simplified, cached,
    )  # fmt: skip


def _fed_tensor(graph: Graph, feed: Feed) -> Tensor:
    tensor = graph.tensor(feed.name)
    if tensor.dtype.base.numpy != feed.dtype:
        raise InvalidType(
            f"{tensor.name} is {tensor.dtype.base}, but is fed {feed.dtype}.",
            tensor=tensor.name, dtype=tensor.dtype.base, fed=feed.dtype,
        )  # fmt: skip
    if not compatible(tensor.shape, feed.shape):
        raise InvalidShape(
            f"{tensor.name} has the shape {tensor.shape}, but is fed an array of shape {feed.shape}.",
            tensor=tensor.name, shape=tensor.shape, fed=feed.shape,
        )  # fmt: skip
    return tensor


def _batch(fed: Sequence[Tensor], feeds: Sequence[Feed]) -> int:
    """A guess for unknown dimensions: the largest that a feed has where its placeholder says nothing."""
    batch = 1
    for tensor, feed in zip(fed, feeds, strict=True):
        known: Shape = tensor.shape or (None,) * len(feed.shape)
        batch = max([batch, *(size for size, static in zip(feed.shape, known, strict=True) if static is None)])
    return batch


def _assemble(
    graph: Graph, work: Work, placement: Placement, pieces: Sequence[Piece], feeds: Sequence[Feed],
    fleet: Sequence[str], numbers: Iterator[int], sizes: Sizes,
) -> Plan:  # fmt: skip
    fed = {tensor: position for position, tensor in enumerate(work.feeds)}
    home = {tensor: piece for piece in pieces for tensor in piece.outputs}
    kept, sent = _traffic(work, pieces, home)
    programs = [
        _program(graph, work, piece, feeds, fed, next(numbers), kept[piece.index], sent[piece.index])
        for piece in pieces
    ]
    slots = [{tensor: slot for slot, tensor in enumerate(tensors)} for tensors in sent]
    order = [{tensor: position for position, tensor in enumerate(piece.outputs)} for piece in pieces]

    def source(tensor: Tensor, reader: Piece | None) -> Source | Kept:
        if tensor in fed:
            return Source(FEED, fed[tensor])
        piece = home[tensor]
        if reader is not None and reader.worker == piece.worker:
            return Kept(programs[piece.index].number, order[piece.index][tensor])
        return Source(piece.index, slots[piece.index][tensor])

    constants: list[Array] = []
    fetches: list[Source] = []
    for tensor in work.fetches:
        if tensor in work.constants and tensor not in fed:
            fetches.append(Source(CONSTANT, len(constants)))
            constants.append(work.constants[tensor])
        else:
            found = source(tensor, None)
            assert isinstance(found, Source)
            fetches.append(found)
    followers: list[list[int]] = [[] for _ in pieces]
    for piece in pieces:
        for before in piece.after:
            followers[before].append(piece.index)
    segments = tuple(
        PlannedSegment(
            piece.worker,
            programs[piece.index],
            tuple(source(tensor, piece) for tensor in piece.inputs),
            len(piece.after),
            tuple(followers[piece.index]),
            tuple(piece.variables),
            any(_draws(node, work) for node in piece.nodes),
        )
        for piece in pieces
    )
    uses_state = any(segment.variables or segment.draws for segment in segments)
    writes = any(segment.draws for segment in segments) or any(_writes(node, work) for node in work.nodes)
    details = _details(work, placement, pieces, fleet, sizes, len(graph))
    floating = placement.floating and len(pieces) == 1
    return Plan(segments, tuple(fetches), tuple(constants), floating, uses_state, writes, details)


def _traffic(
    work: Work, pieces: Sequence[Piece], home: Mapping[Tensor, Piece]
) -> tuple[list[dict[Tensor, None]], list[dict[Tensor, None]]]:
    """For each piece, the outputs that its worker keeps for later pieces, and those that leave it."""
    kept: list[dict[Tensor, None]] = [{} for _ in pieces]
    sent: list[dict[Tensor, None]] = [{} for _ in pieces]
    for piece in pieces:
        for tensor in piece.inputs:
            maker = home.get(tensor)
            if maker is not None:
                (kept if maker.worker == piece.worker else sent)[maker.index][tensor] = None
    for tensor in work.fetches:
        maker = home.get(tensor)
        if maker is not None:
            sent[maker.index][tensor] = None
    return kept, sent


def _is_variable(tensor: Tensor) -> bool:
    return tensor.dtype.kind == "r" or tensor.dtype.is_reference


def _draws(node: Node, work: Work) -> bool:
    if node.op is None or node.op.kernel is None or not node.op.kernel.wants_state:
        return False
    return not any(_is_variable(tensor) for tensor in (*work.inputs[node], *node.outputs))


def _writes(node: Node, work: Work) -> bool:
    return node.type not in _READERS and any(_is_variable(tensor) for tensor in work.inputs[node])


# Programs


def _program(
    graph: Graph, work: Work, piece: Piece, feeds: Sequence[Feed], fed: Mapping[Tensor, int], number: int,
    kept: Mapping[Tensor, None], sent: Mapping[Tensor, None],
) -> Program:  # fmt: skip
    """A piece as a GraphDef of its own: inputs are Placeholders, constants are copied in."""
    message = graph_pb2.GraphDef()
    message.versions.producer = 1882
    if graph.source is not None and graph.source.library.function:
        message.library.CopyFrom(graph.source.library)
    taken = {node.name for node in piece.nodes}
    names: dict[Tensor, str] = {}
    shapes_hold = all(tensor.node.type == "Placeholder" for tensor in work.feeds)
    for tensor in piece.inputs:
        names[tensor] = _free_name(f"inputs/{len(names)}", taken)
        shape = feeds[fed[tensor]].shape if tensor in fed else tensor.shape if shapes_hold else None
        placeholder = message.node.add(name=names[tensor], op="Placeholder")
        placeholder.attr["dtype"].type = tensor.dtype.base.number  # pyright: ignore[reportAttributeAccessIssue]
        placeholder.attr["shape"].shape.CopyFrom(codec.shape_to_message(shape))
    for tensor in piece.constants:
        names[tensor] = _free_name(f"constants/{len(names)}", taken)
        constant = message.node.add(name=names[tensor], op="Const")
        constant.attr["dtype"].type = tensor.dtype.base.number  # pyright: ignore[reportAttributeAccessIssue]
        constant.attr["value"].tensor.CopyFrom(codec.array_to_message(work.constants[tensor], tensor.dtype))
    stand_ins = _stand_ins(piece, taken)
    for node in piece.nodes:
        copy = message.node.add()
        copy.CopyFrom(codec.node_to_message(node))
        copy.device = ""
        del copy.input[:]
        copy.input.extend([names.get(tensor) or _wire_name(tensor) for tensor in work.inputs[node]])
        for control in piece.controls.get(node, ()):
            copy.input.append(f"^{control.name}")
            copy.input.extend(f"^{stand_ins[t]}" for t in control.outputs if t in stand_ins)
        for tensor in node.outputs:
            if tensor in stand_ins:
                reader = message.node.add(name=stand_ins[tensor], op="Identity", input=[_wire_name(tensor)])
                reader.attr["T"].type = tensor.dtype.base.number  # pyright: ignore[reportAttributeAccessIssue]
    outputs = list(piece.outputs)
    return Program(
        number,
        message.SerializeToString(),
        tuple(f"{names[tensor]}:0" for tensor in piece.inputs),
        tuple(f"{stand_ins[t]}:0" if t in stand_ins else t.name for t in outputs),
        tuple(node.name for node in piece.targets),
        tuple(position for position, tensor in enumerate(outputs) if tensor in kept),
        tuple(outputs.index(tensor) for tensor in sent),
    )


def _stand_ins(piece: Piece, taken: set[str]) -> dict[Tensor, str]:
    """Names of the Identities that read a TF1 variable where its value leaves the piece, at its turn and not later."""
    return {t: _free_name(f"{t.node.name}/value", taken) for t in piece.outputs if t.dtype.is_reference}


def _free_name(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _wire_name(tensor: Tensor) -> str:
    return tensor.node.name if tensor.index == 0 else tensor.name


# The report


def _details(
    work: Work, placement: Placement, pieces: Sequence[Piece], fleet: Sequence[str], sizes: Sizes, total: int
) -> PlanReport:
    nodes = tuple(
        PlacedNode(node.name, node.type, placement.workers[node], fleet[placement.workers[node]], placement.why[node])
        for node in work.nodes
    )
    segments = tuple(
        SegmentReport(
            piece.worker, tuple(node.name for node in piece.nodes), tuple(piece.after),
            sum(sizes.flops(node, work.inputs[node]) for node in piece.nodes), _peak(piece, work, sizes),
        )
        for piece in pieces
    )  # fmt: skip
    peaks = [0] * len(fleet)
    for segment in segments:
        peaks[segment.worker] = max(peaks[segment.worker], segment.peak_bytes)
    crossings = _crossings(work, pieces, sizes)
    return PlanReport(
        nodes, segments, crossings, sum(segment.flops for segment in segments), tuple(peaks),
        sum(crossing.bytes for crossing in crossings), max(total - len(nodes), 0),
    )  # fmt: skip


def _crossings(work: Work, pieces: Sequence[Piece], sizes: Sizes) -> tuple[Crossing, ...]:
    home = {tensor: piece for piece in pieces for tensor in piece.outputs}
    of = {node: piece for piece in pieces for node in piece.nodes}
    found: dict[tuple[str, int], Crossing] = {}
    for piece in pieces:
        for tensor in piece.inputs:
            maker = home.get(tensor)
            if maker is not None and maker.worker != piece.worker:
                crossing = Crossing(tensor.name, maker.worker, piece.worker, sizes.bytes(tensor))
                found.setdefault((tensor.name, piece.worker), crossing)
        for node in piece.nodes:
            for control in work.controls[node]:
                if of[control].worker != piece.worker:
                    name = f"^{control.name}"
                    found.setdefault((name, piece.worker), Crossing(name, of[control].worker, piece.worker, 0))
    return tuple(found.values())


def _peak(piece: Piece, work: Work, sizes: Sizes) -> int:
    """The most bytes that are alive at once while a piece runs."""
    last: dict[Tensor, Node] = {}
    for node in piece.nodes:
        for tensor in work.inputs[node]:
            last[tensor] = node
    alive = sum(sizes.bytes(tensor) for tensor in (*piece.inputs, *piece.constants))
    peak = alive
    for node in piece.nodes:
        alive += sum(sizes.bytes(tensor) for tensor in node.outputs)
        peak = max(peak, alive)
        for tensor in dict.fromkeys(work.inputs[node]):
            if last[tensor] is node and tensor not in piece.outputs:
                alive -= sizes.bytes(tensor)
    return peak
