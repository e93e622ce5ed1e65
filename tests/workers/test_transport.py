"""Tensors between devices, and what happens when one end stops, dies or is late. Real processes; NCCL's stand-in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from gradserve.workers.transport import Lost
from tests.standin.node import Node, nodes, until

LARGE = np.arange(1 << 20, dtype=np.float32)
PATIENT, HASTY = 1000.0, 1.0  # seconds: no test waits for the first, some for the second
Start = Callable[..., Node]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts nodes that know each other."""
    yield from nodes(lambda place, name, seconds: Node(name, seconds), PATIENT)


def test_tensors_of_two_makers_arrive_in_the_order_of_the_offers(start: Start) -> None:
    a, b, reader = start("a"), start("b"), start("reader")
    offers = [maker.offer(k, LARGE[k:]) for k, maker in enumerate([a, b, a, b])]
    for _ in range(2):
        found = reader.do("pull", offers)
        assert [array.tobytes() for array in found] == [LARGE[k:].tobytes() for k in range(4)]
        offers = [maker.offer(k, LARGE[k:]) for k, maker in enumerate([a, b, a, b])]
    assert reader.do("links") == 2


@pytest.mark.parametrize("value", [LARGE.reshape(1 << 10, -1).T, LARGE.astype(np.complex64), LARGE > 5])
def test_what_arrives_has_the_shape_and_dtype_of_what_was_offered(value: np.ndarray, start: Start) -> None:
    maker, reader = start("maker"), start("reader")
    [found] = reader.do("pull", [maker.offer(1, value)])
    assert (found.shape, found.dtype) == (value.shape, value.dtype)
    assert np.array_equal(found, value)


def test_a_maker_drops_a_tensor_when_its_last_reader_has_it(start: Start) -> None:
    maker, one, other = start("maker"), start("one"), start("other")
    offer = maker.offer(1, LARGE, readers=2)
    one.do("pull", [offer])
    assert maker.do("held")[0] == 1
    other.do("pull", [offer])
    until(lambda: maker.do("held") == (0, 0))
    until(lambda: maker.do("device_bytes") == 0)


def test_what_is_not_offered_any_more_is_lost_and_the_link_stays(start: Start) -> None:
    maker, reader = start("maker"), start("reader")
    reader.do("pull", [maker.offer(1, LARGE)])
    released, kept = maker.offer(2, LARGE, attempt=7), maker.offer(2, LARGE, attempt=8)
    maker.do("release", 7)
    with pytest.raises(Lost) as raised:
        reader.do("pull", [released])
    assert raised.value.broken == ""
    assert np.array_equal(reader.do("pull", [kept])[0], LARGE)
    assert maker.do("links") == 1


def test_a_maker_that_does_not_answer_in_time_is_given_up_and_what_it_sends_late_is_not_taken(start: Start) -> None:
    maker, reader = start("maker"), start("reader", HASTY)
    reader.do("pull", [maker.offer(1, LARGE)])
    late, next_one = maker.offer(2, LARGE + 1), maker.offer(3, LARGE + 2)
    maker.stop()
    with pytest.raises(Lost, match="does not answer"):
        reader.do("pull", [late])
    maker.go_on()
    assert np.array_equal(reader.do("pull", [next_one])[0], LARGE + 2)


def test_a_transfer_that_stands_still_is_given_up_at_both_ends_and_a_new_link_serves(start: Start) -> None:
    maker, reader = start("maker", HASTY), start("reader", HASTY)
    maker.do("stall", LARGE.nbytes // 2)
    with pytest.raises(Lost, match="not ended in time"):
        reader.do("pull", [maker.offer(1, LARGE)])
    until(lambda: maker.do("held") == (0, 0))
    maker.do("stall", 1 << 62)
    assert np.array_equal(reader.do("pull", [maker.offer(2, LARGE)])[0], LARGE)
    until(lambda: (maker.do("links"), reader.do("links")) == (1, 1))


def test_a_reader_that_learns_of_its_makers_end_stops_waiting(start: Start) -> None:
    maker, reader = start("maker"), start("reader")
    maker.do("stall", LARGE.nbytes // 2)
    pulled = reader.begin("pull", [maker.offer(1, LARGE)])
    until(lambda: maker.do("stalled"))
    maker.kill()
    reader.beside("part", "maker")
    with pytest.raises(Lost):
        pulled()
    until(lambda: reader.do("links") == 0)
    until(lambda: reader.do("device_bytes") == 0)


def test_a_maker_that_learns_of_its_readers_end_frees_what_was_for_it(start: Start) -> None:
    maker, reader, other = start("maker"), start("reader"), start("other")
    maker.do("stall", LARGE.nbytes // 2)
    reader.begin("pull", [maker.offer(1, LARGE)])
    until(lambda: maker.do("stalled"))
    reader.kill()
    maker.do("part", "reader")
    assert maker.do("held") == (0, 0)
    until(lambda: maker.do("links") == 0)
    until(lambda: maker.do("device_bytes") == 0)
    maker.do("stall", 1 << 62)
    assert np.array_equal(other.do("pull", [maker.offer(2, LARGE)])[0], LARGE)


def test_a_maker_whose_reader_ends_while_they_join_gives_up_in_time(start: Start) -> None:
    maker, other = start("maker", HASTY), start("other")
    offer = maker.offer(1, LARGE)
    answer = maker.do("give", "a reader that never joins", None, (offer.key,))
    assert answer.link is not None
    until(lambda: maker.do("sweep") or maker.do("held") == (0, 0))
    until(lambda: maker.do("device_bytes") == 0)
    assert maker.do("links") == 1  # NCCL does not let go of it
    assert np.array_equal(other.do("pull", [maker.offer(2, LARGE)])[0], LARGE)


def test_the_question_of_a_reader_that_is_gone_makes_no_link(start: Start) -> None:
    maker = start("maker")
    offer = maker.offer(1, LARGE)
    maker.do("part", "reader")
    assert maker.do("give", "reader", None, (offer.key,)).link is None
    until(lambda: maker.do("held") == (0, 0))


def test_of_several_makers_the_others_are_heard_out_when_one_fails(start: Start) -> None:
    good, bad, reader = start("good"), start("bad"), start("reader")
    offers = [bad.offer(1, LARGE), good.offer(1, LARGE)]
    bad.do("release", 1)
    with pytest.raises(Lost):
        reader.do("pull", offers)
    until(lambda: good.do("held") == (0, 0))
    assert np.array_equal(reader.do("pull", [good.offer(2, LARGE + 1)])[0], LARGE + 1)


def test_the_link_that_was_idle_longest_makes_room(start: Start) -> None:
    a, b, reader = start("a"), start("b"), start("reader")
    reader.do("bound", "_MOST_LINKS", 1)
    for maker in (a, b, a):
        assert np.array_equal(reader.do("pull", [maker.offer(1, LARGE)])[0], LARGE)
        until(lambda: reader.do("links") == 1)
    until(lambda: (a.do("links"), b.do("links")) == (1, 0))


def test_no_link_is_made_while_too_many_threads_are_held_by_nccl(start: Start) -> None:
    makers, reader = [start(f"maker {k}") for k in range(2)], start("reader", HASTY)
    reader.do("bound", "_MOST_LEFT", 0)
    makers[0].do("stall", 0)
    offers = [maker.offer(1, LARGE) for maker in makers]
    with pytest.raises(Lost, match="not ended in time"):
        reader.do("pull", offers[:1])
    with pytest.raises(Lost, match="too many broken links"):
        reader.do("pull", offers[1:])
    makers[0].kill()  # now its end of the link is gone, and NCCL lets the reader's go
    until(lambda: reader.do("links") == 0)
    assert np.array_equal(reader.do("pull", [makers[1].offer(2, LARGE)])[0], LARGE)


def test_a_reader_without_memory_asks_for_nothing(start: Start) -> None:
    maker, reader = start("maker"), start("reader")
    reader.do("limit", LARGE.nbytes // 2)
    offer = maker.offer(1, LARGE)
    with pytest.raises(MemoryError):
        reader.do("pull", [offer])
    assert maker.do("links") == 0
    reader.do("limit", 0)
    assert np.array_equal(reader.do("pull", [offer])[0], LARGE)
