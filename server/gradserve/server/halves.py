"""Which nodes of a request run once a shard, and which run once for all.

A tensor that depends on a feed that is split holds the batch where one of its dimensions goes with the batch.

    once a shard    what touches such a tensor, and what that needs
    once            all else, from what the shards' values come together to: what changes variables, and what is
                    computed of totals alone, such as the norm of a gradient or an optimiser's moments. Also what must
                    see all examples, extremes and distinct entries say, where nothing else in the shards waits for it
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gradserve.errors import Unsupported
from gradserve.graph.graph import Node, Tensor
from gradserve.server.batch_axes import Views
from gradserve.server.effects import is_handle, writes
from gradserve.server.flow import variable_name
from gradserve.server.growth import ANY, Growth, Growths, growths
from gradserve.server.mixing import Standing, standings
from gradserve.workers.segment import controls

# What a part of the examples says nothing of.
_DISTINCT = frozenset(("Unique", "UniqueV2", "UniqueWithCounts", "UniqueWithCountsV2"))
_HOLISTIC = _DISTINCT | frozenset(("All", "Any", "ArgMax", "ArgMin", "EuclideanNorm", "Max", "Min", "Prod"))
# What chooses examples by their places, where nothing of the batch is left.
_PICKS = frozenset(("Gather", "GatherNd", "GatherV2", "Slice", "Split", "SplitV", "StridedSlice", "Unpack"))
_OF_SHAPES = frozenset(("Rank", "Shape", "ShapeN", "Size"))
# Sums of totals are totals of sums, and fewer of them travel; what only changes their form may lie between.
_SUMS = frozenset(("Add", "AddN", "AddV2", "Sub"))
_FORMS = frozenset(("ExpandDims", "Identity", "Neg", "Reshape", "Squeeze", "Transpose"))
_SCALES = frozenset(("Div", "DivNoNan", "Mul", "RealDiv"))


_WITHOUT_ROWS = frozenset((Standing.SHARED, Standing.SIZE, Standing.TOTAL))


@dataclass(frozen=True, slots=True)
class Halves:
    """A request, divided.

    Attributes:
        order: the nodes that it needs, in an order in which they can run.
        fed, split: the tensors whose values are given, and those of them that are split.
        settled: what does not hold the batch, whatever the graph says of its shape.
        writers: the nodes that may change a variable.
        later: the nodes that read a variable after it has changed, or what such a one has read.
        dependent: the nodes that depend on the batch.
        each: those of them that run once a shard.
        views: the tensors at two sizes of the batch.
        growths, standings: of the tensors that depend on the batch.
        sums: whether integers that the graph tells nothing of are sums.
    """

    order: Sequence[Node]
    fed: Collection[Tensor]
    split: Collection[Tensor]
    settled: Collection[Tensor]
    sums: bool
    writers: set[Node]
    later: set[Node]
    dependent: set[Node]
    each: set[Node]
    views: Views
    growths: Growths
    standings: Mapping[Tensor, Standing]

    def depends(self, tensor: Tensor) -> bool:
        """Whether a tensor depends on the batch."""
        return tensor in self.split or (tensor not in self.fed and tensor.node in self.dependent)

    def holds_batch(self, tensor: Tensor) -> bool:
        """Whether a tensor is another one in each shard in its size, not only in its values."""
        if tensor in self.settled or not self.depends(tensor) or self.standing(tensor) in _WITHOUT_ROWS:
            return False
        return tensor.dtype.base.kind in "rv" or self.views.axes(tensor) != ()

    def standing(self, tensor: Tensor) -> Standing:
        """What a shard's tensor is of the whole batch's."""
        return self.standings.get(tensor, Standing.SHARED)

    def mixes(self, node: Node) -> bool:
        """Whether a node would make something in a shard that is no part of what it makes of all examples."""
        ends = node.outputs or node.inputs
        return any(self.standing(tensor) is Standing.MIXED and tensor not in self.fed for tensor in ends)

    def growth(self, tensor: Tensor) -> Growth:
        """The growth of a tensor; zeros have none."""
        known = self.growths.of.get(tensor, 0)
        return 0 if known is ANY else known

    def adds_up(self, tensor: Tensor) -> bool:
        """Whether the values of the shards, of a tensor that does not hold the batch, come together to one."""
        kind, growth = tensor.dtype.base.kind, self.growth(tensor)
        if kind in "iu":
            entries = growth if isinstance(growth, tuple) else (growth,)
            return set(entries) <= {0, 1} or (growth is None and self.sums)
        return kind in "fc"

    def in_shards(self, tensor: Tensor) -> bool:
        """Whether a tensor is computed once a shard."""
        return tensor not in self.fed and tensor.node in self.each


def divide(
    order: Sequence[Node],
    fed: Collection[Tensor],
    split: Mapping[Tensor, Standing],
    views: Views,
    settled: Collection[Tensor] = (),
    anchored: Iterable[Tensor] = (),
    *,
    sums: bool = False,
    local: bool = False,
) -> Halves:
    """Divides a request. Raises Unsupported where a gradient or a new value can't be the whole batch's.

    Args:
        order: the nodes that it needs, in an order in which they can run.
        fed, split: the tensors whose values are given, and those of them that are split.
        views: the tensors at two sizes of the batch.
        settled: what does not hold the batch, whatever the graph says of its shape: gradients of what all share.
        anchored: what must be computed in the shards.
        sums: whether integers that the graph tells nothing of are sums.
        local: whether examples that look at each other may see those of their shard only.
    """
    writers = {node for node in order if changes_variable(node)}
    dependent = dependents(split, fed, set(order))
    later = _later(order, writers, fed)
    found = growths(order, dependent, dict.fromkeys(split, 0), views)
    reading = [node for node in order if node in dependent]
    standing = standings(reading, {**dict.fromkeys(fed, Standing.SHARED), **split}, views, found)
    halves = Halves(order, fed, split, settled, sums, writers, later, dependent, set(), views, found, standing)
    core = [node for node in reading if _touches_batch(halves, node)]
    mixing = set[Node]() if local else {node for node in core if halves.mixes(node)}
    late = _late(halves, core, mixing, [tensor.node for tensor in anchored])
    _add(halves, [node for node in core if node not in late])
    for node in order:
        if node in dependent and node not in halves.each and (_must_stay(halves, node) or _may_stay(halves, node)):
            _add(halves, [node])
    return halves


def dependents(split: Iterable[Tensor], fed: Collection[Tensor], among: Collection[Node] | None = None) -> set[Node]:
    """The nodes that depend on a tensor that is split, by ways that change no variable and stay among these nodes."""
    found: set[Node] = set()
    stack = list(split)
    while stack:
        for reader, _ in stack.pop().consumers:
            known = among is None or reader in among
            if known and reader not in found and not changes_variable(reader):
                found.add(reader)
                stack += [tensor for tensor in reader.outputs if tensor not in fed]
    return found


def with_rows(
    tensors: Iterable[Tensor], split: Collection[Tensor], fed: Collection[Tensor], views: Views
) -> set[Tensor]:
    """Those tensors that have a row an example: they depend on one that is split, and hold the batch first."""
    dependent = dependents(split, fed)
    found: set[Tensor] = set()
    for tensor in tensors:
        axes = views.axes(tensor)
        depends = tensor in split or (tensor not in fed and tensor.node in dependent)
        if depends and (axes is None or any(axis.place == 0 for axis in axes)):
            found.add(tensor)
    return found


def _touches_batch(halves: Halves, node: Node) -> bool:
    return any(halves.holds_batch(tensor) for tensor in (*node.inputs, *node.outputs))


def _late(halves: Halves, core: Sequence[Node], mixing: Collection[Node], anchored: Sequence[Node]) -> set[Node]:
    """What of the core must not run in the shards, and need not: no total is made of it there."""
    distinct = _distinct(halves, core)
    early = {node for node in core if node not in halves.later and _makes_total(halves, node, distinct)}
    _check_mixing(halves, early.intersection(mixing))
    early = _before(halves, [*early.difference(mixing), *anchored])
    late: set[Node] = set()
    for node in core:
        after = any(tensor.node in late and tensor not in halves.fed for tensor in node.inputs)
        if node not in early and (after or node in mixing or node in halves.later or _is_holistic(halves, node)):
            late.add(node)
    return late


def _check_mixing(halves: Halves, totals: Collection[Node]) -> None:
    """Raises Unsupported where training needs totals that no shard can make: all of it would run once."""
    sought = _before(halves, [*(tensor.node for tensor in halves.settled), *_read_by(halves.writers)])
    if sought.isdisjoint(totals):
        return
    total = next(node for node in halves.order if node in totals and node in sought)
    before = _before(halves, [total])
    first = next(node for node in halves.order if node in before and halves.mixes(node))
    raise Unsupported(
        f"{first.name} ({first.type}) lets examples look at each other, and {total.name} ({total.type}) sums what "
        "comes of it: the shards can't give the answer of the whole batch. Ask without shards, or with "
        "local_statistics, if each shard is to see its own examples only.",
        node=first.name, op=first.type,
    )  # fmt: skip


def _read_by(nodes: Iterable[Node]) -> list[Node]:
    return [tensor.node for node in nodes for tensor in node.inputs]


def _distinct(halves: Halves, core: Sequence[Node]) -> set[Tensor]:
    """The rows that each stand for an entry that occurs in the batch, however often: a shard has others than the whole.

    How many there are is not known. What is looked up for each example again has a row an example, and is none.
    """
    found: set[Tensor] = set()
    after: set[Node] = set()
    for node in core:
        if node.type in _DISTINCT or any(tensor.node in after for tensor in node.inputs):
            after.add(node)
            for tensor in node.outputs:
                if halves.views.is_open(tensor):
                    found.add(tensor)
    return found


def _is_holistic(halves: Halves, node: Node) -> bool:
    """Whether what a node makes of a part of the examples is no part of what it makes of all."""
    whole = [tensor for tensor in node.outputs if not halves.holds_batch(tensor)]
    if node.type in _HOLISTIC or not all(halves.adds_up(tensor) for tensor in whole):
        return True
    picks = node.type in _PICKS and bool(whole) and any(halves.holds_batch(tensor) for tensor in node.inputs)
    return picks or not all(halves.views.is_even(tensor) for tensor in node.outputs if tensor not in whole)


def _makes_total(halves: Halves, node: Node, distinct: Collection[Tensor]) -> bool:
    """Whether a total is made of a shard's examples."""
    if node.type in _OF_SHAPES or _is_holistic(halves, node):
        return False
    read = [tensor for tensor in node.inputs if halves.holds_batch(tensor)]
    if read and all(tensor in distinct for tensor in read):
        return False
    return not all(halves.holds_batch(tensor) for tensor in node.outputs) or not node.outputs


def _must_stay(halves: Halves, node: Node) -> bool:
    """Whether a node reads what of the shards can't come together before it."""
    inputs = [t for t in node.inputs if halves.in_shards(t) and not halves.holds_batch(t)]
    growth = [halves.growth(tensor) for tensor in inputs]
    # What is not known to be a sum may become a mean when it is divided by a count.
    mixed = node.type in _SCALES and None in growth and any(growth)
    return mixed or not all(halves.adds_up(tensor) for tensor in inputs)


def _may_stay(halves: Halves, node: Node) -> bool:
    """Whether it makes no difference where a node runs, and no more tensors leave the shards after it."""
    if node.type not in _SUMS and node.type not in _FORMS:
        return False
    terms = node.inputs if node.type in _SUMS else node.inputs[:1]
    others = node.inputs[len(terms) :]
    totals = all(halves.in_shards(x) and not halves.holds_batch(x) and x.dtype.kind in "fc" for x in terms)
    return totals and len({halves.growth(x) for x in terms}) == 1 and not any(map(halves.depends, others))


def _add(halves: Halves, nodes: Iterable[Node]) -> None:
    halves.each.update(_before(halves, nodes))


def _before(halves: Halves, nodes: Iterable[Node]) -> set[Node]:
    """These nodes, and what they need that depends on the batch."""
    found: set[Node] = set()
    stack = [node for node in nodes if node in halves.dependent]
    while stack:
        node = stack.pop()
        if node not in found and node not in halves.each:
            found.add(node)
            stack += [tensor.node for tensor in node.inputs if tensor not in halves.fed and halves.depends(tensor)]
    return found


# Variables


def _later(order: Sequence[Node], writers: Collection[Node], fed: Collection[Tensor]) -> set[Node]:
    """The nodes that read a variable after it has changed, and all that is computed of what they read."""
    bits: dict[str, int] = {}
    changed: dict[Node, int] = {}  # what has changed before a node, or by it: a bit a variable
    later: set[Node] = set()
    for node in order:
        sources = [tensor.node for tensor in node.inputs if tensor not in fed]
        before = 0
        for source in (*sources, *controls(node, fed)):
            before |= changed[source]
        own = 0
        for name in variables_of(node):
            own |= bits.setdefault(name, 1 << len(bits))
        if node not in writers and (own & before or any(source in later for source in sources)):
            later.add(node)
        changed[node] = before | own if node in writers else before
    return later


def variables_of(node: Node) -> set[str]:
    """The variables that a node reads or changes."""
    return {name for tensor in node.inputs if (name := _variable_of(tensor)) is not None}


def changes_variable(node: Node) -> bool:
    """Whether a node may give a variable a new value."""
    return writes(node, [tensor for tensor in node.inputs if _variable_of(tensor) is not None])


def _variable_of(tensor: Tensor) -> str | None:
    """The variable that a handle stands for; None for a value, and for a table's or an array's of one step."""
    while is_handle(tensor):
        node = tensor.node
        handles = [entry for entry in node.inputs if is_handle(entry)]
        if not handles:
            return variable_name(node)
        # A loop gives each handle back in its place; all else hands the first one on.
        tensor = node.inputs[tensor.index] if len(node.inputs) == len(node.outputs) else handles[0]
    return None
