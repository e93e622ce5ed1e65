"""Sends each case to a served coordinator as a client would, and judges the answer."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import gradserve.client as gs
from gradserve.errors import GradserveError, Unsupported
from gradserve.graph import codec, op
from gradserve.graph.graph import Graph, Tensor
from gradserve.graph.op import raw
from gradserve.ops.slices import densify
from tests.conformance import compare, differences
from tests.conformance.case import Case

_TIMEOUT_SECONDS = 120


class Verdict(enum.StrEnum):
    """How a case ended; skipped means that an op or a feature is not supported yet."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Outcome:
    """The verdict on one case and its reason."""

    stem: str
    family: str
    verdict: Verdict
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def run(cases: Iterable[Case], client: gs.Client) -> Iterator[Outcome]:
    """The outcome of each case."""
    for case in cases:
        verdict, why = judge(case, client)
        yield Outcome(case.stem, case.meta["family"], verdict, why)


def judge(case: Case, client: gs.Client) -> tuple[Verdict, str]:
    """Runs one case and compares."""
    difference = differences.find(case)
    wanted = difference.error if difference else case.expected.get("error")
    called = {function.signature.name for function in case.graph.library.function}  # TF1 calls them by their names
    missing = sorted({name for name in case.meta["ops"] if op.find(name) is None} - called)
    if missing and wanted != "LookupError":
        return Verdict.SKIPPED, f"ops not supported yet: {', '.join(missing)}"
    try:
        answer = _second_order(case, client) if case.meta["second_order"] else _first_order(case, client)
    except Unsupported as error:
        return Verdict.SKIPPED, str(error)
    except GradserveError as error:
        if wanted is not None and wanted in {kind.__name__ for kind in type(error).__mro__}:
            return Verdict.PASSED, ""
        return Verdict.FAILED, f"{type(error).__name__}: {error}"
    if wanted is not None:
        return Verdict.FAILED, f"expected {wanted} ({case.expected.get('reason', difference)})"
    if difference is not None:
        return Verdict.PASSED, difference.clause
    wrong = compare.values_differ(case, answer.ys) if not case.meta["second_order"] else None
    wrong = wrong or compare.gradients_differ(case, answer)
    return (Verdict.FAILED, wrong) if wrong else (Verdict.PASSED, "")


def _options(case: Case) -> dict[str, Any]:
    request = case.request
    return {
        key: request[key]
        for key in (
            "name", "colocate_gradients_with_ops", "gate_gradients", "aggregation_method", "stop_gradients",
            "unconnected_gradients",
        )
    }  # fmt: skip


def _first_order(case: Case, client: gs.Client) -> Any:
    request = case.request
    return _ask(
        client, case, case.graph, request["ys"], request["xs"], grad_ys=case.grad_ys(case.y_kinds), **_options(case)
    )


def _second_order(case: Case, client: gs.Client) -> Any:
    """z = sum over the gradients of sum(|g|²), and the gradients of z."""
    graph = codec.graph_from_message(case.graph)
    z = squared_norm(graph, case)
    return _ask(client, case, codec.graph_to_message(graph), [z.name], case.request["xs"])


def squared_norm(graph: Graph, case: Case) -> Tensor:
    """Adds the first gradients and z to the graph."""
    request, options = case.request, _options(case)
    options["stop_gradients"] = [graph.tensor(name) for name in options["stop_gradients"]]
    ys = [graph.tensor(name) for name in request["ys"]]
    found = gs.gradients(
        ys,
        [graph.tensor(name) for name in request["xs"]],
        case.grad_ys([y.dtype.name for y in ys]),
        **options,
    )
    with graph.as_default():
        terms: list[Tensor] = []
        for dx in found:
            if dx is None:
                continue
            dense = densify(dx)
            square = (
                raw.Real(dense * raw.Conj(dense), Tout=dense.dtype.real) if dense.dtype.is_complex else dense * dense
            )
            terms.append(raw.Sum(square, raw.Range(0, raw.Rank(square), 1)))
        kinds = {term.dtype for term in terms}
        if len(kinds) > 1:
            terms = [raw.Cast(term, DstT="float64") for term in terms]
        return raw.AddN(terms)


def _ask(client: gs.Client, case: Case, graph: Any, ys: list[str], xs: list[str], **options: Any) -> Any:
    if not case.meta["init"]:
        return client.compute_gradients(
            graph, ys, xs, feeds=case.feeds, return_ys=True, timeout_seconds=_TIMEOUT_SECONDS, **options
        )
    with client.session(graph, init=case.meta["init"], feeds=case.feeds) as session:
        return session.compute_gradients(
            ys, xs, feeds=case.feeds, return_ys=True, timeout_seconds=_TIMEOUT_SECONDS, **options
        )
