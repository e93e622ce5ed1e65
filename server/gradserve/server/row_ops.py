"""Ops that keep rows apart: what they make of an example is of that example alone.

An op that is not named here may let examples look at each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from gradserve.graph import static
from gradserve.graph.graph import Node, Tensor
from gradserve.ops.slicing import masked_index
from gradserve.server.batch_axes import Axis


class Known(Protocol):
    """What is known of the tensors of a graph."""

    def axis(self, tensor: Tensor) -> Axis | None:
        """The only dimension that holds the batch, None where there is none, or several."""
        ...

    def seen(self, tensor: Tensor) -> Tensor:
        """What stands for a tensor where the batch is a shard's."""
        ...

    def rank(self, tensor: Tensor) -> int:
        """The rank of a tensor of which a dimension is known."""
        ...


# Entry by entry, the shapes broadcast.
ELEMENTWISE = frozenset((
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
_SIZED = frozenset(("MirrorPad", "MirrorPadGrad", "Pad", "PadV2", "Slice", "StridedSlice", "StridedSliceGrad"))
LOOKUP_OPS = frozenset(("Gather", "GatherNd", "GatherV2", "ResourceGather", "ResourceGatherNd"))
NORMALISATIONS = frozenset((
    "FusedBatchNorm", "FusedBatchNormGrad", "FusedBatchNormGradV2", "FusedBatchNormGradV3", "FusedBatchNormV2",
    "FusedBatchNormV3",
))  # fmt: skip


def keeps_rows(known: Known, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
    """Whether each row of an output is made of the rows at its place.

    Args:
        rows: the inputs that hold the batch, and `held` in which of their dimensions.
        made: the output, which holds the batch in the dimension `place`.
    """
    if node.type in ELEMENTWISE:
        ends = {known.rank(x) - at for x, at in zip(rows, held, strict=True)}
        return ends == {known.rank(made) - place}
    if node.type in _FIRST or node.type in NORMALISATIONS:
        return not any(held) and place == 0
    if node.type in _TOGETHER:
        return not any(held) and place == 0 and len(rows) == 3
    if node.type in _CORES:
        core = _CORES[node.type]
        fits = all(at < known.rank(x) - core for x, at in zip(rows, held, strict=True))
        return fits and set(held) == {place}
    if node.type in _FORMS or node.type in _REDUCING:
        return True
    rule = _RULES.get(node.type)
    return rule is not None and rule(known, node, rows, held, made, place)


# Ops that have dimensions of their own: whether the batch is none of them

Rule = Callable[[Known, Node, Sequence[Tensor], Sequence[int], Tensor, int], bool]


def _reshape(known: Known, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
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


def _along(known: Known, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
    axes = static.axes(known.seen(node.inputs[1]), known.rank(made))
    return axes is not None and place not in axes


def _roll(known: Known, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
    axes = static.axes(known.seen(node.inputs[2]), known.rank(made))
    return axes is not None and place not in axes


def _sized(known: Known, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
    """A slice as long as the batch is all of it."""
    if node.type == "StridedSlice":
        return held[0] in _taken_whole(known, node, rows[0])
    if node.type == "StridedSliceGrad":
        return place in _taken_whole(known, node, made)
    before, after = known.axis(rows[0]), known.axis(made)
    return before is not None and after is not None and before[1:] == after[1:] and None not in after


def _tile(known: Known, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
    multiples = static.value(known.seen(node.inputs[1]))
    return multiples is not None and multiples[held[0]] == 1


def _taken_whole(known: Known, node: Node, sliced: Tensor) -> set[int]:
    """The dimensions of which a slice takes all, in order."""
    x = known.seen(sliced)
    begin, end, strides = (static.value(known.seen(bound)) for bound in node.inputs[1:4])
    if x.shape is None or begin is None or end is None or strides is None:
        return set()
    index = masked_index(begin, end, strides, node)
    index += () if Ellipsis in index else (Ellipsis,)
    rest = len(x.shape) - sum(entry is not None and entry is not Ellipsis for entry in index)
    found: set[int] = set()
    place = 0
    for entry in index:
        if entry is Ellipsis:
            found.update(range(place, place + rest))
        size = x.shape[place] if place < len(x.shape) else None
        if isinstance(entry, slice) and (entry == slice(None, None, 1) or _is_all(entry, size)):
            found.add(place)
        place += rest if entry is Ellipsis else entry is not None
    return found


def _is_all(entry: slice, size: int | None) -> bool:
    return size is not None and entry.indices(size) == (0, size, 1)


def _concatenation(
    known: Known, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int
) -> bool:
    axis = static.scalar(known.seen(node.inputs[-1 if node.type == "ConcatV2" else 0]))
    return axis is not None and axis % (known.rank(made) or 1) != place and set(held) == {place}


def _pack(known: Known, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
    return len(set(held)) == 1


def _split(known: Known, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
    """What is split or unpacked along the batch has another part of it, or none."""
    if node.type == "Unpack":
        axis = int(node.attrs["axis"])
    else:
        axis = static.scalar(known.seen(node.inputs[0 if node.type == "Split" else 2]))
    return axis is not None and axis % (known.rank(rows[0]) or 1) != held[0]


def _lookup(known: Known, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
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


def _matmul(known: Known, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
    """One factor has rows that are not summed over, or both have a matrix an example."""
    rank = known.rank(made)
    if all(known.rank(x) - at > 2 for x, at in zip(rows, held, strict=True)):
        return {known.rank(x) - at for x, at in zip(rows, held, strict=True)} == {rank - place}
    return len(rows) == 1


def _einsum(known: Known, node: Node, rows: Sequence[Tensor], held: Sequence[int], made: Tensor, place: int) -> bool:
    label = same_label(node, rows, held)
    output = node.attrs["equation"].decode() if isinstance(node.attrs["equation"], bytes) else node.attrs["equation"]
    return bool(label) and output.replace(" ", "").partition("->")[2][place] == label


def same_label(node: Node, rows: Sequence[Tensor], held: Sequence[int]) -> str:
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
    "Tile": _tile,
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
    **dict.fromkeys(LOOKUP_OPS, _lookup),
}
