"""An embedded server lives as long as its client, and large tensors reach it in bounded memory."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time

import grpc
import numpy as np
import pytest

import gradserve.client as gs
from gradserve.client import embedded
from gradserve.errors import Unsupported
from tests.paths import ROOT


def answers(address: str) -> bool:
    """Whether a server listens."""
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(0.5)
        except grpc.FutureTimeoutError:
            return False
        return True


def test_a_forgotten_client_takes_its_server_along() -> None:
    client = gs.Client.embedded(workers=1, engine="numpy")
    address = client.address
    assert client.cluster().workers[0].engine == "numpy"
    del client
    gc.collect()
    assert not answers(address)


def test_an_asynchronous_client_has_its_own_server() -> None:
    async def ask() -> tuple[str, int]:
        async with await gs.AsyncClient.embedded(workers=1, engine="numpy") as client:
            return client.address, len((await client.cluster()).workers)

    address, workers = asyncio.run(ask())
    assert workers == 1
    assert not answers(address)


def test_the_server_ends_with_the_program() -> None:
    program = "import gradserve.client as gs; print(gs.Client.embedded(workers=1, engine='numpy').address)"
    kept = program.replace("print(", "c = ").replace(".address)", "; print(c.address)")
    result = subprocess.run([sys.executable, "-c", kept], capture_output=True, text=True, cwd=ROOT, check=True)
    deadline = time.monotonic() + 5
    while answers(result.stdout.strip()):
        assert time.monotonic() < deadline


def test_without_a_server_the_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "GROUP", "gradserve.nothing")
    with pytest.raises(Unsupported, match="pip install"):
        gs.Client.embedded()


def test_a_tensor_of_many_chunks_passes_both_ways(client: gs.Client) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float32", (None,), name="x")
        y = gs.negative(x)
    data = np.arange(10 << 20, dtype=np.float32)  # 40 MiB
    np.testing.assert_array_equal(client.run(graph, {x: data}, y)[0], -data)

    async def twice() -> list[np.ndarray]:
        async with gs.AsyncClient(client.address) as other:
            return await other.run(graph, {x: data[::2]}, y)

    np.testing.assert_array_equal(asyncio.run(twice())[0], -data[::2])


def test_many_calls_run_at_once(client: gs.Client) -> None:
    with gs.Graph().as_default() as graph:
        x = gs.placeholder("float32", (), name="x")
        y = gs.square(x)

    async def ask() -> list[float]:
        async with gs.AsyncClient(client.address) as other:
            results = await asyncio.gather(*(other.compute_gradients(graph, y, x, {x: k}) for k in range(20)))
            return [float(np.asarray(result[0])) for result in results]

    assert asyncio.run(ask()) == [2.0 * k for k in range(20)]
