"""A client in another language works: Node, with the protos loaded as they are."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from gradserve.server.remote import Remote
from tests.server.serving import product, remote

__all__ = ["remote"]

FOLDER = Path(__file__).resolve().parent

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or shutil.which("npm") is None, reason="node or npm is not installed"
)


@pytest.fixture(scope="module")
def packages() -> None:
    """Installs the program's packages, once."""
    if not (FOLDER / "node_modules" / "@grpc" / "proto-loader").exists():
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=FOLDER, check=True, capture_output=True)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["node", str(FOLDER / "gradients.js"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.usefixtures("packages")
def test_node_sends_a_graph_and_reads_gradients(remote: Remote, tmp_path: Path) -> None:
    graph = tmp_path / "graph.pb"
    graph.write_bytes(product())
    result = run(remote.address, str(graph), "z", "x", "0", "1", "2")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    x = np.array([0.0, 1.0, 2.0])
    np.testing.assert_allclose(found["gradients"][0], np.exp(x) * (x * x + 2 * x), rtol=1e-6)
    np.testing.assert_allclose(found["ys"][0], np.exp(x) * x * x, rtol=1e-6)


@pytest.mark.usefixtures("packages")
def test_node_sees_a_clear_error(remote: Remote, tmp_path: Path) -> None:
    graph = tmp_path / "graph.pb"
    graph.write_bytes(product())
    result = run(remote.address, str(graph), "nowhere", "x", "0")
    assert result.returncode == 1
    assert result.stderr.strip() == "NOT_FOUND: The graph has no node 'nowhere'."
