"""A plan: what a request compiles to. Immutable, and good for any number of runs.

`make_plan` turns a draft into one; `PlanCache` keeps the plans used last.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from gradserve.graph.graph import Tensor
from gradserve.server.draft import Draft
from gradserve.server.effects import draws, writes
from gradserve.server.fleet.base import Array, Kept, Program
from gradserve.server.partition import Piece
from gradserve.server.programs import programs

FEED = -1
CONSTANT = -2


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
        before: the segments on other workers that it waits for.
        fetched: positions among its sent outputs that the plan fetches.
        variables: names of the variables that it may touch.
        written: those of them that may change.
        draws: whether it takes numbers from stateful random streams.
        arriving: positions of the inputs that come from another worker and that its own has not read before, with how
            many of its segments read each.
        readers: how often each output that is sent is read, by segments of other workers and by the request.
        destinations: the workers that read each output that is sent.
    """

    worker: int
    program: Program
    inputs: tuple[Source | Kept, ...]
    waits: int
    followers: tuple[int, ...]
    before: tuple[int, ...]
    fetched: tuple[int, ...]
    variables: tuple[str, ...]
    written: tuple[str, ...]
    draws: bool
    arriving: Mapping[int, int]
    readers: tuple[int, ...]
    destinations: tuple[tuple[int, ...], ...]


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
    """

    segments: tuple[PlannedSegment, ...]
    fetches: tuple[Source, ...]
    constants: tuple[Array, ...]
    floating: bool
    uses_state: bool
    writes: bool

    def on(self, workers: Sequence[int]) -> Plan:
        """The plan for a fleet of which only these workers are there: its worker k is `workers[k]`."""
        if tuple(workers) == tuple(range(len(workers))):
            return self
        segments = [
            replace(
                segment,
                worker=workers[segment.worker],
                destinations=tuple([tuple([workers[k] for k in readers]) for readers in segment.destinations]),
            )
            for segment in self.segments
        ]
        return replace(self, segments=tuple(segments))


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

    def put(self, key: Hashable, plan: Plan) -> Plan | None:
        """Adds a plan; the least recently used one makes room, and is returned."""
        self._plans[key] = plan
        return self._plans.popitem(last=False)[1] if len(self._plans) > self._limit else None


def make_plan(draft: Draft, numbers: Iterator[int]) -> Plan:
    """The plan of a draft; `numbers` gives each program its own."""
    work, pieces = draft.work, draft.pieces
    wiring = _Wiring(draft, [next(numbers) for _ in pieces])
    constants: list[Array] = []
    fetches: list[Source] = []
    for tensor in work.fetches:
        if tensor in work.constants and tensor not in wiring.fed:
            fetches.append(Source(CONSTANT, len(constants)))
            constants.append(work.constants[tensor])
        else:
            fetches.append(wiring.fetch(tensor))
    made = programs(draft, wiring.kept, wiring.sent, wiring.numbers)
    followers: list[list[int]] = [[] for _ in pieces]
    for piece in pieces:
        for before in piece.before:
            followers[before.index].append(piece.index)
    drawing = frozenset([node for node in work.nodes if draws(node)])
    assigns = bool(draft.flow.handles) and any(writes(node, work.inputs[node]) for node in work.nodes)
    fetched: list[dict[int, None]] = [{} for _ in pieces]
    for segment, position in fetches:
        if segment >= 0:
            fetched[segment][position] = None
    segments = tuple(
        PlannedSegment(
            piece.worker,
            made[piece.index],
            wiring.inputs[piece.index],
            len(piece.before),
            tuple(followers[piece.index]),
            tuple([earlier.index for earlier in piece.before if earlier.worker != piece.worker]),
            tuple(fetched[piece.index]),
            tuple(piece.variables),
            tuple(piece.variables) if assigns else (),
            not drawing.isdisjoint(piece.nodes),
            wiring.arriving(piece),
            tuple(wiring.sent[piece.index].values()),
            wiring.destinations(piece),
        )
        for piece in pieces
    )
    uses_state = any(segment.variables or segment.draws for segment in segments)
    floating = draft.placement.floating and len(pieces) == 1
    return Plan(segments, tuple(fetches), tuple(constants), floating, uses_state, bool(drawing) or assigns)


class _Wiring:
    """What the pieces of a plan hand to each other, found in one walk over their inputs.

    Attributes:
        numbers: of the pieces' programs.
        fed: positions of the feeds.
        inputs: for each piece, where its inputs come from.
        kept, sent: for each piece, the outputs that later pieces of its worker read, and those that leave it, with how
            often they are read. The request counts as a reader.
    """

    def __init__(self, draft: Draft, numbers: list[int]) -> None:
        pieces = draft.pieces
        self.numbers = numbers
        self.fed = {tensor: position for position, tensor in enumerate(draft.work.feeds)}
        self._home = {tensor: (piece, position) for piece in pieces for position, tensor in enumerate(piece.outputs)}
        self.kept: list[dict[Tensor, int]] = [{} for _ in pieces]
        self.sent: list[dict[Tensor, int]] = [{} for _ in pieces]
        self._slots: dict[Tensor, int] = {}
        # By tensor and the worker that reads it: the piece that does so first, the position among its inputs, and how
        # many pieces do.
        self._arrivals: dict[Tensor, dict[int, list[int]]] = {}
        self.inputs = [self._connect(piece) for piece in pieces]

    def fetch(self, tensor: Tensor) -> Source:
        """Where the request gets a tensor from that is not a constant."""
        if tensor in self.fed:
            return Source(FEED, self.fed[tensor])
        return self._send(tensor, self._home[tensor][0])

    def _connect(self, piece: Piece) -> tuple[Source | Kept, ...]:
        found: list[Source | Kept] = []
        for tensor in piece.inputs:
            at = self._home.get(tensor)
            if at is None:
                found.append(Source(FEED, self.fed[tensor]))
                continue
            maker, position = at
            if maker.worker == piece.worker:
                readers = self.kept[maker.index]
                readers[tensor] = readers.get(tensor, 0) + 1
                found.append(Kept(self.numbers[maker.index], position))
                continue
            arrivals = self._arrivals.setdefault(tensor, {})
            arrivals.setdefault(piece.worker, [piece.index, len(found), 0])[2] += 1
            found.append(self._send(tensor, maker))
        return tuple(found)

    def arriving(self, piece: Piece) -> dict[int, int]:
        """The inputs that are the first to bring a tensor to the worker, with how many of its pieces read it."""
        found: dict[int, int] = {}
        for tensor in piece.inputs:
            first = self._arrivals.get(tensor, {}).get(piece.worker)
            if first is not None and first[0] == piece.index:
                found[first[1]] = first[2]
        return found

    def destinations(self, piece: Piece) -> tuple[tuple[int, ...], ...]:
        """The workers that read each output that the piece sends."""
        return tuple([tuple(self._arrivals.get(tensor, ())) for tensor in self.sent[piece.index]])

    def _send(self, tensor: Tensor, maker: Piece) -> Source:
        readers = self.sent[maker.index]
        slot = self._slots.setdefault(tensor, len(readers))
        readers[tensor] = readers.get(tensor, 0) + 1
        return Source(maker.index, slot)
