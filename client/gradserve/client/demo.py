"""The demo: a network learns handwritten digits over two worker processes, its weights held by the server.

data     the 1,797 digits that scikit-learn ships, a fifth held back
graph    64 -> 128 on worker 0, 128 -> 64 -> 10 on worker 1; gradients stand beside their forward ops
train    a session on an embedded server: each step runs Adam's update ops where the weights are
show     placement, a live progress bar, accuracy on the digits held back, the loss curve as a PNG
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import gradserve.client as gs

DEVICES = ("/job:worker/task:0", "/job:worker/task:1")
DESCRIPTION = "A network learns handwritten digits over two worker processes."
BATCH = 64
GOAL = 0.96


@dataclass(frozen=True, slots=True)
class Network:
    """The graph and what is run in it."""

    graph: gs.Graph
    images: gs.Tensor
    labels: gs.Tensor
    loss: gs.Tensor
    correct: gs.Tensor
    step: gs.Node


@dataclass(frozen=True, slots=True)
class Digits:
    """Images `[n, 64]` scaled to 0…1, and which digit each shows."""

    images: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]


def digits(seed: int) -> tuple[Digits, Digits]:
    """Those to learn from, and a fifth to hold back."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(images))
    scaled, kinds = (images[order] / 16).astype(np.float32), labels[order].astype(np.int64)
    count = len(images) // 5
    return Digits(scaled[count:], kinds[count:]), Digits(scaled[:count], kinds[:count])


def network(seed: int) -> Network:
    """Three dense layers on two workers, cross-entropy, and Adam."""
    random = np.random.default_rng(seed)

    def dense(x: gs.Tensor, size: int, name: str) -> gs.Tensor:
        fan_in = x.shape[-1] if x.shape else None
        assert fan_in is not None
        weights = random.normal(size=(fan_in, size)) * np.sqrt(2 / fan_in)
        with graph.name_scope(name):
            w = gs.Variable(weights, dtype="float32", name="weights")
            b = gs.Variable(np.zeros(size), dtype="float32", name="bias")
            return x @ w + b

    with gs.Graph().as_default() as graph:
        images = gs.placeholder("float32", (None, 64), name="images")
        labels = gs.placeholder("int64", (None,), name="labels")
        with graph.device(DEVICES[0]):
            hidden = gs.relu(dense(images, 128, "first"))
        with graph.device(DEVICES[1]):
            hidden = gs.relu(dense(hidden, 64, "second"))
            logits = dense(hidden, 10, "third")
            loss = gs.raw.Identity(gs.mean(gs.sparse_softmax_cross_entropy(logits, labels)), name="loss")
            right = gs.cast(gs.equal(gs.argmax(logits, -1), labels), "float32")
            correct = gs.mean(right)
        step = gs.Adam(0.002).minimize(loss, colocate_gradients_with_ops=True)
        gs.group(*graph.initializers, name="init")
    return Network(graph, images, labels, loss, correct, step)


def short(worker: str) -> str:
    """The last part of a worker's name."""
    return worker.rpartition("/")[2]


def connect(console: Console, server: str | None, engine: str) -> gs.Client:
    """A client of the running server, or of one that is started here."""
    if server is not None:
        return gs.Client(server)
    with console.status("Starting a coordinator with two workers …"):
        return gs.Client.embedded(workers=2, engine=engine)


def show_placement(console: Console, client: gs.Client, net: Network) -> None:
    """Which worker runs what, and what crosses between them."""
    plan = client.explain(
        net.graph, {net.images: (BATCH, 64), net.labels: (BATCH,)}, fetches=net.loss, targets=net.step
    )
    workers = sorted({placement.worker for placement in plan.placements})
    table = Table(title="Where a training step runs", title_justify="left")
    for column in ("worker", "nodes", "segments", "products of matrices"):
        table.add_column(column)
    for worker in workers:
        nodes = [placement.node for placement in plan.placements if placement.worker == worker]
        products = [name for name in nodes if name.rpartition("/")[2].startswith("MatMul")]
        segments = sum(segment.worker == worker for segment in plan.segments)
        table.add_row(short(worker), str(len(nodes)), str(segments), "\n".join(products))
    console.print(table)
    # The size of a tensor with a row an example is known when the batch is there, and not before.
    known = f", {plan.transfer_bytes / 1024:.0f} KiB a step" if plan.transfer_bytes else ""
    console.print(f"{len(plan.transfers)} tensors cross between the workers{known}.")


def train(
    console: Console, session: gs.Session, net: Network, data: tuple[Digits, Digits], steps: int, seed: int
) -> tuple[list[float], float]:
    """The loss of each step, and the accuracy on the digits held back."""
    learn, held = data
    held_feeds = {net.images: held.images, net.labels: held.labels}
    random = np.random.default_rng(seed)
    losses: list[float] = []
    accuracy = 0.0
    shown = "loss {task.fields[loss]:.4f}  accuracy {task.fields[accuracy]:.3f}  {task.fields[rate]:.0f} steps/s"
    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn(shown), TimeElapsedColumn())
    with Progress(*columns, console=console, expand=False) as progress:
        bar = progress.add_task("", total=steps, loss=float("nan"), accuracy=0.0, rate=0.0)
        begin = time.monotonic()
        for number in range(1, steps + 1):
            rows = random.integers(0, len(learn.images), BATCH)
            feeds = {net.images: learn.images[rows], net.labels: learn.labels[rows]}
            (loss,) = session.run(feeds, fetches=net.loss, targets=net.step)
            losses.append(float(loss))
            if number % 50 == 0 or number == steps:
                (correct,) = session.run(held_feeds, fetches=net.correct)
                accuracy = float(correct)
            rate = number / (time.monotonic() - begin)
            progress.update(bar, advance=1, loss=losses[-1], accuracy=accuracy, rate=rate)
    return losses, accuracy


def draw(losses: list[float], path: Path) -> None:
    """The loss curve, and its mean over the last 25 steps, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    window = min(25, len(losses))
    smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.semilogy(losses, color="0.8", label="each step")
    axes.semilogy(np.arange(window - 1, len(losses)), smooth, label=f"mean of {window}")
    axes.set(xlabel="step", ylabel="cross-entropy", title="Digits, trained over two workers")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


SAME = """\
The same against a running server (gradserve serve), in three lines of Python:

    import gradserve.client as gs, sklearn.datasets; images, labels = sklearn.datasets.load_digits(return_X_y=True)
    session = gs.Client("localhost:7433").session(gs.load_graph("GRAPH"), init="init", session_id="digits")
    for _ in range(200): print(session.run({"images": images / 16, "labels": labels}, "loss", "Adam/update"))

and one step of that session from any language, here with one grey image of a three:

    grpcurl -plaintext -d '{"source": {"session": "sessions/digits"}, "fetches": ["loss"], "targets": ["Adam/update"],
      "feeds": [{"name": "images", "value": {"tensor": {"dtype": "DT_FLOAT",
                   "tensor_shape": {"dim": [{"size": 1}, {"size": 64}]}, "float_val": [0.5]}}},
                {"name": "labels", "value": {"tensor": {"dtype": "DT_INT64",
                   "tensor_shape": {"dim": [{"size": 1}]}, "int64_val": [3]}}}]}' \\
      localhost:7433 gradserve.v1.GradientService/Run"""


def main() -> int:
    """Runs the demo; the exit code says whether the goal was reached."""
    parser = argparse.ArgumentParser(prog="python -m gradserve.client.demo", description=DESCRIPTION)
    parser.add_argument("--steps", type=int, default=600, help="how many steps to train (600)")
    parser.add_argument("--engine", default="auto", help="auto, numpy, xla or cupy, of the server that the demo starts")
    parser.add_argument(
        "--server", metavar="HOST:PORT", help="a running server with two workers or more; else one is started"
    )
    parser.add_argument("--seed", type=int, default=7, help="of the weights and the batches")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the loss curve and the graph (out)")
    options = parser.parse_args()
    console = Console()
    data = digits(options.seed)
    net = network(options.seed)
    counts = f"{len(data[0].images)} digits to learn from, {len(data[1].images)} held back"
    console.print(f"{counts}; a graph of {len(net.graph)} nodes.")
    with connect(console, options.server, options.engine) as client:
        workers = ", ".join(f"{short(worker.name)} ({worker.engine})" for worker in client.cluster().workers)
        console.print(f"Coordinator at {client.address}, workers: {workers}.")
        show_placement(console, client, net)
        with client.session(net.graph) as session:
            losses, accuracy = train(console, session, net, data, options.steps, options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    curve, saved = options.out / "loss.png", options.out / "digits.pb"
    draw(losses, curve)
    saved.write_bytes(net.graph.as_graph_def().SerializeToString())
    console.print(f"[bold]Accuracy on the digits held back: {accuracy:.3f}[/bold]; the loss curve is in {curve}.")
    print()
    print(SAME.replace("GRAPH", str(saved)))
    return 0 if accuracy >= GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main())
