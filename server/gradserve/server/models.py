"""Models that a server holds from its start."""

from __future__ import annotations

from gradserve.errors import AlreadyExists, NotFound
from gradserve.graph import dtypes
from gradserve.saved.model import Model
from gradserve.server import graphs
from gradserve.server.gradient_service import GradientService
from gradserve.v1 import gradient_service_pb2 as wire


async def hold(service: GradientService, name: str, model: Model) -> None:
    """Stores a model's graph, and opens a session on it where its variables have values.

    What is there from a run before stays: a graph of the same content, and a durable session with its values.

    Raises AlreadyExists where the name is another graph's, and the errors of CreateGraph and CreateSession.
    """
    value = wire.GraphValue(serialized=model.graph)
    try:
        await service.CreateGraph(wire.CreateGraphRequest(graph_id=name, graph=value), None)
    except AlreadyExists:
        if service.store.get(f"graphs/{name}").digest != graphs.digest_of(model.graph):
            raise AlreadyExists(
                f"The server's data has another graph graphs/{name}: give the model another name, or delete that.",
                graph=f"graphs/{name}",
            ) from None
    try:
        service.sessions.get(f"sessions/{name}")
    except NotFound:
        if model.targets:
            await service.CreateSession(await _session(service, name, model), None)


async def _session(service: GradientService, name: str, model: Model) -> wire.CreateSessionRequest:
    request = wire.CreateSessionRequest(
        session_id=name, source=wire.GraphSource(graph=f"graphs/{name}"), init_targets=model.targets
    )
    for tensor, array in model.values.items():
        feed = request.feeds.add(name=tensor)
        feed.value.reference = await service.tensors.write(array, dtypes.as_dtype(array.dtype).number)
    return request
