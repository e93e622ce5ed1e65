"""The scheduler as a state machine: events in, commands out, no processes."""

from __future__ import annotations

from gradserve.errors import ComputationFailed, Unavailable
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.server.plan import Plan
from gradserve.server.schedule import Fail, Finish, Forget, Restart, Scheduler, Submit
from tests.server.build import placeholder, plan, zigzag


def chain(turns: int) -> Plan:
    graph, y = zigzag(turns)
    return plan(graph, [y])


def floating() -> Plan:
    graph = Graph()
    with graph.as_default():
        y = raw.Tanh(placeholder())
    return plan(graph, [y])


def test_segments_follow_one_another() -> None:
    scheduler = Scheduler(2, 2, 3)
    assert scheduler.start(chain(2)) == (1, [Submit(1, 0, 0, False)])
    assert scheduler.finished(0, 1, 0) == [Submit(1, 1, 1, True)]
    assert scheduler.finished(1, 1, 1) == [Submit(1, 2, 0, True)]
    assert scheduler.finished(0, 1, 2) == [Finish(1)]


def test_floating_plans_go_to_the_least_loaded_worker() -> None:
    scheduler = Scheduler(2, 2, 3)
    made = floating()
    workers = [scheduler.start(made)[1][0].worker for _ in range(4)]  # pyright: ignore[reportAttributeAccessIssue]
    assert workers == [0, 1, 0, 1]


def test_a_worker_gets_no_more_than_the_depth() -> None:
    scheduler = Scheduler(1, 2, 3)
    made = floating()
    assert [len(scheduler.start(made)[1]) for _ in range(3)] == [1, 1, 0]
    assert scheduler.finished(0, 1, 0) == [Finish(1), Submit(3, 0, 0, True)]


def test_a_lost_worker_starts_the_step_again() -> None:
    scheduler = Scheduler(2, 2, 3)
    scheduler.start(chain(2))
    scheduler.finished(0, 1, 0)
    commands = scheduler.lost(1)
    assert commands == [Forget(0, 1), Restart(1, 2), Submit(2, 0, 0, False)]
    assert scheduler.finished(0, 2, 0) == []
    assert scheduler.ready(1) == [Submit(2, 1, 1, True)]


def test_a_step_that_has_not_reached_the_lost_worker_goes_on() -> None:
    scheduler = Scheduler(2, 2, 3)
    scheduler.start(chain(1))
    assert scheduler.lost(1) == []
    assert scheduler.finished(0, 1, 0) == []
    assert scheduler.ready(1) == [Submit(1, 1, 1, True)]


def test_tries_are_bounded() -> None:
    scheduler = Scheduler(1, 2, 2)
    scheduler.start(floating())
    assert scheduler.lost(0) == [Restart(1, 2)]
    assert scheduler.ready(0) == [Submit(2, 0, 0, True)]
    [command] = scheduler.lost(0)
    assert isinstance(command, Fail)
    assert isinstance(command.error, Unavailable)


def test_a_late_answer_changes_nothing() -> None:
    scheduler = Scheduler(2, 2, 3)
    scheduler.start(chain(1))
    assert scheduler.cancel(1) == [Forget(0, 1)]
    assert scheduler.finished(0, 1, 0) == []


def test_an_error_ends_the_step_once() -> None:
    scheduler = Scheduler(1, 2, 3)
    scheduler.start(floating())
    error = ComputationFailed("no")
    assert scheduler.failed(0, 1, error) == [Forget(0, 1), Fail(1, error)]
    assert scheduler.failed(0, 1, error) == []


def test_a_worker_that_is_gone_fails_what_needs_it() -> None:
    scheduler = Scheduler(2, 2, 3)
    scheduler.start(chain(1))
    error = Unavailable("gone")
    scheduler.lost(1)
    assert scheduler.unavailable(1, error) == [Forget(0, 1), Fail(1, error)]
    assert scheduler.start(floating())[1] == [Submit(2, 0, 0, True)]
    assert scheduler.start(chain(1))[1] == [Fail(3, error)]
