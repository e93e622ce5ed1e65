"""`python -m tests.conformance --cases DIR --engine numpy --workers 2`: a JSON report of each case, then the counts."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import gradserve.client as gs
from tests.conformance.case import load
from tests.conformance.runner import Outcome, Verdict, run
from tests.paths import CASES


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a folder of cases; 0 if none failed, 1 otherwise, 2 if there are no cases."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--cases", type=Path, default=CASES, help="folder of the cases")
    parser.add_argument("--engine", default="numpy", choices=["numpy", "xla", "cupy"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", default="", help="run the cases whose name contains this")
    chosen = parser.parse_args(arguments)
    cases = [case for case in load(chosen.cases) if chosen.only in case.stem]
    if not cases:
        print(f"No cases in {chosen.cases}.", file=sys.stderr)
        return 2
    outcomes: list[Outcome] = []
    with gs.Client.embedded(workers=chosen.workers, engine=chosen.engine, compile_now=True) as client:
        for outcome in run(cases, client):
            print(json.dumps(outcome.as_json()), flush=True)
            outcomes.append(outcome)
    print(table(outcomes), file=sys.stderr)
    count = Counter(outcome.verdict for outcome in outcomes)
    print(
        f"{count[Verdict.PASSED]} passed, {count[Verdict.FAILED]} failed, {count[Verdict.SKIPPED]} skipped",
        flush=True,
    )
    return int(count[Verdict.FAILED] > 0)


def table(outcomes: Sequence[Outcome]) -> str:
    """Counts a family."""
    count = Counter((outcome.family, outcome.verdict) for outcome in outcomes)
    lines = [f"{'family':<32}{'passed':>8}{'failed':>8}{'not supported yet':>20}"]
    for family in sorted({outcome.family for outcome in outcomes}):
        passed, failed, skipped = (count[family, verdict] for verdict in Verdict)
        lines.append(f"{family:<32}{passed:>8}{failed:>8}{skipped:>20}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
