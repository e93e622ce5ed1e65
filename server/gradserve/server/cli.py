"""The command `gradserve`: serve, and what can be asked of a server.

Exit codes: 0 done; 1 the request failed; 2 wrong usage; 3 no server answers.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Callable, Generator
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click
import numpy as np
import uvloop
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table

from gradserve.errors import GradserveError, InvalidArgument, Unavailable
from gradserve.saved.model import read_model
from gradserve.server import embedded
from gradserve.server.limits import Limits, descriptions
from gradserve.server.remote import Remote, silent
from gradserve.server.requests import METHODS, REDUCTIONS, UNCONNECTED, Asked, read_arrays
from gradserve.v1 import gradient_service_pb2 as wire

F = TypeVar("F", bound=Callable[..., Any])

FAILED, USAGE, UNREACHABLE = 1, 2, 3
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

PIPE_WIDTH = 200  # a table that goes into a file or a pipe is not cut to a terminal's width

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else PIPE_WIDTH)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def fail(error: GradserveError, as_json: bool) -> NoReturn:
    """Ends with one line that says what went wrong and how to mend it."""
    if as_json:
        click.echo(json.dumps({"error": error.message, "reason": error.reason, "metadata": error.metadata}), err=True)
    else:
        err.print(f"[bold red]error:[/] {_plain(error.message)}")
    raise SystemExit(UNREACHABLE if isinstance(error, Unavailable) else FAILED)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def reporting(command: F) -> F:
    """Turns the errors of a command into one line and an exit code."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> Any:
        try:
            return command(*arguments, **options)
        except GradserveError as error:
            fail(error, bool(options.get("as_json")))
        except OSError as error:
            fail(
                InvalidArgument(f"{error.filename or 'A file'}: {error.strerror or error}."),
                bool(options.get("as_json")),
            )

    return run  # pyright: ignore[reportReturnType]


def names(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[str]:
    """Names given one by one or with commas."""
    return [name.strip() for value in values for name in value.split(",") if name.strip()]


def pairs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """`NAME=VALUE` options."""
    found: dict[str, str] = {}
    for value in values:
        name, equals, right = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r} must be NAME=VALUE")
        found[name] = right
    return found


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a machine, nothing else.")


def sharding_options(command: F) -> F:
    """How a batch is cut, as options."""
    listed = [
        click.option("--shards", type=click.IntRange(1), metavar="N",
                     help="Cut the batch into N parts and run the graph on each, over all workers."),
        click.option("--split", multiple=True, callback=names, metavar="NAME,…",
                     help="The feeds that have a row an example.  [default: all feeds]"),
        click.option("--reduction", type=click.Choice(list(REDUCTIONS)), default="mean", show_default=True,
                     help="How the parts come together of what the graph does not tell to be a sum or a mean."),
        click.option("--local-statistics", is_flag=True,
                     help="Let examples that look at each other see those of their shard only."),
        click.option("--memory-budget", type=click.IntRange(0), default=0, metavar="BYTES",
                     help="Compute again what would take more memory at once, in place of storing it."),
    ]  # fmt: skip
    for option in reversed(listed):
        command = option(command)
    return command


server_option = click.option(
    "--server",
    metavar="ADDRESS",
    help="A running server, as host:port. Without it a server is started for this command alone.",
)
workers_option = click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="Worker processes."
)
fleet_option = click.option(
    "--fleet",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="Where workers run: processes of this machine, or actors of a Ray cluster (pip install 'gradserve[ray]').",
)
ray_address_option = click.option(
    "--ray-address",
    default="",
    metavar="ADDRESS",
    help="A running cluster, as host:port, or auto for the one that this machine has joined with `ray start`.  "
    "[default: a Ray of the server's own]",
)
gpu_transport_option = click.option(
    "--gpu-transport",
    type=click.Choice(["nccl", "host"]),
    default="nccl",
    show_default=True,
    help="How tensors go from GPU to GPU on a Ray fleet: by NCCL where both ends have it, or through host memory.",
)
engine_option = click.option(
    "--engine",
    type=click.Choice(["auto", "numpy", "xla", "cupy"]),
    default="auto",
    show_default=True,
    help="How workers compute. auto: xla where jax is installed, else numpy. cupy needs a GPU.",
)


def limit_options(command: F) -> F:
    """One `--max-…` option for every bound."""
    for entry in reversed(fields(Limits)):
        option = f"--{entry.name.replace('_', '-')}"
        text = descriptions()[entry.name]
        command = click.option(
            option, type=click.IntRange(1), default=entry.default, show_default=True, help=text, metavar="N"
        )(command)
    return command


def gradient_options(required: bool) -> Callable[[F], F]:
    """The arguments of `gradients`, as options."""
    many = {"multiple": True, "callback": names, "metavar": "NAME,…"}
    listed: list[Callable[[F], F]] = [
        click.option("--ys", **many, required=required, help="Tensors to differentiate; several add up."),
        click.option("--xs", **many, required=required, help="Tensors to differentiate with respect to."),
        click.option("--grad-ys", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="SEEDS.npz",
                     help="A seed for some ys, by name; ones for the others."),
        click.option("--grad-y-tensor", "grad_y_tensors", multiple=True, callback=pairs, metavar="Y=TENSOR",
                     help="A tensor of the graph as the seed of Y."),
        click.option("--name", default="gradients", show_default=True, help="Scope of the added nodes."),
        click.option("--colocate-gradients-with-ops", is_flag=True, help="Keep gradient ops beside their forward ops."),
        click.option("--gate-gradients", is_flag=True, help="Use an op's gradients only once all of them are there."),
        click.option("--aggregation-method", type=click.Choice(list(METHODS)), default="add-n", show_default=True,
                     help="How gradients of the same tensor are summed."),
        click.option("--stop-gradients", **many, help="Tensors to treat as constants."),
        click.option("--unconnected-gradients", type=click.Choice(list(UNCONNECTED)), default="none", show_default=True,
                     help="What stands for the gradient of an x that no y depends on."),
        click.option("--deduplicate", is_flag=True, help="Give every index of a sparse gradient once."),
    ]  # fmt: skip

    def add(command: F) -> F:
        for option in reversed(listed):
            command = option(command)
        return command

    return add


@click.group(context_settings=SETTINGS)
@click.version_option(package_name="gradserve", prog_name="gradserve")
def main() -> None:
    """Gradients as a service: a graph goes in, partial derivatives come out.

    \b
    Start a server:             gradserve serve --workers 2
    Differentiate a file once:  gradserve gradients model.pb --ys loss --xs w,b --feeds feeds.npz --out grads.npz
    Ask a running server:       gradserve status --server localhost:7433

    Tensors are named as in the graph: node:k is output k of a node, node means node:0.
    """


@main.command(context_settings=SETTINGS)
@workers_option
@engine_option
@fleet_option
@ray_address_option
@gpu_transport_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0 for every interface.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=7433, show_default=True, help="Port; 0 takes a free one."
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where graphs and checkpoints are kept.  [default: ~/.local/share/gradserve; with --port 0: none]",
)
@click.option("--threads", type=click.IntRange(1), help="Threads a worker.  [default: cores / workers]")
@click.option("--compile-now", is_flag=True, help="Compile at the first call, not in the background.")
@click.option(
    "--grace-seconds",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="How long running requests may take to finish at the end.",
)
@click.option(
    "--stall-timeout-seconds",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="Replace a worker that gives no sign of life for so long; 0: never.",
)
@click.option(
    "--patience-seconds",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Replace a worker that runs for so long what nobody waits for any more; 0: never.",
)
@click.option(
    "--memory-limit-bytes",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Most memory that a step's tensors may take on one worker; 0: no limit.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    callback=pairs,
    metavar="NAME=MODEL",
    help="Hold a model, as `gradients` takes it, as graphs/NAME; where it has variables also as the session "
    "sessions/NAME, with their values.",
)
@limit_options
@click.option("--verbose", is_flag=True, help="Log every call, not only failures.")
@click.option("--follow-stdin", is_flag=True, hidden=True, help="End when standard input does.")
@json_option
@reporting
def serve(
    workers: int,
    engine: str,
    fleet: str,
    ray_address: str,
    gpu_transport: str,
    host: str,
    port: int,
    data_dir: Path | None,
    threads: int | None,
    compile_now: bool,
    grace_seconds: float,
    stall_timeout_seconds: float,
    patience_seconds: float,
    memory_limit_bytes: int,
    models: dict[str, str],
    verbose: bool,
    follow_stdin: bool,
    as_json: bool,
    **limits: int,
) -> None:
    """Start a server and its workers; runs until Ctrl-C or SIGTERM.

    The server answers gRPC (gradserve.v1.GradientService and TensorService, health, reflection, channelz). When it is
    asked to end, it lets running requests finish.
    """
    from gradserve.server.app import ServerOptions
    from gradserve.server.app import serve as serve_forever
    from gradserve.server.runtime import RuntimeOptions

    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    bounds = Limits(**limits)
    if ray_address and fleet != "ray":
        raise InvalidArgument("--ray-address names a Ray cluster: add --fleet ray.")
    options = ServerOptions(
        host=host,
        port=port,
        data_dir=data_dir or (embedded.data_folder() if port else None),
        grace_seconds=grace_seconds,
        runtime=RuntimeOptions(
            workers=workers,
            fleet=fleet,
            ray_address=ray_address,
            gpu_transport=gpu_transport,
            engine=engine,
            threads=threads,
            compile_now=compile_now,
            plans=bounds.max_cached_plans,
            stall_timeout_seconds=stall_timeout_seconds,
            patience_seconds=patience_seconds,
            memory_limit_bytes=memory_limit_bytes,
        ),
        limits=bounds,
        models={name: read_model(Path(path)) for name, path in models.items()},
    )

    def ready(address: str) -> None:
        if as_json:
            click.echo(json.dumps({"address": address, "workers": workers, "engine": engine}))
        else:
            out.print(f"Serving on [bold]{address}[/] with {workers} workers. Ctrl-C ends it.")
        sys.stdout.flush()

    uvloop.run(serve_forever(options, ready, follow_stdin))


@contextlib.contextmanager
def connection(server: str | None, workers: int = 1, engine: str = "auto", quiet: bool = False) -> Generator[Remote]:
    """A running server, or one for this command alone, with progress on the terminal."""
    with contextlib.ExitStack() as stack:
        show: Any = silent
        if not quiet and err.is_terminal:
            columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), DownloadColumn()
            show = _Shown(stack.enter_context(Progress(*columns, console=err, transient=True)))
        address = server
        if address is None:
            if not quiet and err.is_terminal:
                err.print("[dim]Starting a server for this command …[/]")
            started = embedded.start(workers, engine)
            stack.callback(started.stop)
            address = started.address
        remote = stack.enter_context(Remote(address, show))
        remote.connect()
        yield remote


class _Shown:
    """Progress of transfers as bars."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total)
        self._progress.update(self._tasks[what], completed=done)


def model_argument(command: F) -> F:
    """A graph in a file or folder, and how its tensors are named."""
    listed = [
        click.argument("graph", type=click.Path(exists=True, path_type=Path), metavar="MODEL"),
        click.option("--signature", metavar="NAME",
                     help="A signature of a SavedModel: tensors may be named as it names them."),
    ]  # fmt: skip
    for part in reversed(listed):
        command = part(command)
    return command


@main.command(context_settings=SETTINGS)
@model_argument
@gradient_options(required=True)
@click.option(
    "--feeds",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FEEDS.npz",
    help="Values of placeholders, by tensor name.",
)
@click.option(
    "--out",
    "output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="GRADS.npz",
    help="Where to write the gradients, by the names of the xs; X/values, X/indices and X/dense_shape for a "
    "sparse one. Without it only a summary is printed.",
)
@click.option("--return-ys", is_flag=True, help="Write the values of the ys too, as ys/NAME.")
@click.option(
    "--fetch", "fetches", multiple=True, callback=names, metavar="NAME,…", help="More tensors to write, by name."
)
@sharding_options
@click.option("--allow-soft-placement", is_flag=True, help="Replace devices that there are not.")
@server_option
@workers_option
@engine_option
@json_option
@reporting
def gradients(
    graph: Path,
    signature: str | None,
    feeds: Path | None,
    output: Path | None,
    return_ys: bool,
    fetches: list[str],
    shards: int | None,
    split: list[str],
    reduction: str,
    local_statistics: bool,
    memory_budget: int,
    allow_soft_placement: bool,
    server: str | None,
    workers: int,
    engine: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Compute the partial derivatives of --ys with respect to --xs.

    MODEL is a GraphDef, as TensorFlow's graph.as_graph_def().SerializeToString() gives it (.pbtxt: as text); the folder
    of a SavedModel; or model.ckpt.meta with the checkpoint beside it. The variables of the last two have the values
    that were saved.
    """
    asked = Asked(graph, signature)
    with connection(server, workers, engine, as_json) as remote, remote.source(asked.model) as source:
        request = wire.ComputeGradientsRequest(
            source=source,
            feeds=asked.feeds(remote, read_arrays(feeds)),
            gradients=asked.gradient_options(remote, options),
            return_ys=return_ys,
            fetches=asked.tensors(fetches),
            options=asked.run_options(allow_soft_placement, shards, split, reduction, local_statistics, memory_budget),
        )
        response = remote.call(remote.gradients.ComputeGradients, request)
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        rows: list[dict[str, Any]] = []
        for x, gradient in zip(options["xs"], response.gradients, strict=True):
            rows.append(_collect(remote, x, gradient, arrays))
        for prefix, said, values in (("ys/", options["ys"], response.ys), ("", fetches, response.fetches)):
            for name, entry in zip(said, values, strict=False):  # the ys come where they are asked for
                arrays[prefix + name] = remote.array(entry.value, name)
    if output is not None:
        with output.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
    if as_json:
        click.echo(json.dumps({"gradients": rows, "out": str(output) if output else None}))
        return
    table = Table("x", "gradient", "dtype", "shape", "norm")
    for row in rows:
        table.add_row(*(_plain(str(row.get(key, ""))) for key in ("x", "kind", "dtype", "shape", "norm")))
    out.print(table)
    for row in rows:
        if row["kind"] == "none":
            out.print(f"{_plain(row['x'])}: {_plain(row['message'])}")
    if output is not None:
        out.print(f"Wrote {output}.")


def _collect(remote: Remote, x: str, gradient: wire.Gradient, arrays: dict[str, Any]) -> dict[str, Any]:
    """Adds a gradient's arrays and returns its summary."""
    kind = gradient.WhichOneof("kind")
    if kind == "dense":
        arrays[x] = remote.array(gradient.dense, x)
        return {"x": x, "kind": "dense", **_describe(arrays[x])}
    if kind == "indexed_slices":
        for part in ("values", "indices", "dense_shape"):
            arrays[f"{x}/{part}"] = remote.array(getattr(gradient.indexed_slices, part), f"{x}/{part}")
        described = _describe(arrays[f"{x}/values"]) | {"shape": arrays[f"{x}/dense_shape"].tolist()}
        return {"x": x, "kind": "sparse", **described}
    reason = wire.NoGradient.Reason.Name(gradient.none.reason).removeprefix("REASON_")
    return {"x": x, "kind": "none", "reason": reason, "message": gradient.none.message}


def _describe(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    wide = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    return {
        "dtype": str(array.dtype), "shape": list(array.shape), "norm": float(np.linalg.norm(wide.ravel()))
    }  # fmt: skip


@main.command(context_settings=SETTINGS)
@model_argument
@gradient_options(required=False)
@click.option(
    "--feeds",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FEEDS.npz",
    help="What would be fed; only dtypes and shapes matter.",
)
@click.option("--fetch", "fetches", multiple=True, callback=names, metavar="NAME,…", help="Tensors to compute.")
@click.option("--target", "targets", multiple=True, callback=names, metavar="NAME,…", help="Nodes to run.")
@sharding_options
@click.option("--allow-soft-placement", is_flag=True, help="Replace devices that there are not.")
@click.option("--nodes", "show_nodes", is_flag=True, help="Show where every node goes, and why.")
@server_option
@workers_option
@engine_option
@json_option
@reporting
def explain(
    graph: Path,
    signature: str | None,
    feeds: Path | None,
    fetches: list[str],
    targets: list[str],
    shards: int | None,
    split: list[str],
    reduction: str,
    local_statistics: bool,
    memory_budget: int,
    allow_soft_placement: bool,
    show_nodes: bool,
    server: str | None,
    workers: int,
    engine: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Show how a request would run: placement, segments, what crosses between workers.

    Nothing is computed. Give --ys and --xs for gradients, --fetch for plain values, or both. MODEL is as for gradients.
    """
    asked = Asked(graph, signature)
    if not (options["ys"] or fetches or targets):
        raise click.UsageError(f"Say what to explain: --ys and --xs, --fetch, or --target.{asked.signatures()}")
    with connection(server, workers, engine, as_json) as remote:
        request = wire.ExplainPlanRequest(
            source=wire.GraphSource(inline=remote.graph(asked.model.graph)),
            feeds=asked.specs(read_arrays(feeds)),
            gradients=asked.gradient_options(remote, options) if options["ys"] else None,
            fetches=asked.tensors(fetches),
            targets=targets,
            options=asked.run_options(allow_soft_placement, shards, split, reduction, local_statistics, memory_budget),
        )
        response: wire.ExplainPlanResponse = remote.call(remote.gradients.ExplainPlan, request)
    if as_json:
        click.echo(_as_json(response))
        return
    _show_plan(response, show_nodes)


def _show_plan(response: wire.ExplainPlanResponse, show_nodes: bool) -> None:
    """The plan as tables."""
    segments = Table("segment", "worker", "nodes", "inputs", "outputs", "after", title="Segments")
    for segment in response.segments:
        after = ", ".join(map(str, segment.after))
        cells = segment.index, segment.worker, segment.node_count, len(segment.inputs), len(segment.outputs), after
        segments.add_row(*map(str, cells))
    out.print(segments)
    if response.transfers:
        crossing = Table("tensor", "from", "to", "bytes", title="What crosses")
        for transfer in response.transfers:
            size = f"{transfer.size_bytes:,}" if transfer.size_bytes >= 0 else "unknown"
            crossing.add_row(_plain(transfer.tensor), transfer.source_worker, transfer.destination_worker, size)
        out.print(crossing)
    if show_nodes:
        placed = Table("node", "device", "because", title="Placement")
        for placement in response.placements:
            placed.add_row(_plain(placement.node), placement.device, _plain(placement.reason))
        out.print(placed)
    out.print(
        f"{response.nodes_after:,} of {response.nodes_before:,} nodes run; {response.transfer_bytes:,} bytes cross; "
        f"{response.flops:,.0f} floating-point operations; {response.peak_bytes:,} bytes at the peak."
    )
    if response.recomputed_flops:
        out.print(f"{response.recomputed_flops:,.0f} of the operations compute again what the budget has no room for.")
    for note in response.notes:
        out.print(_plain(note))


def _as_json(message: Any) -> str:
    from google.protobuf.json_format import MessageToDict

    return json.dumps(MessageToDict(message, preserving_proto_field_name=True))


SERVER = {"default": "127.0.0.1:7433", "show_default": True, "metavar": "ADDRESS", "help": "The server, as host:port."}


@main.command(context_settings=SETTINGS)
@click.option("--server", **SERVER)
@json_option
@reporting
def graphs(server: str, as_json: bool) -> None:
    """List the graphs that a server holds, the newest first."""
    found: list[wire.Graph] = []
    token = ""
    with connection(server, quiet=as_json) as remote:
        while True:
            page = remote.call(remote.gradients.ListGraphs, wire.ListGraphsRequest(page_size=1000, page_token=token))
            found.extend(page.graphs)
            token = page.next_page_token
            if not token:
                break
    if as_json:
        click.echo(f"[{', '.join(_as_json(graph) for graph in found)}]")
        return
    table = Table("graph", "version", "nodes", "bytes", "updated (UTC)")
    for graph in found:
        updated = f"{graph.update_time.ToDatetime():%Y-%m-%d %H:%M:%S}"
        table.add_row(graph.name, str(graph.version), f"{graph.node_count:,}", f"{graph.size_bytes:,}", updated)
    out.print(table if found else "The server holds no graphs.")


@main.command(context_settings=SETTINGS)
@click.option("--server", **SERVER)
@json_option
@reporting
def status(server: str, as_json: bool) -> None:
    """Show a server's workers, limits and load."""
    with connection(server, quiet=as_json) as remote:
        cluster: wire.GetClusterResponse = remote.call(remote.gradients.GetCluster, wire.GetClusterRequest())
    if as_json:
        click.echo(_as_json(cluster))
        return
    out.print(
        f"gradserve {cluster.version} at {server}: up for {cluster.uptime_seconds:,.0f} s, "
        f"{cluster.requests:,} requests, {cluster.graph_count:,} graphs, {cluster.session_count:,} sessions."
    )
    workers = Table("worker", "device", "node", "engine", "state", "pid", "threads", "memory", "restarts")
    for worker in cluster.workers:
        memory = f"{worker.memory_bytes / 2**20:,.0f} MiB"
        cells = worker.engine, worker.state, worker.pid, worker.threads, memory, worker.restarts
        workers.add_row(worker.name, worker.device, worker.node, *map(str, cells))
    out.print(workers)
    limits = Table("limit", "value", "used")
    for limit in cluster.limits:
        limits.add_row(limit.name, f"{limit.value:,}", f"{limit.used:,}" if limit.used >= 0 else "")
    out.print(limits)
