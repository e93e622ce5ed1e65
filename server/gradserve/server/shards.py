"""Cuts a request along its batch: what runs once a shard, and what runs once for all.

Tensors that depend on a feed that is split are computed once a shard. What comes of them:

    a total     every other one: the sum over the shards, by one fixed binary tree; for MEAN each term is first
                multiplied by the shard's part of the examples, so that totals of means over examples are means
    rows        one whose first dimension the graph leaves open, like the split feeds': concatenated

Nodes that change variables never run once a shard: the totals of what they read are fed to them, once. What depends
on no split feed runs with them.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradserve.errors import InvalidArgument, Unsupported
from gradserve.graph import dtypes
from gradserve.graph.graph import Graph, Node, Tensor
from gradserve.graph.op import raw
from gradserve.graph.shapes import Shape
from gradserve.server.effects import draws, is_handle, writes
from gradserve.server.flow import variable_name
from gradserve.workers.segment import controls, needed

WEIGHT = "gradserve/weight:0"


class Reduction(enum.Enum):
    """What the loss is over its examples, and so how the shards' gradients come together."""

    MEAN = "mean"
    SUM = "sum"


class Role(enum.Enum):
    """What becomes of a tensor that is computed once a shard."""

    TOTAL = "total"
    ROWS = "rows"
    WEIGHTED_ROWS = "weighted rows"
    FIRST = "first"


@dataclass(frozen=True, slots=True)
class Sharding:
    """What a request asks for.

    Attributes:
        shards: how many.
        feeds: canonical names of the feeds to split along their first dimension.
        reduction: of the loss, over its examples.
    """

    shards: int
    feeds: tuple[str, ...]
    reduction: Reduction


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor that each shard computes.

    Attributes:
        name: what is fetched.
        stands_for: the tensor of the request whose value it becomes.
        role: what becomes of it.
        dtype: of its elements.
        shape: what the graph says of its shape.
    """

    name: str
    stands_for: str
    role: Role
    dtype: np.dtype
    shape: Shape


@dataclass(frozen=True, slots=True)
class Sharded:
    """A request, cut.

    Attributes:
        graph: holds the nodes of both halves.
        sharding: what was asked for.
        parts: what each shard computes.
        shard_targets: nodes that each shard runs for their effect; they change no variable.
        given: the parts, by position, that are fed to the half that runs once.
        fetches, targets: of that half.
        results: for each fetch of the request whether a part or a fetch of the second half gives it, and which.
        unique: pairs of results (values, indices) in which every index is wanted once.
        draws: nodes of the shards that draw random numbers.
        weighted: whether the shards read WEIGHT, their part of the examples.
    """

    graph: Graph
    sharding: Sharding
    parts: tuple[Part, ...]
    shard_targets: tuple[str, ...]
    given: tuple[int, ...]
    fetches: tuple[str, ...]
    targets: tuple[str, ...]
    results: tuple[tuple[bool, int], ...]
    unique: tuple[tuple[int, int], ...]
    draws: tuple[str, ...]
    weighted: bool

    def told(self) -> str:
        """A sentence on how it runs."""
        shards, once = self.sharding.shards, ""
        if self.fetches or self.targets:
            once = " What changes variables, or does not depend on the batch, runs once afterwards."
        return f"This is the plan of one of {shards} shards; {shards - 1} sums over pairs put them together.{once}"


def bounds(examples: int, shards: int) -> list[int]:
    """Where each shard begins, and the end: sizes differ by one at most, the larger ones first."""
    size, larger = divmod(examples, shards)
    return [k * size + min(k, larger) for k in range(shards + 1)]


def check_feeds(sharding: Sharding, shapes: Sequence[tuple[str, tuple[int, ...]]]) -> int:
    """The number of examples in the split feeds. Raises InvalidArgument where they can't be split."""
    sizes = {name: shape[0] if shape else None for name, shape in shapes}
    for name, size in sizes.items():
        if size is None:
            raise InvalidArgument(
                f"{name} is a scalar, which has no examples to split: name the feeds to split.", tensor=name
            )
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise InvalidArgument(
            f"The split feeds have different numbers of examples ({told}): name only those that have a row an example.",
            sizes=told,
        )
    examples = next(iter(sizes.values()))
    assert examples is not None
    if examples < sharding.shards:
        raise InvalidArgument(
            f"{examples} examples can't be split into {sharding.shards} shards: ask for at most "
            f"{max(examples, 1)} shards, or feed more examples.",
            examples=examples, shards=sharding.shards,
        )  # fmt: skip
    return examples


def shard_of(sharded: Sharded, feeds: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shapes of the first shard's feeds, from those of the whole. Raises InvalidArgument."""
    split = sharded.sharding.feeds
    examples = check_feeds(sharded.sharding, [(name, feeds[name]) for name in split])
    size = bounds(examples, sharded.sharding.shards)[1]
    found = {name: (size, *shape[1:]) if name in split else shape for name, shape in feeds.items()}
    return found | ({WEIGHT: ()} if sharded.weighted else {})


def dependents(graph: Graph, split: Iterable[str], fed: Collection[Tensor]) -> set[Node]:
    """The nodes that run once a shard: they depend on a split feed, and neither they nor the way to them change a
    variable. The feeds' own nodes are among them."""
    stack = [graph.tensor(name).node for name in split]
    found = set(stack)
    whole = set(fed).difference(graph.tensor(name) for name in split)
    while stack:
        for tensor in stack.pop().outputs:
            if tensor in whole:
                continue
            for reader, _ in tensor.consumers:
                if reader not in found and not changes_variable(reader):
                    found.add(reader)
                    stack.append(reader)
    return found


def has_rows(tensor: Tensor, dependent: Collection[Node]) -> bool:
    """Whether a tensor has a row an example: it depends on a split feed, and nothing fixes its first dimension."""
    return tensor.node in dependent and tensor.shape is not None and bool(tensor.shape) and tensor.shape[0] is None


class Cutter:
    """Gathers what a request wants, part by part, and cuts it."""

    def __init__(self, graph: Graph, sharding: Sharding, fed: Collection[str]) -> None:
        self.graph = graph
        self.sharding = sharding
        self.fed = {graph.tensor(name) for name in fed}
        self.dependent = dependents(graph, sharding.feeds, self.fed)
        self._check_split()
        self.parts: list[Part] = []
        self._known: dict[tuple[str, Role], int] = {}
        self._weight: Tensor | None = None

    def _check_split(self) -> None:
        for name in self.sharding.feeds:
            shape = self.graph.tensor(name).shape
            if shape is not None and (not shape or shape[0] is not None):
                raise InvalidArgument(
                    f"{name} has the fixed shape {shape}, which a shard does not fit: leave its first dimension "
                    "unknown, or do not split it.",
                    tensor=name, shape=shape,
                )  # fmt: skip

    def part(self, tensor: Tensor, role: Role) -> int:
        """The number of the part that computes a tensor, which is made if there is none."""
        key = tensor.name, role
        if key not in self._known:
            self._known[key] = len(self.parts)
            made = self._scaled(tensor) if role in (Role.TOTAL, Role.WEIGHTED_ROWS) else tensor
            self.parts.append(Part(made.name, tensor.name, role, tensor.dtype.base.numpy, tensor.shape))
        return self._known[key]

    def role(self, tensor: Tensor) -> Role:
        """What becomes of a tensor that depends on a split feed and is no gradient."""
        return Role.ROWS if has_rows(tensor, self.dependent) else Role.TOTAL

    def gradient_role(self, x: Tensor) -> Role:
        """What becomes of the gradient of an x."""
        return Role.WEIGHTED_ROWS if has_rows(x, self.dependent) else Role.TOTAL

    def _scaled(self, tensor: Tensor) -> Tensor:
        """A tensor times the shard's part of the examples, where means are wanted."""
        dtype = tensor.dtype.base
        summable = dtype.is_numeric and dtype.kind not in "srvb"
        if self.sharding.reduction is Reduction.SUM and summable:
            return tensor
        if not (dtype.is_floating or dtype.is_complex):
            raise InvalidArgument(
                f"{tensor.name} is {dtype}, and can't be averaged over shards: cast it to a float, or give it a row an "
                "example.",
                tensor=tensor.name, dtype=dtype,
            )  # fmt: skip
        with self.graph.as_default(), self.graph.name_scope(""):
            if self._weight is None:
                self._weight = raw.Placeholder(dtype="float64", shape=(), name=WEIGHT.removesuffix(":0"))
            with self.graph.colocate_with(tensor):
                return raw.Mul(tensor, raw.Cast(self._weight, DstT=dtype), name="gradserve/share")

    # The cut

    def cut(
        self, results: Sequence[tuple[str, Role | None]], targets: Sequence[str], unique: Sequence[tuple[int, int]] = ()
    ) -> Sharded:
        """The request, cut.

        Args:
            results: what it fetches: names, and the roles of gradients; None for what is not one.
            targets: the nodes that it runs.
            unique: positions of (values, indices) in which every index is wanted once.
        """
        where: list[tuple[bool, int]] = []
        once: dict[str, int] = {}
        for name, role in results:
            tensor = self.graph.tensor(name)
            if role is None and tensor.node not in self.dependent:
                where.append((False, once.setdefault(name, len(once))))
            else:
                where.append((True, self.part(tensor, role or self.role(tensor))))
        each = [name for name in targets if self.graph.node(name) in self.dependent]
        rest = [name for name in targets if name not in each]
        given = self._boundary([self.graph.tensor(name).node for name in once] + [self.graph.node(n) for n in rest])
        if not self.parts and not each:
            raise InvalidArgument(
                "Nothing that is asked for depends on the feeds to split: ask without shards, or split other feeds.",
                feeds=", ".join(self.sharding.feeds),
            )
        inside = self._inside(each)
        self._check_inside(inside)
        return Sharded(
            self.graph, self.sharding, tuple(self.parts), tuple(each), given, tuple(once), tuple(rest), tuple(where),
            tuple(unique), tuple(node.name for node in inside if draws(node)), self._weight is not None,
        )  # fmt: skip

    def _boundary(self, roots: Sequence[Node]) -> tuple[int, ...]:
        """The parts that the half which runs once reads: what its nodes that change variables take of the shards."""
        given: dict[int, None] = {}
        seen = set(roots)
        stack = list(roots)
        while stack:
            node = stack.pop()
            if node in self.dependent:
                raise Unsupported(
                    f"A node that runs once waits for {node.name}, which runs once a shard: drop that control input.",
                    node=node.name,
                )
            sources = controls(node, self.fed)
            for tensor in node.inputs:
                if tensor in self.fed:
                    continue
                if tensor.node in self.dependent:
                    given[self.part(tensor, self._boundary_role(node, tensor))] = None
                else:
                    sources.append(tensor.node)
            for source in sources:
                if source not in seen:
                    seen.add(source)
                    stack.append(source)
        return tuple(given)

    def _boundary_role(self, node: Node, tensor: Tensor) -> Role:
        """A scatter takes the rows of all shards; everything else takes totals."""
        places = _argument(node, "indices")
        if places is None or places.node not in self.dependent:
            return Role.TOTAL
        if tensor is places:
            return Role.ROWS
        updates = [_argument(node, name) for name in ("updates", "grad")]
        return Role.WEIGHTED_ROWS if any(tensor is entry for entry in updates) else Role.TOTAL

    def _inside(self, targets: Sequence[str]) -> list[Node]:
        fed = frozenset(self.fed | ({self._weight} if self._weight is not None else set()))
        fetched = [self.graph.tensor(part.name) for part in self.parts]
        return needed(fetched, [self.graph.node(name) for name in targets], fed)

    def _check_inside(self, inside: Sequence[Node]) -> None:
        for node in inside:
            if changes_variable(node):
                raise Unsupported(
                    f"{node.name} ({node.type}) changes a variable, and what runs once a shard reads or waits for it: "
                    "change variables after the gradients, or ask without shards.",
                    node=node.name, op=node.type,
                )  # fmt: skip


def changes_variable(node: Node) -> bool:
    """Whether a node may give a variable a new value."""
    return writes(node, [tensor for tensor in node.inputs if _is_of_variable(tensor)])


def _is_of_variable(tensor: Tensor) -> bool:
    """Whether a handle is a variable's, and not a table's or an array's of one step."""
    node = tensor.node
    while node.inputs:
        handles = [entry for entry in node.inputs if is_handle(entry)]
        if not handles:
            return False
        node = handles[0].node
    return variable_name(node) is not None


def _argument(node: Node, name: str) -> Tensor | None:
    """The input of a node that its op calls so."""
    if node.op is None:
        return None
    for argument, value in zip(node.op.signature.inputs, node.arguments(), strict=True):
        if argument.name == name and isinstance(value, Tensor):
            return value
    return None


def known_shape(shape: Shape) -> tuple[int, ...] | None:
    """A shape of which every size is known, None for any other."""
    if shape is None or any(size is None for size in shape):
        return None
    return tuple(size or 0 for size in shape)


def sum_graph(parts: Sequence[tuple[np.dtype, tuple[int, ...]]]) -> Graph:
    """left/k + right/k = sum/k for every part: one node of the tree over the shards."""
    graph = Graph()
    with graph.as_default():
        for k, (dtype, shape) in enumerate(parts):
            sides = [
                raw.Placeholder(dtype=dtypes.as_dtype(dtype), shape=shape, name=f"{side}/{k}")
                for side in ("left", "right")
            ]
            raw.AddN(sides, name=f"sum/{k}")
    return graph
