"""What it takes to hand 64 MiB to a server on the same host, and to get them from it, against copying them once."""

from __future__ import annotations

import numpy as np

import gradserve.client as gs
from benchmarks.report import Row, alternating
from gradserve.client import Client

MEBIBYTES = 64
_ROUNDS = 15


def run() -> list[Row]:
    """Two rows: a call that feeds the array and fetches one element of it, or fetches all of a variable; one memcpy."""
    array = np.arange(MEBIBYTES << 18, dtype=np.float32)
    target = np.ones_like(array)  # its pages are there
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float32", (None,), "x")
        first = gs.raw.GatherV2(x, np.int32(0), np.int32(0))
    with gs.Graph().as_default() as holding:
        read = gs.Variable(array, name="held").read()
    with Client.embedded(workers=1, engine="numpy") as client:
        session = client.session(holding)

        def copied() -> None:
            np.copyto(target, array)

        fed = alternating(lambda: client.run(graph, {x: array}, first), copied, _ROUNDS, 2)
        fetched = alternating(lambda: session.run(fetches=read), copied, _ROUNDS, 2)
    return [
        Row(f"{MEBIBYTES} MiB of {what}, same host", *times, "one memcpy", "at most 3")
        for what, times in (("feeds", fed), ("results", fetched))
    ]
