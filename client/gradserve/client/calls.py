"""Every call of the service, once: generators that both clients drive (see gradserve.client.call)."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from gradserve.client.call import Array, Call, Deadline
from gradserve.client.messages import (
    Uploaded,
    Writer,
    gradient_options,
    many,
    node_name,
    read_gradients,
    read_value,
    read_values,
    run_options,
    specs,
    tensor_name,
)
from gradserve.client.results import GradientResult
from gradserve.errors import NotFound
from gradserve.graph.graph import Graph
from gradserve.v1 import gradient_service_pb2 as wire
from gradserve.v1 import graph_pb2

PAGE_SIZE = 1000


class Connection(Protocol):
    """What a call needs of the client that it is made on."""

    timeout_seconds: float | None
    uploaded: Uploaded


class OpenSession(Protocol):
    """What a call needs of a session: its name, the graph that it was opened on, and its client."""

    name: str
    graph: Any
    connection: Any


def _new_id() -> str:
    return uuid.uuid4().hex


def _in_session(graph: Any) -> bool:
    name = graph if isinstance(graph, str) else getattr(graph, "name", "")
    return isinstance(name, str) and name.startswith("sessions/")


def _with_references(
    client: Connection, timeout_seconds: float | None, send: Callable[[Writer, Deadline], Call[Any]]
) -> Call[Any]:
    """Sends a request whose large values went ahead; sends them again, once, if the server has not got one."""
    deadline = Deadline(client.timeout_seconds if timeout_seconds is None else timeout_seconds)
    writer = Writer(deadline, client.uploaded.blocks)
    try:
        return (yield from _with_blocks(writer, deadline, send))
    except NotFound as error:
        if error.metadata.get("block") in writer.shared:
            client.uploaded.blocks = None  # the server is on another host after all
        elif error.metadata.get("tensor") in writer.references:
            client.uploaded.forget(writer.references)
        else:
            raise
    return (yield from _with_blocks(Writer(deadline, client.uploaded.blocks), deadline, send))


def _with_blocks(writer: Writer, deadline: Deadline, send: Callable[[Writer, Deadline], Call[Any]]) -> Call[Any]:
    """Sends a request. Its blocks may be written again once the server has answered, and never where it has not."""
    answered = False
    try:
        result = yield from send(writer, deadline)
        answered = True
        return result
    finally:
        writer.end(unread=not answered)


def _simple(client: Connection, timeout_seconds: float | None, method: str, request: Any) -> Call[Any]:
    deadline = Deadline(client.timeout_seconds if timeout_seconds is None else timeout_seconds)
    return (yield from deadline.unary("gradients", method, request))


# Steps


def run(
    client: Connection,
    graph: Any,
    feeds: Mapping[Any, Any] | None = None,
    fetches: Any = None,
    targets: Any = None,
    *,
    shards: int | None = None,
    split: Any = None,
    reduction: str = "mean",
    local_statistics: bool = False,
    memory_budget: int = 0,
    allow_soft_placement: bool = False,
    timeout_seconds: float | None = None,
) -> Call[list[Array]]:
    """The values of tensors, one for each fetch.

    Args:
        graph: a Graph, a GraphDef (TensorFlow's too), its bytes, `graphs/…`, `sessions/…` or a session.
        feeds: values by tensor or name.
        fetches: tensors or names, one or a list.
        targets: nodes or names to run for their effect.
        shards: cut the batch into so many parts and run the graph on each, over all workers. What depends on the
            batch is put together: rows are concatenated, sums added up, means averaged. What is computed of these
            alone runs once, and so does what changes variables.
        split: the feeds that have a row an example, one or a list; None for all feeds.
        reduction: "mean" (each shard counts by its part of the examples) or "sum", for what the graph does not tell to
            be the one or the other.
        local_statistics: examples that look at each other (batch normalisation, a loss divided by a sum of weights)
            see those of their shard only. Without it a gradient that is not the whole batch's is an error.
        memory_budget: the most bytes that the step's tensors may take at once, by the server's estimate (with shards,
            those of one shard). What does not fit is not stored for the backward pass but computed again, which
            changes no bit of the results. 0 for no bound.
        allow_soft_placement: a device that the fleet lacks is replaced by one that it has.
        timeout_seconds: for the whole call; None for the client's.
    """

    def send(writer: Writer, deadline: Deadline) -> Call[list[Array]]:
        source = yield from client.uploaded.source(graph, writer)
        request = wire.RunRequest(
            source=source,
            feeds=(yield from writer.feeds(graph, feeds)),
            fetches=[tensor_name(entry, "A fetch") for entry in many(fetches)],
            targets=[node_name(entry, "A target") for entry in many(targets)],
            options=run_options(
                shards,
                split,
                reduction,
                local_statistics,
                memory_budget_bytes=memory_budget,
                allow_soft_placement=allow_soft_placement,
                result_block=writer.offer(),
            ),
            request_id=_new_id() if _in_session(graph) else "",
        )
        response = yield from deadline.unary("gradients", "Run", request)
        return (yield from read_values(response.fetches, writer))

    return (yield from _with_references(client, timeout_seconds, send))


def compute_gradients(
    client: Connection,
    graph: Any,
    ys: Any,
    xs: Any,
    feeds: Mapping[Any, Any] | None = None,
    grad_ys: Any = None,
    *,
    name: str = "gradients",
    colocate_gradients_with_ops: bool = False,
    gate_gradients: bool = False,
    aggregation_method: Any = None,
    stop_gradients: Any = None,
    unconnected_gradients: str = "none",
    deduplicate_slices: bool = False,
    return_ys: bool = False,
    fetches: Any = None,
    targets: Any = None,
    find_nonfinite: bool = False,
    shards: int | None = None,
    split: Any = None,
    reduction: str = "mean",
    local_statistics: bool = False,
    memory_budget: int = 0,
    allow_soft_placement: bool = False,
    timeout_seconds: float | None = None,
) -> Call[GradientResult]:
    """For each x the sum over all ys of dy/dx: an array, an IndexedSlices, or None with a reason.

    Args:
        graph, feeds, fetches, targets, shards, split, reduction, local_statistics, memory_budget,
        allow_soft_placement, timeout_seconds: as of `run`.
        ys, xs: tensors or names, one or a list. A Variable among the xs stands for all its reads.
        grad_ys: a seed for each y (array, Tensor, IndexedSlices, or None for ones).
        name, colocate_gradients_with_ops, gate_gradients, aggregation_method, stop_gradients,
        unconnected_gradients, deduplicate_slices: as of `gradserve.autodiff.gradients`.
        return_ys: the values of the ys come too, as `result.ys`.
        find_nonfinite: `result.nonfinite` names the first op that made a NaN or an infinity, and the shard that it ran
            in; for debugging, it costs several ops a tensor.

    Raises:
        NoGradient (a LookupError): an op between x and y has no gradient.
        InvalidArgument (a ValueError), InvalidType (a TypeError): an argument is wrong.
    """

    def send(writer: Writer, deadline: Deadline) -> Call[GradientResult]:
        source = yield from client.uploaded.source(graph, writer)
        options = yield from gradient_options(
            graph, writer, ys, xs, grad_ys, name, colocate_gradients_with_ops, gate_gradients, aggregation_method,
            stop_gradients, unconnected_gradients, deduplicate_slices,
        )  # fmt: skip
        request = wire.ComputeGradientsRequest(
            source=source,
            feeds=(yield from writer.feeds(graph, feeds)),
            gradients=options,
            return_ys=return_ys,
            fetches=[tensor_name(entry, "A fetch") for entry in many(fetches)],
            targets=[node_name(entry, "A target") for entry in many(targets)],
            options=run_options(
                shards,
                split,
                reduction,
                local_statistics,
                memory_budget_bytes=memory_budget,
                allow_soft_placement=allow_soft_placement,
                find_nonfinite=find_nonfinite,
                result_block=writer.offer(),
            ),
            request_id=_new_id() if _in_session(graph) else "",
        )
        response = yield from deadline.unary("gradients", "ComputeGradients", request)
        return (yield from read_gradients(response, writer))

    return (yield from _with_references(client, timeout_seconds, send))


def explain(
    client: Connection,
    graph: Any,
    feeds: Mapping[Any, Any] | None = None,
    fetches: Any = None,
    targets: Any = None,
    *,
    ys: Any = None,
    xs: Any = None,
    grad_ys: Any = None,
    name: str = "gradients",
    colocate_gradients_with_ops: bool = False,
    gate_gradients: bool = False,
    aggregation_method: Any = None,
    stop_gradients: Any = None,
    unconnected_gradients: str = "none",
    deduplicate_slices: bool = False,
    shards: int | None = None,
    split: Any = None,
    reduction: str = "mean",
    local_statistics: bool = False,
    memory_budget: int = 0,
    allow_soft_placement: bool = False,
    timeout_seconds: float | None = None,
) -> Call[wire.ExplainPlanResponse]:
    """How `run`, or with ys and xs `compute_gradients`, would run: placements, segments, what crosses.

    Args:
        feeds: arrays, or their shapes as tuples.
        shards, split, reduction, local_statistics: the plan is then that of the first shard.
    """

    def send(writer: Writer, deadline: Deadline) -> Call[wire.ExplainPlanResponse]:
        source = yield from client.uploaded.source(graph, writer)
        request = wire.ExplainPlanRequest(
            source=source,
            feeds=specs(graph, feeds),
            fetches=[tensor_name(entry, "A fetch") for entry in many(fetches)],
            targets=[node_name(entry, "A target") for entry in many(targets)],
            options=run_options(
                shards,
                split,
                reduction,
                local_statistics,
                memory_budget_bytes=memory_budget,
                allow_soft_placement=allow_soft_placement,
            ),
        )
        if ys is not None:
            options = yield from gradient_options(
                graph, writer, ys, xs, grad_ys, name, colocate_gradients_with_ops, gate_gradients, aggregation_method,
                stop_gradients, unconnected_gradients, deduplicate_slices,
            )  # fmt: skip
            request.gradients.CopyFrom(options)
        return (yield from deadline.unary("gradients", "ExplainPlan", request))

    return (yield from _with_references(client, timeout_seconds, send))


def cluster(client: Connection, *, timeout_seconds: float | None = None) -> Call[wire.GetClusterResponse]:
    """The workers, their devices and load, the server's limits."""
    return (yield from _simple(client, timeout_seconds, "GetCluster", wire.GetClusterRequest()))


# Graphs


def create_graph(
    client: Connection, graph: Any, graph_id: str = "", *, timeout_seconds: float | None = None
) -> Call[wire.Graph]:
    """Stores a graph; its `name` (`graphs/…`), or the result itself, then stands for it in every call."""
    request_id = _new_id()

    def send(writer: Writer, deadline: Deadline) -> Call[wire.Graph]:
        value = yield from client.uploaded.graph_value(graph, writer)
        request = wire.CreateGraphRequest(graph_id=graph_id, graph=value, request_id=request_id)
        return (yield from deadline.unary("gradients", "CreateGraph", request)).graph

    return (yield from _with_references(client, timeout_seconds, send))


def extend_graph(
    client: Connection, name: str, addition: Any, etag: str = "", *, timeout_seconds: float | None = None
) -> Call[wire.Graph]:
    """Adds the nodes and functions of a GraphDef to a stored graph; with an etag, only to that version of it."""
    request_id = _new_id()

    def send(writer: Writer, deadline: Deadline) -> Call[wire.Graph]:
        value = yield from client.uploaded.graph_value(addition, writer)
        request = wire.ExtendGraphRequest(name=name, addition=value, etag=etag, request_id=request_id)
        return (yield from deadline.unary("gradients", "ExtendGraph", request)).graph

    return (yield from _with_references(client, timeout_seconds, send))


def get_graph(client: Connection, name: str, *, timeout_seconds: float | None = None) -> Call[wire.Graph]:
    """What is known of a stored graph."""
    return (yield from _simple(client, timeout_seconds, "GetGraph", wire.GetGraphRequest(name=name))).graph


def get_graph_def(client: Connection, name: str, *, timeout_seconds: float | None = None) -> Call[graph_pb2.GraphDef]:
    """The GraphDef of a stored graph."""
    deadline = Deadline(client.timeout_seconds if timeout_seconds is None else timeout_seconds)
    request = wire.GetGraphRequest(name=name, include_graph_def=True)
    response = yield from deadline.unary("gradients", "GetGraph", request)
    return (yield from _read_graph(response.graph_value, Writer(deadline)))


def _read_graph(value: wire.GraphValue, writer: Writer) -> Call[graph_pb2.GraphDef]:
    if value.WhichOneof("kind") == "reference":
        array = yield from read_value(wire.TensorValue(reference=value.reference), writer)
        return graph_pb2.GraphDef.FromString(array.tobytes())
    return value.graph_def


def list_graphs(client: Connection, *, timeout_seconds: float | None = None) -> Call[list[wire.Graph]]:
    """The stored graphs, the newest first."""
    return (yield from _all_pages(client, timeout_seconds, "ListGraphs", wire.ListGraphsRequest, "graphs"))


def _all_pages(
    client: Connection, timeout_seconds: float | None, method: str, request_type: Any, field: str
) -> Call[list[Any]]:
    deadline = Deadline(client.timeout_seconds if timeout_seconds is None else timeout_seconds)
    found: list[Any] = []
    token = ""
    while True:
        page = yield from deadline.unary("gradients", method, request_type(page_size=PAGE_SIZE, page_token=token))
        found.extend(getattr(page, field))
        token = page.next_page_token
        if not token:
            return found


def delete_graph(client: Connection, name: str, etag: str = "", *, timeout_seconds: float | None = None) -> Call[None]:
    """Deletes a stored graph. Sessions that use it live on."""
    request = wire.DeleteGraphRequest(name=name, etag=etag, request_id=_new_id())
    yield from _simple(client, timeout_seconds, "DeleteGraph", request)


def add_gradients(
    client: Connection,
    graph: Any,
    ys: Any,
    xs: Any,
    grad_ys: Any = None,
    *,
    name: str = "gradients",
    colocate_gradients_with_ops: bool = False,
    gate_gradients: bool = False,
    aggregation_method: Any = None,
    stop_gradients: Any = None,
    unconnected_gradients: str = "none",
    deduplicate_slices: bool = False,
    etag: str = "",
    timeout_seconds: float | None = None,
) -> Call[wire.AddGradientsResponse]:
    """Adds the nodes that compute gradients on the server and names the results; `added` holds the new nodes."""
    request_id = _new_id()

    def send(writer: Writer, deadline: Deadline) -> Call[wire.AddGradientsResponse]:
        source = yield from client.uploaded.source(graph, writer)
        options = yield from gradient_options(
            graph, writer, ys, xs, grad_ys, name, colocate_gradients_with_ops, gate_gradients, aggregation_method,
            stop_gradients, unconnected_gradients, deduplicate_slices,
        )  # fmt: skip
        request = wire.AddGradientsRequest(source=source, gradients=options, etag=etag, request_id=request_id)
        response = yield from deadline.unary("gradients", "AddGradients", request)
        added = yield from _read_graph(response.added, writer)
        response.added.graph_def.CopyFrom(added)
        return response

    return (yield from _with_references(client, timeout_seconds, send))


# Sessions


def open_session(
    client: Connection,
    graph: Any,
    init: Any = None,
    feeds: Mapping[Any, Any] | None = None,
    session_id: str = "",
    *,
    checkpoint_steps: int = 0,
    allow_soft_placement: bool = False,
    timeout_seconds: float | None = None,
) -> Call[tuple[str, Any]]:
    """Opens a session: a graph together with the values of its variables, held by the workers.

    Args:
        graph: as of `run`.
        init: nodes to run first; None for the initialisers of the graph's Variables, with the values they were
            loaded with.
        feeds: values to use while they run.
        session_id: the last part of its name; the server makes one where it is empty.
        checkpoint_steps: save it on the server after so many steps that change variables, so that it outlives the
            server's end and comes back by itself; 1 loses no answered step. 0: only workers may be lost.
    """
    request_id = _new_id()
    chosen = getattr(graph, "initializers", None) if init is None else init
    values = {**(getattr(graph, "initial_values", {}) if init is None else {}), **(feeds or {})}

    def send(writer: Writer, deadline: Deadline) -> Call[tuple[str, Any]]:
        source = yield from client.uploaded.source(graph, writer)
        request = wire.CreateSessionRequest(
            session_id=session_id,
            source=source,
            init_targets=[node_name(entry, "An entry of init") for entry in many(chosen)],
            feeds=(yield from writer.feeds(graph, values)),
            options=wire.RunOptions(allow_soft_placement=allow_soft_placement),
            request_id=request_id,
            checkpoint_steps=checkpoint_steps,
        )
        response = yield from deadline.unary("gradients", "CreateSession", request)
        return response.session.name, graph if isinstance(graph, Graph) else None

    return (yield from _with_references(client, timeout_seconds, send))


def restore_session(
    client: Connection, name: str, graph: Any = None, *, timeout_seconds: float | None = None
) -> Call[tuple[str, Any]]:
    """Opens a session again from `sessions/…/checkpoints/…`, or from the latest checkpoint of `sessions/…`.

    Args:
        graph: the Graph that it was opened on, if it is at hand: feeds then get their tensors' dtypes.
    """
    request = wire.RestoreSessionRequest(name=name, request_id=_new_id())
    response = yield from _simple(client, timeout_seconds, "RestoreSession", request)
    return response.session.name, graph


def list_sessions(client: Connection, *, timeout_seconds: float | None = None) -> Call[list[wire.Session]]:
    """The open sessions, the newest first."""
    return (yield from _all_pages(client, timeout_seconds, "ListSessions", wire.ListSessionsRequest, "sessions"))


def session_save(
    session: OpenSession, checkpoint_id: str = "", *, timeout_seconds: float | None = None
) -> Call[wire.Checkpoint]:
    """Writes the variables to a checkpoint that survives a restart of the server."""
    request = wire.SaveSessionRequest(name=session.name, checkpoint_id=checkpoint_id, request_id=_new_id())
    return (yield from _simple(session.connection, timeout_seconds, "SaveSession", request)).checkpoint


def session_restore(
    session: OpenSession, checkpoint: str = "", *, timeout_seconds: float | None = None
) -> Call[wire.Session]:
    """Puts the variables back to a checkpoint (its name, or its id), the latest one if none is named."""
    name = checkpoint or session.name
    if not name.startswith("sessions/"):
        name = f"{session.name}/checkpoints/{checkpoint}"
    request = wire.RestoreSessionRequest(name=name, request_id=_new_id())
    return (yield from _simple(session.connection, timeout_seconds, "RestoreSession", request)).session


def session_close(
    session: OpenSession, *, delete_checkpoints: bool = False, timeout_seconds: float | None = None
) -> Call[None]:
    """Closes the session and frees its variables; closing twice does nothing."""
    request = wire.DeleteSessionRequest(name=session.name, delete_checkpoints=delete_checkpoints, request_id=_new_id())
    try:
        yield from _simple(session.connection, timeout_seconds, "DeleteSession", request)
    except NotFound as error:
        if error.metadata.get("session", session.name) != session.name:
            raise


def delete_session(
    client: Connection, name: str, *, delete_checkpoints: bool = False, timeout_seconds: float | None = None
) -> Call[None]:
    """Closes a session by name."""
    request = wire.DeleteSessionRequest(name=name, delete_checkpoints=delete_checkpoints, request_id=_new_id())
    yield from _simple(client, timeout_seconds, "DeleteSession", request)
