"""Every shared case whose ops are supported, through gRPC and two workers, on each engine."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import gradserve.client as gs
from tests.conformance.__main__ import table
from tests.conformance.case import load
from tests.conformance.runner import Verdict, run
from tests.paths import CASES, needs_cases


@needs_cases
@pytest.mark.parametrize("engine", ["numpy", "xla"])
def test_gradients_agree_with_tensorflow(engine: str, summarise: Callable[[str], None]) -> None:
    with gs.Client.embedded(workers=2, engine=engine, compile_now=True) as client:
        outcomes = list(run(load(CASES), client))
    summarise(table(outcomes))
    failed = [f"{outcome.stem}: {outcome.why}" for outcome in outcomes if outcome.verdict is Verdict.FAILED]
    assert not failed, "\n".join(failed)
