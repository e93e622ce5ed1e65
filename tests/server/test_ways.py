"""Which ways there are between devices, and what is said of those that there are not."""

from __future__ import annotations

import logging

import pytest

from gradserve.server.fleet.ways import Ways
from gradserve.workers.transport import Gpu


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def ways(*gpus: Gpu | str | None) -> Ways:
    """Workers 0, 1, … of epochs "0", "1", … with these devices."""
    made = Ways()
    for worker, gpu in enumerate(gpus):
        made.enter(worker, str(worker), gpu)
    return made


def test_ways_lead_between_devices_of_their_own_with_the_same_nccl(said: pytest.LogCaptureFixture) -> None:
    found = ways(Gpu("a", 2), Gpu("b", 2), Gpu("a", 2), Gpu("c", 3), "it has none", None)
    leading = {(a, b) for a in range(6) for b in range(6) if a != b and found.lead(str(a), str(b))}
    assert leading == {(0, 1), (1, 0), (1, 2), (2, 1)}
    assert "workers 0 and 2 through host memory: they share one GPU" in said.text
    assert "workers 1 and 3 through host memory: one has version 3 of NCCL, the other 2" in said.text
    assert "Worker 4 hands tensors to other GPUs through host memory: it has none." in said.text
    assert "Tensors go by NCCL between the GPU of worker 1 and those of workers [0]." in said.text


def test_a_way_that_failed_is_not_used_while_both_ends_live(said: pytest.LogCaptureFixture) -> None:
    found = ways(*(Gpu(name, 2) for name in "abc"))
    assert found.cut("0", "1", "no network")
    assert not found.cut("0", "1", "no network")
    assert said.text.count("from worker 0 to worker 1 through host memory from now on: no network") == 1
    assert not found.lead("0", "1")
    assert found.lead("1", "0")
    assert found.leave("1") == [0, 2]
    found.enter(1, "1 again", Gpu("b", 2))
    assert found.lead("0", "1 again")


def test_a_way_ends_with_a_worker() -> None:
    found = ways(Gpu("a", 2), Gpu("b", 2))
    found.leave("0")
    assert not found.lead("0", "1")
    assert not found.cut("0", "1", "the maker is gone")
    assert found.leave("0") == []


def test_after_two_failures_no_way_is_used_until_one_of_the_workers_ends() -> None:
    found = ways(*(Gpu(name, 2) for name in "abcd"))
    found.cut("0", "1", "no network")
    assert found.lead("2", "3")
    found.cut("1", "2", "no network")
    assert not found.lead("2", "3")
    found.leave("2")
    assert found.lead("1", "3")
