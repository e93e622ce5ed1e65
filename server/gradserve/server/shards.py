"""Cuts a request along its batch: a graph that runs once a shard, one that runs once, and what goes between them.

What becomes of a tensor that the shards compute:

    rows       one that holds the batch: concatenated
    a total    one that is a sum over the examples: added up, by one fixed binary tree over the shards
    a mean     one that is a mean over the examples: a total, each term first multiplied by the shard's part of them
    sizes      integers that were computed of shapes: added up where they count examples

Whether a tensor is a sum or a mean is its growth; where the graph does not tell, the request's reduction does.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from gradserve.errors import InvalidArgument, Unsupported
from gradserve.graph import dtypes
from gradserve.graph.graph import Graph, Node, Tensor
from gradserve.graph.op import raw
from gradserve.graph.shapes import Shape
from gradserve.server import nonfinite
from gradserve.server.batch_axes import Views, views
from gradserve.server.effects import draws
from gradserve.server.extract import extract
from gradserve.server.growth import WHOLE, Flat
from gradserve.server.halves import Halves, divide, with_rows
from gradserve.server.mixing import SHAPES, Standing
from gradserve.server.row_draws import DRAWS as ROW_DRAWS
from gradserve.server.row_draws import RowDraws
from gradserve.server.sharding import Reduction, Sharding, piece_shapes
from gradserve.server.weights import Weights
from gradserve.workers.segment import controls, needed

# What takes rows as they are, and not as parts of a gradient.
_STORES = frozenset((
    "Assign", "AssignVariableOp", "LookupTableImport", "LookupTableImportV2", "LookupTableInsert",
    "LookupTableInsertV2", "ResourceScatterNdUpdate", "ResourceScatterUpdate", "ScatterNdUpdate", "ScatterUpdate",
))  # fmt: skip
# What adds up rows of one index: of several such sums it makes their sum.
_SUMS_OF_SLICES = frozenset((
    "ResourceScatterAdd", "ResourceScatterSub", "ScatterAdd", "ScatterNd", "ScatterSub", "Unique", "UniqueV2",
    "UnsortedSegmentSum",
))  # fmt: skip


class Role(enum.Enum):
    """What becomes of a tensor that is computed once a shard."""

    TOTAL = "total"
    ROWS = "rows"
    PLACES = "places"
    SIZES = "sizes"
    EACH = "each"


class Kind(enum.Enum):
    """What a tensor that is asked for is."""

    VALUE = "a value"
    GRADIENT = "a gradient"
    VALUES = "the values of a sparse gradient"
    INDICES = "the indices of one"


class Wanted(NamedTuple):
    """A tensor that is asked for.

    Attributes:
        tensor, kind: it, and what it is.
        x: whose gradient it is.
        shape: of values and indices, the dense shape that goes with them.
    """

    tensor: Tensor
    kind: Kind = Kind.VALUE
    x: Tensor | None = None
    shape: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor that each shard computes.

    Attributes:
        name: what the shards fetch.
        stands_for: the tensor whose value it becomes.
        role: what becomes of it.
        dtype: of its elements.
        shape: what the graph says of its shape.
        axis: along which rows are concatenated.
        added: of sizes, which add up; the others are the same in all shards.
        whole: of places, the part that holds the sizes of what they are places in.
    """

    name: str
    stands_for: str
    role: Role
    dtype: np.dtype
    shape: Shape
    axis: int = 0
    added: tuple[bool, ...] = ()
    whole: int = -1


@dataclass(frozen=True, slots=True)
class Half:
    """What runs once a shard, or once.

    Attributes:
        graph: its nodes, with placeholders for what it is fed.
        feeds: the request's feeds that it reads, and its tensors for them.
        fetches, targets: what to compute and to run.
    """

    graph: Graph
    feeds: tuple[tuple[str, str], ...]
    fetches: tuple[str, ...]
    targets: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sharded:
    """A request, cut.

    Attributes:
        sharding: what was asked for.
        each, once: its halves.
        parts: what each shard computes, in the order of its fetches.
        given: the parts, by position, that the other half is fed, and its tensors for them.
        results: for each fetch of the request whether a part or a fetch of the second half gives it, and which.
        draws: the nodes of the shards that draw random numbers, and whether each shard draws its own.
        weight: what the shards are fed their part of the examples to, "" where they do not read it.
        place: so for the number of a shard's first example, of its examples and of all, as a vector.
        watches: of the halves, where NaN and infinities are looked for.
    """

    sharding: Sharding
    each: Half
    once: Half
    parts: tuple[Part, ...]
    given: tuple[tuple[int, str], ...]
    results: tuple[tuple[bool, int], ...]
    draws: tuple[tuple[str, bool], ...]
    weight: str
    place: str
    watches: tuple[nonfinite.Watch, nonfinite.Watch] | None = None

    def told(self) -> str:
        """A sentence on how it runs."""
        shards, once = self.sharding.shards, ""
        if self.once.fetches or self.once.targets:
            once = f" {len(self.once.graph)} nodes run once afterwards, on the totals and rows of all shards."
        return f"This is the plan of one of {shards} shards; {shards - 1} sums over pairs put them together.{once}"

    def shard_shapes(self, feeds: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        """The shapes of what the first shard is fed, from those of the request's feeds. Raises InvalidArgument."""
        known = {**feeds, **piece_shapes(self.sharding, feeds)}
        found = {name: known[feed] for feed, name in self.each.feeds}
        return found | ({self.weight: ()} if self.weight else {}) | ({self.place: (3,)} if self.place else {})


def cut(
    graph: Graph,
    sharding: Sharding,
    feeds: Mapping[str, Tensor],
    wanted: Sequence[Wanted],
    targets: Sequence[Node] = (),
    *,
    find_nonfinite: bool = False,
) -> Sharded:
    """Cuts a request.

    Args:
        graph: without calls.
        feeds: its tensors that are fed, by the request's names for them.
        wanted, targets: what the request fetches and runs.
        find_nonfinite: also look for NaN and infinities, in both halves.

    Raises InvalidArgument, Unsupported: it can't be cut.
    """
    _check_split(sharding, feeds)
    fed = frozenset(feeds.values())
    split = _standing(sharding, feeds)
    order = needed([entry.tensor for entry in wanted], targets, fed)
    rows = [feeds[name] for name in sharding.feeds]
    sizes = views(order, rows, sharding.sizes)
    spread = with_rows([entry.x for entry in wanted if entry.x is not None], split, fed, sizes)
    settled = {entry.tensor for entry in wanted if entry.kind is Kind.GRADIENT and entry.x not in spread}
    # Of a sparse gradient of rows only the shards can tell which rows they are.
    wanted = [entry if entry.x in spread else entry._replace(shape=None) for entry in wanted]
    anchored = [tensor for entry in wanted if entry.shape is not None for tensor in (entry.tensor, entry.shape)]
    sums = sharding.local and sharding.reduction is Reduction.SUM
    halves = divide(order, fed, split, sizes, settled, anchored, sums=sums, local=sharding.local)
    if not halves.dependent:
        raise InvalidArgument(
            "Nothing that is asked for depends on the feeds to split: ask without shards, or split other feeds.",
            feeds=", ".join(sharding.feeds),
        )
    cutter = _Cutter(graph, sharding, halves)
    cutter.collect(wanted, targets)
    return cutter.finish(feeds, find_nonfinite)


def _check_split(sharding: Sharding, feeds: Mapping[str, Tensor]) -> None:
    for name in sharding.feeds:
        shape = feeds[name].shape
        if shape is not None and (not shape or shape[0] is not None):
            mended = (None, *shape[1:])
            raise InvalidArgument(
                f"{name} has the fixed shape {shape}, which a shard does not fit: give its placeholder the shape "
                f"{mended} when the graph is made, or do not split it.",
                tensor=name, shape=shape,
            )  # fmt: skip


def _standing(sharding: Sharding, feeds: Mapping[str, Tensor]) -> dict[Tensor, Standing]:
    """What the feeds that are split are in a shard."""
    found = {feeds[name]: Standing.ROWS for name in sharding.feeds}
    for values, indices, dense_shape in sharding.slices:
        found |= {
            feeds[values]: Standing.ROWS,
            feeds[indices]: Standing.PLACES,
            feeds[dense_shape]: Standing.SIZE,
        }
    return found


class _Cutter:
    """Walks both halves from what is asked for to what it needs.

    What one half needs of the other becomes a part, if it is a value. If it only waits for it, the other half runs it:
    all shards have run before the half that runs once, and no shard sees what that half writes.

    Attributes:
        kept: for each half the nodes that it runs.
        parts: found so far, by tensor and what becomes of it.
        results: where each wanted tensor comes from.
    """

    def __init__(self, graph: Graph, sharding: Sharding, halves: Halves) -> None:
        self.graph = graph
        self.sharding = sharding
        self.halves = halves
        self.kept: dict[bool, set[Node]] = {True: set(), False: set()}
        self.stack: list[tuple[bool, Node]] = []
        self.targets: dict[bool, dict[Node, None]] = {True: {}, False: {}}
        self.parts: dict[tuple[Tensor, int, Tensor | None], Part] = {}
        self.places: dict[tuple[Tensor, int, Tensor | None], int] = {}
        self.given: dict[Tensor, int] = {}
        self.fetches: dict[Tensor, int] = {}
        self.results: list[tuple[bool, int]] = []

    # What runs where

    def collect(self, wanted: Sequence[Wanted], targets: Sequence[Node]) -> None:
        """Finds the nodes of both halves, the parts, and where the results come from."""
        for entry in wanted:
            if entry.shape is not None or self._crosses(entry, None):
                self.results.append((True, self._part(entry)))
            else:
                self.results.append((False, self.fetches.setdefault(entry.tensor, len(self.fetches))))
                if entry.tensor not in self.halves.fed:
                    self.stack.append((False, entry.tensor.node))
        for node in targets:
            self._run(node)
        while self.stack:
            each, node = self.stack.pop()
            if node not in self.kept[each]:
                self.kept[each].add(node)
                self._visit(each, node)
        if not self.kept[True]:
            kept = [node for node in self.halves.order if node in self.kept[False]]
            whole = next(node for node in kept if any(map(self.halves.depends, node.inputs)))
            raise InvalidArgument(
                f"Nothing of it can run in shards: {whole.name} ({whole.type}) and what follows must see all examples. "
                "Ask without shards.",
                node=whole.name, op=whole.type,
            )  # fmt: skip
        self._check_reads()

    def _run(self, node: Node) -> None:
        each = node in self.halves.each
        if node not in self.targets[each]:
            self.targets[each][node] = None
            self.stack.append((each, node))

    def _visit(self, each: bool, node: Node) -> None:
        for tensor in node.inputs:
            if tensor in self.halves.fed:
                continue
            if not each and self._crosses(Wanted(tensor), node):
                if tensor not in self.given:
                    self.given[tensor] = self._part(Wanted(tensor), node)
            elif each and tensor.node in self.halves.writers:
                raise self._too_late(node)
            else:
                self.stack.append((each, tensor.node))
        for control in controls(node, self.halves.fed):
            # The shards wait for nothing that does not depend on the batch: it runs once, like all that does not.
            if each == (control in self.halves.each):
                self.stack.append((each, control))
            else:
                self._run(control)

    def _check_reads(self) -> None:
        """A shard reads variables as they are before the step."""
        for node in self.halves.order:
            if node in self.halves.later and node in self.kept[True]:
                raise self._too_late(node)

    def _too_late(self, node: Node) -> Unsupported:
        return Unsupported(
            f"{node.name} ({node.type}) reads a variable after it has changed, and the shards need its result; but "
            "variables change once all shards are done. Read it before, fetch this in a step of its own, or ask "
            "without shards.",
            node=node.name, op=node.type,
        )  # fmt: skip

    # Parts

    def _part(self, wanted: Wanted, reader: Node | None = None) -> int:
        """The number of the part that computes a tensor, which is made if there is none.

        `reader` is a node of the other half that takes it; without one it is a result.
        """
        tensor = wanted.tensor
        power = self._power(wanted, reader)
        places = wanted.shape if wanted.kind is Kind.INDICES else None
        key = tensor, power, places
        if key not in self.places:
            whole = -1 if places is None else self._part(Wanted(places))
            self.parts[key] = self._made(wanted, whole)
            self.places[key] = len(self.places)
            self.stack.append((True, tensor.node))
        return self.places[key]

    def _made(self, wanted: Wanted, whole: int) -> Part:
        tensor = wanted.tensor
        role, axis = Role.TOTAL, 0
        added: tuple[Flat, ...] = ()
        growth = self.halves.growth(tensor)
        if whole >= 0:
            role = Role.PLACES
        elif wanted.shape is not None:
            role = Role.ROWS
        elif self.halves.holds_batch(tensor):
            role, axis = Role.ROWS, _axis(tensor, self.halves.views) if self.sharding.shards > 1 else 0
        elif tensor.dtype.base.kind in "iu" and (growth == 0 or isinstance(growth, tuple)):
            role, added = Role.SIZES, growth if isinstance(growth, tuple) else (0,)
        elif not self.halves.adds_up(tensor):
            raise InvalidArgument(
                f"{tensor.name} is {tensor.dtype.base}, and can't be totalled over shards: cast it to a float, give it "
                "a row an example, or ask without shards.",
                tensor=tensor.name, dtype=tensor.dtype.base,
            )  # fmt: skip
        return Part(
            tensor.name, tensor.name, role, tensor.dtype.base.numpy, tensor.shape, axis,
            tuple(entry == 1 for entry in added), whole,
        )  # fmt: skip

    def _crosses(self, wanted: Wanted, reader: Node | None) -> bool:
        """Whether the shards compute a tensor for the other half, or for the result; else that half does so itself.

        Raises InvalidArgument where it must be the shards and what they have says nothing of the whole.
        """
        tensor, anchored = wanted.tensor, wanted.shape is not None
        if not anchored and (not self.halves.in_shards(tensor) or tensor.dtype.base.kind == "v"):
            return False  # lists don't come together
        if self.sharding.local or self._is_part(wanted, reader):
            return True
        if anchored or draws(tensor.node):
            raise InvalidArgument(
                f"{tensor.name} ({tensor.node.type}) of the shards says nothing of the whole batch: examples look at "
                "each other. Ask without shards, or with local_statistics, if each shard is to see its own examples "
                "only.",
                tensor=tensor.name, op=tensor.node.type,
            )  # fmt: skip
        return False

    def _is_part(self, wanted: Wanted, reader: Node | None) -> bool:
        """Whether what the shards have of a tensor comes together to that of the whole."""
        tensor, standing = wanted.tensor, self.halves.standing(wanted.tensor)
        if wanted.kind is Kind.INDICES and wanted.shape is not None:
            return standing is Standing.PLACES
        if standing in (Standing.DISTINCT, Standing.SLICES):
            return wanted.kind is not Kind.VALUE if reader is None else reader.type in _SUMS_OF_SLICES
        if standing in (Standing.SHARED, Standing.SIZE):
            # Of the shapes of the whole all sizes are right, also what is another one in a shard of one example.
            numbers = tensor.dtype.base.kind in "fc" and isinstance(self.halves.growth(tensor), int)
            return numbers or tensor.node.type in SHAPES
        return standing in (Standing.ROWS, Standing.TOTAL)

    def _power(self, wanted: Wanted, reader: Node | None) -> int:
        """The power of their part of the examples by which the shards' values count."""
        tensor = wanted.tensor
        growth = self.halves.growth(tensor) if self.halves.depends(tensor) else None
        total = wanted.shape is None and not self.halves.holds_batch(tensor)
        if tensor.dtype.base.kind not in "fc" or wanted.kind is Kind.INDICES or growth is WHOLE:
            return 0
        if isinstance(growth, int):
            return int(total) - growth
        # Only where each shard sees its own examples: the graph does not tell.
        told = wanted.kind is Kind.VALUE and (reader is None or reader.type in _STORES) and not total
        return int(self.sharding.reduction is Reduction.MEAN and not told)

    # The graphs

    def finish(self, feeds: Mapping[str, Tensor], find_nonfinite: bool) -> Sharded:
        """The cut request."""
        chosen = [node for node in self.halves.order if node in self.kept[True]]
        weights = Weights(self.halves.growths.weighed)
        drawn = RowDraws({node for node in chosen if self._draws_rows(node)})
        graph, stands = extract(
            self.graph, chosen, feeds.values(),
            lambda node, x, stand: weights.instead(node, x, drawn.instead(node, x, stand)),
        )  # fmt: skip
        parts = [
            replace(part, name=weights.times(drawn.rows(tensor, stands[tensor]), power).name)
            for (tensor, power, _), part in self.parts.items()
        ]
        each = Half(
            graph, tuple((name, stands[tensor].name) for name, tensor in feeds.items()), (),
            tuple(node.name for node in self.targets[True]),
        )  # fmt: skip
        once, given = self._once(feeds)
        results, watches = list(self.results), None
        if find_nonfinite:
            own = [name for name in (weights.name, drawn.name) if name]
            watches = (
                _watch(each, [part.name for part in parts], own),
                _watch(once, once.fetches, [name for _, name in given]),
            )
            results += [(True, len(parts)), (False, len(once.fetches))]
            parts.append(Part(watches[0].summary, watches[0].summary, Role.EACH, np.dtype(np.float64), None))
            once = replace(once, fetches=(*once.fetches, watches[1].summary))
        drawing = tuple((node.name, node in self.halves.dependent) for node in chosen if draws(node))
        return Sharded(
            self.sharding, replace(each, fetches=tuple(part.name for part in parts)), once, tuple(parts), given,
            tuple(results), drawing, weights.name, drawn.name, watches,
        )  # fmt: skip

    def _draws_rows(self, node: Node) -> bool:
        return node.type in ROW_DRAWS and self.halves.standing(node.outputs[0]) is Standing.ROWS

    def _once(self, feeds: Mapping[str, Tensor]) -> tuple[Half, tuple[tuple[int, str], ...]]:
        """The half that runs once, and the parts that it is fed."""
        chosen = [node for node in self.halves.order if node in self.kept[False]]
        read = {tensor for node in chosen for tensor in node.inputs} | set(self.fetches)
        read_feeds = {name: tensor for name, tensor in feeds.items() if tensor in read}
        graph, stands = extract(self.graph, chosen, [*read_feeds.values(), *self.given])
        half = Half(
            graph, tuple((name, stands[tensor].name) for name, tensor in read_feeds.items()),
            tuple(stands[tensor].name for tensor in self.fetches), tuple(node.name for node in self.targets[False]),
        )  # fmt: skip
        return half, tuple((at, stands[tensor].name) for tensor, at in self.given.items())


def _axis(tensor: Tensor, views: Views) -> int:
    """The dimension along which the shards' tensors are put together. Raises InvalidArgument where there is none."""
    axes = views.axes(tensor) or ()
    differing = [axis for axis in axes if None not in axis]
    places = [axis.place for axis in differing or axes]
    if len(differing) < 2 and places and views.is_even(tensor) and (len(places) == 1 or places[0] == 0):
        return places[0]
    raise InvalidArgument(
        f"{tensor.name} ({tensor.dtype.base}, shape {tensor.shape}) differs from shard to shard in a way that can't be "
        "put together: give it a row an example and a known rank, or ask without shards.",
        tensor=tensor.name, shape=tensor.shape,
    )  # fmt: skip


def _watch(half: Half, roots: Sequence[str], given: Sequence[str]) -> nonfinite.Watch:
    return nonfinite.watch(half.graph, roots, [*(name for _, name in half.feeds), *given])


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
