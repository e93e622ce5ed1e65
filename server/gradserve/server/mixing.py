"""Where a graph lets examples look at each other: what of a shard's tensors is no part of the whole batch's.

Each tensor that depends on the batch has a standing, which follows from the op that makes it and what that reads:

    ROWS        each row is of one example, or of a fixed number of neighbours in memory, and of nothing else's
    TOTAL       a sum or a mean over the examples
    SIZE        computed of how many examples there are, and of nothing else
    PLACES      numbers of the shard's own rows, which choose among its rows
    OFFSETS     multiples of them, which choose among the entries of all its rows
    DISTINCT    a row for each entry that occurs in the batch, however often; made of the entry alone
    LOOKUPS     for each row which of the distinct ones it is
    SLICES      for each distinct entry a sum over the examples
    MIXED       all else: what a shard makes of its examples says nothing of what the batch makes of all

A total read beside rows mixes (each row would see the shard's total), and so does what is not linear in a total, a
cumulative sum along the batch, a product of all pairs. An op that no table here names mixes too. That is said of what a
shard would compute: the same node gives the right answer where it runs once, on the totals and rows of all shards.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gradserve.graph import static
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.inline import CALLS
from gradserve.server.batch_axes import Axis, Views, arguments
from gradserve.server.effects import draws
from gradserve.server.flow import LOOPS
from gradserve.server.growth import COTANGENTS, DEEPEST, LINEAR, SUMMED, WHOLE, Growth, Growths, data_of, flat, growths
from gradserve.server.row_draws import DRAWS as ROW_DRAWS
from gradserve.server.row_ops import ELEMENTWISE, LOOKUP_OPS, NORMALISATIONS, keeps_rows, same_label


class Standing(enum.Enum):
    """What a shard's tensor is of the whole batch's; see above. SHARED does not depend on the batch."""

    SHARED = "shared"
    SIZE = "size"
    ROWS = "rows"
    TOTAL = "total"
    PLACES = "places"
    OFFSETS = "offsets"
    DISTINCT = "distinct"
    LOOKUPS = "lookups"
    SLICES = "slices"
    MIXED = "mixed"


SHARED, SIZE, ROWS, TOTAL, PLACES, OFFSETS, DISTINCT, LOOKUPS, SLICES, MIXED = Standing

_LISTS = frozenset((
    "AddN", "AddV2", "Identity", "StopGradient", "TensorListGather", "TensorListGetItem", "TensorListPopBack",
    "TensorListPushBack", "TensorListResize", "TensorListSetItem", "TensorListStack",
))  # fmt: skip
# Lists of tensors that hold rows have as many elements whatever the batch.
_OF_LISTS = {"TensorListElementShape": SIZE, "TensorListLength": SHARED}
_UNIQUE = frozenset(("Unique", "UniqueV2", "UniqueWithCounts", "UniqueWithCountsV2"))
SHAPES = frozenset(("Rank", "Shape", "ShapeN", "Size"))
_BY_SHAPE = frozenset(("OnesLike", "ZerosLike"))
_LOOKED_UP = {
    (ROWS, PLACES): ROWS,
    (ROWS, OFFSETS): ROWS,
    (DISTINCT, LOOKUPS): ROWS,
    (SHARED, DISTINCT): DISTINCT,
}
_SUMS_TO_PLACES = frozenset(("ScatterNd", "TensorScatterAdd", "TensorScatterUpdate", "UnsortedSegmentSum"))
_COPIES = frozenset(("Cast", "ExpandDims", "Identity", "Pack", "Reshape", "Squeeze", "StopGradient"))
_QUOTIENTS = frozenset(("Div", "DivNoNan", "RealDiv"))
_SUMMING = SUMMED | {"L2Loss", "Mean"}


def standings(
    nodes: Sequence[Node],
    given: Mapping[Tensor, Standing],
    views: Views,
    known: Growths,
    depth: int = 0,
    even: bool | None = None,
) -> dict[Tensor, Standing]:
    """The standing of every tensor that depends on the batch; what is missing is SHARED.

    Args:
        nodes: in an order in which they can run.
        given: what is known already: of the feeds, and of the arguments of a body.
        views: the tensors at two sizes of the batch.
        known: their growths.
        depth: of the body that they are in.
        even: whether there is a row for each example, or so many; not so where a sparse tensor is split.
    """
    found = dict(given)
    reader = _Reader(found, views, known, depth, PLACES not in given.values() if even is None else even)
    for node in nodes:
        if any(reader.of(tensor) is not SHARED for tensor in node.inputs):
            ends = reader.bodies(node) if node.functions() else [reader.output(tensor) for tensor in node.outputs]
            for tensor, standing in zip(node.outputs, ends, strict=True):
                found.setdefault(tensor, standing)
    return found


class _Reader(NamedTuple):
    """What is known so far."""

    found: dict[Tensor, Standing]
    views: Views
    known: Growths
    depth: int
    even: bool

    def of(self, tensor: Tensor) -> Standing:
        """The standing of a tensor. A size that all batches have is no size of the batch."""
        standing = self.found.get(tensor, SHARED)
        growth = self.known.of.get(tensor, 0)
        fixed = growth == 0 or (isinstance(growth, tuple) and not any(growth))
        return SHARED if standing is SIZE and fixed else standing

    def axis(self, tensor: Tensor) -> Axis | None:
        """The only dimension that holds the batch, None where there is none, or several."""
        axes = self.views.axes(tensor)
        return axes[0] if axes is not None and len(axes) == 1 else None

    def seen(self, tensor: Tensor) -> Tensor:
        """What stands for a tensor where the batch is a shard's."""
        return self.views.part.get(tensor, tensor)

    def rank(self, tensor: Tensor) -> int:
        """The rank of a tensor of which a dimension is known."""
        return self.seen(tensor).rank or 0

    def holds(self, tensor: Tensor) -> bool:
        """Whether a tensor is another one in each shard in its size."""
        return tensor.dtype.base.kind == "v" or self.views.axes(tensor) != ()

    def output(self, tensor: Tensor) -> Standing:
        """The standing of an output."""
        node = tensor.node
        if node.type in SHAPES | _BY_SHAPE and self.of(node.inputs[tensor.index]) is MIXED:
            return MIXED
        if node.type == "Rank":
            return SHARED
        if node.type in SHAPES:
            axes = self.views.axes(node.inputs[tensor.index])
            known = axes is not None and all(None not in axis for axis in axes)
            return SIZE if known or (self.even and self.axis(node.inputs[tensor.index]) is not None) else TOTAL
        if node.type in _BY_SHAPE:
            return ROWS if self.holds(tensor) else SHARED
        if node.type in _OF_LISTS and self.of(node.inputs[0]) is ROWS:
            return _OF_LISTS[node.type]
        if node.op is None or tensor.dtype.kind == "r":
            return MIXED if node.op is None else SHARED
        standing = self.unbroadcast(node)
        if standing is not None:
            return standing if self.known.of.get(tensor, 0) is not None else MIXED
        standing = self.standing(tensor)
        if standing not in (ROWS, TOTAL):
            return standing
        return standing if self.adds_up(tensor, standing) else MIXED

    def unbroadcast(self, node: Node) -> Standing | None:
        """Of a cotangent's sum over the axes along which a term was broadcast, and of that in the term's shape, where
        the graph does not say which axes these are. None for all else."""
        total = node.inputs[0].node if node.type == "Reshape" else node
        if total.type != "Sum" or total.inputs[1].node.type != "BroadcastGradientArgs":
            return None
        axes = total.inputs[1]
        shape = axes.node.inputs[axes.index]
        entries = self.known.find(shape)
        if self.of(total.inputs[0]) is not ROWS or not isinstance(entries, tuple):
            return None
        if node is not total and node.inputs[1] is not shape:
            return None
        return ROWS if any(entries) else TOTAL

    def adds_up(self, tensor: Tensor, standing: Standing) -> bool:
        """Whether it is known how the parts of a tensor come together."""
        growth = self.known.of.get(tensor, 0)
        if tensor.dtype.base.kind == "v":
            return growth is not None
        if standing is ROWS and (self.axis(tensor) is None or not self.views.is_even(tensor)):
            return False
        if growth is WHOLE:
            weighed = self.known.weighed.get(tensor.node, {})
            read = [self.known.of.get(x, 0) for x in data_of(tensor.node)[1] if x not in weighed]
            return tensor.node.type != "Mean" and not any(isinstance(each, int) and each for each in read)
        return growth is not None

    def standing(self, tensor: Tensor) -> Standing:
        """The standing of an output by what its node reads."""
        node = tensor.node
        names, data = data_of(node)
        kinds = [self.of(x) for x in data]
        read = set(kinds) - {SHARED}
        sizes = {self.of(x) for x in node.inputs if x not in data} - {SHARED, SIZE}
        if node.type == "IdentityN":
            return self.of(node.inputs[tensor.index])
        if MIXED in read or (sizes and not self.is_slices(node)):
            return MIXED
        if read & {PLACES, OFFSETS, DISTINCT, LOOKUPS, SLICES} or node.type in _UNIQUE:
            return self.of_places(tensor, data, kinds)
        if not read <= {SIZE, ROWS} and not read <= {SIZE, TOTAL}:
            return MIXED
        if TOTAL in read:
            return TOTAL if self.is_linear(node, names, data, kinds) and not self.holds(tensor) else MIXED
        if ROWS not in read:
            return self.of_sizes(tensor)
        return self.of_rows(tensor, names, data)

    def is_linear(self, node: Node, names: Sequence[str], data: Sequence[Tensor], kinds: Sequence[Standing]) -> bool:
        """Whether a node is linear in the totals that it reads, taken together."""
        totals = [k for k, kind in enumerate(kinds) if kind is TOTAL]
        if node.type in ("Add", "AddN", "AddV2", "ConcatV2", "Pack", "Sub"):
            return True  # where they grow alike
        first = totals == [0] and (node.type in LINEAR | _QUOTIENTS or node.type in ("Sum", "Mean"))
        rounds = node.outputs[0].dtype.base.kind in "iu" and data[0].dtype.base.kind not in "iu"
        one = len(totals) == 1 and (node.type in SUMMED | {"Mul"} or names[totals[0]] in COTANGENTS)
        return one or (first and not rounds)

    # What is made of sizes

    def of_sizes(self, tensor: Tensor) -> Standing:
        node = tensor.node
        part, whole = (static.value(view.get(tensor, tensor)) for view in (self.views.part, self.views.whole))
        if part is not None and whole is not None and np.array_equal(part, whole):
            return SHARED
        if node.type in ROW_DRAWS:
            entries = self.known.find(node.inputs[0])
            of_rows = isinstance(entries, tuple) and entries[:1] == (1,) and not any(entries[1:])
            return ROWS if of_rows and not self.depth else MIXED
        if node.type == "BroadcastGradientArgs":
            return SHARED  # axes of size 1 apart, over which sums are what they are of
        if not self.holds(tensor):
            return MIXED if draws(node) else SIZE
        if node.type == "Range":
            return PLACES
        if node.type in ("EmptyTensorList", "TensorListReserve"):
            return ROWS
        alike = node.type in ELEMENTWISE or node.type in ("Fill", "Tile", "Reshape") or draws(node)
        return ROWS if alike and tensor.dtype.base.kind != "v" else MIXED

    # Places, and distinct entries

    def is_slices(self, node: Node) -> bool:
        """Whether a node sums rows to their distinct entries, however many these are."""
        return node.type == "UnsortedSegmentSum" and self.of(node.inputs[1]) is LOOKUPS

    def of_places(self, tensor: Tensor, data: Sequence[Tensor], kinds: Sequence[Standing]) -> Standing:
        node, read = tensor.node, set(kinds) - {SHARED}
        if node.type in _UNIQUE:
            return (DISTINCT, LOOKUPS, MIXED)[tensor.index] if read == {ROWS} else MIXED
        if node.type in _COPIES and (len(read) == 1 or (node.type == "Pack" and read == {PLACES, ROWS})):
            return PLACES if PLACES in read else read.pop()
        if node.type == "Mul" and read == {PLACES}:
            return OFFSETS
        if node.type in ("Add", "AddV2") and OFFSETS in read and read <= {OFFSETS, ROWS}:
            return OFFSETS
        if node.type in LOOKUP_OPS:
            pair = self.of(node.inputs[0]), self.of(node.inputs[1])
            return _LOOKED_UP.get(pair, MIXED) if self.is_along_first(node, pair) else MIXED
        if node.type in _SUMS_TO_PLACES:
            if self.is_slices(node):
                return SLICES if self.of(node.inputs[0]) is ROWS else MIXED
            placed = read in ({PLACES, ROWS}, {OFFSETS, ROWS})
            return ROWS if placed and self.holds(tensor) else MIXED
        if read == {DISTINCT} and node.type in ELEMENTWISE:
            return DISTINCT
        linear = node.type in LINEAR | _QUOTIENTS | {"Mul"} and kinds.count(SLICES) == 1
        return SLICES if linear and read <= {SLICES, DISTINCT, SIZE} else MIXED

    def is_along_first(self, node: Node, pair: tuple[Standing, Standing]) -> bool:
        """Whether a lookup by places is along the dimension of the rows."""
        if node.type not in ("GatherV2", "Gather"):
            return True
        along = static.scalar(self.seen(node.inputs[2])) if node.type == "GatherV2" else 0
        params = self.axis(node.inputs[0])
        return pair[0] is SHARED or (params is not None and along == params.place and not node.attrs.get("batch_dims"))

    # What is made of rows

    def of_rows(self, tensor: Tensor, names: Sequence[str], data: Sequence[Tensor]) -> Standing:
        """The standing of what is made of rows, and of what all shards share."""
        node = tensor.node
        rows = [x for x in data if self.of(x) is ROWS]
        if node.type in NORMALISATIONS and node.attrs["is_training"]:
            return MIXED
        if tensor.dtype.base.kind == "v" or any(x.dtype.base.kind == "v" for x in rows):
            return self.of_list(tensor, rows)
        places = [self.axis(x) for x in rows]
        if None in places:
            return MIXED
        held = [axis.place for axis in places if axis is not None]
        if not self.holds(tensor):
            return self.of_sums(tensor, rows, held)
        made = self.axis(tensor)
        if made is None:
            return MIXED
        return ROWS if keeps_rows(self, node, rows, held, tensor, made.place) else MIXED

    def of_list(self, tensor: Tensor, rows: Sequence[Tensor]) -> Standing:
        """Lists of tensors that hold rows each. One example alone is not to be taken out of a list of them."""
        node = tensor.node
        if node.type == "TensorListFromTensor":
            axis = self.axis(rows[0])
            return ROWS if axis is not None and axis.place else MIXED
        if node.type not in _LISTS or any(x.dtype.base.kind != "v" and self.axis(x) is None for x in rows):
            return MIXED
        if tensor.dtype.base.kind == "v":
            return ROWS
        axis = self.axis(tensor)
        return MIXED if axis is None or (node.type == "TensorListStack" and not axis.place) else ROWS

    def of_sums(self, tensor: Tensor, rows: Sequence[Tensor], held: Sequence[int]) -> Standing:
        """The standing of what has no room for the batch any more."""
        node = tensor.node
        if node.type not in _SUMMING | NORMALISATIONS or node.attrs.get("binary_output"):
            return MIXED
        if node.type == "Mean":
            axis = self.axis(rows[0])
            if axis is None or None in axis or not self.views.is_even(rows[0]):
                return MIXED
        if node.type == "Einsum" and not same_label(node, rows, held):
            return MIXED
        return TOTAL

    # Bodies

    def bodies(self, node: Node) -> Sequence[Standing]:
        """What all branches agree on; in a loop what every round leaves as it is."""
        given = [self.of(x) for x in arguments(node)]
        mixed = [MIXED] * len(node.outputs)
        loop = node.type in LOOPS
        if self.depth > DEEPEST or (not loop and node.type not in CALLS and self.of(node.inputs[0]) is not SHARED):
            return mixed
        # In a loop what holds after every round, so before it too.
        grown = [flat(self.known.find(x)) for x in (node.outputs if loop else arguments(node))]
        if not loop:
            ends = [self.body(node, called, given, grown) for called in node.functions()]
            return [_joined(entries) for entries in zip(*ends, strict=True)]
        while True:
            if any(end is not SHARED for end in self.body(node, node.attrs["cond"], given, grown)):
                return mixed
            ends = self.body(node, node.attrs["body"], given, grown)
            joined = [_joined(entries) for entries in zip(given, ends, strict=True)]
            if joined == given:
                return given
            given = joined

    def body(self, node: Node, called: object, given: Sequence[Standing], grown: Sequence[Growth]) -> list[Standing]:
        body, views = self.views.body(node, called)  # pyright: ignore[reportArgumentType]
        start = dict(zip(body.inputs, grown, strict=True))
        known = growths(body.graph.nodes, body.graph.nodes, start, views, self.depth + 1)
        standing = dict(zip(body.inputs, given, strict=True))
        inside = standings(body.graph.nodes, standing, views, known, self.depth + 1, self.even)
        return [inside.get(x, SHARED) for x in body.outputs]


def _joined(standings: Collection[Standing]) -> Standing:
    told = set(standings) - {SHARED}
    return SHARED if not told else told.pop() if len(told) == 1 else MIXED
