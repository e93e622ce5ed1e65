"""What a node costs: arithmetic and bytes by its shapes, and what a fleet makes of them. For placement and ExplainPlan.

A node takes its share of a worker's overhead a node, and the longer of two times: its arithmetic at the worker's speed,
its reading and writing at the worker's memory speed (the roofline of Williams, Waterman and Patterson 2009).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from gradserve.graph.graph import Node, Tensor
from gradserve.graph.shapes import Shape


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast one worker is.

    Attributes:
        flops_per_second: floating point operations, as a matrix product reaches them.
        bytes_per_second: what an elementwise sum reads and writes.
        node_seconds: what a node costs however small it is.
    """

    flops_per_second: float = 2e10
    bytes_per_second: float = 5e9
    node_seconds: float = 5e-6


@dataclass(frozen=True, slots=True)
class Link:
    """What it takes to bring a tensor from one worker to another, and to start what waits for it.

    Attributes:
        bytes_per_second: for large tensors.
        seconds: for the smallest one.
    """

    bytes_per_second: float = 2e9
    seconds: float = 2e-4


@dataclass(frozen=True, slots=True)
class Hardware:
    """The fleet as placement sees it.

    Attributes:
        devices: full device strings, one a worker.
        speeds: one a worker.
        link: between any two workers.
        memory_bytes: the most that tensors may take on each worker; 0 where nothing is said.
    """

    devices: tuple[str, ...]
    speeds: tuple[Speed, ...]
    link: Link
    memory_bytes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.devices)

    @staticmethod
    def of(devices: Sequence[str], speed: Speed = Speed(), link: Link = Link(), memory_bytes: int = 0) -> Hardware:
        """Equal workers, of ordinary speed unless told otherwise."""
        count = len(devices)
        return Hardware(tuple(devices), (speed,) * count, link, (memory_bytes,) * count)


class Sizes:
    """Elements of tensors, with a guess for dimensions that are not known: the batch's.

    Attributes:
        found: what `of` has given so far.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self._elements: dict[Shape, int] = {None: batch}
        self.found: dict[Tensor, tuple[int, int]] = {}

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """The shape, guessed where it is unknown."""
        if tensor.shape is None:
            return (self.batch,)
        return tuple([self.batch if size is None else size for size in tensor.shape])

    def elements(self, tensor: Tensor) -> int:
        """The number of elements."""
        return self.of(tensor)[0]

    def bytes(self, tensor: Tensor) -> int:
        """The size in memory; 0 for handles and strings, whose size is not known."""
        return self.of(tensor)[1]

    def of(self, tensor: Tensor) -> tuple[int, int]:
        """The number of elements, and the size in memory."""
        found = self.found.get(tensor)
        if found is None:
            count = self._elements.get(tensor.shape)
            if count is None:
                count = self._elements[tensor.shape] = math.prod(self.shape(tensor))
            found = self.found[tensor] = count, count * tensor.dtype.size
        return found

    def known(self, tensor: Tensor) -> bool:
        """Whether `bytes` is no guess."""
        return tensor.shape is not None and None not in tensor.shape and tensor.dtype.size > 0


class Costs:
    """What each node costs to run once.

    Attributes:
        sizes: of the tensors.
        flops: floating point operations.
        moved: bytes read and written.
    """

    def __init__(self, inputs: Mapping[Node, tuple[Tensor, ...]], nodes: Iterable[Node], sizes: Sizes) -> None:
        self.sizes = sizes
        self.flops: dict[Node, int] = {}
        self.moved: dict[Node, int] = {}
        self._seconds: dict[Speed, dict[Node, float]] = {}
        find, size_of = sizes.found.get, sizes.of
        for node in nodes:
            moved = largest = 0
            read = inputs[node]
            for tensor in node.outputs + read:
                count, size = find(tensor) or size_of(tensor)
                moved += size
                if count > largest:
                    largest = count
            rule = _RULES.get(node.type)
            if rule is None or not read:
                self.flops[node] = largest * _AN_ELEMENT.get(node.type, 1)
            else:
                self.flops[node] = int(rule(sizes, node, read))
            self.moved[node] = moved

    def seconds(self, speed: Speed) -> Mapping[Node, float]:
        """Time of one run of each node on a worker of this speed."""
        found = self._seconds.get(speed)
        if found is None:
            flop, byte, least = 1 / speed.flops_per_second, 1 / speed.bytes_per_second, speed.node_seconds
            moved = self.moved
            found = self._seconds[speed] = {
                node: least + max(flops * flop, moved[node] * byte) for node, flops in self.flops.items()
            }
        return found


# Operations an element of the larger of inputs and outputs, where it is not one.
_AN_ELEMENT: dict[str, int] = dict.fromkeys((
    "Exp", "Log", "Tanh", "Sigmoid", "Sin", "Cos", "Tan", "Pow", "Sqrt", "Rsqrt", "Erf", "Erfc", "Softmax",
    "LogSoftmax", "Softplus", "Lgamma", "Digamma",
), 20)  # fmt: skip

Rule = Callable[[Sizes, Node, Sequence[Tensor]], float]


def _product(sizes: Sizes, node: Node, inputs: Sequence[Tensor]) -> float:
    """[.., m, k] by [.., k, n]: 2·m·n·k."""
    shape = inputs[0].shape
    if shape is None or len(shape) < 2:
        return 2 * sizes.elements(node.outputs[0])
    inner = shape[-2 if node.attrs.get("transpose_a") or node.attrs.get("adj_x") else -1]
    return 2 * sizes.elements(node.outputs[0]) * (sizes.batch if inner is None else inner)


def _einsum(sizes: Sizes, node: Node, inputs: Sequence[Tensor]) -> float:
    """Two operations for each combination of all the labels."""
    extents: dict[str, int] = {}
    terms = str(node.attrs.get("equation", "")).partition("->")[0].split(",")
    for term, tensor in zip(terms, inputs, strict=False):
        # What an ellipsis stands for is one label here; its size is what the others leave of the elements.
        labels = re.findall(r"[A-Za-z]", term)
        shape = sizes.shape(tensor)
        split = term.find(".")
        before = len(labels) if split < 0 else len(re.findall(r"[A-Za-z]", term[:split]))
        after = len(labels) - before
        named = [*shape[:before], *(shape[len(shape) - after :] if after else ())]
        extents |= dict(zip(labels, named, strict=False))
        if split >= 0:
            extents["..."] = max(extents.get("...", 1), math.prod(shape[before : len(shape) - after]))
    return 2 * math.prod(extents.values())


def _convolution(image: int, filters: int | None, depthwise: bool = False) -> Rule:
    """2·h·w·channels for each element of the image that the filters make (or that its gradient has)."""

    def rule(sizes: Sizes, node: Node, inputs: Sequence[Tensor]) -> float:
        made = node.outputs[0] if image < 0 else inputs[image]
        window = sizes.shape(node.outputs[0] if filters is None else inputs[filters])
        return 2 * sizes.elements(made) * math.prod(window[:-2] if depthwise else window[:-1])

    return rule


def _pool(sizes: Sizes, node: Node, inputs: Sequence[Tensor]) -> float:
    return max(sizes.elements(t) for t in (*node.outputs, *inputs)) * math.prod(node.attrs.get("ksize", (1,)))


def _sort(sizes: Sizes, node: Node, inputs: Sequence[Tensor]) -> float:
    """n·log2 n along the last axis."""
    shape = sizes.shape(inputs[0])
    return sizes.elements(inputs[0]) * (1 + math.log2(max(shape[-1], 2) if shape else 2))


def _transform(sizes: Sizes, node: Node, inputs: Sequence[Tensor]) -> float:
    """5·n·log2 n, Cooley and Tukey's count."""
    return 5 * sizes.elements(inputs[0]) * math.log2(max(sizes.elements(inputs[0]), 2))


def _cubic(factor: float) -> Rule:
    """factor·n³ for each [n, n] matrix (Golub and Van Loan, Matrix Computations, 4th edition)."""

    def rule(sizes: Sizes, node: Node, inputs: Sequence[Tensor]) -> float:
        shape = sizes.shape(inputs[0])
        return factor * sizes.elements(inputs[0]) * min(shape[-2:], default=1)

    return rule


def _solve(sizes: Sizes, node: Node, inputs: Sequence[Tensor]) -> float:
    shape = sizes.shape(inputs[0])
    columns = sizes.shape(node.outputs[0])[-1:] or (1,)
    return sizes.elements(inputs[0]) * (0.67 * (shape[-1] if shape else 1) + 2 * columns[0])


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"), _product),
    "Einsum": _einsum,
    **dict.fromkeys(("Conv2D", "Conv3D"), _convolution(-1, 1)),
    **dict.fromkeys(("Conv2DBackpropInput", "Conv3DBackpropInputV2"), _convolution(2, 1)),
    **dict.fromkeys(("Conv2DBackpropFilter", "Conv3DBackpropFilterV2"), _convolution(2, None)),
    "DepthwiseConv2dNative": _convolution(-1, 1, depthwise=True),
    "DepthwiseConv2dNativeBackpropInput": _convolution(2, 1, depthwise=True),
    "DepthwiseConv2dNativeBackpropFilter": _convolution(2, None, depthwise=True),
    **dict.fromkeys(("MaxPool", "AvgPool", "MaxPoolGrad", "AvgPoolGrad", "MaxPool3D", "AvgPool3D"), _pool),
    **dict.fromkeys(("TopK", "TopKV2", "UniqueV2", "Unique"), _sort),
    **dict.fromkeys(("FFT", "FFT2D", "FFT3D", "IFFT", "IFFT2D", "IFFT3D", "RFFT", "RFFT2D", "IRFFT", "IRFFT2D"),
                    _transform),
    "Cholesky": _cubic(1 / 3), "MatrixDeterminant": _cubic(2 / 3), "LogMatrixDeterminant": _cubic(2 / 3),
    "MatrixInverse": _cubic(2), "Qr": _cubic(4), "SelfAdjointEigV2": _cubic(9), "Svd": _cubic(20), "Eig": _cubic(25),
    **dict.fromkeys(("MatrixSolve", "MatrixTriangularSolve", "CholeskyGrad"), _solve),
}  # fmt: skip
