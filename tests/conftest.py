"""What the tests print at the end of a run: the tables that they summarise their work in.

A test that prints is heard only in its own process; the report of its outcome also reaches the one that gathers them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def summarise(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Keeps a text for the end of the run."""
    return lambda text: record_property("summary", text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    for report in reports:
        for name, text in report.user_properties:
            if name == "summary" and report.when == "call":
                terminalreporter.section(report.nodeid)
                terminalreporter.write_line(str(text))
