"""The xla engine gives what the reference engine gives, for every op's example and its gradient."""

from __future__ import annotations

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.graph import op as catalogue
from gradserve.graph.graph import IndexedSlices, Tensor
from gradserve.workers.engines import numpy as reference
from gradserve.workers.segment import Segment, State
from tests.ops.differences import Built
from tests.ops.draw import Draw

xla = pytest.importorskip("gradserve.workers.engines.xla", reason="JAX is not installed")

_NEEDS_SHAPES = frozenset(
    (
        *("BlockLSTM", "BlockLSTMV2", "BlockLSTMGrad", "BlockLSTMGradV2"),
        *("CTCLoss", "CudnnRNN", "CudnnRNNV2", "CudnnRNNV3"),
    )
)


def all_ops() -> list[str]:
    """The names of the ops that have examples."""
    return sorted(name for name, op in catalogue.catalogue().items() if op.examples is not None)


def gradients_of(built: Built) -> list[Tensor]:
    """All parts of the gradients of what was built."""
    op = built.outputs[0].node.op
    if op is None or not isinstance(op.gradient, catalogue.BoundRule):
        return []
    ys = [y for y in built.outputs if y.dtype.is_floating]
    tensors: list[Tensor] = []
    for dx in gradients(ys, built.sources):
        if isinstance(dx, IndexedSlices):
            tensors += [dx.values, dx.indices, dx.dense_shape]
        elif dx is not None:
            tensors.append(dx)
    return tensors


@pytest.mark.parametrize("known_shapes", [True, False])
@pytest.mark.parametrize("name", all_ops())
def test_xla_agrees_with_the_reference(name: str, known_shapes: bool) -> None:
    op = catalogue.lookup(name)
    assert op.examples is not None
    for example in op.examples(Draw(lambda low, high: min(high, max(low, 2)))):
        built = Built(op, example, known_shapes=known_shapes)
        if not built.outputs:
            continue
        if name in _NEEDS_SHAPES and not known_shapes:
            pytest.skip(f"the gradient of {name} needs static shapes")
        fetches = (*built.outputs, *gradients_of(built))
        segment = Segment(built.graph, tuple(built.sources), fetches)
        expected = reference.compile(segment)(built.values, State())
        got = xla.compile_program(segment)(built.values, State())
        for tensor, a, b in zip(fetches, expected, got, strict=True):
            a, b = np.asarray(a), np.asarray(b)
            assert a.dtype == b.dtype, (tensor, a.dtype, b.dtype)
            if a.dtype == np.dtype(object):
                assert a.tolist() == b.tolist()
            else:
                tolerance = 1e-9 if a.dtype in (np.float64, np.complex128) else 1e-4
                np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance, err_msg=str(tensor))
