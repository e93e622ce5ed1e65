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
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gradserve.graph import static
from gradserve.graph.graph import Node, Tensor
from gradserve.graph.inline import CALLS
from gradserve.server.batch_axes import Axis, Views, arguments
from gradserve.server.effects import draws
from gradserve.server.flow import LOOPS
from gradserve.server.growth import COTANGENTS, DEEPEST, LINEAR, SUMMED, WHOLE, Growth, Growths, data_of, flat, growths


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

# Entry by entry, the shapes broadcast.
_ELEMENTWISE = frozenset((
    "Abs", "AccumulateNV2", "Acos", "Acosh", "Add", "AddN", "AddV2", "Angle", "ApproximateEqual", "AsString", "Asin",
    "Asinh", "Atan", "Atan2", "Atanh", "BesselI0", "BesselI0e", "BesselI1", "BesselI1e", "BesselJ0", "BesselJ1",
    "BesselK0", "BesselK0e", "BesselK1", "BesselK1e", "BesselY0", "BesselY1", "Betainc", "BitwiseAnd", "BitwiseOr",
    "BitwiseXor", "BroadcastTo", "Bucketize", "Cast", "Ceil", "CheckNumerics", "CheckNumericsV2", "ClipByValue",
    "Complex", "ComplexAbs", "Conj", "Cos", "Cosh", "Dawsn", "DebugGradientIdentity", "DebugIdentity",
    "DebugIdentityV2", "DebugIdentityV3", "DeepCopy", "Digamma", "Div", "DivNoNan", "Elu", "EluGrad", "EnsureShape",
    "Equal", "Erf", "Erfc", "Erfinv", "Exp", "Expint", "Expm1", "FakeQuantWithMinMaxArgs",
    "FakeQuantWithMinMaxArgsGradient", "FakeQuantWithMinMaxVars", "Floor", "FloorDiv", "FloorMod", "FresnelCos",
    "FresnelSin", "Greater", "GreaterEqual", "GuaranteeConst", "Identity", "Igamma", "IgammaGradA", "Igammac", "Imag",
    "Inv", "InvGrad", "Invert", "IsFinite", "IsInf", "IsNan", "LeakyRelu", "LeakyReluGrad", "LeftShift", "Less",
    "LessEqual", "Lgamma", "Log", "Log1p", "LogicalAnd", "LogicalNot", "LogicalOr", "LookupTableFind",
    "LookupTableFindV2", "Maximum", "Minimum", "Mod", "Mul", "MulNoNan", "Ndtri", "Neg", "NextAfter", "NotEqual",
    "PlaceholderWithDefault", "Polygamma", "PopulationCount", "Pow", "PreventGradient", "Print", "RandomGammaGrad",
    "Real", "RealDiv", "Reciprocal", "ReciprocalGrad", "RegexFullMatch", "RegexReplace", "Relu", "Relu6", "Relu6Grad",
    "ReluGrad", "RightShift", "Rint", "Round", "Rsqrt", "RsqrtGrad", "SelectV2", "Selu", "SeluGrad", "Sigmoid",
    "SigmoidGrad", "Sign", "Sin", "Sinh", "Snapshot", "Softplus", "SoftplusGrad", "Softsign", "SoftsignGrad", "Spence",
    "Sqrt", "SqrtGrad", "Square", "SquaredDifference", "StaticRegexFullMatch", "StaticRegexReplace", "StopGradient",
    "StringJoin", "StringLength", "StringLower", "StringStrip", "StringToHashBucket", "StringToHashBucketFast",
    "StringToHashBucketStrong", "StringToNumber", "StringUpper", "Sub", "Substr", "Tan", "Tanh", "TanhGrad",
    "TruncateDiv", "TruncateMod", "Xdivy", "Xlog1py", "Xlogy", "Zeta",
))  # fmt: skip
# An example at a place of the first dimension, all other dimensions within it.
_FIRST = frozenset((
    "AdjustContrastv2", "AdjustHue", "AdjustSaturation", "AvgPool", "AvgPool3D", "AvgPool3DGrad", "AvgPoolGrad",
    "BiasAdd", "BiasAddV1", "Conv", "Conv2D", "Conv2DBackpropInput", "Conv3D",
    "Conv3DBackpropInputV2", "DepthToSpace", "DepthwiseConv2dNative",
    "DepthwiseConv2dNativeBackpropInput", "Dilation2D", "Dilation2DBackpropInput", "ExtractImagePatches",
    "ExtractVolumePatches", "FakeQuantWithMinMaxVarsPerChannel", "GRUBlockCell", "GRUBlockCellGrad", "InTopK",
    "InTopKV2", "LRN", "LRNGrad", "LSTMBlockCell", "LSTMBlockCellGrad", "MaxPool", "MaxPool3D", "MaxPool3DGrad",
    "MaxPoolGrad", "MaxPoolGradV2", "MaxPoolV2",
    "ResizeArea", "ResizeBicubic", "ResizeBicubicGrad", "ResizeBilinear", "ResizeBilinearGrad",
    "ResizeNearestNeighbor", "ResizeNearestNeighborGrad", "Select", "SoftmaxCrossEntropyWithLogits", "SpaceToDepth",
    "SparseSoftmaxCrossEntropyWithLogits",
))  # fmt: skip
# So too, where all that they read has a place an example.
_TOGETHER = frozenset(("MaxPool3DGradGrad", "MaxPoolGradGrad", "MaxPoolGradGradV2"))
# So many of the last dimensions are one thing; those before them are a batch.
_CORES: Mapping[str, int] = {
    **dict.fromkeys((
        "Cross", "FFT", "HSVToRGB", "IFFT", "IRFFT", "LogSoftmax", "MatrixDiag", "MatrixDiagV2", "MatrixDiagV3", "RFFT",
        "RGBToHSV", "Softmax", "TopK", "TopKV2",
    ), 1),
    **dict.fromkeys((
        "Cholesky", "CholeskyGrad", "Eig", "FFT2D", "IFFT2D", "IRFFT2D", "LogMatrixDeterminant", "Lu", "MatrixBandPart",
        "MatrixDeterminant", "MatrixDiagPart", "MatrixDiagPartV2", "MatrixDiagPartV3", "MatrixExponential",
        "MatrixInverse", "MatrixLogarithm", "MatrixSolve", "MatrixSquareRoot", "MatrixTriangularSolve", "Qr", "RFFT2D",
        "SelfAdjointEigV2", "Svd",
    ), 2),
    **dict.fromkeys(("FFT3D", "IFFT3D", "IRFFT3D", "RFFT3D"), 3),
}  # fmt: skip
# The same entries in the same order of examples, in another form; also with dimensions that say nothing of examples.
_FORMS = frozenset(("ExpandDims", "Fill", "OneHot", "Squeeze", "Transpose", "ConjugateTranspose"))
# Along dimensions that are no more.
_REDUCING = frozenset((
    "All", "Any", "ArgMax", "ArgMin", "EuclideanNorm", "Max", "Mean", "Min", "Prod", "Sum",
))  # fmt: skip
# Of the axes that their second input names.
_ALONG = frozenset(("CumulativeLogsumexp", "Cumprod", "Cumsum", "ReverseV2"))
# Right along a dimension that keeps its size.
_SIZED = frozenset(("MirrorPad", "MirrorPadGrad", "Pad", "PadV2", "Slice", "StridedSlice", "StridedSliceGrad", "Tile"))
_LISTS = frozenset((
    "TensorListGather", "TensorListGetItem", "TensorListPopBack", "TensorListPushBack", "TensorListResize",
    "TensorListSetItem", "TensorListStack",
))  # fmt: skip
_NORMALISATIONS = frozenset((
    "FusedBatchNorm", "FusedBatchNormGrad", "FusedBatchNormGradV2", "FusedBatchNormGradV3", "FusedBatchNormV2",
    "FusedBatchNormV3",
))  # fmt: skip
_UNIQUE = frozenset(("Unique", "UniqueV2", "UniqueWithCounts", "UniqueWithCountsV2"))
SHAPES = frozenset(("Rank", "Shape", "ShapeN", "Size"))
_BY_SHAPE = frozenset(("OnesLike", "ZerosLike"))
_LOOKUPS = frozenset(("Gather", "GatherNd", "GatherV2", "ResourceGather", "ResourceGatherNd"))
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
    nodes: Sequence[Node], given: Mapping[Tensor, Standing], views: Views, known: Growths, depth: int = 0
) -> dict[Tensor, Standing]:
    """The standing of every tensor that depends on the batch; what is missing is SHARED.

    Args:
        nodes: in an order in which they can run.
        given: what is known already: of the feeds, and of the arguments of a body.
        views: the tensors at two sizes of the batch.
        known: their growths.
        depth: of the body that they are in.
    """
    found = dict(given)
    reader = _Reader(found, views, known, depth)
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
            return SIZE if known else TOTAL
        if node.type in _BY_SHAPE:
            return ROWS if self.holds(tensor) else SHARED
        if node.op is None or tensor.dtype.kind == "r":
            return MIXED if node.op is None else SHARED
        standing = self.standing(tensor)
        if standing not in (ROWS, TOTAL):
            return standing
        return standing if self.adds_up(tensor, standing) else MIXED

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
        if not self.holds(tensor):
            return MIXED if draws(node) else SIZE
        if node.type == "Range":
            return PLACES
        alike = node.type in _ELEMENTWISE or node.type in ("Fill", "Tile", "Reshape") or draws(node)
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
        if node.type in _LOOKUPS:
            pair = self.of(node.inputs[0]), self.of(node.inputs[1])
            looked = {
                (ROWS, PLACES): ROWS,
                (ROWS, OFFSETS): ROWS,
                (DISTINCT, LOOKUPS): ROWS,
                (SHARED, DISTINCT): DISTINCT,
            }
            return looked.get(pair, MIXED) if self.is_along_first(node, pair) else MIXED
        if node.type in _SUMS_TO_PLACES:
            if self.is_slices(node):
                return SLICES if self.of(node.inputs[0]) is ROWS else MIXED
            placed = read in ({PLACES, ROWS}, {OFFSETS, ROWS})
            return ROWS if placed and self.holds(tensor) else MIXED
        if read == {DISTINCT} and node.type in _ELEMENTWISE:
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
        if node.type in _NORMALISATIONS and node.attrs["is_training"]:
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
        return ROWS if self.keeps_rows(node, rows, held, tensor, made.place) else MIXED

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
        if node.type not in _SUMMING | _NORMALISATIONS or node.attrs.get("binary_output"):
            return MIXED
        if node.type == "Mean":
            axis = self.axis(rows[0])
            if axis is None or None in axis or not self.views.is_even(rows[0]):
                return MIXED
        if node.type == "Einsum" and not _same_label(node, rows, held):
            return MIXED
        return TOTAL

    def keeps_rows(self, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
        """Whether each row of the output is made of the rows at its place."""
        if node.type in _ELEMENTWISE:
            ends = {self.rank(x) - at for x, at in zip(rows, held, strict=True)}
            return ends == {self.rank(made) - place}
        if node.type in _FIRST or node.type in _NORMALISATIONS:
            return not any(held) and place == 0
        if node.type in _TOGETHER:
            return not any(held) and place == 0 and len(rows) == 3
        if node.type in _CORES:
            core = _CORES[node.type]
            fits = all(at < self.rank(x) - core for x, at in zip(rows, held, strict=True))
            return fits and set(held) == {place}
        if node.type in _FORMS or node.type in _REDUCING:
            return True
        rule = _RULES.get(node.type)
        return rule is not None and rule(self, node, rows, held, made, place)

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
        inside = standings(body.graph.nodes, standing, views, known, self.depth + 1)
        return [inside.get(x, SHARED) for x in body.outputs]


def _joined(standings: Collection[Standing]) -> Standing:
    told = set(standings) - {SHARED}
    return SHARED if not told else told.pop() if len(told) == 1 else MIXED


# Ops that have dimensions of their own: whether the batch is none of them

Rule = Callable[[_Reader, Node, Sequence[Tensor], Sequence[int], Tensor, int], bool]


def _reshape(known: _Reader, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
    """In row-major order examples stay in order where as much lies before them as before."""
    before = [_product((known.seen(rows[0]).shape or ())[: held[0]]), _product((known.seen(made).shape or ())[:place])]
    return before[0] is not None and before[0] == before[1]


def _product(sizes: Sequence[int | None]) -> int | None:
    found = 1
    for size in sizes:
        if size is None:
            return None
        found *= size
    return found


def _along(known: _Reader, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
    axes = static.axes(known.seen(node.inputs[1]), known.rank(made))
    return axes is not None and place not in axes


def _roll(known: _Reader, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
    axes = static.axes(known.seen(node.inputs[2]), known.rank(made))
    return axes is not None and place not in axes


def _sized(known: _Reader, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
    """A slice as long as the batch is all of it."""
    if node.type in ("StridedSlice", "StridedSliceGrad"):
        strides = static.value(known.seen(node.inputs[3]))
        if strides is None or (strides < 0).any():
            return False
    before, after = known.axis(rows[0]), known.axis(made)
    return before is not None and after is not None and before[1:] == after[1:] and None not in after


def _concatenation(
    known: _Reader, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int
) -> bool:
    axis = static.scalar(known.seen(node.inputs[-1 if node.type == "ConcatV2" else 0]))
    return axis is not None and axis % (known.rank(made) or 1) != place and set(held) == {place}


def _pack(known: _Reader, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
    return len(set(held)) == 1


def _split(known: _Reader, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
    """What is split or unpacked along the batch has another part of it, or none."""
    before, after = known.axis(rows[0]), known.axis(made)
    return before is not None and after is not None and before[1:] == after[1:] and None not in after


def _lookup(known: _Reader, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
    params, indices = node.inputs[:2]
    if rows == [indices]:
        return node.type not in ("GatherNd", "ResourceGatherNd") or held[0] < known.rank(indices) - 1
    if node.type not in ("Gather", "GatherV2"):
        return node.type == "GatherNd" and held == [0, 0] and node.attrs.get("batch_dims", 0) > 0
    along = static.scalar(known.seen(node.inputs[2])) if node.type == "GatherV2" else 0
    if along is None:
        return False
    along %= known.rank(params) or 1
    batch_dims = int(node.attrs.get("batch_dims", 0)) % (known.rank(indices) + 1)
    if indices in rows:
        return params in rows and len(set(held)) == 1 and held[0] < batch_dims
    return held[0] != along


def _matmul(known: _Reader, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
    """One factor has rows that are not summed over, or both have a matrix an example."""
    rank = known.rank(made)
    if all(known.rank(x) - at > 2 for x, at in zip(rows, held, strict=True)):
        return {known.rank(x) - at for x, at in zip(rows, held, strict=True)} == {rank - place}
    return len(rows) == 1


def _einsum(known: _Reader, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
    label = _same_label(node, rows, held)
    output = node.attrs["equation"].decode() if isinstance(node.attrs["equation"], bytes) else node.attrs["equation"]
    return bool(label) and output.replace(" ", "").partition("->")[2][place] == label


def _same_label(node: Node, rows: Sequence[Tensor], held: Sequence[int]) -> str:
    """The label of the batch in all factors that have it, "" where it has several or a dimension of an ellipsis."""
    equation = node.attrs["equation"].decode() if isinstance(node.attrs["equation"], bytes) else node.attrs["equation"]
    factors = equation.replace(" ", "").partition("->")[0].split(",")
    if "." in equation:
        return ""
    places = dict(zip(rows, held, strict=True))
    labels = {factor[places[x]] for x, factor in zip(node.inputs, factors, strict=True) if x in places}
    return labels.pop() if len(labels) == 1 else ""


_RULES: Mapping[str, Rule] = {
    "Reshape": _reshape,
    "Roll": _roll,
    "Concat": _concatenation,
    "ConcatV2": _concatenation,
    "Pack": _pack,
    "Split": _split,
    "SplitV": _split,
    "Unpack": _split,
    "MatMul": _matmul,
    "BatchMatMul": _matmul,
    "BatchMatMulV2": _matmul,
    "BatchMatMulV3": _matmul,
    "SparseMatMul": _matmul,
    "Einsum": _einsum,
    **dict.fromkeys(_ALONG, _along),
    **dict.fromkeys(_SIZED, _sized),
    **dict.fromkeys(_LOOKUPS, _lookup),
}
