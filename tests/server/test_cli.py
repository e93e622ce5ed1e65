"""The command line: results, one-line errors, exit codes, JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from gradserve.server.cli import main
from gradserve.server.remote import Remote
from gradserve.v1 import gradient_service_pb2 as wire
from tests.client.saved import B, W, references, write_checkpoint, write_model, write_references
from tests.server.serving import product, remote

__all__ = ["remote"]

X = np.array([0.0, 1.0, 2.0], np.float32)
DZ = np.exp(X) * (X * X + 2 * X)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "graph.pb").write_bytes(product())
    np.savez(tmp_path / "feeds.npz", x=X)
    return tmp_path


def gradserve(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def gradients(folder: Path, *more: object) -> Result:
    feeds, out = folder / "feeds.npz", folder / "grads.npz"
    return gradserve("gradients", folder / "graph.pb", "--ys", "z", "--feeds", feeds, "--out", out, *more)


def test_gradients_are_written(folder: Path, remote: Remote) -> None:
    result = gradients(folder, "--xs", "x,apart", "--return-ys", "--server", remote.address)
    assert result.exit_code == 0, result.output
    with np.load(folder / "grads.npz") as found:
        assert set(found.files) == {"x", "ys/z"}
        np.testing.assert_allclose(found["x"], DZ, rtol=1e-6)
    assert "no y depends on it" in result.output


def test_without_a_server_one_is_started(folder: Path) -> None:
    result = gradients(folder, "--xs", "x", "--workers", 1, "--engine", "numpy", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["gradients"][0]["shape"] == [3]


def test_options_of_gradients_are_passed_on(folder: Path, remote: Remote) -> None:
    np.savez(folder / "seeds.npz", z=np.array([1, 10, 100], np.float32))
    more = ["--grad-ys", folder / "seeds.npz", "--gate-gradients", "--colocate-gradients-with-ops"]
    more += ["--aggregation-method", "tree", "--unconnected-gradients", "zero", "--stop-gradients", "e"]
    result = gradients(folder, "--xs", "x", "--server", remote.address, *more)
    assert result.exit_code == 0, result.output
    with np.load(folder / "grads.npz") as found:
        np.testing.assert_allclose(found["x"], [1, 10, 100] * np.exp(X) * 2 * X, rtol=1e-6)


def test_shards_and_memory_budgets_are_passed_on(folder: Path, remote: Remote) -> None:
    result = gradients(
        folder, "--xs", "x", "--server", remote.address, "--shards", 3, "--split", "x", "--reduction", "sum"
    )
    assert result.exit_code == 0, result.output
    with np.load(folder / "grads.npz") as found:
        np.testing.assert_allclose(found["x"], DZ, rtol=1e-6)
    too_many = gradients(folder, "--xs", "x", "--server", remote.address, "--shards", 4)
    assert too_many.stderr.startswith("error: 3 examples can't be split into 4 shards")
    tight = gradients(folder, "--xs", "x", "--server", remote.address, "--memory-budget", 1)
    assert "over the memory budget of 1:" in tight.stderr
    assert "there is no --shards" in gradients(folder, "--xs", "x", "--server", remote.address, "--split", "x").stderr
    options = ["--ys", "z", "--xs", "x", "--feeds", folder / "feeds.npz", "--server", remote.address, "--shards", 3]
    assert "one of 3 shards" in gradserve("explain", folder / "graph.pb", *options).stdout


def test_errors_are_one_line_and_exit_codes_tell_them_apart(folder: Path, remote: Remote) -> None:
    unknown = gradients(folder, "--xs", "nowhere", "--server", remote.address)
    assert unknown.exit_code == 1
    assert unknown.stderr.splitlines() == ["error: The graph has no node 'nowhere'."]
    as_json = gradients(folder, "--xs", "nowhere", "--server", remote.address, "--json")
    assert json.loads(as_json.stderr)["reason"] == "NOT_FOUND"
    assert gradserve("gradients", folder / "graph.pb").exit_code == 2
    (folder / "feeds.npz").write_text("no arrays")
    assert "numpy.savez" in gradients(folder, "--xs", "x", "--server", remote.address).stderr


def test_a_server_that_is_not_there_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradserve.server.remote.CONNECT_SECONDS", 0.3)
    result = gradserve("status", "--server", "127.0.0.1:1")
    assert result.exit_code == 3
    assert "gradserve serve" in result.stderr


def test_a_plan_is_explained(folder: Path, remote: Remote) -> None:
    options = ["--ys", "z", "--xs", "x", "--feeds", folder / "feeds.npz", "--server", remote.address]
    result = gradserve("explain", folder / "graph.pb", *options, "--nodes")
    assert result.exit_code == 0, result.output
    assert "nodes run" in result.output
    as_json = gradserve("explain", folder / "graph.pb", *options, "--json")
    assert json.loads(as_json.stdout)["segments"]
    assert gradserve("explain", folder / "graph.pb").exit_code == 2


def test_graphs_and_status_are_shown(remote: Remote) -> None:
    remote.call(remote.gradients.CreateGraph, wire.CreateGraphRequest(graph=wire.GraphValue(serialized=product())))
    listed = gradserve("graphs", "--server", remote.address)
    assert "graphs/" in listed.output
    assert json.loads(gradserve("graphs", "--server", remote.address, "--json").stdout)[0]["node_count"] == "6"
    assert "/job:worker/replica:0/task:1" in gradserve("status", "--server", remote.address).output
    assert len(json.loads(gradserve("status", "--server", remote.address, "--json").stdout)["workers"]) == 2


@pytest.mark.parametrize("kind", ["folder", "file", "meta"])
def test_a_model_is_read_with_the_values_of_its_variables(tmp_path: Path, remote: Remote, kind: str) -> None:
    model = write_references(tmp_path / "model")
    if kind == "file":
        model /= "saved_model.pb"
    elif kind == "meta":
        model = tmp_path / "model.ckpt.meta"
        write_checkpoint(tmp_path / "model.ckpt", {"layer/w": W, "b": B})
        model.write_bytes(references().SerializeToString())
    x = np.array([3.0, 4.0, 5.0], np.float32)
    np.savez(tmp_path / "feeds.npz", x=x)
    out = tmp_path / "grads.npz"
    result = gradserve(
        "gradients", model, "--ys", "y", "--xs", "x,w", "--return-ys", "--feeds", tmp_path / "feeds.npz", "--out", out,
        "--server", remote.address,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    with np.load(out) as found:
        np.testing.assert_allclose(found["ys/y"], x * W + B)
        np.testing.assert_allclose(found["x"], W)
        np.testing.assert_allclose(found["w"], x)
    assert not remote.call(remote.gradients.ListSessions, wire.ListSessionsRequest()).sessions
    planned = gradserve(
        "explain", model, "--fetch", "y", "--feeds", tmp_path / "feeds.npz", "--server", remote.address
    )  # fmt: skip
    assert planned.exit_code == 0, planned.output


def test_a_signature_names_tensors(tmp_path: Path, remote: Remote) -> None:
    meta = references()
    signature = meta.signature_def["serving_default"]
    signature.inputs["features"].name, signature.outputs["score"].name = "x:0", "y:0"
    write_references(tmp_path)
    write_model(tmp_path, meta)
    np.savez(tmp_path / "feeds.npz", features=W)
    np.savez(tmp_path / "seeds.npz", score=2 * np.ones(3, np.float32))
    common = [tmp_path, "--signature", "serving_default", "--server", remote.address, "--feeds", tmp_path / "feeds.npz"]
    more = ["--xs", "features", "--fetch", "score", "--grad-ys", tmp_path / "seeds.npz", "--out", tmp_path / "out.npz"]
    result = gradserve("gradients", *common, "--ys", "score", *more)
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "out.npz") as found:
        assert set(found.files) == {"features", "score"}
        np.testing.assert_allclose(found["features"], 2 * W)
        np.testing.assert_allclose(found["score"], W * W + B)
    assert "inputs features, x and the outputs" in gradserve("explain", *common).stderr
    unknown = gradserve("gradients", tmp_path, "--signature", "train", "--ys", "y", "--xs", "x")
    assert unknown.stderr.startswith("error: There is no signature 'train': the model has serving_default.")


def test_what_holds_no_graph_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.pbtxt").write_text("no graph")
    for name, message in (("empty", "Name a SavedModel's folder"), ("bad.pbtxt", "is no GraphDef in text form")):
        result = gradserve("gradients", tmp_path / name, "--ys", "y", "--xs", "x")
        assert result.exit_code == 1
        assert message in result.stderr


def test_a_server_holds_models_from_its_start(tmp_path: Path) -> None:
    model = write_references(tmp_path / "model")
    (tmp_path / "graph.pb").write_bytes(product())
    models = ["--model", f"linear={model}", "--model", f"plain={tmp_path / 'graph.pb'}"]
    command = [sys.executable, "-m", "gradserve.server", "serve", "--port", "0", "--workers", "1", "--engine", "numpy"]
    command += ["--json", "--follow-stdin", "--data-dir", str(tmp_path / "data")]
    for _ in range(2):  # and again, on the data of the first time
        with subprocess.Popen([*command, *models], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            address = json.loads(process.stdout.readline())["address"]
            with Remote(address) as remote:
                remote.connect()
                graphs = remote.call(remote.gradients.ListGraphs, wire.ListGraphsRequest()).graphs
                assert {graph.name for graph in graphs} == {"graphs/linear", "graphs/plain"}
                feeds = [wire.NamedTensor(name="x", value=remote.value(W, "x"))]
                source = wire.GraphSource(session="sessions/linear")
                response = remote.call(remote.gradients.Run, wire.RunRequest(source=source, feeds=feeds, fetches=["y"]))
                np.testing.assert_allclose(remote.array(response.fetches[0].value, "y"), W * W + B)
            process.communicate(timeout=60)
    other = subprocess.run(
        [*command, "--model", f"linear={tmp_path / 'graph.pb'}"], stdin=subprocess.PIPE, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert other.returncode == 1
    assert "has another graph graphs/linear" in other.stderr


def test_help_names_every_option() -> None:
    for command in ("serve", "gradients", "explain", "graphs", "status"):
        result = gradserve(command, "--help")
        assert result.exit_code == 0
        assert "--json" in result.output
