"""What README, the guide to adding an op, and the demo show is run as it stands there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import json_format

import gradserve.client as gs
from gradserve.client import demo
from gradserve.client.call import Call, Deadline
from gradserve.v1 import gradient_service_pb2 as wire
from tests.paths import ROOT

CHECK = """
from hypothesis import given, settings, strategies as st
from tests.ops.differences import Built, check
from tests.ops.draw import Draw

@settings(max_examples=5, deadline=None, database=None)
@given(st.data(), st.integers(0, 99))
def agrees(data, seed):
    for name in ("Cube", "Swish"):
        op = lookup(name)
        for example in op.examples(Draw(lambda low, high: data.draw(st.integers(low, high)), seed)):
            for known_shapes in (True, False):
                built = Built(op, example, known_shapes=known_shapes)
                check(built.outputs, built.sources, built.values, order=2)
agrees()
"""


def blocks(page: str) -> list[str]:
    """The Python of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)


def python(code: str) -> str:
    """What a program prints."""
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_example_of_the_readme_works() -> None:
    (example,) = blocks("README.md")
    assert len([line for line in example.splitlines() if line]) <= 15
    assert "array" in python(example)


def test_adding_an_op_is_one_edit() -> None:
    assert len((ROOT / "docs/adding-an-op.md").read_text().splitlines()) < 40
    head = "import gradserve.ops\nfrom gradserve.graph.op import call, define, lookup, raw, unary\n"
    python(head + "".join(blocks("docs/adding-an-op.md")) + CHECK)


def test_the_links_of_the_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), (page.name, link)


def test_the_demo_learns_the_digits(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gradserve.client.demo", "--engine", "numpy", "--out", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    found = re.search(r"held back: (0\.\d+)", result.stdout)
    assert found is not None
    assert float(found[1]) >= demo.GOAL
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_demo_prints_works_elsewhere(client: gs.Client, tmp_path: Path) -> None:
    (tmp_path / "digits.pb").write_bytes(demo.network(1).graph.as_graph_def().SerializeToString())
    shown = demo.SAME.replace("GRAPH", str(tmp_path / "digits.pb")).replace("localhost:7433", client.address)
    lines = re.findall(r"^    (import .*|session = .*|for _ .*)$", shown, re.M)
    assert len(lines) == 3
    losses = [float(text) for text in re.findall(r"array\(([\d.e-]+)", python("\n".join(lines)))]
    assert losses[-1] < 0.2 < losses[0]
    body = re.search(r"-d '(.*?)' \\", shown, re.S)
    assert body is not None
    request = json_format.ParseDict(json.loads(body[1]), wire.RunRequest())
    response = client.transport.drive(_send(request))
    assert np.isfinite(np.frombuffer(response.fetches[0].value.tensor.tensor_content, np.float32)).all()
    client.delete_session("sessions/digits")


def _send(request: wire.RunRequest) -> Call[Any]:
    return Deadline(30).unary("gradients", "Run", request)
