"""Runs a request once a shard over the fleet and sums what the shards give.

Every shard is a step of its own, tried again alone when its worker dies. Shard k of n belongs to worker k·w/n, so that
a worker owns neighbours, and the sum over the shards is one binary tree over their numbers: a node of it is a step
too, on the worker of its left child. Which worker does what changes no bit of the sum.

    leaf, leaf    leaf, leaf         the shards, two at most waiting at a worker
       sum           sum             each as soon as both of its sides are there
             sum                     of what two workers have
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from gradserve.errors import ComputationFailed, InvalidArgument
from gradserve.graph.graph import Graph
from gradserve.server.dispatch import Dispatcher, Held
from gradserve.server.draft import StepOptions
from gradserve.server.fleet.base import Array, Fleet, Value
from gradserve.server.plan import Plan
from gradserve.server.sharding import bounds, check_feeds, check_slices, piece
from gradserve.server.shards import Part, Role, Sharded, known_shape, sum_graph
from gradserve.server.variables import Variables

Signature = tuple[tuple[str, np.dtype, tuple[int, ...]], ...]
# key, graph, feeds, fetches, targets, options
Planner = Callable[[Hashable, Graph, Signature, tuple[str, ...], tuple[str, ...], StepOptions], Awaitable[Plan]]
T = TypeVar("T")

# One shard runs at a worker and one waits; more would only hold memory.
_DEPTH = 2
# Streams of random numbers of different shards begin so far apart; a step draws less.
_STRIDE = 1 << 40


@dataclass(frozen=True, slots=True)
class Request:
    """A sharded request: how it was cut, a key that tells it apart, its feeds and how to run it."""

    sharded: Sharded
    key: Hashable
    feeds: Mapping[str, Array]
    options: StepOptions


def shard_key(key: Hashable) -> Hashable:
    """The key of the plan of one shard of a request."""
    return key, "shard"


class DataParallel:
    """Runs sharded requests on a fleet."""

    def __init__(self, fleet: Fleet, dispatcher: Dispatcher, plan: Planner) -> None:
        self._fleet = fleet
        self._dispatcher = dispatcher
        self._plan = plan

    async def run(self, request: Request, variables: Variables) -> list[Array]:
        """The results of the whole request. Raises what Runtime.run does, and InvalidArgument for a bad split."""
        with self._dispatcher.admitted():
            step = _ShardedStep(self._fleet, self._dispatcher, self._plan, request, variables)
            try:
                return await step.run()
            finally:
                step.free()


class _ShardedStep:
    """One run of a sharded request.

    Invariant: `owned` holds every value that this step must free, by identity, with how often.
    """

    def __init__(
        self, fleet: Fleet, dispatcher: Dispatcher, plan: Planner, request: Request, variables: Variables
    ) -> None:
        self.fleet = fleet
        self.dispatcher = dispatcher
        self.plan = plan
        self.request = request
        self.sharded = request.sharded
        self.variables = variables
        sharding = self.sharded.sharding
        self.shards = sharding.shards
        self.examples = check_feeds(sharding, [(name, request.feeds[name].shape) for name in sharding.feeds])
        check_slices(sharding, request.feeds, self.examples)
        self.bounds = bounds(self.examples, self.shards)
        self.owned: dict[int, list[Value]] = {}
        count = len(fleet.workers())
        present = fleet.present
        self.owners = [present[k * len(present) // self.shards] for k in range(self.shards)]
        self.gates = [asyncio.Semaphore(_DEPTH) for _ in range(count)]
        self.totals = [k for k, part in enumerate(self.sharded.parts) if part.role is Role.TOTAL]
        self.pieces: list[dict[int, Value]] = [{} for _ in range(self.shards)]
        self.positions: dict[str, int] = {}

    async def run(self) -> list[Array]:
        """Both halves, and the results in the order of the request."""
        split = self.sharded.sharding.split
        whole = {name: array for name, array in self.request.feeds.items() if name not in split}
        common = self.own(self.dispatcher.put(list(whole.values())))
        self.whole = {name: (array, value) for (name, array), value in zip(whole.items(), common, strict=True)}
        totals = dict(zip(self.totals, await self._reduce(0, self.shards), strict=True))
        joined: dict[int, Array] = {}
        for at, part in enumerate(self.sharded.parts):
            if part.role is not Role.TOTAL:
                joined[at] = await self._join(at, part)
        # Nothing is awaited after this: a step that has changed variables must give its answer.
        held = await self._once(totals, joined)
        self.variables.replace({}, self.positions)
        results: list[Array] = []
        for in_shards, at in self.sharded.results:
            if not in_shards:
                results.append(held[at])
            else:
                results.append(joined[at] if at in joined else self.fleet.get(totals[at]))
        return results

    # Values

    def own(self, values: Sequence[Value]) -> Sequence[Value]:
        """Takes values over: they are freed by the step's end."""
        for value in values:
            self.owned.setdefault(id(value), []).append(value)
        return values

    def drop(self, values: Sequence[Value]) -> None:
        """Frees values before the step's end."""
        for value in values:
            owned = self.owned[id(value)]
            self.fleet.free(owned.pop())
            if not owned:
                del self.owned[id(value)]

    def free(self) -> None:
        """Frees all that is left."""
        for values in self.owned.values():
            self.dispatcher.free(values)
        self.owned.clear()

    # The shards

    async def _reduce(self, first: int, end: int) -> list[Value]:
        """The totals over shards first … end - 1, which stand on the first one's worker."""
        if end - first == 1:
            return await self._named_shard(first)
        middle = first + (1 << ((end - first - 1).bit_length() - 1))
        left, right = await together(self._reduce(first, middle), self._reduce(middle, end))
        if not self.totals:
            return []
        shapes = [self._shape(at, value) for at, value in zip(self.totals, left, strict=True)]
        sides = [(side, values) for side, values in (("left", left), ("right", right))]
        signature = tuple(
            (f"{side}/{k}:0", dtype, shape) for side, _ in sides for k, (dtype, shape) in enumerate(shapes)
        )
        plan = await self.plan(
            ("sum over shards", tuple(shapes)), sum_graph(shapes), signature,
            tuple(f"sum/{k}:0" for k in range(len(shapes))), (), StepOptions(one_worker=True),
        )  # fmt: skip
        held = await self._hold(plan, [*left, *right], wish=self.owners[first])
        self.drop([*left, *right])
        return held.values

    async def _named_shard(self, shard: int) -> list[Value]:
        """The totals of one shard, which an error of the graph names."""
        try:
            return await self._shard(shard)
        except (InvalidArgument, ComputationFailed) as error:
            size = self.bounds[shard + 1] - self.bounds[shard]
            where = f" (In shard {shard} of {self.shards}, which has {size} of {self.examples} examples.)"
            raise type(error)(error.message + where, **{**error.metadata, "shard": shard}) from error

    async def _shard(self, shard: int) -> list[Value]:
        async with self.gates[self.owners[shard]]:
            start, end = self.bounds[shard], self.bounds[shard + 1]
            each, sharding = self.sharded.each, self.sharded.sharding
            arrays = piece(sharding, self.request.feeds, start, end)
            own = dict(zip(arrays, self.own(self.dispatcher.put(list(arrays.values()))), strict=True))
            fed = {name: (arrays[feed], own[feed]) if feed in own else self.whole[feed] for feed, name in each.feeds}
            told = {
                self.sharded.weight: np.array((end - start) / self.examples),
                self.sharded.place: np.array([start, end - start, self.examples]),
            }
            for name, array in told.items():
                if name:
                    [own[name]] = self.own(self.dispatcher.put([array]))
                    fed[name] = array, own[name]
            signature = tuple((name, array.dtype, array.shape) for name, (array, _) in fed.items())
            plan = await self.plan(
                shard_key(self.request.key), each.graph, signature, each.fetches, each.targets,
                replace(self.request.options, one_worker=True),
            )  # fmt: skip
            values = [value for _, value in fed.values()]
            before = {
                name: self.variables.draws.get(name, 0) + shard * _STRIDE * apart
                for name, apart in self.sharded.draws
            }  # fmt: skip
            held = await self._hold(plan, values, wish=self.owners[shard], draws=before)
            self.drop(list(own.values()))
        for name, apart in self.sharded.draws:
            after = held.draws.get(name, before[name]) - shard * _STRIDE * apart
            self.positions[name] = max(self.positions.get(name, 0), after)
        rest = (k for k in range(len(held.values)) if k not in self.totals)
        self.pieces[shard] = {k: held.values[k] for k in rest}
        return [held.values[k] for k in self.totals]

    async def _hold(
        self, plan: Plan, values: Sequence[Value], *, wish: int, draws: dict[str, int] | None = None
    ) -> Held:
        held = await self.dispatcher.hold(plan, values, self.variables, wish=wish, draws=draws or {})
        self.own(held.values)
        return held

    def _shape(self, at: int, value: Value) -> tuple[np.dtype, tuple[int, ...]]:
        """Dtype and shape of a total: as the graph says, or as the value has it."""
        part = self.sharded.parts[at]
        shape = known_shape(part.shape)
        return part.dtype, self.fleet.get(value).shape if shape is None else shape

    async def _join(self, at: int, part: Part) -> Array:
        """A part that is not summed by the tree: what it is of all shards."""
        arrays = [self.fleet.get(pieces[at]) for pieces in self.pieces]
        match part.role:
            case Role.ROWS:
                return await asyncio.to_thread(_concatenated, part, arrays)
            case Role.PLACES:
                rows = [int(self.fleet.get(pieces[part.whole])[0]) for pieces in self.pieces]
                starts = np.cumsum([0, *rows[:-1]], dtype=part.dtype)
                return np.concatenate([array + start for array, start in zip(arrays, starts, strict=True)])
            case Role.SIZES:
                return _sizes(part, arrays)
            case Role.EACH:
                return np.stack(arrays)
            case Role.TOTAL:
                raise AssertionError(part)

    # What runs once

    async def _once(self, totals: Mapping[int, Value], joined: Mapping[int, Array]) -> list[Array]:
        """The results of the half that runs once, with what the shards computed put together."""
        once = self.sharded.once
        if not once.fetches and not once.targets:
            return []
        fed: list[tuple[str, np.dtype, tuple[int, ...], Value]] = []
        for feed, name in once.feeds:
            array, value = self.whole[feed] if feed in self.whole else self._put(self.request.feeds[feed])
            fed.append((name, array.dtype, array.shape, value))
        for at, name in self.sharded.given:
            if at in joined:
                array, value = self._put(joined[at])
                fed.append((name, array.dtype, array.shape, value))
            else:
                fed.append((name, *self._shape(at, totals[at]), totals[at]))
        plan = await self.plan(
            (self.request.key, "once"), once.graph, tuple((name, dtype, shape) for name, dtype, shape, _ in fed),
            once.fetches, once.targets, self.request.options,
        )  # fmt: skip
        held = await self.dispatcher.hold(plan, [value for *_, value in fed], self.variables)
        return [self.fleet.get(value) for value in self.own(held.values)]

    def _put(self, array: Array) -> tuple[Array, Value]:
        [value] = self.own(self.dispatcher.put([array]))
        return array, value


async def together(*running: Coroutine[Any, Any, T]) -> list[T]:
    """Runs coroutines side by side; when one fails the others are cancelled and its error is raised."""
    tasks = [asyncio.ensure_future(each) for each in running]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _concatenated(part: Part, arrays: Sequence[Array]) -> Array:
    """The rows of all shards. Raises InvalidArgument where they don't fit."""
    others = {array.shape[: part.axis] + array.shape[part.axis + 1 :] for array in arrays}
    if len(others) > 1 or any(array.ndim <= part.axis for array in arrays):
        raise InvalidArgument(
            f"{part.stands_for} has the shapes {', '.join(str(array.shape) for array in arrays)} in the shards, and "
            "can't be put together: give it a fixed shape, or a row an example.",
            tensor=part.stands_for,
        )
    return np.concatenate(arrays, part.axis)


def _sizes(part: Part, arrays: Sequence[Array]) -> Array:
    """Sizes of the whole: sums of those that count examples. Raises InvalidArgument where others differ."""
    stacked = np.stack(arrays)
    added = np.resize(np.array(part.added, bool), stacked.shape[1:])  # one entry tells of all
    if np.any((stacked != stacked[0]) & ~added):
        raise InvalidArgument(
            f"{part.stands_for} is {', '.join(str(array.tolist()) for array in arrays)} in the shards, and can't be "
            "totalled: cast it to a float, give it a row an example, or ask without shards.",
            tensor=part.stands_for,
        )
    return np.where(added, stacked.sum(0, dtype=stacked.dtype), stacked[0])
