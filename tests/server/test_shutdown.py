"""A server ends well: running requests finish, nothing is left behind, and it does not outlive its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from gradserve.errors import InvalidArgument, Unavailable
from gradserve.server import embedded
from gradserve.server.remote import Remote
from gradserve.v1 import gradient_service_pb2 as wire
from tests.server.serving import inline, product, slow


def is_alive(pid: int) -> bool:
    """Whether a process runs (one that has ended and was not waited for does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ends(pid: int, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_alive(pid)


def test_a_running_request_is_finished_before_the_end() -> None:
    server = embedded.start(workers=1, engine="numpy")
    with Remote(server.address) as remote:
        remote.connect()
        feeds = [wire.NamedTensor(name="x", value=remote.value(np.eye(1000, dtype=np.float32), "x"))]
        request = wire.RunRequest(source=inline(slow(300)), feeds=feeds, fetches=["y"])
        running = remote.gradients.Run.future(request)
        time.sleep(0.3)
        assert not running.done()
        os.kill(server.pid, signal.SIGTERM)
        assert len(running.result(30).fetches) == 1
    assert ends_after_stop(server)


def ends_after_stop(server: embedded.EmbeddedServer) -> bool:
    server.stop()
    return not is_alive(server.pid)


def test_workers_and_data_go_with_the_server(tmp_path: Path) -> None:
    with embedded.start(workers=2, engine="numpy") as server, Remote(server.address) as remote:
        remote.connect()
        workers = remote.call(remote.gradients.GetCluster, wire.GetClusterRequest()).workers
    assert not is_alive(server.pid)
    assert all(ends(worker.pid, 5) for worker in workers)


def test_an_embedded_server_does_not_outlive_its_parent() -> None:
    program = (
        "from gradserve.server import embedded; import os; s = embedded.start(1, 'numpy'); "
        "print(s.pid, flush=True); os._exit(0)"
    )
    parent = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ends(int(parent.stdout))


def test_graphs_survive_a_restart(tmp_path: Path) -> None:
    for restarted in (False, True):
        with embedded.start(1, "numpy", data_dir=tmp_path) as server, Remote(server.address) as remote:
            remote.connect()
            if not restarted:
                request = wire.CreateGraphRequest(graph_id="kept", graph=wire.GraphValue(serialized=product()))
                remote.call(remote.gradients.CreateGraph, request)
            found = remote.call(remote.gradients.GetGraph, wire.GetGraphRequest(name="graphs/kept"))
            assert found.graph.version == 1


def test_a_server_that_cannot_start_says_why() -> None:
    with pytest.raises(InvalidArgument, match="No such option"):
        embedded.start(1, "numpy", no_such_option=1)
    with pytest.raises(Unavailable, match="did not start"):
        embedded.start(1, "numpy", host="192.0.2.1")


def test_several_servers_start_side_by_side() -> None:
    started: list[embedded.EmbeddedServer] = []
    threads = [threading.Thread(target=lambda: started.append(embedded.start(1, "numpy"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({server.address for server in started}) == 2
    for server in started:
        server.stop()
