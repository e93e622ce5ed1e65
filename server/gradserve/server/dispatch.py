"""Drives plans over a fleet: the scheduler's I/O.

A step's tensors are counted here: feeds and variables are held until no worker can read them any more, also when
the step was cancelled or started again; results and new values of variables go to their owners at the end.

A segment can't be stopped while it runs. One that goes on for long when its step is over (a loop without end, of a
caller whose deadline has passed) keeps others waiting: its worker is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from gradserve.errors import GradserveError, LimitExceeded, Unavailable
from gradserve.server.fleet.base import Array, Fleet, Kept, Submission, Value
from gradserve.server.plan import CONSTANT, FEED, Plan, Source
from gradserve.server.schedule import Command, Fail, Finish, Forget, Restart, Scheduler, Submit
from gradserve.server.variables import Variables

# Two: the next segment is there when one ends, and hardly anything runs in vain after a cancellation.
_DEPTH = 2


class _Step:
    """A request that is running.

    Attributes:
        feeds: what the request gave.
        variables, snapshot: the session's, and their values when the step started.
        draws: positions of its random streams when it started.
        commits: whether new values and positions become the session's when it ends.
        done: resolved when the step ends.
        attempt: the attempt that counts.
    """

    __slots__ = ("attempt", "commits", "done", "draws", "feeds", "plan", "snapshot", "variables")

    def __init__(
        self, plan: Plan, feeds: Sequence[Value], variables: Variables | None, draws: dict[str, int] | None
    ) -> None:
        self.plan = plan
        self.feeds = feeds
        self.variables = variables
        self.commits = draws is None
        self.snapshot: dict[str, Value] = {}
        self.draws = draws
        if plan.uses_state and variables is not None:
            self.snapshot = variables.snapshot()
            if draws is None:
                self.draws = dict(variables.draws)
        self.done: asyncio.Future[_Attempt] = asyncio.get_running_loop().create_future()
        self.attempt = -1


class _Attempt:
    """One try at a step: what came back so far, and what workers may still be reading.

    Attributes:
        in_flight: the worker of each segment that has been submitted and has not ended.

    Invariant: `outputs[k][j]` is there from the end of segment k (from its submission, in a fleet that
    runs at once) until the last of its `unread[k][j]` readers has run.
    """

    __slots__ = ("done", "draws", "in_flight", "outputs", "over", "step", "unread", "updates")

    def __init__(self, step: _Step) -> None:
        self.step = step
        self.outputs: list[list[Value]] = [[]] * len(step.plan.segments)
        self.unread: list[list[int]] = [[]] * len(step.plan.segments)
        self.done: dict[int, Any] = {}
        self.updates: dict[str, Value] = {}
        self.draws: dict[str, int] = {}
        self.in_flight: dict[int, int] = {}
        self.over = False


class Held(NamedTuple):
    """What a step computed, still in the fleet: free each value when done. And where its random streams ended."""

    values: list[Value]
    draws: dict[str, int]


class Dispatcher:
    """Runs plans. It is the fleet's listener.

    Attributes:
        crossed_bytes: of tensors that segments have read from another worker so far, each once to each worker.
    """

    def __init__(self, fleet: Fleet, tries: int, limit: int, patience_seconds: float = 0) -> None:
        """`patience_seconds` is what a segment gets to end when its step is over; 0 for ever."""
        self._fleet = fleet
        self._patience = patience_seconds
        # What each worker was given to run and has not answered, in order.
        self._given_out: list[dict[tuple[int, int], None]] = [{} for _ in fleet.workers()]
        self._limit = limit
        self._running = 0
        self.crossed_bytes = 0
        self._idle: asyncio.Event | None = None
        self._closing = False
        self._attempts: dict[int, _Attempt] = {}
        self._scheduler = Scheduler(len(fleet.workers()), _DEPTH, tries, fleet.at_once)

    @contextlib.contextmanager
    def admitted(self) -> Generator[None]:
        """Counts a step, or several that belong together, as running. Raises LimitExceeded, Unavailable."""
        if self._closing:
            raise Unavailable("The server is shutting down.")
        if self._running >= self._limit:
            raise LimitExceeded(f"{self._limit} steps are running or waiting already.", limit=self._limit)
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if self._idle is not None and self._running == 0:
                self._idle.set()

    async def run(self, plan: Plan, feeds: Sequence[Array], variables: Variables | None) -> list[Array]:
        """Runs a plan once. Raises a kernel's error, LimitExceeded, Unavailable; see Runtime.run."""
        with self.admitted():
            if not plan.segments:
                return [plan.constants[at] if segment == CONSTANT else feeds[at] for segment, at in plan.fetches]
            values = self.put(feeds)
            try:
                held = await self.hold(plan, values, variables)
            finally:
                self.free(values)
            results = [
                feeds[at] if segment == FEED else plan.constants[at] if segment == CONSTANT else self._fleet.get(value)
                for (segment, at), value in zip(plan.fetches, held.values, strict=True)
            ]
            self.free(held.values)
            return results

    def put(self, arrays: Sequence[Array]) -> list[Value]:
        """Values that every worker can read; free them when done. Raises LimitExceeded."""
        values: list[Value] = []
        try:
            for array in arrays:
                values.append(self._fleet.put(array))
        except LimitExceeded:
            self.free(values)
            raise
        return values

    def free(self, values: Sequence[Value]) -> None:
        """Counts one user less of each."""
        for value in values:
            self._fleet.free(value)

    async def hold(
        self,
        plan: Plan,
        values: Sequence[Value],
        variables: Variables | None,
        *,
        wish: int = -1,
        draws: dict[str, int] | None = None,
    ) -> Held:
        """Runs a plan once, within `admitted`, and leaves its results where they are.

        Args:
            plan: what to run.
            values: the feeds, which stay the caller's.
            variables: the session's.
            wish: the worker to run a floating plan, if it is up.
            draws: positions of random streams to start from; the step then changes neither positions nor variables of
                the session.
        """
        if plan.writes and variables is not None and draws is None:
            async with variables.writing:
                return await self._hold(_Step(plan, values, variables, draws), wish)
        return await self._hold(_Step(plan, values, variables, draws), wish)

    async def drain(self, grace_seconds: float) -> None:
        """Takes no new steps and waits for the running ones; after the grace they fail with Unavailable."""
        self._closing = True
        self._idle = asyncio.Event()
        if self._running:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), grace_seconds)
        for attempt in list(self._attempts.values()):
            if not attempt.step.done.done():
                attempt.step.done.set_exception(Unavailable("The server is shutting down."))
        await asyncio.sleep(0)

    async def _hold(self, step: _Step, wish: int) -> Held:
        fleet, plan = self._fleet, step.plan
        if not plan.segments:
            return Held([self._given(step, segment, at) for segment, at in plan.fetches], {})
        number, commands = self._scheduler.start(plan, wish)
        self._begin(number, step)
        self._do(commands)
        try:
            attempt = await _success(step)
        except BaseException:
            self._do(self._scheduler.cancel(step.attempt))
            self._end(step.attempt)
            raise
        finally:
            for value in step.snapshot.values():
                fleet.free(value)
        results: list[Value] = []
        for segment, at in plan.fetches:
            if segment in (CONSTANT, FEED):
                results.append(self._given(step, segment, at))
            else:
                results.append(attempt.outputs[segment][at])
                fleet.retain(results[-1])
        self._end(step.attempt)
        return Held(results, attempt.draws)

    def _given(self, step: _Step, segment: int, at: int) -> Value:
        """A result that no worker computed, counted once more."""
        if segment == CONSTANT:
            return step.plan.constants[at]
        self._fleet.retain(step.feeds[at])
        return step.feeds[at]

    # Events

    def finished(
        self,
        worker: int,
        attempt: int,
        segment: int,
        outputs: list[Value] | None,
        updates: dict[str, Value] | None,
        draws: dict[str, int] | None,
    ) -> None:
        known = self._attempts.get(attempt)
        if known is None or known.over:
            for value in (*(outputs or ()), *(updates or {}).values()):
                self._fleet.free(value)
        else:
            if outputs is not None:
                self._came(known, segment, outputs)
            ran = known.step.plan.segments[segment]
            for position in ran.arriving:
                self.crossed_bytes += self._fleet.size_bytes(self._input(known, ran.inputs[position]))
            for source in ran.inputs:
                if not isinstance(source, Kept) and source.segment >= 0:
                    self._has_read(known, source.segment, source.position)
            if updates:
                for name, value in updates.items():
                    if name in known.updates:
                        self._fleet.free(known.updates[name])
                    known.updates[name] = value
            if draws:
                known.draws.update(draws)
        self._landed(worker, attempt, segment)
        self._do(self._scheduler.finished(worker, attempt, segment))

    def failed(self, worker: int, attempt: int, segment: int, error: GradserveError) -> None:
        self._landed(worker, attempt, segment)
        self._do(self._scheduler.failed(worker, attempt, error))

    def missing(self, worker: int, attempt: int, segment: int) -> None:
        self._landed(worker, attempt, segment)
        self._do(self._scheduler.missing(worker, attempt))

    def lost(self, worker: int) -> None:
        self._do(self._scheduler.lost(worker))
        for number, segment in self._given_out[worker]:
            if number in self._attempts:
                del self._attempts[number].in_flight[segment]
                self._release(number, self._attempts[number])
        self._given_out[worker].clear()

    def ready(self, worker: int) -> None:
        self._do(self._scheduler.ready(worker))

    def unavailable(self, worker: int, error: GradserveError) -> None:
        self._do(self._scheduler.unavailable(worker, error))

    # Commands

    def _do(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Submit():
                    self._submit(command)
                case Finish():
                    self._finish(self._attempts[command.attempt])
                case Fail():
                    step = self._attempts[command.attempt].step
                    if not step.done.done():
                        step.done.set_exception(command.error)
                case Forget():
                    self._fleet.forget(command.worker, command.attempt)
                case Restart():
                    self._begin(command.new, self._attempts[command.old].step)
                    self._end(command.old)

    def _begin(self, number: int, step: _Step) -> None:
        """Counts an attempt in as a user of the step's tensors."""
        step.attempt = number
        self._attempts[number] = _Attempt(step)
        for value in step.feeds:
            self._fleet.retain(value)
        for value in step.snapshot.values():
            self._fleet.retain(value)

    def _submit(self, command: Submit) -> None:
        attempt = self._attempts[command.attempt]
        step = attempt.step
        segment = step.plan.segments[command.segment]
        inputs = [self._input(attempt, source) for source in segment.inputs]
        variables = None
        if segment.variables:
            variables = {name: step.snapshot[name] for name in segment.variables if name in step.snapshot}
        draws = (step.draws or {}) if segment.draws else None
        number = segment.program.number
        if not self._fleet.is_loaded(command.worker, number):
            self._fleet.load(command.worker, segment.program)
        attempt.in_flight[command.segment] = command.worker
        self._given_out[command.worker][command.attempt, command.segment] = None
        ticket = self._fleet.submit(
            command.worker,
            Submission(
                command.attempt, command.segment, number, inputs, variables, draws, command.last,
                len(segment.program.sent), segment.fetched, segment.written,
                [attempt.done[index] for index in segment.before if index in attempt.done],
                segment.arriving, segment.destinations,
            ),
        )  # fmt: skip
        if ticket is not None:
            attempt.done[command.segment] = ticket.done
            self._came(attempt, command.segment, ticket.outputs)

    def _input(self, attempt: _Attempt, source: Kept | Source) -> Value:
        """What a segment reads."""
        if isinstance(source, Kept):
            return source
        if source.segment == FEED:
            return attempt.step.feeds[source.position]
        return attempt.outputs[source.segment][source.position]

    def _finish(self, attempt: _Attempt) -> None:
        """A step succeeded: its new values take the place of the old ones, unless nobody waits any more."""
        step = attempt.step
        if step.done.done():
            return
        if step.commits and step.variables is not None and (attempt.updates or attempt.draws):
            updates, attempt.updates = attempt.updates, {}
            step.variables.replace(updates, attempt.draws)
        step.done.set_result(attempt)

    def _came(self, attempt: _Attempt, segment: int, outputs: list[Value]) -> None:
        """Takes over a segment's outputs, or their handles before it has run."""
        attempt.outputs[segment] = outputs
        attempt.unread[segment] = list(attempt.step.plan.segments[segment].readers)

    def _has_read(self, attempt: _Attempt, segment: int, position: int) -> None:
        """Frees an output after its last reader."""
        unread = attempt.unread[segment]
        unread[position] -= 1
        if unread[position] == 0:
            self._fleet.free(attempt.outputs[segment][position])
            attempt.outputs[segment][position] = None

    def _landed(self, worker: int, number: int, segment: int) -> None:
        self._given_out[worker].pop((number, segment), None)
        attempt = self._attempts.get(number)
        if attempt is not None:
            del attempt.in_flight[segment]
            self._release(number, attempt)

    def _end(self, number: int) -> None:
        attempt = self._attempts.get(number)
        if attempt is not None:
            attempt.over = True
            self._release(number, attempt)
            if attempt.in_flight and self._patience:
                asyncio.get_running_loop().call_later(self._patience, self._lose_patience, number)

    def _lose_patience(self, number: int) -> None:
        """Replaces the workers that still run a segment of an attempt that is over; looks again at the others."""
        attempt = self._attempts.get(number)
        if attempt is None or self._closing:
            return
        for segment, worker in list(attempt.in_flight.items()):
            first = next(iter(self._given_out[worker]))
            waits = any(before in attempt.in_flight for before in attempt.step.plan.segments[segment].before)
            if first == (number, segment) and not waits:
                self._fleet.replace(worker, f"it runs for {self._patience:g} s what nobody waits for any more")
        asyncio.get_running_loop().call_later(self._patience, self._lose_patience, number)

    def _release(self, number: int, attempt: _Attempt) -> None:
        """Counts an attempt out when it is over and no worker reads for it any more."""
        if not attempt.over or attempt.in_flight:
            return
        del self._attempts[number]
        fleet = self._fleet
        for outputs in attempt.outputs:
            for value in outputs:
                if value is not None:
                    fleet.free(value)
        for value in attempt.updates.values():
            fleet.free(value)
        for value in attempt.step.feeds:
            fleet.free(value)
        for value in attempt.step.snapshot.values():
            fleet.free(value)


async def _success(step: _Step) -> _Attempt:
    """The attempt that succeeded. A cancellation that comes after that is dropped: the new values are in place."""
    try:
        return await step.done
    except asyncio.CancelledError:
        if not step.done.done() or step.done.cancelled():
            raise
        return step.done.result()
