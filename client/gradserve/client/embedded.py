"""A server of one's own, found by its entry point: the client does not know the server's code."""

from __future__ import annotations

import importlib.metadata
from typing import Any, Protocol

from gradserve.errors import Unsupported

GROUP = "gradserve.embedded"


class EmbeddedServer(Protocol):
    """A running server."""

    address: str

    def stop(self) -> None:
        """Ends it."""
        ...


def start(workers: int, engine: str, options: dict[str, Any]) -> EmbeddedServer:
    """Starts a server; who starts it stops it.

    Raises:
        Unsupported: no server is installed beside the client.
    """
    found = list(importlib.metadata.entry_points(group=GROUP))
    if not found:
        raise Unsupported("No server is installed beside the client: pip install 'gradserve[server]'.", group=GROUP)
    return found[0].load()(workers=workers, engine=engine, **options)
