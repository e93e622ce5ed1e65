"""What a node costs: arithmetic and bytes by its shapes. Estimates, for placement and for ExplainPlan."""

from __future__ import annotations

from collections.abc import Sequence

from gradserve.graph.graph import Node, Tensor

FLOPS_PER_SECOND = 5e9
NODE_SECONDS = 2e-6
LINK_BYTES_PER_SECOND = 2e9
LINK_SECONDS = 1e-4

_TRANSCENDENTAL = frozenset((
    "Exp", "Log", "Tanh", "Sigmoid", "Sin", "Cos", "Tan", "Pow", "Sqrt", "Rsqrt", "Erf", "Erfc", "Softmax",
    "LogSoftmax", "Softplus", "Lgamma", "Digamma",
))  # fmt: skip
_CONVOLUTIONS = frozenset(("Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter", "DepthwiseConv2dNative"))


class Sizes:
    """Elements of tensors, with a guess for dimensions that are not known: the batch's."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def shape(self, tensor: Tensor) -> tuple[int, ...]:
        """The shape, guessed where it is unknown."""
        if tensor.shape is None:
            return (self.batch,)
        return tuple(self.batch if size is None else size for size in tensor.shape)

    def elements(self, tensor: Tensor) -> int:
        """The number of elements."""
        count = 1
        for size in self.shape(tensor):
            count *= size
        return count

    def bytes(self, tensor: Tensor) -> int:
        """The size in memory; 0 for handles and strings, whose size is not known."""
        return self.elements(tensor) * tensor.dtype.size

    def flops(self, node: Node, inputs: Sequence[Tensor]) -> int:
        """Floating point operations of one run."""
        output = max((self.elements(tensor) for tensor in node.outputs), default=0)
        if node.type in ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"):
            shape = self.shape(inputs[0])
            transposed = node.attrs.get("transpose_a") or node.attrs.get("adj_x")
            inner = (shape[-2] if transposed else shape[-1]) if len(shape) >= 2 else 1
            return 2 * output * inner
        if node.type in _CONVOLUTIONS:
            return 2 * output * max((self.elements(tensor) for tensor in inputs[1:2]), default=1)
        work = max(output, max((self.elements(tensor) for tensor in inputs), default=0))
        return work * (20 if node.type in _TRANSCENDENTAL else 1)

    def seconds(self, node: Node, inputs: Sequence[Tensor]) -> float:
        """Time of one run on one worker."""
        return NODE_SECONDS + self.flops(node, inputs) / FLOPS_PER_SECOND
