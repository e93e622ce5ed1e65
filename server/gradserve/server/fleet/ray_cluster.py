"""The Ray cluster that a fleet's workers live in: joining it, room in it, and its actors."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from gradserve.errors import Unavailable, Unsupported
from gradserve.server.fleet.base import FleetOptions, environment
from gradserve.workers.actor import Actor

LIFE = "life"
"""The concurrency group of an actor's calls that are answered while a segment runs."""
PEERS = "peers"
"""That of the calls of other workers."""

_CONNECT_SECONDS = 5.0
_NODE_SECONDS = 1.0  # between two looks at this machine's node
# How much longer than a silent worker lives may a transfer between GPUs take to begin.
_LINK_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class RayOptions(FleetOptions):
    """Also the cluster. See RuntimeOptions.

    Attributes:
        address: of a running cluster, as host:port, or auto for the one that this machine belongs to; empty: a Ray of
            the fleet's own, on this machine, which ends with the fleet.
        object_store_bytes: size of the object store of a Ray of the fleet's own; 0: as Ray chooses.
        gpu_transport: how tensors go from GPU to GPU: ``nccl`` where both ends have it, or ``host``.
    """

    address: str = ""
    object_store_bytes: int = 0
    gpu_transport: str = "nccl"


class Bundle(NamedTuple):
    """A worker's place in the cluster."""

    group: Any
    place: int


class RayCluster:
    """A cluster, as a node of it sees it.

    Attributes:
        ray: the package.
        here: the node that this process belongs to, once it has joined.
    """

    def __init__(self, options: RayOptions) -> None:
        """Raises Unsupported where Ray is not installed."""
        self.ray = import_ray(options)
        self.here = ""
        self._options = options
        self._groups: list[Any] = []
        self._owns_ray = False

    def join(self) -> None:
        """Joins the cluster at the address, or starts a Ray of the fleet's own. Raises Unavailable."""
        if not self.ray.is_initialized():
            self._connect()
            self._owns_ray = True
        self.here = self.ray.get_runtime_context().get_node_id()

    def _connect(self) -> None:
        options = self._options
        quiet = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.WARNING}
        if not options.address:
            self.ray.init(
                "local", num_cpus=options.workers * options.threads, include_dashboard=False,
                object_store_memory=options.object_store_bytes or None, **quiet,
            )  # fmt: skip
            return
        _check_address(options.address)
        try:
            self.ray.init(options.address, namespace="gradserve", **quiet)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise Unavailable(
                f"There is no joining the Ray cluster at {options.address}: {first_line(error)} This machine must be "
                f"a node of it: ray start --address={options.address} --num-cpus=0",
                address=options.address,
            ) from None

    def leave(self, actors: Iterable[Any]) -> None:
        """Ends the actors, gives their room back, and leaves."""
        if not self.ray.is_initialized():
            return
        for actor in actors:
            self.ray.kill(actor)
        from ray.util.placement_group import remove_placement_group

        for group in self._groups:
            remove_placement_group(group)
        self._groups.clear()
        if self._owns_ray:
            self.ray.shutdown()

    def reserve(self, count: int) -> list[Bundle]:
        """Asks for room for so many workers. Those that find some now spread over the machines; others wait."""
        from ray.util.placement_group import placement_group

        bundle = _bundle(self._options)
        room = min(_room(self.ray.nodes(), bundle), count)
        bundles: list[Bundle] = []
        for size in ([room] if room else []) + [1] * (count - room):
            group = placement_group([bundle] * size, strategy="SPREAD")
            self._groups.append(group)
            bundles += [Bundle(group, place) for place in range(size)]
        return bundles

    def no_room(self) -> Unavailable:
        """Why a worker has not come."""
        wanted = ", ".join(f"{count} {kind}" for kind, count in _bundle(self._options).items())
        return Unavailable(
            f"The Ray cluster has had no room for this worker (it takes {wanted}) for "
            f"{self._options.start_timeout_seconds} seconds: add nodes, or ask for fewer workers or threads."
        )

    def start(self, bundle: Bundle) -> Any:
        """A worker's actor."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        options = self._options
        made = self.ray.remote(
            num_cpus=options.threads,
            num_gpus=1 if options.engine == "cupy" else 0,
            max_restarts=-1,
            concurrency_groups={LIFE: 4, PEERS: 1},
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                bundle.group, placement_group_bundle_index=bundle.place
            ),
        )(Actor)
        settings = environment(options.engine, options.threads, options.compile_now)
        if options.engine == "cupy" and not options.address:  # all on this machine, and nobody else need reach it
            settings["NCCL_SOCKET_IFNAME"] = os.environ.get("NCCL_SOCKET_IFNAME", "lo")
        link_seconds = options.stall_timeout_seconds + _LINK_SECONDS if options.gpu_transport == "nccl" else 0.0
        return made.remote(options.engine, settings, options.threads, options.memory_limit_bytes, link_seconds, _node)

    async def node_ended(self) -> str:
        """Waits until this machine's node has ended; returns what shows it.

        Nodes end when their head is lost, also where it comes back.
        Ray itself is not asked: its calls end the process when the head that answers is not the one they knew.
        """
        node = next(node for node in self.ray.nodes() if node["NodeID"] == self.here)
        host, port = node["NodeManagerAddress"], node["NodeManagerPort"]
        while True:
            await asyncio.sleep(_NODE_SECONDS)
            try:
                async with asyncio.timeout(_CONNECT_SECONDS):
                    _, writer = await asyncio.open_connection(host, port)
                writer.close()
            except TimeoutError:
                continue  # it is slow, not gone
            except OSError as raised:
                return raised.strerror or str(raised)


def import_ray(options: RayOptions) -> Any:
    """Ray, told to be quiet and, where it is the fleet's own, to listen on 127.0.0.1 only. Raises Unsupported."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # errors are read from the futures of calls
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not options.address:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # Ray's name for: listen on 127.0.0.1 only
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise Unsupported(f"A Ray fleet needs Ray ({error}): pip install 'gradserve[ray]'.", fleet="ray") from None
    return ray


def _check_address(address: str) -> None:
    """Raises Unavailable where nothing listens: Ray itself would try for a minute."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise Unavailable(
            f"No Ray cluster answers at {address} ({error.strerror or error}): start one with `ray start --head`, or "
            "correct --ray-address.",
            address=address,
        ) from None


def _bundle(options: RayOptions) -> dict[str, float]:
    """What one worker takes of a machine."""
    return {"CPU": options.threads, **({"GPU": 1} if options.engine == "cupy" else {})}


def _room(nodes: Sequence[dict[str, Any]], bundle: dict[str, float]) -> int:
    """How many such bundles the machines hold that there are now."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    return sum(min(int(resources.get(kind, 0) // count) for kind, count in bundle.items()) for resources in alive)


def _node() -> str:
    """Runs in a worker: the machine that it is on."""
    import ray

    return ray.get_runtime_context().get_node_id()


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
