"""Says which worker runs each node: explicit device strings, then colocation groups, then a cost model.

What may not be parted is one group (union-find): nodes that name each other in `_class`, and all that touches one
variable. A group's devices are those that every device string in it allows. What is left open is list-scheduled:
the nodes by the length of the way that is still ahead of them, each where it would finish first (the ranks and the
choice of HEFT, Topcuoglu, Hariri and Wu 2002), where it looks only at the workers that hold its inputs and at the one
that is free first: linear in nodes and edges, on any number of workers.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradserve.errors import InvalidPlacement, LimitExceeded
from gradserve.graph import devices
from gradserve.graph.graph import Node, Tensor
from gradserve.server.cost import Costs, Hardware, Sizes
from gradserve.server.flow import Flow, variable_name
from gradserve.server.simplify import Work

SMALL = "small: one worker is as fast"
# Spreading must promise this much of the time on one worker, or the graph stays whole.
WORTH_SPREADING = 0.75
# Under this much work a graph is not looked at twice: one worker takes it.
_LEAST_SECONDS = 2e-3


@dataclass(frozen=True, slots=True)
class Placement:
    """Where nodes run.

    Attributes:
        workers: the worker of each node.
        why: ``device``, ``colocated``, ``soft``, ``small`` or ``cost``, with what decided.
        floating: nothing ties the graph to worker 0: any one worker may run it whole.
        free: no device, group or memory limit asked for more than one worker: the whole graph could stay on one.
    """

    workers: Mapping[Node, int]
    why: Why
    floating: bool
    free: bool


@dataclass(frozen=True, slots=True)
class Why:
    """Why each node is where it is, put into words only when somebody asks.

    Attributes:
        groups: which nodes must stand together.
        deciders: for a group, the node whose device decided, and ``device`` or ``soft``.
        otherwise: the reason of all other nodes.
    """

    groups: Groups
    deciders: Mapping[Any, tuple[Node, str]]
    otherwise: str

    def __getitem__(self, node: Node) -> str:
        decider, kind = self.deciders.get(self.groups.find(node), (None, ""))
        if decider is None:
            return self.otherwise
        if kind == "soft":
            return f"soft: {decider.device} is not there"
        if decider is node:
            return f"device: {node.device}"
        return f"colocated: with {decider.name} on {decider.device}"


def place(work: Work, flow: Flow, hardware: Hardware, soft: bool, costs: Costs) -> Placement:
    """A worker for every node.

    Raises:
        InvalidPlacement: a device is not there and `soft` is false, or two nodes that must stand together name
            different devices.
        LimitExceeded: no worker has memory for a node.
    """
    groups = Groups(work, flow)
    allowed, deciders = _allowed(work, groups, hardware, soft)
    why = Why(groups, deciders, "cost: earliest finish")
    limited = any(hardware.memory_bytes)
    if allowed:
        workers = _all_fixed(work, groups, allowed)
        if workers is None:
            workers = _Schedule(work, flow, groups, allowed, hardware, costs).run()
        elif limited:
            _Memory(work, flow.sources, costs.sizes, hardware).check([workers[node] for node in work.nodes])
        return Placement(workers, why, False, False)
    if not limited and (len(hardware) == 1 or _is_small(hardware, costs)):
        return whole(work, why)
    schedule = _Schedule(work, flow, groups, allowed, hardware, costs)
    fits = schedule.memory is None or schedule.memory.fits_one()
    if fits and len(hardware) == 1:
        return whole(work, why)
    if fits and not schedule.can_pay():
        return whole(work, why)
    return Placement(schedule.run(), why, False, fits)


def whole(work: Work, why: Why) -> Placement:
    """All of a graph on any one worker."""
    return Placement(dict.fromkeys(work.nodes, 0), replace(why, otherwise=SMALL), True, True)


# What stands together


class Groups:
    """Union-find over nodes. Colocation names of nodes that are not there join groups too."""

    def __init__(self, work: Work, flow: Flow) -> None:
        self._parents: dict[Any, Any] = {}
        handles = flow.handles
        if handles:
            variables: dict[str, Node] = {}
            fed = frozenset(work.feeds)
            for node in work.nodes:
                variable = variable_name(node)
                if variable is not None:
                    self.join(variables.setdefault(variable, node), node)
                for tensor in work.inputs[node]:
                    if tensor in handles and tensor not in fed and _ties(tensor, node):
                        self.join(tensor.node, node)
        named = [node for node in work.nodes if "_class" in node.attrs]
        if named:
            anchors: dict[str, Any] = {node.name: node for node in work.nodes}
            sums: list[tuple[Any, Node]] = []
            for node in named:
                is_sum = _is_sum(node)
                for name in node.colocation_groups:
                    anchor = anchors.setdefault(name, ("class", name))
                    if is_sum:
                        sums.append((anchor, node))
                    elif anchor is not node:
                        self.join(anchor, node)
            self._join_sums(work, sums)

    def _join_sums(self, work: Work, sums: Sequence[tuple[Any, Node]]) -> None:
        """A sum of partial gradients stands where its first term does if somebody said where that is.

        The sums of a residual network name each other in a chain: all on one worker, with nobody having asked for it,
        they would be what every other worker waits for.
        """
        bound = {self.find(node) for node in work.nodes if node.device} if sums else set[Any]()
        for anchor, node in sums:
            if node.device or self.find(anchor) in bound:
                self.join(anchor, node)

    def find(self, member: Any) -> Any:
        """What stands for a member's group: the same object for all of them."""
        parents = self._parents
        root = parents.get(member)
        if root is None:
            return member
        while (parent := parents.get(root)) is not None:
            root = parent
        while (parent := parents[member]) is not root:
            parents[member] = root
            member = parent
        return root

    def of(self, nodes: Sequence[Node]) -> list[Any]:
        """What stands for the group of each node."""
        parents, find = self._parents, self.find
        return [find(node) if node in parents else node for node in nodes]

    def join(self, a: Any, b: Any) -> None:
        """Makes one group of two."""
        root, other = self.find(a), self.find(b)
        if root is not other:
            self._parents[other] = root


def _is_sum(node: Node) -> bool:
    """Whether a node is a sum of partial gradients, which stands where its first term does."""
    if node.type != "AddN":
        return False
    first = node.inputs[0].node
    return node.colocation_groups == first.colocation_groups


def _ties(tensor: Tensor, reader: Node) -> bool:
    """Whether a reader must stand where the tensor is made: it gets a variable and not a value."""
    return tensor.dtype.kind == "r" or not reader.device


# What device strings allow


def _allowed(
    work: Work, groups: Groups, hardware: Hardware, soft: bool
) -> tuple[dict[Any, tuple[int, ...]], dict[Any, tuple[Node, str]]]:
    """The workers that each group may stand on, where that is not every one, and which node's device decided."""
    full = [devices.parse(text) for text in hardware.devices]
    everywhere = tuple(range(len(full)))
    allowed: dict[Any, tuple[int, ...]] = {}
    deciders: dict[Any, tuple[Node, str]] = {}
    matches: dict[str, tuple[int, ...]] = {}
    for node in work.nodes:
        if not node.device:
            continue
        root = groups.find(node)
        options = allowed.get(root, everywhere)
        fitting = matches.get(node.device)
        if fitting is None:
            wanted = devices.parse(node.device)
            fitting = matches[node.device] = tuple(k for k in everywhere if wanted.matches(full[k]))
        if not fitting:
            if soft:
                deciders.setdefault(root, (node, "soft"))
                continue
            raise InvalidPlacement(
                f"{node.name} asks for the device {node.device}, which is not there. There are: "
                f"{', '.join(hardware.devices)}. Name one of them, or allow soft placement.",
                node=node.name, device=node.device, devices=", ".join(hardware.devices),
            )  # fmt: skip
        both = tuple(k for k in options if k in fitting)
        if not both:
            if soft:
                continue
            other = deciders[root][0]
            raise InvalidPlacement(
                f"{other.name} on {other.device} and {node.name} on {node.device} must stand on one device: they are "
                "colocated or share a variable.",
                node=node.name, device=node.device, other=other.name, other_device=other.device,
            )  # fmt: skip
        if root not in deciders or len(both) < len(options):
            deciders[root] = (node, "device")
        if len(both) < len(everywhere):
            allowed[root] = both
    return allowed, deciders


def _all_fixed(work: Work, groups: Groups, allowed: Mapping[Any, tuple[int, ...]]) -> dict[Node, int] | None:
    """The workers where the device strings leave no choice at all, else None."""
    workers: dict[Node, int] = {}
    for node in work.nodes:
        options = allowed.get(groups.find(node), ())
        if len(options) != 1:
            return None
        workers[node] = options[0]
    return workers


# What the cost model decides


def _is_small(hardware: Hardware, costs: Costs) -> bool:
    """Whether one worker is through with a graph in no time."""
    return sum(costs.seconds(hardware.speeds[0]).values()) < _LEAST_SECONDS


class _Schedule:
    """One list scheduling. Nodes are ranks in work.nodes, so that what is known of them stands in lists."""

    def __init__(
        self, work: Work, flow: Flow, groups: Groups, allowed: Mapping[Any, tuple[int, ...]], hardware: Hardware,
        costs: Costs,
    ) -> None:  # fmt: skip
        self.work = work
        self.hardware = hardware
        self.sources = flow.sources
        # How long what a node makes takes to another worker: the largest of its outputs, mostly its only one.
        link, size = hardware.link, costs.sizes.bytes
        byte = 1 / link.bytes_per_second
        self.transfers = [
            link.seconds + (size(made[0]) if len(made) == 1 else max(map(size, made), default=0)) * byte
            for made in [node.outputs for node in work.nodes]
        ]
        kinds = list(dict.fromkeys(hardware.speeds))
        self.kinds = [kinds.index(speed) for speed in hardware.speeds]
        self.seconds = [list(costs.seconds(speed).values()) for speed in kinds]
        self.groups: list[Any] = groups.of(work.nodes)
        self.allowed = allowed
        self.ahead = self._ahead()
        self.memory = _Memory(work, self.sources, costs.sizes, hardware) if any(hardware.memory_bytes) else None

    def run(self) -> dict[Node, int]:
        """The worker of each node. Raises LimitExceeded where no worker has memory for one."""
        count = len(self.work.nodes)
        free = self.free = [0.0] * len(self.hardware)
        idle = self.idle = [
            [(0.0, w) for w, kind in enumerate(self.kinds) if kind == k] for k in range(len(self.seconds))
        ]
        finish = [0.0] * count
        where = [0] * count
        settled: dict[Any, int] = {}
        sources, transfers, groups, kinds, seconds = self.sources, self.transfers, self.groups, self.kinds, self.seconds
        for rank in sorted(range(count), key=self.ahead.__getitem__, reverse=True):  # sources come before readers
            # When the inputs are there: on a worker that makes some of them, and on any other.
            latest = second = 0.0
            latest_worker = -1
            local: dict[int, float] = {}
            for source in sources[rank]:
                done, worker = finish[source], where[source]
                if done >= local.get(worker, 0.0):
                    local[worker] = done
                arrival = done + transfers[source]
                if worker == latest_worker:
                    if arrival > latest:
                        latest = arrival
                elif arrival > latest:
                    latest, second, latest_worker = arrival, latest, worker
                elif arrival > second:
                    second = arrival
            best, best_finish = -1, 0.0
            group = groups[rank]
            for worker in (settled[group],) if group in settled else self._candidates(rank, group, local):
                start = second if worker == latest_worker else latest
                if free[worker] > start:
                    start = free[worker]
                if local.get(worker, 0.0) > start:
                    start = local[worker]
                end = start + seconds[kinds[worker]][rank]
                if best < 0 or end < best_finish:
                    best, best_finish = worker, end
            settled[group] = where[rank] = best
            finish[rank] = free[best] = best_finish
            heapq.heappush(idle[kinds[best]], (best_finish, best))
            if self.memory is not None:
                self.memory.enter(rank, best, where)
        return dict(zip(self.work.nodes, where, strict=True))

    def can_pay(self) -> bool:
        """Whether any number of workers could be clearly faster than one: not where the longest way is all there is."""
        return max(self.ahead, default=0.0) < sum(self.seconds[0]) * WORTH_SPREADING

    def _ahead(self) -> list[float]:
        """The longest way of work from each node to the end, itself included."""
        seconds = self.seconds[0]
        ahead = [0.0] * len(seconds)
        for rank in range(len(seconds) - 1, -1, -1):
            length = ahead[rank] = ahead[rank] + seconds[rank]
            for source in self.sources[rank]:
                if ahead[source] < length:
                    ahead[source] = length
        return ahead

    def _candidates(self, rank: int, group: Any, local: Mapping[int, float]) -> Sequence[int]:
        """The workers worth trying: those that hold inputs, then the first that is free, of each speed."""
        options = self.allowed.get(group)
        if options is None:
            options = list(local)
            for heap in self.idle:
                while heap[0][0] < self.free[heap[0][1]]:
                    heapq.heappop(heap)
                options.append(heap[0][1])
        if self.memory is None:
            return options
        fitting = [worker for worker in options if self.memory.fits(rank, worker)]
        return fitting or [self.memory.roomiest(rank, self.allowed.get(group))]


class _Memory:
    """Bytes of tensors that are alive on each worker, while nodes are scheduled.

    A tensor lives on its maker from its making until its last reader is scheduled; what the request fetches stays.
    """

    def __init__(self, work: Work, sources: Sequence[Sequence[int]], sizes: Sizes, hardware: Hardware) -> None:
        self.work = work
        self.limits = hardware.memory_bytes
        self.used = [0] * len(hardware)
        self.sources = sources
        self.bytes = [sum(sizes.bytes(tensor) for tensor in node.outputs) for node in work.nodes]
        self.readers = [0] * len(work.nodes)
        for found in sources:
            for source in found:
                self.readers[source] += 1
        kept = {tensor.node for tensor in work.fetches}
        self.stays = [node in kept for node in work.nodes]

    def fits(self, rank: int, worker: int) -> bool:
        """Whether a worker has room for a node's outputs."""
        limit = self.limits[worker]
        return not limit or self.used[worker] + self.bytes[rank] <= limit

    def fits_one(self) -> bool:
        """Whether the worker with the least memory could run it all, in the order of work.nodes."""
        limit = min((limit for limit in self.limits if limit), default=0)
        readers = list(self.readers)
        used = 0
        for rank, found in enumerate(self.sources):
            used += self.bytes[rank]
            if used > limit:
                return False
            if not readers[rank] and not self.stays[rank]:
                used -= self.bytes[rank]
            for source in found:
                readers[source] -= 1
                if not readers[source] and not self.stays[source]:
                    used -= self.bytes[source]
        return True

    def roomiest(self, rank: int, options: Sequence[int] | None) -> int:
        """The worker with the most room. Raises LimitExceeded where that is not enough."""
        among = range(len(self.limits)) if options is None else options
        best = max(among, key=lambda k: (not self.limits[k], self.limits[k] - self.used[k], -k))
        self._require(rank, best)
        return best

    def check(self, where: Sequence[int]) -> None:
        """Raises LimitExceeded where nodes that stand on these workers need more memory than there is."""
        for rank, worker in enumerate(where):
            self._require(rank, worker)
            self.enter(rank, worker, where)

    def _require(self, rank: int, worker: int) -> None:
        if not self.fits(rank, worker):
            node = self.work.nodes[rank]
            raise LimitExceeded(
                f"{node.name} makes {self.bytes[rank]} bytes, but worker {worker} has {self.used[worker]} of its "
                f"{self.limits[worker]} bytes in use by then: raise the memory limit, or add workers.",
                node=node.name, worker=worker, bytes=self.bytes[rank], memory_limit=self.limits[worker],
            )  # fmt: skip

    def enter(self, rank: int, worker: int, where: Sequence[int]) -> None:
        """A node has been scheduled: its outputs live, and what it read last dies."""
        if self.readers[rank] or self.stays[rank]:
            self.used[worker] += self.bytes[rank]
        for source in self.sources[rank]:
            self.readers[source] -= 1
            if not self.readers[source] and not self.stays[source]:
                self.used[where[source]] -= self.bytes[source]
