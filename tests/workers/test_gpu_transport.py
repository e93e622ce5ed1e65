"""NCCL itself, between two processes: on two GPUs, or on one where NCCL is new enough to allow that."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from gradserve.workers.transport import Lost, Offer
from tests.devices import devices, needs_gpus
from tests.standin.node import Node, nodes, until

pytestmark = needs_gpus(1)

LARGE = np.arange(1 << 22, dtype=np.float32)
SECONDS = 40.0
Start = Callable[[str], Node]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts nodes that know each other, each on the next GPU."""
    visible = (os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(devices())))).split(",")

    def node(place: int, name: str, seconds: float) -> Node:
        return Node(name, seconds, {
            "CUDA_VISIBLE_DEVICES": visible[place % devices()], "NCCL_SOCKET_IFNAME": "lo",
            "NCCL_MULTI_RANK_GPU_ENABLE": "1",
        })  # fmt: skip

    yield from nodes(node, SECONDS)


def pull(reader: Node, offers: Sequence[Offer]) -> list[Any]:
    """What is offered; the test is skipped where NCCL does not join two processes on one GPU."""
    try:
        return reader.do("pull", list(offers))
    except Lost as lost:
        if devices() > 1:
            raise
        pytest.skip(f"NCCL joins no two processes on one GPU here: {lost.broken}")


def test_a_worker_says_what_device_it_has(start: Start) -> None:
    found = [start(name).do("probe") for name in ("one", "other")]
    assert found[0].version == found[1].version > 20000
    assert (found[0].identity == found[1].identity) == (devices() == 1)


def test_tensors_arrive_as_they_were_and_are_freed(start: Start) -> None:
    maker, reader = start("maker"), start("reader")
    for turn in range(5):
        values = [LARGE + turn, (LARGE[turn:] % 100).astype(np.float16), np.isfinite(LARGE).reshape(1 << 11, -1).T]
        found = pull(reader, [maker.offer(k, value) for k, value in enumerate(values)])
        for value, array in zip(values, found, strict=True):
            assert (array.dtype, array.shape) == (value.dtype, value.shape)
            assert array.tobytes() == value.tobytes()
        until(lambda: maker.do("held") == (0, 0))
    assert (maker.do("links"), reader.do("links")) == (1, 1)
    until(lambda: maker.do("device_bytes") == 0)


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.02])
def test_a_maker_that_is_killed_leaves_its_reader_able(delay: float, start: Start) -> None:
    maker, other, reader = start("maker"), start("other"), start("reader")
    pull(reader, [maker.offer(0, LARGE)])
    offers = [maker.offer(k, LARGE) for k in range(1, 33)]
    pulled = reader.begin("pull", offers)
    time.sleep(delay)
    maker.kill()
    reader.beside("part", "maker")
    with contextlib.suppress(Lost):
        assert all(np.array_equal(array, LARGE) for array in pulled())  # it was through before
    assert np.array_equal(pull(reader, [other.offer(1, LARGE + 1)])[0], LARGE + 1)


def test_a_reader_that_is_killed_leaves_its_maker_able(start: Start) -> None:
    maker, reader, other = start("maker"), start("reader"), start("other")
    pull(reader, [maker.offer(0, LARGE)])
    reader.begin("pull", [maker.offer(k, LARGE) for k in range(1, 33)])
    time.sleep(0.003)
    reader.kill()
    maker.do("part", "reader")
    maker.do("release", 1)
    assert maker.do("held") == (0, 0)
    until(lambda: maker.do("device_bytes") == 0)
    assert np.array_equal(pull(other, [maker.offer(1, LARGE + 1)])[0], LARGE + 1)
