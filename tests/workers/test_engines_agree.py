"""The xla engine gives what the reference engine gives, for every op's example and its gradient."""

from __future__ import annotations

import pytest

from tests.workers.agreement import all_ops, check_op

xla = pytest.importorskip("gradserve.workers.engines.xla", reason="JAX is not installed")

_NEEDS_SHAPES = frozenset(
    (
        *("BlockLSTM", "BlockLSTMV2", "BlockLSTMGrad", "BlockLSTMGradV2"),
        *("CTCLoss", "CudnnRNN", "CudnnRNNV2", "CudnnRNNV3"),
    )
)


@pytest.mark.parametrize("known_shapes", [True, False])
@pytest.mark.parametrize("name", all_ops())
def test_xla_agrees_with_the_reference(name: str, known_shapes: bool) -> None:
    if name in _NEEDS_SHAPES and not known_shapes:
        pytest.skip(f"the gradient of {name} needs static shapes")
    check_op(name, xla.compile_program, xla.on_host, wide=1e-9, narrow=1e-4, known_shapes=known_shapes)
