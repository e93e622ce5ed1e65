"""The first half of a plan: what is to run, where, and in which pieces. Plans and their explanations stand on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gradserve.errors import InvalidArgument, InvalidShape, InvalidType
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.inline import inline, target_of
from gradserve.graph.shapes import Shape, StaticShape, compatible
from gradserve.graph.variants import cannot_feed, cannot_fetch
from gradserve.server.cost import Costs, Hardware, Sizes
from gradserve.server.fed_shapes import with_fed_shapes
from gradserve.server.flow import Flow
from gradserve.server.order import with_early_sums
from gradserve.server.partition import Piece, partition
from gradserve.server.place import WORTH_SPREADING, Placement, place, whole
from gradserve.server.remat import within_budget
from gradserve.server.simplify import Work, simplify


@dataclass(frozen=True, slots=True)
class StepOptions:
    """How a request wants to be run.

    Attributes:
        allow_soft_placement: a device that the fleet lacks is passed over instead of an error.
        memory_budget: the most bytes that the step's tensors may take at once, by estimate: what does not fit is
            computed again where it is needed. 0 for no bound.
        one_worker: a graph that nothing ties to several workers is not spread: others run beside it.
    """

    allow_soft_placement: bool = False
    memory_budget: int = 0
    one_worker: bool = False


class Feed(NamedTuple):
    """What is known of a fed array when a plan is made."""

    name: str
    dtype: np.dtype[Any]
    shape: StaticShape


@dataclass(frozen=True, slots=True)
class Draft:
    """What the passes found out about a request.

    Attributes:
        graph: where its nodes come from.
        feeds: what is known of the fed arrays, in the order of work.feeds.
        work: what must run.
        flow: what depends on what in it.
        hardware: the fleet.
        costs: the estimates that placement used.
        placement: the worker of each node.
        pieces: the segments, in an order in which they can run.
    """

    graph: Graph
    feeds: tuple[Feed, ...]
    work: Work
    flow: Flow
    hardware: Hardware
    costs: Costs
    placement: Placement
    pieces: tuple[Piece, ...]


def draft(
    graph: Graph,
    feeds: Sequence[Feed],
    fetches: Sequence[str],
    targets: Sequence[str],
    options: StepOptions,
    hardware: Hardware,
) -> Draft:
    """What a request runs, where and in which pieces.

    Raises InvalidArgument, InvalidShape, InvalidType, InvalidPlacement, LimitExceeded, NotFound: the request can't be
    planned.
    """
    fed = [_fed_tensor(graph, feed) for feed in feeds]
    run = [graph.node(name) for name in targets]
    if len(set(fed)) < len(fed):
        raise InvalidArgument("A tensor is fed twice.", feeds=", ".join(feed.name for feed in feeds))
    wanted = [graph.tensor(name) for name in fetches]
    for tensor in wanted:
        if tensor.dtype.kind in "rv" and not tensor.dtype.is_reference:
            raise cannot_fetch(tensor.name, tensor.dtype)
    inlined = inline(graph, [*(tensor.node for tensor in (*fed, *wanted)), *run])
    if inlined is not None:
        graph = inlined.graph
        fed, wanted = ([inlined.tensors[tensor] for tensor in tensors] for tensors in (fed, wanted))
        run = [target_of(inlined, node) for node in run]
    fed, wanted, run = with_fed_shapes(fed, [feed.shape for feed in feeds], wanted, run)
    work = with_early_sums(simplify(fed, wanted, run))
    sizes = Sizes(_batch(fed, feeds))
    if options.memory_budget:
        work = within_budget(work, sizes, options.memory_budget)
    costs = Costs(work.inputs, work.nodes, sizes)
    flow = Flow(work)
    placement = place(work, flow, hardware, options.allow_soft_placement, costs)
    pieces = _cut(work, flow, placement, hardware, costs)
    if placement.free and len(pieces) > 1 and (options.one_worker or not _pays(pieces, hardware, costs)):
        placement = whole(work, placement.why)
        pieces = _cut(work, flow, placement, hardware, costs)
    return Draft(graph, tuple(feeds), work, flow, hardware, costs, placement, tuple(pieces))


def makespan(pieces: Sequence[Piece], hardware: Hardware, costs: Costs) -> float:
    """Seconds that a step takes by the estimates: each worker runs its pieces in order, each when its inputs are there.

    A piece's outputs leave at its end; the link takes `seconds` for each piece waited for and the time of its bytes.
    """
    free = [0.0] * len(hardware)
    finish: list[float] = []
    home = {tensor: piece for piece in pieces for tensor in piece.outputs}
    link = hardware.link
    for piece in pieces:
        start = free[piece.worker]
        moved: dict[Piece, int] = dict.fromkeys(piece.before, 0)
        for tensor in piece.inputs:
            maker = home.get(tensor)
            if maker is not None:
                moved[maker] += costs.sizes.bytes(tensor)
        for maker, size in moved.items():
            away = maker.worker != piece.worker
            start = max(start, finish[maker.index] + away * (link.seconds + size / link.bytes_per_second))
        seconds = costs.seconds(hardware.speeds[piece.worker])
        start += sum([seconds[node] for node in piece.nodes])
        finish.append(start)
        free[piece.worker] = start
    return max(finish, default=0.0)


def _cut(work: Work, flow: Flow, placement: Placement, hardware: Hardware, costs: Costs) -> list[Piece]:
    return partition(work, flow, placement.workers, costs.seconds(hardware.speeds[0]), hardware.link.seconds)


def _pays(pieces: Sequence[Piece], hardware: Hardware, costs: Costs) -> bool:
    """Whether a spread graph is clearly faster than the same on the first worker."""
    alone = sum(costs.seconds(hardware.speeds[0]).values())
    return makespan(pieces, hardware, costs) < alone * WORTH_SPREADING


def _fed_tensor(graph: Graph, feed: Feed) -> Tensor:
    tensor = graph.tensor(feed.name)
    if tensor.dtype.base.kind in "rv":
        raise cannot_feed(tensor.name, tensor.dtype.base)
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
