"""Runs graphs over a fleet: what the service calls.

`Runtime.run` looks a plan up by the request's key, makes it if there is none (simplify, place, partition), and
drives it. All of it lives on one event loop; plans are made on a thread of their own, one at a time.
"""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import gradserve.ops  # the catalogue must be full before the first graph arrives  # noqa: F401
from gradserve.errors import GradserveError, InvalidArgument, Unsupported
from gradserve.graph import collector
from gradserve.graph.graph import Graph
from gradserve.graph.shapes import StaticShape
from gradserve.server.cost import Hardware
from gradserve.server.data_parallel import DataParallel, Request, Signature, shard_key
from gradserve.server.dispatch import Dispatcher
from gradserve.server.draft import Feed, StepOptions, draft
from gradserve.server.explain import PlanReport, explain
from gradserve.server.fleet.base import Array, Fleet, FleetOptions, WorkerInfo
from gradserve.server.fleet.local import LocalFleet
from gradserve.server.fleet.ray import RayFleet
from gradserve.server.fleet.ray_cluster import RayOptions
from gradserve.server.plan import Plan, PlanCache, make_plan
from gradserve.server.shards import Sharded
from gradserve.server.variables import Variables

__all__ = [
    "PlanReport", "Program", "Runtime", "RuntimeOptions", "StepOptions", "Variables", "WorkerInfo",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """How a runtime is set up.

    Attributes:
        workers: number of worker processes.
        fleet: ``local``, processes of this machine; or ``ray``, actors of a Ray cluster.
        ray_address: the cluster, as host:port, or auto for the one that this machine belongs to; empty: a Ray of the
            runtime's own on this machine.
        object_store_bytes: size of the object store of a Ray of the runtime's own; 0: as Ray chooses.
        gpu_transport: how a Ray fleet's tensors go from GPU to GPU: ``nccl`` where both ends have it, or ``host``.
        engine: ``numpy``, ``xla``, ``cupy``, or ``auto``: xla where jax can be imported, else numpy.
        threads: threads a worker's kernels may use; None: cores / workers, at least 1.
        compile_now: engines that compile do so at the first call, not in the background.
        plans: the most plans kept.
        segment_bytes: the most bytes of segments that a worker keeps compiled.
        queued_steps: the most steps running or waiting; one more raises LimitExceeded.
        attempts: how often a step is tried when its workers die before Unavailable is raised.
        start_timeout_seconds: how long a worker may take to start.
        stall_timeout_seconds: a worker that gives no sign of life for so long is ended and replaced; 0: never.
        patience_seconds: a worker that runs for so long what nobody waits for any more (of a cancelled call, or one
            whose deadline has passed) is ended and replaced; 0: never.
        memory_limit_bytes: the most that a plan's tensors may take on one worker, by its estimate; where kernels run on
            NumPy or CuPy, a worker is not given much more either. 0: no limit.
    """

    workers: int = 2
    fleet: str = "local"
    ray_address: str = ""
    object_store_bytes: int = 0
    gpu_transport: str = "nccl"
    engine: str = "auto"
    threads: int | None = None
    compile_now: bool = False
    plans: int = 256
    segment_bytes: int = 256 << 20
    queued_steps: int = 1024
    attempts: int = 4
    start_timeout_seconds: float = 60.0
    stall_timeout_seconds: float = 30.0
    patience_seconds: float = 10.0
    memory_limit_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Program:
    """What a request's builder returns: a graph, and the names of what to compute in it."""

    graph: Graph
    fetches: tuple[str, ...]
    targets: tuple[str, ...] = ()


DEFAULT_STEP = StepOptions()


class Runtime:
    """A fleet of workers and the plans that have been made for it.

    start() first, stop() last; every method is called on the event loop that start() ran on.
    """

    def __init__(self, options: RuntimeOptions = RuntimeOptions()) -> None:
        if options.workers < 1:
            raise InvalidArgument(f"A runtime needs at least 1 worker, not {options.workers}.", workers=options.workers)
        self.options = options
        self.engine = choose_engine(options.engine)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = options.threads or max(1, cores // options.workers)
        self._fleet = make_fleet(options, self.engine, threads)
        self._dispatcher = Dispatcher(self._fleet, options.attempts, options.queued_steps, options.patience_seconds)
        self._data_parallel = DataParallel(self._fleet, self._dispatcher, self._plan)
        self._plans = PlanCache(options.plans)
        self._making: dict[Hashable, asyncio.Future[Plan]] = {}
        self._planner = ThreadPoolExecutor(1, thread_name_prefix="planner")
        self._fleet_shape: tuple[int, ...] = ()
        self.hardware = Hardware.of(())
        self._numbers = itertools.count()

    async def start(self) -> None:
        """Starts the workers. Raises Unavailable if they do not start, Unsupported if the engine can't run."""
        await self._fleet.start(self._dispatcher)
        self._look_at_fleet()
        self._look_at_fleet()

    async def stop(self, grace_seconds: float = 5) -> None:
        """Lets running steps finish within the grace, ends the workers and gives all shared memory back."""
        await self._dispatcher.drain(grace_seconds)
        await self._fleet.stop(grace_seconds)
        self._planner.shutdown(wait=False, cancel_futures=True)

    async def severed(self) -> GradserveError:
        """Returns, with the reason, when the workers are gone for good: this process can only end."""
        return await self._fleet.severed()

    def variables(self) -> Variables:
        """An empty set of variables for a session. close() it when the session ends."""
        return Variables(self._fleet)

    async def run(
        self,
        key: Hashable,
        build: Graph | Callable[[], Program],
        feeds: Mapping[str, Array],
        fetches: Sequence[str] = (),
        targets: Sequence[str] = (),
        *,
        variables: Variables | None = None,
        options: StepOptions = DEFAULT_STEP,
    ) -> list[Array]:
        """Runs a graph once and returns the fetched arrays, read-only.

        Cancelling the call abandons the step: nothing of it is kept.

        Args:
            key: tells graphs and their versions apart: same key, feeds' names, dtypes and shapes, fetches, targets
                and options mean the same plan.
            build: the graph; or a function that returns it with what to fetch, called only when there is no plan
                yet. Its Program's fetches and targets then stand instead of the arguments.
            feeds: arrays by tensor name; any tensor can be fed.
            fetches: names of the tensors to return.
            targets: names of the nodes to run for their effect.
            variables: the session's; without one every variable starts uninitialised and is forgotten afterwards.
                New values replace the old ones all at once when the step has succeeded. Steps that write are run
                one after another; others see the values as they were when they started.

        Raises:
            InvalidArgument, NotFound, InvalidPlacement, Unsupported: the request can't be planned.
            ComputationFailed, FailedPrecondition, …: a kernel's error.
            LimitExceeded: too many steps at once.
            Unavailable: workers kept dying.
        """
        signature = tuple([(name, array.dtype, array.shape) for name, array in feeds.items()])
        plan = await self._plan(key, build, signature, tuple(fetches), tuple(targets), options)
        own = variables is None and plan.uses_state
        used = self.variables() if own else variables
        try:
            return await self._dispatcher.run(plan, list(feeds.values()), used)
        finally:
            if own and used is not None:
                used.close()

    async def run_sharded(
        self,
        key: Hashable,
        sharded: Sharded,
        feeds: Mapping[str, Array],
        *,
        variables: Variables | None = None,
        options: StepOptions = DEFAULT_STEP,
    ) -> list[Array]:
        """Runs a request once a shard and returns the results of the whole; see `run` for arguments and errors."""
        used = self.variables() if variables is None else variables
        try:
            return await self._data_parallel.run(Request(sharded, key, feeds, options), used)
        finally:
            if variables is None:
                used.close()

    def explain(
        self,
        graph: Graph,
        feeds: Mapping[str, StaticShape],
        fetches: Sequence[str] = (),
        targets: Sequence[str] = (),
        options: StepOptions = DEFAULT_STEP,
        *,
        key: Hashable = None,
    ) -> PlanReport:
        """What `run` would do with feeds of these shapes. With a `key`, also whether its plan is cached."""
        signature = tuple(
            (name, np.dtype(graph.tensor(name).dtype.base.numpy), tuple(shape)) for name, shape in feeds.items()
        )
        cached = (self._fleet.present, key, signature, tuple(fetches), tuple(targets), options) in self._plans
        given = [Feed(name, dtype, shape) for name, dtype, shape in signature]
        self._look_at_fleet()
        return explain(draft(graph, given, fetches, targets, options, self.hardware), cached=cached)

    def explain_shard(
        self, key: Hashable, sharded: Sharded, feeds: Mapping[str, StaticShape], options: StepOptions = DEFAULT_STEP
    ) -> PlanReport:
        """What the first, and largest, shard of a request with feeds of these shapes would do."""
        each = sharded.each
        return self.explain(
            each.graph, sharded.shard_shapes(feeds), each.fetches, each.targets, replace(options, one_worker=True),
            key=shard_key(key),
        )  # fmt: skip

    @property
    def crossed_bytes(self) -> int:
        """Bytes of tensors that went from one worker to another so far."""
        return self._dispatcher.crossed_bytes

    def cluster(self) -> list[WorkerInfo]:
        """The workers."""
        return self._fleet.workers()

    async def _plan(
        self,
        key: Hashable,
        build: Graph | Callable[[], Program],
        signature: Signature,
        fetches: tuple[str, ...],
        targets: tuple[str, ...],
        options: StepOptions,
    ) -> Plan:
        """The plan of a request, made once for all requests that wait for the same one."""
        full_key = (self._fleet.present, key, signature, fetches, targets, options)
        plan = self._plans.get(full_key)
        if plan is not None:
            return plan
        future = self._making.get(full_key)
        if future is None:
            shape = self._look_at_fleet()
            hardware = self.hardware

            def make() -> Plan:
                program = Program(build, fetches, targets) if isinstance(build, Graph) else build()
                given = [Feed(name, dtype, shape) for name, dtype, shape in signature]
                with collector.paused():
                    drawn = draft(program.graph, given, program.fetches, program.targets, options, hardware)
                    return make_plan(drawn, self._numbers).on(shape)

            future = asyncio.get_running_loop().run_in_executor(self._planner, make)
            self._making[full_key] = future
            future.add_done_callback(lambda done: self._made(full_key, done))
        return await asyncio.shield(future)

    def _look_at_fleet(self) -> tuple[int, ...]:
        """Brings what plans are made for up to the workers that there are now, and returns these."""
        shape = self._fleet.present
        if shape != self._fleet_shape:
            workers = self._fleet.workers()
            speeds = self._fleet.speeds()
            self.hardware = Hardware(
                tuple([workers[index].device for index in shape]),
                tuple([speeds[index] for index in shape]),
                self._fleet.link(),
                (self.options.memory_limit_bytes,) * len(shape),
            )
            self._fleet_shape = shape
        return shape

    def _made(self, key: Hashable, done: asyncio.Future[Plan]) -> None:
        del self._making[key]
        if not done.cancelled() and done.exception() is None:
            dropped = self._plans.put(key, done.result())
            for segment in dropped.segments if dropped is not None else ():
                self._fleet.unload(segment.program.number)


def make_fleet(options: RuntimeOptions, engine: str, threads: int) -> Fleet:
    """The fleet that the options name, not yet started. Raises InvalidArgument."""
    if options.fleet not in ("local", "ray"):
        raise InvalidArgument(f"There is no fleet {options.fleet!r}: choose local or ray.", fleet=options.fleet)
    transport = options.gpu_transport
    if transport not in ("nccl", "host"):
        raise InvalidArgument(f"There is no transport {transport!r}: choose nccl or host.", gpu_transport=transport)
    common: dict[str, Any] = {
        "workers": options.workers,
        "engine": engine,
        "threads": threads,
        "compile_now": options.compile_now,
        "segment_bytes": options.segment_bytes,
        "start_timeout_seconds": options.start_timeout_seconds,
        "stall_timeout_seconds": options.stall_timeout_seconds,
        "memory_limit_bytes": options.memory_limit_bytes,
    }
    if options.fleet == "local":
        return LocalFleet(FleetOptions(**common))
    return RayFleet(
        RayOptions(
            **common, address=options.ray_address, object_store_bytes=options.object_store_bytes,
            gpu_transport=options.gpu_transport,
        )
    )  # fmt: skip


def choose_engine(name: str) -> str:
    """The engine that a name stands for. Raises InvalidArgument, and Unsupported where it can't run here."""
    if name not in ("auto", "numpy", "xla", "cupy"):
        raise InvalidArgument(f"There is no engine {name!r}: choose auto, numpy, xla or cupy.", engine=name)
    has_jax = importlib.util.find_spec("jax") is not None
    if name == "auto":
        return "xla" if has_jax else "numpy"
    if name == "xla" and not has_jax:
        raise Unsupported("The xla engine needs jax: pip install 'gradserve[server]'.", engine=name)
    return name
