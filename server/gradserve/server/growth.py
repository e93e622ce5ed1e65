"""How the parts of a batch add up: what the graph itself says of it.

The growth of a tensor says how its value, or each of its rows, depends on how many examples there are: over a batch
that is repeated k times it is k ** growth times what it is over the batch once.

    0     what does not depend on how many there are: rows, means, weights
    1     sums over the examples, and counts of them
    -1    what is divided by a count, as the cotangents of a mean are

A vector that holds a shape has a growth for each entry. Zeros have any growth; where nothing is known it is None.

What has the growth -k in a shard has that of the whole once it is multiplied by the shard's part of the examples, k
times. So where such a tensor is read by an op that is not linear in it (a square, a sum with something else), the
product is to be read in its place, and what follows is that of the whole again. Also where nothing more is known of it
then: it is WHOLE, a part of a sum or a row as it is.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gradserve.graph import static
from gradserve.graph.graph import Node, Tensor
from gradserve.server.batch_axes import Views, arguments
from gradserve.server.flow import LOOPS


class Special(enum.Enum):
    """Growths that are no numbers.

    Attributes:
        ANY: of zeros.
        COUNTS: of integers that count examples in one entry and not in another, in a list of shapes say.
        WHOLE: of what is not known, but was made of products with weights.
    """

    ANY = "any"
    COUNTS = "counts"
    WHOLE = "whole"


Flat = int | Special | None
Growth = Flat | tuple[Flat, ...]
ANY, COUNTS, WHOLE = Special

DEEPEST = 8  # of bodies within bodies; a function that calls itself has no end

# y = a x for an x of any growth, the other inputs having none.
LINEAR = frozenset((
    "BroadcastTo", "Cast", "CheckNumerics", "Conj", "EnsureShape", "ExpandDims", "Fill", "Gather", "GatherNd",
    "GatherV2", "Identity", "Imag", "Neg", "Pad", "PlaceholderWithDefault", "PreventGradient", "Real", "Reshape",
    "ReverseV2", "Slice", "Snapshot", "Squeeze", "StopGradient", "StridedSlice", "TensorListConcatV2",
    "TensorListFromTensor", "TensorListGather", "TensorListGetItem", "TensorListPopBack", "TensorListResize",
    "TensorListStack", "Tile", "Transpose",
))  # fmt: skip
# Sums of their inputs, or one of them at each place: all must grow alike.
_ALIKE = frozenset((
    "Add", "AddN", "AddV2", "ConcatV2", "Pack", "Select", "SelectV2", "Sub", "TensorListPushBack", "TensorListSetItem",
))  # fmt: skip
_CHOOSING = frozenset(("condition", "index"))
_EMPTY = frozenset(("EmptyTensorList", "TensorListReserve", "ZerosLike"))
_QUOTIENTS = frozenset(("Div", "DivNoNan", "RealDiv"))
_ELEMENTWISE = frozenset(("Mul",))
# Linear in each input, and sums over the examples where the output has no room for them.
SUMMED = frozenset((
    "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "BiasAddGrad", "Bincount", "Conv2DBackpropFilter",
    "Conv3DBackpropFilterV2", "DenseBincount", "DepthwiseConv2dNativeBackpropFilter", "Einsum", "MatMul", "ScatterNd",
    "SegmentSum", "SegmentSumV2", "SparseMatMul", "SparseReduceSum", "SparseSegmentSum", "SparseTensorDenseMatMul",
    "Sum", "UnsortedSegmentSum",
))  # fmt: skip
_SUMS_OF_SQUARES = frozenset(("L2Loss",))
_MEANS = frozenset(("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3", "Mean"))
# What else may have no room for the batch any more, where the shapes are not known.
_REDUCING = SUMMED | _MEANS | _SUMS_OF_SQUARES | frozenset((
    "All", "Any", "ArgMax", "ArgMin", "BatchNormWithGlobalNormalizationGrad", "CropAndResizeGradImage",
    "Dilation2DBackpropFilter", "EuclideanNorm", "FakeQuantWithMinMaxVarsGradient",
    "FakeQuantWithMinMaxVarsPerChannelGradient", "FusedBatchNormGrad", "FusedBatchNormGradV2", "FusedBatchNormGradV3",
    "HistogramFixedWidth", "Max", "Min", "Prod", "SegmentMax", "SegmentMaxV2", "SegmentMean", "SegmentMin",
    "SegmentMinV2", "SegmentProd", "SegmentProdV2", "SparseReduceMax", "SparseSegmentMean", "SparseSegmentMeanGrad",
    "SparseSegmentMeanGradV2", "SparseSegmentSqrtN", "SparseSegmentSqrtNGrad", "SparseSegmentSqrtNGradV2",
    "SparseSegmentSumGrad", "SparseSegmentSumGradV2", "UnsortedSegmentMax", "UnsortedSegmentMin",
    "UnsortedSegmentProd",
))  # fmt: skip
# What the ops of backward passes call the cotangent, which they are linear in.
COTANGENTS = frozenset(("dy", "grad", "gradients", "out_backprop", "y_backprop"))


class Growths(NamedTuple):
    """What is known of the tensors that depend on the batch.

    Attributes:
        of: their growths.
        weighed: for the nodes that are to read some of their inputs times a power of the shard's part of the examples,
            which, and the power.
    """

    of: dict[Tensor, Growth]
    weighed: dict[Node, Mapping[Tensor, int]]

    def find(self, tensor: Tensor) -> Growth:
        """The growth of a tensor."""
        known = self.of.get(tensor, 0)
        return ANY if known == 0 and _is_zero(tensor) else known


def growths(
    nodes: Sequence[Node], dependent: Collection[Node], given: Mapping[Tensor, Growth], views: Views, depth: int = 0
) -> Growths:
    """The growth of every tensor that depends on the batch.

    Args:
        nodes: in an order in which they can run.
        dependent: those of them that depend on a feed with a row an example.
        given: what is known already: of the feeds, and of the arguments of a body.
        views: the tensors at two sizes of the batch.
        depth: of the body that they are in.
    """
    found = Growths(dict(given), {})
    scaled = {tensor for tensor, growth in given.items() if growth is WHOLE}  # what was made of products with weights
    for node in nodes:
        if node not in dependent:
            continue
        known = _Known(found, (), views, depth)
        ends = _of_node(node, known)
        read = {tensor: known.find(tensor) for tensor in node.inputs}
        divided = {
            tensor: -growth
            for tensor, growth in read.items()
            if isinstance(growth, int) and growth < 0 and tensor.dtype.base.kind in "fc"
        }
        if None in ends and divided and not depth and None not in read.values():
            ends = _of_node(node, known._replace(weighed=divided))
            found.weighed[node] = divided
        if node in found.weighed or (None not in read.values() and any(tensor in scaled for tensor in node.inputs)):
            scaled.update(node.outputs)
            ends = [WHOLE if growth is None else growth for growth in ends]
        for tensor, growth in zip(node.outputs, ends, strict=True):
            found.of.setdefault(tensor, growth)
    return found


class _Known(NamedTuple):
    """What is known so far."""

    growths: Growths
    weighed: Collection[Tensor]
    views: Views
    depth: int

    def find(self, tensor: Tensor) -> Growth:
        """The growth of a tensor."""
        return 0 if tensor in self.weighed else self.growths.find(tensor)

    def fate(self, inputs: Sequence[Tensor], output: Tensor) -> Fate:
        """What becomes of the batch between what an op reads and what it gives."""
        held = [self.views.axes(x) for x in inputs if x.dtype.kind != "r"]
        after = self.views.axes(output)
        if output.dtype.base.kind == "v":  # a list of tensors has room for anything
            return Fate.KEPT
        if after is None or None in held:
            return Fate.UNKNOWN
        before = [axis for axes in held for axis in axes or ()]
        if not before:
            return Fate.ABSENT
        if not after:
            return Fate.GONE
        sure = all(None not in axis for axis in (*before, *after))
        # Of several dimensions one may be gone, and another one may be no dimension of the batch.
        most = max(len(axes or ()) for axes in held)
        return Fate.KEPT if len(after) == len(before) or (sure and len(after) >= most) else Fate.UNKNOWN


class Fate(enum.Enum):
    """What becomes of the batch in an op: its inputs have none, all or none of it is left, or that is not known."""

    ABSENT = "absent"
    KEPT = "kept"
    GONE = "gone"
    UNKNOWN = "unknown"


def _is_zero(tensor: Tensor) -> bool:
    """Whether a tensor is zero, or a list of none, by construction. Integers are no terms, but places and sizes."""
    if tensor.dtype.base.kind in "iu":
        return False
    if tensor.node.type == "Fill":
        tensor = tensor.node.inputs[1]
    if tensor.node.type in _EMPTY:
        return True
    value = static.value(tensor) if tensor.node.type == "Const" else None
    return value is not None and value.dtype.kind in "fc" and value.size > 0 and not value.any()


def _of_node(node: Node, known: _Known) -> Sequence[Growth]:
    return _of_bodies(node, known) if node.functions() else [_growth(tensor, known) for tensor in node.outputs]


def _growth(tensor: Tensor, known: _Known) -> Growth:
    node = tensor.node
    special = _OF_SHAPES.get(node.type)
    found = None if special is None else special(tensor, known)
    if found is not None or node.op is None:
        return found
    names, data = data_of(node)
    read = [flat(known.find(x)) for x in data]
    if None in read or WHOLE in read or (-1 in read and tensor.dtype.base.kind == "v"):
        return None  # nothing can be multiplied any more in a list of tensors: it is before
    if COUNTS in read:
        return COUNTS if tensor.dtype.base.kind in "iuv" else None
    fate = known.fate(data, tensor)
    gone = fate is Fate.GONE
    values = [growth if isinstance(growth, int) else 0 for growth in read]
    if node.type in LINEAR and not _rounds(tensor, data):
        return None if gone or any(values[1:]) else read[0] if read else 0
    if node.type in _ALIKE:
        terms = {growth for name, growth in zip(names, read, strict=True) if name not in _CHOOSING}
        return None if gone else _agreed(terms)
    if node.type in _QUOTIENTS and tensor.dtype.base.kind in "fc":
        return ANY if read[0] is ANY else values[0] - values[1]
    if node.type in _ELEMENTWISE:
        return ANY if ANY in read else sum(values)
    if node.type == "UnsortedSegmentSum" and known.views.is_open(tensor):
        return sum(values)  # to places of which each shard has its own
    if fate is Fate.UNKNOWN and node.type in _REDUCING:
        return None
    if node.type in SUMMED:
        return ANY if ANY in read else sum(values) + gone
    others = [value for name, value in zip(names, values, strict=True) if name not in COTANGENTS]
    if len(others) == len(values) - 1 and not any(others):
        return sum(values) + gone
    if any(values):
        return None
    if node.type in _SUMS_OF_SQUARES:
        return int(gone)
    return 0 if node.type in _MEANS or not gone else None


def _rounds(tensor: Tensor, data: Sequence[Tensor]) -> bool:
    return tensor.dtype.base.kind in "iu" and data[0].dtype.base.kind not in "iu"


def data_of(node: Node) -> tuple[list[str], list[Tensor]]:
    """The inputs whose values count, and their arguments: not those that say a shape, an axis or an order."""
    if node.op is None:
        return [""] * len(node.inputs), list(node.inputs)
    arguments = node.op.signature.inputs
    backward = any(argument.name in COTANGENTS for argument in arguments)
    names: list[str] = []
    data: list[Tensor] = []
    for slot, (argument, entry) in enumerate(zip(arguments, node.arguments(), strict=True)):
        members: list[Tensor] = entry if isinstance(entry, list) else [entry]
        if slot not in node.op.host_slots and not (backward and members and members[0].dtype.kind in "iu"):
            names += [argument.name] * len(members)
            data += members
    return names, data


def flat(growth: Growth) -> Flat:
    """The growth of a whole tensor: that of its entries, where they grow alike."""
    if not isinstance(growth, tuple):
        return growth
    entries = set(growth)
    return 0 if not entries else entries.pop() if len(entries) == 1 else COUNTS


def _agreed(growths: Collection[Flat]) -> Flat:
    """What all say, zeros apart."""
    told = set(growths) - {ANY}
    if not told:
        return ANY
    only = told.pop()
    return only if not told and only is not WHOLE else None


# Bodies


def _of_bodies(node: Node, known: _Known) -> list[Growth]:
    """What all branches agree on; in a loop what every round leaves as it is."""
    loop = node.type in LOOPS
    branches = [node.attrs["body"]] if loop else node.functions()
    given = [flat(known.find(x)) for x in arguments(node)]
    if known.depth > DEEPEST or known.find(node.inputs[0]) in (None, WHOLE):
        return [None] * len(node.outputs)
    while True:
        ends: list[list[Flat]] = [given] if loop else []
        for called in branches:
            body, views = known.views.body(node, called)
            start = dict(zip(body.inputs, given, strict=True))
            inside = growths(body.graph.nodes, body.graph.nodes, start, views, known.depth + 1)
            ends.append([flat(inside.of[x]) for x in body.outputs])
        agreed = [_agreed(entries) for entries in zip(*ends, strict=True)]
        if not loop or agreed == given:
            return list(agreed)
        given = agreed


# Shapes and what is computed of them


def _of_shape(tensor: Tensor, known: _Known) -> Growth:
    x = tensor.node.inputs[tensor.index]
    axes = known.views.axes(x)
    places = None if axes is None else [axis.place for axis in axes]
    return None if x.shape is None or places is None else tuple(int(k in places) for k in range(len(x.shape)))


def _of_size(tensor: Tensor, known: _Known) -> Growth:
    """Several open dimensions need not all be the batch's."""
    axes = known.views.axes(tensor.node.inputs[0])
    return len(axes) if axes is not None and len(axes) < 2 else None


def _of_product(tensor: Tensor, known: _Known) -> Growth:
    entries = known.find(tensor.node.inputs[0])
    if not isinstance(entries, tuple):
        return None
    counts = [entry for entry in entries if isinstance(entry, int)]
    return sum(counts) if len(counts) == len(entries) else None


def _of_slice(tensor: Tensor, known: _Known) -> Growth:
    node, entries = tensor.node, known.find(tensor.node.inputs[0])
    bounds = [static.value(x) for x in node.inputs[1:]]
    masks = [node.attrs[name] for name in ("ellipsis_mask", "new_axis_mask")]
    if not isinstance(entries, tuple) or any(masks) or any(bound is None or bound.size != 1 for bound in bounds):
        return None
    begin, end, stride = (int(bound[0]) for bound in bounds if bound is not None)
    if node.attrs["shrink_axis_mask"]:
        return entries[begin] if -len(entries) <= begin < len(entries) else None
    first = None if node.attrs["begin_mask"] & 1 else begin
    return entries[first : None if node.attrs["end_mask"] & 1 else end : stride]


def _of_gather(tensor: Tensor, known: _Known) -> Growth:
    entries, place = known.find(tensor.node.inputs[0]), static.value(tensor.node.inputs[1])
    if not isinstance(entries, tuple) or place is None or place.ndim > 1:
        return None
    if place.size and not -len(entries) <= place.min() <= place.max() < len(entries):
        return None
    return entries[int(place)] if not place.ndim else tuple(entries[int(k)] for k in place)


def _of_pack(tensor: Tensor, known: _Known) -> Growth:
    if tensor.rank != 1 or tensor.dtype.kind not in "iu":
        return None
    return tuple(flat(known.find(x)) for x in tensor.node.inputs)


def _of_concatenation(tensor: Tensor, known: _Known) -> Growth:
    if tensor.rank != 1 or known.views.axes(tensor) != () or tensor.dtype.kind not in "iu":
        return None
    joined: list[Flat] = []
    for x in tensor.node.inputs[:-1]:
        growth, shape = known.find(x), x.shape
        joined += growth if isinstance(growth, tuple) else [growth] * ((shape[0] or 0) if shape else 0)
    return tuple(joined) if len(joined) == (tensor.shape or (0,))[0] else None


def _of_maximum(tensor: Tensor, known: _Known) -> Growth:
    """A count and 1, so that nothing is divided by 0: there is an example at least."""
    count, least = tensor.node.inputs
    value = static.value(least) if tensor.dtype.kind in "iu" else None
    return known.find(count) if value is not None and value.ndim == 0 and value <= 1 else None


def _of_division(tensor: Tensor, known: _Known) -> Growth:
    """A quotient of integers that leaves nothing over, however many examples there are: the size of a mean, say."""
    sides = tensor.node.inputs
    grown = [flat(known.find(x)) for x in sides]
    if tensor.dtype.kind not in "iu" or not all(isinstance(growth, int) and growth >= 0 for growth in grown):
        return None
    part, _ = known.views.sizes
    factors: list[Any] = []
    for x, growth in zip(sides, grown, strict=True):
        value = static.value(known.views.part.get(x, x))
        examples = part ** int(growth)  # pyright: ignore[reportArgumentType]
        if value is None or (value % examples).any():
            return None
        factors.append(value // examples)
    exact = (factors[1] != 0).all() and not (factors[0] % np.maximum(np.abs(factors[1]), 1)).any()
    return grown[0] - grown[1] if exact else None  # pyright: ignore[reportOperatorIssue]


def _of_copy(tensor: Tensor, known: _Known) -> Growth:
    """A vector of entries stays one."""
    growth = known.find(tensor.node.inputs[0])
    return growth if isinstance(growth, tuple) and tensor.rank == 1 else None


_OF_SHAPES: Mapping[str, Callable[[Tensor, _Known], Any]] = {
    "Rank": lambda tensor, known: 0,
    "Shape": _of_shape,
    "ShapeN": _of_shape,
    "Size": _of_size,
    "Prod": _of_product,
    "StridedSlice": _of_slice,
    "GatherV2": _of_gather,
    "Pack": _of_pack,
    "ConcatV2": _of_concatenation,
    "Maximum": _of_maximum,
    "Div": _of_division,
    "FloorDiv": _of_division,
    "TruncateDiv": _of_division,
    "Cast": _of_copy,
    "Identity": _of_copy,
    "Reshape": _of_copy,
}
