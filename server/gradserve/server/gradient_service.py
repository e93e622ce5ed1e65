"""GradientService: decode, call, encode.

What a request needs beyond its values (parsed graph, added gradients, names to fetch) is prepared once, on a
thread, and found again by the digest of the graph and the bytes of the options. A warm request looks it up, runs
its plan and encodes the results.
"""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any

from gradserve.errors import InvalidArgument
from gradserve.graph import codec, dtypes
from gradserve.server import graphs, nonfinite
from gradserve.server.caches import Cache
from gradserve.server.cancellation import carry_through
from gradserve.server.differentiate import (
    PARTS,
    Seeds,
    as_constant,
    differentiate,
    seed_name,
    split_seeds,
    symbolic,
)
from gradserve.server.graphs import GraphStore, GraphVersion, Record
from gradserve.server.limits import Limits
from gradserve.server.prepare import Prepared, prepare_gradients, prepare_run, sharding_of
from gradserve.server.runtime import PlanReport, Runtime, StepOptions
from gradserve.server.sessions import Session, Sessions, Turn
from gradserve.server.sharding import Sharding
from gradserve.server.telemetry import Telemetry
from gradserve.server.tensor_store import TensorStore
from gradserve.server.values import INLINE_BYTES, Array, Encoder, canonical, decode_feeds
from gradserve.v1 import gradient_service_pb2 as wire
from gradserve.v1 import gradient_service_pb2_grpc

VERSION = "0.1.0"


def step_options(options: wire.RunOptions) -> StepOptions:
    """The runtime's form of the options. Raises InvalidArgument."""
    if options.memory_budget_bytes < 0:
        raise InvalidArgument("memory_budget_bytes is negative: give a number of bytes, or 0 for no bound.")
    return StepOptions(allow_soft_placement=options.allow_soft_placement, memory_budget=options.memory_budget_bytes)


def _known_shape(feed: wire.TensorSpec) -> tuple[int, ...]:
    shape = codec.shape_from_message(feed.shape)
    if shape is None or None in shape:
        raise InvalidArgument(
            f"The shape of {feed.name} must be known to make a plan: give every dimension.", tensor=feed.name
        )
    return tuple(size or 0 for size in shape)


def _shapes(feeds: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in feeds.items()}


def _culprit(prepared: Prepared, results: Sequence[Array]) -> wire.NonFinite | None:
    """The first node that made a NaN or an infinity, where it was asked for and there is one."""
    if prepared.sharded is not None and prepared.sharded.watches is not None:
        return nonfinite.find_in_shards(prepared.sharded.watches, *results[-2:])
    if prepared.watch is not None:
        return nonfinite.find(prepared.watch, results[prepared.fetches.index(prepared.watch.summary)])
    return None


def explanation(report: PlanReport, workers: Sequence[str]) -> wire.ExplainPlanResponse:
    """The wire's form of a plan's report."""
    response = wire.ExplainPlanResponse(
        placements=[
            wire.Placement(node=node.name, worker=workers[node.worker], device=node.device, reason=node.why)
            for node in report.nodes
        ],
        transfer_bytes=report.crossing_bytes,
        flops=report.flops,
        peak_bytes=sum(report.peak_bytes),
        recomputed_flops=report.recomputed_flops,
        nodes_before=len(report.nodes) + report.simplified,
        nodes_after=len(report.nodes),
        notes=["The plan is cached: this request has run before."] if report.cached else [],
    )
    unknown = sum(crossing.bytes < 0 for crossing in report.crossings)
    if unknown:
        response.notes.append(f"{unknown} tensors that cross have no known size: transfer_bytes leaves them out.")
    for index, segment in enumerate(report.segments):
        response.segments.add(
            index=index,
            worker=workers[segment.worker],
            node_count=len(segment.nodes),
            nodes=segment.nodes,
            after=segment.after,
            flops=segment.flops,
            peak_bytes=segment.peak_bytes,
        )
    for crossing in report.crossings:
        response.transfers.add(
            tensor=crossing.tensor,
            source_worker=workers[crossing.source],
            destination_worker=workers[crossing.target],
            size_bytes=crossing.bytes,
        )
    return response


class GradientService(gradient_service_pb2_grpc.GradientServiceServicer):
    """The public service."""

    def __init__(
        self,
        runtime: Runtime,
        store: GraphStore,
        sessions: Sessions,
        tensors: TensorStore,
        limits: Limits,
        telemetry: Telemetry,
    ) -> None:
        self.runtime = runtime
        self.store = store
        self.sessions = sessions
        self.tensors = tensors
        self.limits = limits
        self.telemetry = telemetry
        self._versions: Cache[bytes, GraphVersion] = Cache(limits.max_cached_graphs)
        self._prepared: Cache[Hashable, Prepared] = Cache(limits.max_cached_requests)
        self._changes = asyncio.Lock()  # held while a stored graph changes

    # Graphs

    async def CreateGraph(self, request: wire.CreateGraphRequest, context: Any) -> wire.CreateGraphResponse:
        name = graphs.resource_name("graphs", request.graph_id)
        version = await self._version_of(self._graph_bytes(request.graph))
        record = await asyncio.to_thread(self.store.create, name, version)
        return wire.CreateGraphResponse(graph=record.message())

    async def ExtendGraph(self, request: wire.ExtendGraphRequest, context: Any) -> wire.ExtendGraphResponse:
        addition = self._graph_bytes(request.addition)
        async with self._changes:
            record, version = await self._stored(request.name)
            record.check(request.etag)
            extended = await asyncio.to_thread(graphs.extend, version.data, addition)
            record = await self._replace(record, extended)
        return wire.ExtendGraphResponse(graph=record.message())

    async def GetGraph(self, request: wire.GetGraphRequest, context: Any) -> wire.GetGraphResponse:
        if not request.include_graph_def:
            return wire.GetGraphResponse(graph=self.store.get(request.name).message())
        record, version = await self._stored(request.name)
        response = wire.GetGraphResponse(graph=record.message())
        await self._encode_graph(response.graph_value, version.data)
        return response

    async def ListGraphs(self, request: wire.ListGraphsRequest, context: Any) -> wire.ListGraphsResponse:
        records, token = await asyncio.to_thread(self.store.page, request.page_size, request.page_token)
        return wire.ListGraphsResponse(graphs=[record.message() for record in records], next_page_token=token)

    async def DeleteGraph(self, request: wire.DeleteGraphRequest, context: Any) -> wire.DeleteGraphResponse:
        async with self._changes:
            await asyncio.to_thread(self.store.delete, request.name, request.etag)
        return wire.DeleteGraphResponse()

    async def AddGradients(self, request: wire.AddGradientsRequest, context: Any) -> wire.AddGradientsResponse:
        kind = request.source.WhichOneof("source")
        if kind == "session":
            raise InvalidArgument(
                "A session's graph does not change: add the gradients to the stored graph and open a session on it.",
                session=request.source.session,
            )
        if kind != "graph":
            version, _ = await self._source(request.source)
            names, added, _ = await asyncio.to_thread(self._add, version, request.gradients)
            record = None
        else:
            async with self._changes:
                record, version = await self._stored(request.source.graph)
                record.check(request.etag)
                names, added, extended = await asyncio.to_thread(self._add, version, request.gradients)
                record = await self._replace(record, extended)
        response = wire.AddGradientsResponse(gradients=names, graph=record and record.message())
        await self._encode_graph(response.added, added)
        return response

    def _add(
        self, version: GraphVersion, options: wire.GradientOptions
    ) -> tuple[list[wire.SymbolicGradient], bytes, bytes]:
        """The names of the results, the new nodes, and the whole graph."""
        seeds = split_seeds(options, self.tensors)
        graph = version.copy()
        found = differentiate(graph, options, seeds.arrays, as_constant)
        return (
            symbolic(found),
            graphs.serialize(codec.additions(graph)),
            graphs.serialize(codec.graph_to_message(graph)),
        )

    async def _replace(self, record: Record, data: bytes) -> Record:
        version = await self._version_of(data)
        return await asyncio.to_thread(self.store.replace, record, version)

    async def _encode_graph(self, value: wire.GraphValue, data: bytes) -> None:
        if len(data) > INLINE_BYTES:
            value.reference = await self.tensors.write_bytes(data)
        else:
            value.graph_def.MergeFromString(data)

    def _graph_bytes(self, value: wire.GraphValue) -> bytes:
        match value.WhichOneof("kind"):
            case "graph_def":
                return graphs.serialize(value.graph_def)
            case "serialized":
                return value.serialized
            case "reference":
                array = self.tensors.array(value.reference)
                if array.dtype.num != dtypes.as_dtype("uint8").numpy.num:
                    raise InvalidArgument(
                        f"{value.reference} holds {array.dtype}, and a graph is a vector of uint8.",
                        tensor=value.reference,
                    )
                return array.tobytes()
            case _:
                raise InvalidArgument("The request has no graph: set graph_def, serialized or reference.")

    async def _version_of(self, data: bytes) -> GraphVersion:
        return await self._versions.get(
            graphs.digest_of(data), lambda: asyncio.to_thread(GraphVersion, data, self.limits)
        )

    async def _stored(self, name: str) -> tuple[Record, GraphVersion]:
        """A stored graph and its content."""
        while True:
            record = self.store.get(name)
            version = self._versions.find(record.digest)
            if version is not None:
                return record, version
            data = await asyncio.to_thread(self.store.read, record)
            if data is not None:
                return record, await self._version_of(data)

    async def _source(self, source: wire.GraphSource) -> tuple[GraphVersion, Session | None]:
        match source.WhichOneof("source"):
            case "session":
                session = self.sessions.get(source.session)
                return session.version, session
            case "graph":
                return (await self._stored(source.graph))[1], None
            case "inline":
                return await self._version_of(self._graph_bytes(source.inline)), None
            case _:
                raise InvalidArgument("The request has no source: set inline, graph or session.")

    # Steps

    async def Run(self, request: wire.RunRequest, context: Any) -> wire.RunResponse:
        version, session = await self._source(request.source)
        feeds = decode_feeds(request.feeds, self.tensors)
        encoder = Encoder(self.tensors, request.options.result_block)
        prepared = await self._prepare_run(version, request, sharding_of(request.options, _shapes(feeds), self.limits))
        async with self._turn(session, request.request_id) as turn:
            if turn.known is not None:
                return wire.RunResponse.FromString(turn.known)
            results = await self._step(prepared, feeds, turn, request.options)
            # What a session's step has changed stands: its answer is made, whoever is still there to hear it.
            answer = self._fetched(prepared, results, encoder)
            response = await (answer if session is None else carry_through(answer))
            turn.answered(response)
        return response

    async def _fetched(self, prepared: Prepared, results: Sequence[Array], encoder: Encoder) -> wire.RunResponse:
        response = wire.RunResponse()
        await self._encode(response.fetches, prepared.extra, prepared, results, encoder)
        return response

    async def ComputeGradients(
        self, request: wire.ComputeGradientsRequest, context: Any
    ) -> wire.ComputeGradientsResponse:
        version, session = await self._source(request.source)
        seeds = split_seeds(request.gradients, self.tensors)
        feeds = decode_feeds(request.feeds, self.tensors)
        encoder = Encoder(self.tensors, request.options.result_block)
        sharding = sharding_of(request.options, _shapes(feeds), self.limits)
        prepared = await self._prepare_gradients(version, request, seeds, sharding)
        for k, array in enumerate(seeds.arrays):
            feeds[seed_name(k)] = array
        async with self._turn(session, request.request_id) as turn:
            if turn.known is not None:
                return wire.ComputeGradientsResponse.FromString(turn.known)
            results = await self._step(prepared, feeds, turn, request.options)
            answer = self._gradients(prepared, results, encoder)
            response = await (answer if session is None else carry_through(answer))
            turn.answered(response)
        return response

    async def _gradients(
        self, prepared: Prepared, results: Sequence[Array], encoder: Encoder
    ) -> wire.ComputeGradientsResponse:
        response = wire.ComputeGradientsResponse()
        for entry in prepared.gradients:
            gradient = response.gradients.add()
            if isinstance(entry, int):
                await encoder.encode(gradient.dense, results[entry], prepared.dtypes[entry])
            elif isinstance(entry, tuple):
                for part, position in zip(PARTS, entry, strict=True):
                    value = getattr(gradient.indexed_slices, part)
                    await encoder.encode(value, results[position], prepared.dtypes[position])
            else:
                gradient.none.CopyFrom(entry)
        await self._encode(response.ys, prepared.ys, prepared, results, encoder)
        await self._encode(response.fetches, prepared.extra, prepared, results, encoder)
        culprit = _culprit(prepared, results)
        if culprit is not None:
            response.nonfinite.CopyFrom(culprit)
        return response

    async def _prepare_run(
        self, version: GraphVersion, request: wire.RunRequest, sharding: Sharding | None = None
    ) -> Prepared:
        fed = tuple(feed.name for feed in request.feeds) if sharding else ()
        key = (version.digest, tuple(request.fetches), tuple(request.targets), sharding, fed)
        return self._prepared.find(key) or await self._prepared.get(
            key, lambda: asyncio.to_thread(prepare_run, key, version, request, sharding)
        )

    async def _prepare_gradients(
        self,
        version: GraphVersion,
        request: wire.ComputeGradientsRequest,
        seeds: Seeds,
        sharding: Sharding | None = None,
    ) -> Prepared:
        watched = request.options.find_nonfinite
        fed = tuple(feed.name for feed in request.feeds) if watched or sharding else ()
        key = (
            version.digest, seeds.key, request.return_ys, tuple(request.fetches), tuple(request.targets), watched,
            sharding, fed,
        )  # fmt: skip
        return self._prepared.find(key) or await self._prepared.get(
            key, lambda: asyncio.to_thread(prepare_gradients, key, version, request, seeds.arrays, sharding)
        )

    def _turn(self, session: Session | None, request_id: str) -> AbstractAsyncContextManager[Turn]:
        return nullcontext(Turn()) if session is None else self.sessions.turn(session, request_id)

    async def _step(
        self, prepared: Prepared, feeds: Mapping[str, Array], turn: Turn, options: wire.RunOptions
    ) -> Sequence[Array]:
        if prepared.sharded is not None:
            return await self.runtime.run_sharded(
                prepared.key, prepared.sharded, feeds, variables=turn.variables, options=step_options(options)
            )
        return await self.runtime.run(
            prepared.key,
            prepared.graph,
            feeds,
            prepared.fetches,
            prepared.targets,
            variables=turn.variables,
            options=step_options(options),
        )

    async def _encode(
        self,
        values: Any,
        positions: Sequence[tuple[str, int]],
        prepared: Prepared,
        results: Sequence[Array],
        encoder: Encoder,
    ) -> None:
        for name, position in positions:
            entry = values.add(name=name)
            await encoder.encode(entry.value, results[position], prepared.dtypes[position])

    # Sessions

    async def CreateSession(self, request: wire.CreateSessionRequest, context: Any) -> wire.CreateSessionResponse:
        version, other = await self._source(request.source)
        if other is not None:
            raise InvalidArgument("A session is opened on a graph, stored or inline, not on another session.")
        record = self.store.get(request.source.graph) if request.source.WhichOneof("source") == "graph" else None
        feeds = decode_feeds(request.feeds, self.tensors)
        session = self.sessions.open(
            request.session_id, version, record.name if record else "", record.version if record else 0,
            request.checkpoint_steps,
        )  # fmt: skip
        try:
            if request.init_targets:
                plain = wire.RunRequest(targets=request.init_targets)
                prepared = await self._prepare_run(version, plain)
                async with self._turn(session, "") as turn:
                    await self._step(prepared, feeds, turn, request.options)
                session.steps = 0
            if session.checkpoint_steps:
                await self.sessions.keep(session)
        except BaseException:
            self.sessions.close(session)
            raise
        return wire.CreateSessionResponse(session=session.message())

    async def SaveSession(self, request: wire.SaveSessionRequest, context: Any) -> wire.SaveSessionResponse:
        return wire.SaveSessionResponse(checkpoint=await self.sessions.save(request.name, request.checkpoint_id))

    async def RestoreSession(self, request: wire.RestoreSessionRequest, context: Any) -> wire.RestoreSessionResponse:
        session = await self.sessions.restore(request.name)
        return wire.RestoreSessionResponse(session=session.message())

    async def DeleteSession(self, request: wire.DeleteSessionRequest, context: Any) -> wire.DeleteSessionResponse:
        await self.sessions.delete(request.name, request.delete_checkpoints)
        return wire.DeleteSessionResponse()

    async def ListSessions(self, request: wire.ListSessionsRequest, context: Any) -> wire.ListSessionsResponse:
        sessions, token = self.sessions.page(request.page_size, request.page_token)
        return wire.ListSessionsResponse(sessions=[session.message() for session in sessions], next_page_token=token)

    # Plans and workers

    async def ExplainPlan(self, request: wire.ExplainPlanRequest, context: Any) -> wire.ExplainPlanResponse:
        version, _ = await self._source(request.source)
        fed = [wire.NamedTensor(name=feed.name) for feed in request.feeds]
        shapes = {canonical(feed.name): _known_shape(feed) for feed in request.feeds}
        sharding = sharding_of(request.options, shapes, self.limits)
        if request.HasField("gradients"):
            step = wire.ComputeGradientsRequest(
                gradients=request.gradients, feeds=fed, fetches=request.fetches, targets=request.targets
            )
            seeds = split_seeds(step.gradients, self.tensors)
            prepared = await self._prepare_gradients(version, step, seeds, sharding)
            shapes |= {seed_name(k): array.shape for k, array in enumerate(seeds.arrays)}
        else:
            plain = wire.RunRequest(feeds=fed, fetches=request.fetches, targets=request.targets)
            prepared = await self._prepare_run(version, plain, sharding)
        names = [worker.name for worker in self.runtime.cluster()]
        options = step_options(request.options)
        if prepared.sharded is not None:
            report = await asyncio.to_thread(
                self.runtime.explain_shard, prepared.key, prepared.sharded, shapes, options
            )
            response = explanation(report, names)
            response.notes.append(prepared.sharded.told())
            return response
        report = await asyncio.to_thread(
            self.runtime.explain,
            prepared.graph,
            shapes,
            prepared.fetches,
            prepared.targets,
            options,
            key=prepared.key,
        )
        return explanation(report, names)

    async def GetCluster(self, request: wire.GetClusterRequest, context: Any) -> wire.GetClusterResponse:
        used = {
            "max_store_bytes": self.tensors.size_bytes,
            "max_cached_graphs": len(self._versions),
            "max_cached_requests": len(self._prepared),
            "max_sessions": len(self.sessions),
        }
        workers = [
            wire.Worker(
                name=worker.name,
                device=worker.device,
                engine=worker.engine,
                pid=worker.pid,
                alive=worker.state == "ready",
                threads=worker.threads,
                memory_bytes=worker.memory_bytes,
                restarts=worker.restarts,
                node=worker.node,
                state=worker.state,
            )
            for worker in self.runtime.cluster()
        ]
        limits = [
            wire.Limit(name=name, value=getattr(self.limits, name), used=used.get(name, -1))
            for name in self.limits.names()
        ]
        return wire.GetClusterResponse(
            version=VERSION,
            workers=workers,
            limits=limits,
            uptime_seconds=self.telemetry.uptime_seconds,
            requests=self.telemetry.requests,
            graph_count=self.store.count(),
            session_count=len(self.sessions),
        )
