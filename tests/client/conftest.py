"""One embedded server for all the tests of the client."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import gradserve.client as gs


@pytest.fixture(scope="session")
def client() -> Iterator[gs.Client]:
    """A client with a server of two workers."""
    with gs.Client.embedded(workers=2, engine="numpy", timeout_seconds=60) as connected:
        yield connected
