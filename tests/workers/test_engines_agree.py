"""The xla engine gives what the reference engine gives, for every op's example and its gradient."""

from __future__ import annotations

import pytest

from tests.workers.agreement import all_ops, check_op

xla = pytest.importorskip("gradserve.workers.engines.xla", reason="JAX is not installed")


@pytest.mark.parametrize("known_shapes", [True, False])
@pytest.mark.parametrize("name", all_ops())
def test_xla_agrees_with_the_reference(name: str, known_shapes: bool) -> None:
    check_op(name, xla.compile_program, xla.on_host, wide=1e-9, narrow=1e-4, known_shapes=known_shapes)
