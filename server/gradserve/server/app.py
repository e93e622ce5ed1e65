"""Wires the server: runtime, stores, services, interceptor; starts it, serves, and stops it gracefully.

    with limits and options → Server.start() → port → … → Server.stop()

Stopping refuses new calls, lets running ones finish, then ends the workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_channelz.v1 import channelz, channelz_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from gradserve.errors import Unavailable
from gradserve.saved.model import Model
from gradserve.server.gradient_service import GradientService
from gradserve.server.graphs import GraphStore
from gradserve.server.interceptors import Admission, Gate
from gradserve.server.limits import Limits
from gradserve.server.models import hold
from gradserve.server.runtime import Runtime, RuntimeOptions
from gradserve.server.sessions import Sessions
from gradserve.server.telemetry import Telemetry
from gradserve.server.tensor_service import TensorService
from gradserve.server.tensor_store import TensorStore
from gradserve.v1 import gradient_service_pb2 as wire
from gradserve.v1 import gradient_service_pb2_grpc, tensor_service_pb2, tensor_service_pb2_grpc

SWEEP_SECONDS = 30.0

log = logging.getLogger(__name__)

SERVICES = (
    wire.DESCRIPTOR.services_by_name["GradientService"].full_name,
    tensor_service_pb2.DESCRIPTOR.services_by_name["TensorService"].full_name,
)


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a server is set up.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        data_dir: where graphs, checkpoints and tensors are; None: a folder that goes with the server.
        grace_seconds: how long running requests may take to finish when the server stops.
        runtime: its workers.
        limits: its bounds.
        models: what it holds from the start, by name.
    """

    host: str = "127.0.0.1"
    port: int = 0
    data_dir: Path | None = None
    grace_seconds: float = 30.0
    runtime: RuntimeOptions = field(default_factory=RuntimeOptions)
    limits: Limits = field(default_factory=Limits)
    models: Mapping[str, Model] = field(default_factory=dict)


class Server:
    """One coordinator. start() first, stop() last, both on the same event loop."""

    def __init__(self, options: ServerOptions, runtime: Runtime | None = None) -> None:
        self.options = options
        self.runtime = runtime or Runtime(options.runtime)
        self.telemetry = Telemetry()
        self.admission = Admission(options.limits)
        self._cleanup = contextlib.AsyncExitStack()
        self._health = HealthServicer()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> str:
        """Starts everything and returns the address. Raises Unavailable where the port is taken."""
        try:
            return await self._start()
        except BaseException:
            await self._cleanup.aclose()
            raise

    async def _start(self) -> str:
        options, limits = self.options, self.options.limits
        data_dir = options.data_dir
        if data_dir is None:
            data_dir = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory(prefix="gradserve-")))
        data_dir.mkdir(parents=True, exist_ok=True)
        store = GraphStore(data_dir / "graphs.sqlite")
        self._cleanup.callback(store.close)
        tensors = TensorStore(data_dir / "tensors", limits)
        self._cleanup.callback(tensors.close)
        self._cleanup.push_async_callback(self.runtime.stop)
        await self.runtime.start()
        sessions = Sessions(data_dir / "sessions", limits, self.runtime.variables)
        self._cleanup.callback(sessions.close_all)
        self._cleanup.push_async_callback(sessions.suspend)
        await sessions.reopen()
        server = grpc.aio.server(
            interceptors=[Gate(limits, self.admission, self.telemetry)],
            options=[
                ("grpc.max_receive_message_length", limits.max_message_bytes),
                ("grpc.so_reuseport", 0),
                ("grpc.enable_channelz", 1),
                # Clients whose network is cut are found out, and their calls cancelled; their own questions are let in.
                ("grpc.keepalive_time_ms", 20_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ],
        )
        gradient_service = GradientService(self.runtime, store, sessions, tensors, limits, self.telemetry)
        for name, model in options.models.items():
            await hold(gradient_service, name, model)
        gradient_service_pb2_grpc.add_GradientServiceServicer_to_server(gradient_service, server)
        tensor_service_pb2_grpc.add_TensorServiceServicer_to_server(TensorService(tensors), server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        channelz.add_channelz_servicer(server)
        known = (*SERVICES, health.SERVICE_NAME, channelz_pb2.DESCRIPTOR.services_by_name["Channelz"].full_name)
        reflection.enable_server_reflection((*known, reflection.SERVICE_NAME), server)
        address = f"{options.host}:{options.port}"
        try:
            port = server.add_insecure_port(address)
        except RuntimeError:
            port = 0
        if not port:
            raise Unavailable(
                f"The server can't listen on {address}: the port is taken or the host is not this machine's; choose "
                "another with --port or --host.",
                address=address,
            )
        await server.start()
        self._server = server
        for service in ("", *SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        sweeper = asyncio.create_task(_sweep(tensors))
        self._cleanup.callback(sweeper.cancel)
        return f"{options.host}:{port}"

    async def stop(self) -> None:
        """Lets running requests finish within the grace, then ends everything. Stopping twice does nothing."""
        server, self._server = self._server, None
        if server is not None:
            await self._health.enter_graceful_shutdown()
            if self.admission.running:
                log.info("Waiting for %d running requests.", self.admission.running)
            await server.stop(self.options.grace_seconds)
        await self._cleanup.aclose()


async def _sweep(tensors: TensorStore) -> None:
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        tensors.sweep()


async def serve(options: ServerOptions, ready: Callable[[str], None], follow_stdin: bool = False) -> None:
    """Runs a server until SIGTERM or SIGINT, or until standard input ends where it is followed.

    `ready` is called with the address once requests are answered.

    Raises:
        Unavailable: the workers are gone for good, and with them the server. What starts it again finds its data.
    """
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    _end_by_signal(loop, ended)
    if follow_stdin:
        threading.Thread(target=_follow, args=(sys.stdin.fileno(), loop, ended), daemon=True).start()
    server = Server(options)
    address = await server.start()
    _end_by_signal(loop, ended)  # again: a Ray that starts in this process takes the handlers
    ready(address)
    severed = asyncio.ensure_future(server.runtime.severed())
    await asyncio.wait([severed, asyncio.ensure_future(ended.wait())], return_when=asyncio.FIRST_COMPLETED)
    await server.stop()
    if severed.done():
        raise severed.result()


def _end_by_signal(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.remove_signal_handler(number)
        loop.add_signal_handler(number, ended.set)


def _follow(descriptor: int, loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    """Waits for the other end of a pipe to go away, with its process."""
    with open(descriptor, "rb", closefd=False) as pipe:
        while pipe.read(1):
            pass
    with contextlib.suppress(RuntimeError):  # the loop has ended on its own
        loop.call_soon_threadsafe(ended.set)
