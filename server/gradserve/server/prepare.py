"""What a request needs beyond its values, prepared once for all requests of its kind: graph, names to fetch, roles."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from gradserve.errors import InvalidArgument
from gradserve.graph.dtypes import DType
from gradserve.graph.graph import Graph, IndexedSlices, Node, Tensor
from gradserve.graph.inline import inline
from gradserve.graph.shapes import Shape
from gradserve.server import nonfinite
from gradserve.server.batch_axes import views
from gradserve.server.differentiate import (
    PARTS,
    as_placeholder,
    as_rows,
    differentiate,
    no_gradient,
    seed_name,
)
from gradserve.server.graphs import GraphVersion
from gradserve.server.halves import with_rows
from gradserve.server.limits import Limits
from gradserve.server.sharding import Reduction, Sharding, Slices, bounds
from gradserve.server.shards import Kind, Sharded, Wanted, cut
from gradserve.server.values import Array, canonical
from gradserve.v1 import gradient_service_pb2 as wire
from gradserve.workers.segment import needed

REDUCTIONS = {
    wire.REDUCTION_UNSPECIFIED: Reduction.MEAN,
    wire.REDUCTION_MEAN: Reduction.MEAN,
    wire.REDUCTION_SUM: Reduction.SUM,
}


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a kind of request compiles to, before it is planned.

    Attributes:
        key: tells it apart from every other one.
        graph: with the gradients added.
        fetches: names of the tensors to compute, each once.
        dtypes: their dtypes.
        gradients: for each x the position of its gradient among the fetches, the three positions of a sparse one,
            or why there is none.
        ys, extra: names as the request gave them, and positions among the fetches.
        targets: nodes to run.
        watch: which nodes the last fetch tells of, where NaN and infinities are looked for without shards.
        sharded: how it is cut, if it runs in shards.
    """

    key: Hashable
    graph: Graph
    fetches: tuple[str, ...]
    dtypes: tuple[DType, ...]
    gradients: tuple[int | tuple[int, int, int] | wire.NoGradient, ...]
    ys: tuple[tuple[str, int], ...]
    extra: tuple[tuple[str, int], ...]
    targets: tuple[str, ...]
    watch: nonfinite.Watch | None = None
    sharded: Sharded | None = None


class _Fetches:
    """Names to fetch, each once."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.positions: dict[str, int] = {}

    def add(self, name: str) -> int:
        return self.positions.setdefault(self.graph.tensor(name).name, len(self.positions))

    def dtypes(self) -> tuple[DType, ...]:
        return tuple(self.graph.tensor(name).dtype.base for name in self.positions)


def _finish(
    key: Hashable,
    graph: Graph,
    gradients: tuple[int | tuple[int, int, int] | wire.NoGradient, ...],
    found: _Fetches,
    ys: Sequence[str],
    extra: Sequence[str],
    targets: Sequence[str],
    watch: nonfinite.Watch | None = None,
) -> Prepared:
    y_positions = tuple((name, found.add(name)) for name in ys)
    extra_positions = tuple((name, found.add(name)) for name in extra)
    for name in targets:
        graph.node(name.removeprefix("^"))
    return Prepared(
        key,
        graph,
        tuple(found.positions),
        found.dtypes(),
        gradients,
        y_positions,
        extra_positions,
        tuple(name.removeprefix("^") for name in targets),
        watch,
    )


def prepare_run(
    key: Hashable, version: GraphVersion, request: wire.RunRequest, sharding: Sharding | None = None
) -> Prepared:
    """Checks the names of a plain run, and cuts it. Raises NotFound, InvalidArgument, Unsupported."""
    graph = version.graph() if sharding is None else version.copy(sharding.shapes)
    prepared = _finish(key, graph, (), _Fetches(graph), (), request.fetches, request.targets)
    if sharding is None:
        return prepared
    return replace(prepared, sharded=_cut(prepared, sharding, [feed.name for feed in request.feeds]))


def prepare_gradients(
    key: Hashable,
    version: GraphVersion,
    request: wire.ComputeGradientsRequest,
    arrays: tuple[Array, ...],
    sharding: Sharding | None = None,
) -> Prepared:
    """Adds the gradients to a copy of the graph, and cuts it. Raises the errors of `gradients` and of cutting."""
    graph = version.copy() if sharding is None else version.copy(sharding.shapes)
    fed = [feed.name for feed in request.feeds]
    seeds = _Seeds() if sharding is None else _seeds_with_rows(graph, request.gradients, sharding, fed)

    def make(graph: Graph, k: int, array: Array) -> Tensor:
        return (as_rows if k in seeds.rows else as_placeholder)(graph, k, array)

    entries = differentiate(graph, request.gradients, arrays, make)
    found = _Fetches(graph)
    positions: list[int | tuple[int, int, int] | wire.NoGradient] = []
    for entry, reason in zip(entries, entries.reasons, strict=True):
        if entry is None:
            positions.append(no_gradient(reason))
        elif isinstance(entry, IndexedSlices):
            values, indices, dense_shape = (found.add(getattr(entry, part).name) for part in PARTS)
            positions.append((values, indices, dense_shape))
        else:
            positions.append(found.add(entry.name))
    ys = request.gradients.ys if request.return_ys else ()
    fed += [seed_name(k) for k in range(len(arrays))]
    watch = None
    if request.options.find_nonfinite and sharding is None:
        watch = nonfinite.watch(graph, [*found.positions, *request.gradients.ys], fed)
        found.add(watch.summary)
    elif request.options.find_nonfinite:
        for name in request.gradients.ys:
            found.add(name)
    prepared = _finish(key, graph, tuple(positions), found, ys, request.fetches, request.targets, watch)
    if sharding is None:
        return prepared
    split = replace(sharding, feeds=(*sharding.feeds, *seeds.feeds), slices=seeds.slices)
    find_nonfinite = request.options.find_nonfinite
    return replace(prepared, sharded=_cut(prepared, split, fed, request.gradients.xs, find_nonfinite=find_nonfinite))


# Shards


def sharding_of(options: wire.RunOptions, shapes: Mapping[str, Shape], limits: Limits) -> Sharding | None:
    """How a request with such feeds asks to be cut, None where it doesn't. Raises InvalidArgument, LimitExceeded."""
    if not options.HasField("sharding"):
        return None
    asked = options.sharding
    if asked.shards < 1:
        raise InvalidArgument(f"A request runs in at least 1 shard, not {asked.shards}.", shards=asked.shards)
    limits.check("max_shards", asked.shards, "The number of shards", "ask for fewer")
    if asked.reduction not in REDUCTIONS:
        raise InvalidArgument("Unknown reduction: this server knows MEAN and SUM.", reduction=asked.reduction)
    split = tuple(dict.fromkeys(canonical(name) for name in asked.feeds or shapes))
    missing = [name for name in split if name not in shapes]
    if missing or not split:
        raise InvalidArgument(
            f"{', '.join(missing) or 'Nothing'} is fed, but was to be split: feed what has a row an example.",
            feeds=", ".join(missing),
        )
    known = tuple((name, (None, *shape[1:]) if name in split and shape else shape) for name, shape in shapes.items())
    examples = next((shape[0] for name in split if (shape := shapes[name]) and shape[0]), 1)
    part = bounds(examples, asked.shards)[1]
    # Of one example or none nothing could be told from what is 1 or nothing anyway.
    sizes = (part, examples) if 1 < part < examples else (max(examples, 2), 2 * max(examples, 2))
    local = asked.local_statistics or asked.shards == 1  # one shard has all examples
    return Sharding(asked.shards, split, REDUCTIONS[asked.reduction], known, local=local, sizes=sizes)


class _Seeds(NamedTuple):
    """The seeds that have a row an example, as their ys do.

    Attributes:
        rows: the numbers of their arrays that have so.
        feeds: what dense ones are fed to.
        slices: what sparse ones are fed to.
    """

    rows: frozenset[int] = frozenset()
    feeds: tuple[str, ...] = ()
    slices: tuple[Slices, ...] = ()


def _seeds_with_rows(graph: Graph, options: wire.GradientOptions, sharding: Sharding, fed: Sequence[str]) -> _Seeds:
    if not any(seed.WhichOneof("seed") in ("value", "indexed_slices") for seed in options.grad_ys):
        return _Seeds()
    flat = _Flat(graph, [*options.ys, *fed])
    rows: list[int] = []
    feeds: list[str] = []
    slices: list[Slices] = []
    count = 0
    for y, seed in zip(options.ys, options.grad_ys, strict=False):
        kind = seed.WhichOneof("seed")
        many = {"value": 1, "indexed_slices": 3}.get(kind or "", 0)
        if many and flat.has_rows(y, sharding, fed):
            names = [seed_name(count + k) for k in range(many)]
            rows += [count] if many == 1 else [count, count + 1]
            feeds += names if many == 1 else []
            slices += [Slices(*names)] if many == 3 else []
        count += many
    return _Seeds(frozenset(rows), tuple(feeds), tuple(slices))


class _Flat:
    """A graph with its calls put in the place of their bodies, so that the cut goes through them."""

    def __init__(self, graph: Graph, tensors: Sequence[str], targets: Sequence[str] = ()) -> None:
        self._outer = graph
        roots = [*(graph.tensor(name).node for name in tensors), *(graph.node(name) for name in targets)]
        self._inlined = inline(graph, roots)
        self.graph = graph if self._inlined is None else self._inlined.graph

    def tensor(self, name: str) -> Tensor:
        """What stands for a tensor of the graph."""
        outer = self._outer.tensor(name)
        return outer if self._inlined is None else self._inlined.tensors[outer]

    def nodes(self, name: str) -> Sequence[Node]:
        """What stands for a node that is run."""
        outer = self._outer.node(name)
        return (outer,) if self._inlined is None else self._inlined.nodes[outer]

    def has_rows(self, name: str, sharding: Sharding, fed: Sequence[str]) -> bool:
        """Whether a tensor has a row an example."""
        tensor, given = self.tensor(name), [self.tensor(feed) for feed in fed]
        nodes = needed([tensor], (), frozenset(given))
        split = [self.tensor(feed) for feed in sharding.feeds]
        return bool(with_rows([tensor], split, given, views(nodes, split, sharding.sizes)))


def _cut(
    prepared: Prepared, sharding: Sharding, fed: Sequence[str], xs: Sequence[str] = (), *, find_nonfinite: bool = False
) -> Sharded:
    flat = _Flat(prepared.graph, [*prepared.fetches, *fed, *xs], prepared.targets)
    wanted = [Wanted(flat.tensor(name)) for name in prepared.fetches]
    for name, entry in zip(xs, prepared.gradients, strict=True):
        if isinstance(entry, int):
            wanted[entry] = wanted[entry]._replace(kind=Kind.GRADIENT, x=flat.tensor(name))
        elif isinstance(entry, tuple):
            values, indices, dense_shape = entry
            x, whole = flat.tensor(name), wanted[dense_shape].tensor
            wanted[values] = wanted[values]._replace(kind=Kind.VALUES, x=x, shape=whole)
            wanted[indices] = wanted[indices]._replace(kind=Kind.INDICES, x=x, shape=whole)
    feeds = {canonical(name): flat.tensor(name) for name in fed}
    targets = [stand for name in prepared.targets for stand in flat.nodes(name)]
    return cut(flat.graph, sharding, feeds, wanted, targets, find_nonfinite=find_nonfinite)
