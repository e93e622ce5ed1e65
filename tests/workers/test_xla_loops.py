"""Loops, branches and lists on the xla engine: one program each, with the reference's answers, errors and state."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import gradserve.ops  # noqa: F401
from gradserve.autodiff import gradients
from gradserve.errors import ComputationFailed, FailedPrecondition, GradserveError, InvalidArgument, LimitExceeded
from gradserve.graph.functions import add_function, argument, new_body, spec_of
from gradserve.graph.graph import Graph, IndexedSlices, Node, Tensor
from gradserve.graph.inline import inline, target_of
from gradserve.graph.op import catalogue, lookup, raw
from gradserve.ops import loops
from gradserve.workers.engines import numpy as reference
from gradserve.workers.engines.split import Kind, split
from gradserve.workers.segment import Segment, State
from tests.graph import test_raising
from tests.ops import test_bodies
from tests.ops.draw import Draw
from tests.ops.test_bodies import branch, function, loop

xla = pytest.importorskip("gradserve.workers.engines.xla", reason="JAX is not installed")

from gradserve.workers.engines.xla_known import CONTROL, known  # noqa: E402

X = test_bodies.X
ANY = np.int32(-1)
LIST = {"element_dtype": "float64"}


def segment_of(x: Tensor, fetches: Sequence[Tensor], targets: Sequence[Node] = ()) -> Segment:
    """The segment that a plan makes of these: second forward nodes stand in the place of the first."""
    found = inline(x.graph, [*(tensor.node for tensor in (x, *fetches)), *targets])
    if found is None:
        return Segment(x.graph, (x,), tuple(fetches), tuple(targets))
    stand = found.tensors
    return Segment(
        found.graph, (stand[x],), tuple(stand[t] for t in fetches), tuple(target_of(found, node) for node in targets)
    )


def kinds(segment: Segment, shape: tuple[int, ...], missing: frozenset[int | str] = frozenset()) -> list[Kind]:
    """The pieces that a segment is cut into."""
    body = known(segment, [shape], {}, missing)
    pieces = [piece.kind for piece in split(body.segment, xla.KERNELS, body.traced)]
    assert Kind.HOST in pieces or all(node in body.plans for node in body.segment.nodes() if node.type in CONTROL)
    return pieces


def agree(x: Tensor, fetches: Sequence[Tensor], value: np.ndarray[Any, Any], pieces: list[Kind] | None = None) -> Any:
    """Asserts that both engines give the same, the xla engine in one program unless told otherwise; returns it."""
    segment = segment_of(x, fetches)
    assert kinds(segment, value.shape) == ([Kind.DEVICE] if pieces is None else pieces)
    expected = reference.compile(segment)([value], State())
    run = xla.compile_program(segment)
    for _ in range(2):
        for tensor, a, b in zip(fetches, expected, run([value], State()), strict=True):
            a, b = np.asarray(a), np.asarray(b)
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-10, err_msg=str(tensor))
    return expected


def orders(y: Tensor, x: Tensor, order: int) -> list[Tensor]:
    """y and its derivatives, as far as there are any."""
    found = [y]
    for _ in range(order):
        (dx,) = gradients(found[-1], x)
        if dx is None or isinstance(dx, IndexedSlices):
            break
        found.append(dx)
    return found


def total(y: Tensor) -> Tensor:
    return raw.Sum(y, raw.Range(0, raw.Rank(y), 1))


# Feeds


def alike(segment: Segment, *values: Any) -> list[Any]:
    """Asserts that both engines give the same; returns it."""
    expected = reference.compile(segment)(list(values), State())
    for a, b in zip(expected, xla.compile_program(segment)(list(values), State()), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-12)
    return expected


def test_what_is_fed_stands_where_a_node_computes_it_too() -> None:
    """A node runs for one output, and another one of it is fed."""
    with Graph().as_default() as graph:
        x = raw.Placeholder(dtype="float64", shape=(4,))
        a, b = raw.Split.outputs(np.int32(0), x, num_split=2)
        i, y = loop(lambda i, y: raw.Less(i, 2), lambda i, y: [i + 1, y * 2.0], 0, b)
        value = np.arange(4.0)
        z = a * 10.0 + b
        np.testing.assert_array_equal(alike(Segment(graph, (x, a), (z,)), value, np.full(2, 7.0))[0], [72.0, 73.0])
        product = y * raw.Cast(i, DstT="float64")
        alike(Segment(graph, (x, i), (product, i)), value, np.int32(7))


def test_a_loop_may_wait_for_a_placeholder_that_is_fed() -> None:
    with Graph().as_default() as graph:
        x = raw.Placeholder(dtype="float64", shape=(3,))
        with graph.control_dependencies([x.node]):
            y = loop(lambda i, y: raw.Less(i, 2), lambda i, y: [i + 1, y * 2.0], 0, x)[1]
        alike(Segment(graph, (x,), (y,)), X)


# Values and derivatives


@pytest.mark.parametrize("known_shapes", [True, False])
@pytest.mark.parametrize("name", [name for name in test_bodies.MODELS if name not in ("a call", "no rounds", "rows")])
def test_bodies_and_their_derivatives_are_one_program(name: str, known_shapes: bool) -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,) if known_shapes else None)
        agree(x, orders(test_bodies.MODELS[name](x), x, 2), X)


def test_branches_that_give_different_numbers_of_rows_are_chosen_between_on_the_host() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        ys = orders(test_bodies.MODELS["rows"](x), x, 2)
        agree(x, ys, X, [Kind.HOST, Kind.DEVICE, Kind.HOST, Kind.DEVICE])


@pytest.mark.parametrize("name", ["rounds", "a loop in a loop", "lists"])
def test_a_third_derivative_is_one_program(name: str) -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        agree(x, orders(test_bodies.MODELS[name](x), x, 3)[-1:], X)


def test_a_loop_without_rounds_leaves_nothing_to_run() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        ys = orders(test_bodies.power(x, 0), x, 2)
        agree(x, ys[1:], X)
        assert kinds(segment_of(x, ys[:1]), (3,)) == []


@pytest.mark.parametrize(("name", "p", "q"), test_raising.SIDES)
def test_frames_of_tf_one_are_one_program(name: str, p: bool, q: bool) -> None:
    graph, x, y = test_raising._graph(name, p=p, q=q)
    if name != "no rounds":
        with graph.as_default():
            agree(x, orders(y, x, 2), test_raising.X)


_MADE_OF_LISTS = sorted(name for name, op in catalogue().items() if name.startswith("TensorList") and op.examples)
# Of lists whose pieces have different lengths.
_RAGGED = frozenset(("TensorListConcat", "TensorListConcatV2", "TensorListSplit"))


@pytest.mark.parametrize("name", _MADE_OF_LISTS)
def test_lists_are_one_program(name: str) -> None:
    examples = lookup(name).examples
    assert examples is not None
    for example in examples(Draw(lambda low, high: min(high, max(low, 2)))):
        assert example.build is not None
        (value,) = example.inputs
        with Graph().as_default():
            x = raw.Placeholder(dtype="float64", shape=value.shape)
            y = raw.AddN([total(y) for y in example.build(x)])
            pieces = None
            if name in _RAGGED:
                pieces = kinds(segment_of(x, orders(y, x, 2)), value.shape)
                assert Kind.HOST in pieces
            agree(x, orders(y, x, 2), value, pieces)


def test_pieces_of_one_length_join_in_the_program() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(4, 2))
        handle = raw.TensorListSplit(x * x, ANY, np.array([2, 2]), **LIST)
        joined, lengths = raw.TensorListConcatV2.outputs(handle, ANY, np.array([], np.int64), **LIST)
        agree(x, [*orders(total(joined * joined), x, 1), lengths], np.arange(8.0).reshape(4, 2))


@pytest.mark.parametrize(
    ("dtype", "asks", "start", "step", "bound"),
    [
        (np.int8, "Less", 0, 50, 120),  # 0, 50, 100, -106, -56, -6, 44, 94, -112, …
        (np.int8, "Less", 0, 3, 126),
        (np.uint8, "Greater", 5, -1, 0),
        (np.uint64, "Less", 1, 3, 10),
    ],
)
def test_integers_wrap_around(dtype: type, asks: str, start: int, step: int, bound: int) -> None:
    change = np.array(step).astype(dtype)
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        body = lambda i, y: [raw.AddV2(i, change), raw.Sin(y) + raw.Cast(i, DstT="float64")]
        i, y = loop(lambda i, y: getattr(raw, asks)(i, dtype(bound)), body, dtype(start), x)
        agree(x, [i, *orders(y, x, 1)], X)


def test_a_second_counter_wraps_around() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        body = lambda i, j, y: [i + 1, raw.AddV2(j, np.int8(1)), y + raw.Cast(j, DstT="float64")]
        _, j, y = loop(lambda i, *_: raw.Less(i, 300), body, 0, np.int8(0), x)
        (last, _) = agree(x, [j, y], X)
        assert last == 300 - 256


def test_texts_that_stay_the_same_may_be_in_a_loop() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        texts = x.graph.constant(np.array([b"a", b"b"], object))
        (y, _) = loop(lambda y, _: raw.Less(raw.Sum(y, [0]), 9.0), lambda y, texts: [y + 1.0, texts], x, texts)
        agree(x, [y], X)


# Lists in loops


def grown(x: Tensor, rounds: Any, condition: Callable[..., Any] | None = None) -> Tensor:
    """A list with an element for each round, and its last element."""

    def body(i: Tensor, y: Tensor, held: Tensor, rounds: Tensor) -> list[Any]:
        return [i + 1, raw.Sin(y) + y, raw.TensorListPushBack(held, y, **LIST), rounds]

    start = raw.EmptyTensorList(ANY, ANY, **LIST)
    asks = condition or (lambda i, y, held, rounds: raw.Less(i, rounds))
    return loop(asks, body, 0, x, start, rounds)[2]


def test_a_list_that_a_loop_grows_has_a_known_length_where_the_rounds_are_known() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        held = grown(x, 5)
        (_, length) = agree(x, [raw.TensorListStack(held, ANY, **LIST), raw.TensorListLength(held)], X)
        assert length == 5


def test_a_list_of_unknown_length_is_stacked_on_the_host() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        held = grown(x, 5, lambda i, y, held, n: raw.Less(raw.Sum(y, [0]), 2.0))
        stacked = raw.TensorListStack(held, ANY, **LIST)
        expected = agree(x, [stacked * 2.0], X, [Kind.DEVICE, Kind.HOST, Kind.DEVICE])
        assert len(expected[0]) > 1


def until(x: Tensor) -> Tensor:
    """z ← sin z + z/2, as many times as x says."""
    return loop(
        lambda t, z, x: raw.Less(t, x), lambda t, z, x: [t + 1.0, raw.Sin(z) + z * 0.5, x],
        raw.ZerosLike(x), x * 0.1 + 0.3, x,
    )[1]  # fmt: skip


@pytest.mark.parametrize("rounds", [0, 3, 32, 33, 100])
def test_rounds_that_only_the_run_tells_are_guessed_and_the_guess_grows(rounds: int) -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=())
        agree(x, orders(until(x), x, 2), np.array(float(rounds)))


@pytest.mark.parametrize("most", [1, 2, 3])
def test_rounds_that_have_a_bound_may_be_fewer(most: int) -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        asks = lambda i, y: raw.LogicalAnd(raw.Less(i, most), raw.Less(raw.Sum(y, [0]), 1.2))
        y = loop(asks, lambda i, y: [i + 1, raw.Tanh(y) + y], 0, x)[1]
        agree(x, orders(total(y), x, 2), X)


def test_a_condition_reads_what_the_last_round_leaves_in_a_list() -> None:
    def asks(i: Tensor, y: Tensor, held: Tensor) -> Tensor:
        last = raw.TensorListGetItem(held, i, np.array([], np.int32), **LIST)
        return raw.LogicalAnd(raw.Less(i, 1), raw.Less(last, 5.0))

    def body(i: Tensor, y: Tensor, held: Tensor) -> list[Any]:
        return [i + 1, y * 2.0, raw.TensorListPushBack(held, total(y), **LIST)]

    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        start = raw.TensorListPushBack(raw.EmptyTensorList(np.array([], np.int32), ANY, **LIST), total(x), **LIST)
        agree(x, [loop(asks, body, 0, x, start)[1]], X)


def test_a_guess_in_a_loop_grows_too() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=())

        def body(i: Tensor, y: Tensor, x: Tensor) -> list[Any]:
            return [i + 1, raw.Sin(y) * until(x + raw.Cast(i, DstT="float64")), x]

        y = loop(lambda i, y, x: raw.Less(raw.Cast(i, DstT="float64"), x * 0.0 + 3.0), body, 0, x, x)[1]
        agree(x, orders(y, x, 1), np.array(40.0))


def test_a_list_made_anew_in_each_round_has_the_length_of_the_last_one() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))

        def body(i: Tensor, y: Tensor, held: Tensor) -> list[Any]:
            held = raw.TensorListResize(raw.TensorListPushBack(held, y, **LIST), 4)
            return [i + 1, y * 2.0, raw.TensorListPushBack(held, y, **LIST)]

        held = loop(lambda i, *_: raw.Less(i, 6), body, 0, x, raw.EmptyTensorList(ANY, ANY, **LIST))[2]
        stacked = raw.TensorListStack(held, ANY, num_elements=5, **LIST)
        agree(x, [stacked, raw.TensorListLength(held)], X)


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_a_list_that_every_round_begins_anew_is_empty(rounds: int) -> None:
    """Its length goes from 3 to 0 in the first round, and stays there."""

    def body(i: Tensor, held: Tensor, y: Tensor) -> list[Any]:
        longer = raw.TensorListPushBack(held, y, **LIST)
        last = raw.TensorListGetItem(longer, raw.TensorListLength(longer) + (-1), ANY, **LIST)
        return [i + 1, raw.EmptyTensorList(ANY, ANY, **LIST), raw.Sin(last)]

    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        start = raw.TensorListReserve(np.array([3], np.int32), 3, **LIST)
        held, y = loop(lambda i, *_: raw.Less(i, rounds), body, 0, start, x)[1:]
        (length, _) = agree(x, [raw.TensorListLength(held), y], X)
        assert length == 0


def _twice(i: Tensor, held: Tensor) -> Tensor:
    for number in (i, i):
        held = raw.TensorListPushBack(held, number, element_dtype="int32")
    return raw.TensorListPopBack.outputs(held, np.array([], np.int32), element_dtype="int32")[0]


def _anew(i: Tensor, held: Tensor) -> Tensor:
    empty = raw.EmptyTensorList(np.array([], np.int32), ANY, element_dtype="int32")
    fresh = raw.TensorListPushBack(empty, i, element_dtype="int32")
    first = raw.TensorListGetItem(fresh, 0, np.array([], np.int32), element_dtype="int32")
    return raw.TensorListPushBack(held, first, element_dtype="int32")


def _odd(i: Tensor, held: Tensor) -> Tensor:
    return raw.TensorListPushBack(held, i * i, element_dtype="int32")


def _once(i: Tensor, held: Tensor) -> Tensor:
    return raw.TensorListPushBack(held, i, element_dtype="int32")


@pytest.mark.parametrize("before", [0, 2])
@pytest.mark.parametrize("push", [_once, _twice, _anew, _odd], ids=lambda push: push.__name__)
def test_numbers_that_a_loop_saves_are_read_back(push: Callable[[Tensor, Tensor], Tensor], before: int) -> None:
    element, kind = np.array([], np.int32), {"element_dtype": "int32"}
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        held = raw.EmptyTensorList(element, ANY, **kind)
        for number in range(before):
            held = raw.TensorListPushBack(held, np.int32(100 + number), **kind)
        body = lambda i, held, y: [i + 3, push(i, held), y * 0.5]
        held, y = loop(lambda i, *_: raw.Less(i, 17), body, 5, held, x)[1:]

        def back(i: Tensor, held: Tensor, z: Tensor) -> list[Any]:
            rest, last = raw.TensorListPopBack.outputs(held, element, **kind)
            read = raw.GatherV2(y_of(z), raw.FloorMod(last, np.int32(3)), 0)
            return [i + 1, rest, z * 2.0 + read + raw.Cast(last, DstT="float64")]

        y_of = lambda z: raw.Sin(z)
        z = loop(lambda i, *_: raw.Less(i, 4), back, 0, held, y)[2]
        numbers = raw.Cast(raw.TensorListStack(held, element, **kind), DstT="float64")
        agree(x, [*orders(z, x, 1), numbers], X)


def test_what_was_taken_out_of_a_list_is_zeros_when_it_grows_again() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        held = grown(x, 4)
        held = raw.TensorListPopBack.outputs(held, np.array([3], np.int32), **LIST)[0]
        agree(x, [raw.TensorListStack(raw.TensorListResize(held, 6), ANY, **LIST)], X)


def test_rows_that_might_never_be_used_are_not_kept_in_large_numbers() -> None:
    """One round in 1,000 adds a row of 8 kB; room for all rounds would be 8 GB."""

    def body(i: Tensor, held: Tensor, y: Tensor) -> list[Any]:
        inputs = [held, y]
        then = function(held.graph, "then", inputs, lambda held, y: [raw.TensorListPushBack(held, y, **LIST)])
        other = function(held.graph, "other", inputs, lambda held, y: [held])
        asks = raw.Equal(raw.FloorMod(i, 1000), 0)
        (held,) = raw.StatelessIf.outputs(asks, inputs, Tout=["variant"], then_branch=then, else_branch=other)
        return [i + 1, held, y]

    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(1000,))
        for rounds, on_host in ((3000, False), (1_000_000, True)):
            start = raw.EmptyTensorList(ANY, ANY, **LIST)
            held = loop(lambda i, *_, n=rounds: raw.Less(i, n), body, 0, start, x)[1]
            pieces = kinds(segment_of(x, [raw.TensorListGetItem(held, 2, ANY, **LIST)]), (1000,))
            assert (Kind.HOST in pieces) == on_host


def test_rows_at_many_known_places_make_a_list() -> None:
    count = 1500  # more than what is built into a program
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(count,))
        places = np.arange(count, dtype=np.int32)[::-1].copy()
        held = raw.TensorListScatterV2(x, places, np.array([], np.int32), np.int32(-1), **LIST)

        def body(i: Tensor, held: Tensor, y: Tensor) -> list[Any]:
            return [i + 1, held, y * 0.5 + raw.TensorListGetItem(held, i, np.array([], np.int32), **LIST)]

        y = loop(lambda i, *_: raw.Less(i, count), body, 0, held, np.float64(0))[2]
        agree(x, orders(y, x, 1), np.linspace(0, 1, count))


def test_elements_read_and_overwritten_in_one_round_do_not_copy_the_list() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(40, 3))
        element = np.array([3], np.int32)

        def body(i: Tensor, held: Tensor, y: Tensor) -> list[Any]:
            row = raw.TensorListGetItem(held, i, element, **LIST)
            return [i + 1, raw.TensorListSetItem(held, i, raw.Sin(row) * y, **LIST), y + row]

        start = raw.TensorListFromTensor(x, element, **LIST)
        held = loop(lambda i, *_: raw.Less(i, 40), body, 0, start, np.ones(3))[1]
        y = raw.TensorListStack(held, element, num_elements=40, **LIST)
        ys = orders(total(y * y), x, 1)
        value = np.random.default_rng(0).standard_normal((40, 3))
        agree(x, ys, value)
        text = lowered(segment_of(x, ys), value).compile().as_text()
    # The last computation is the program itself, which may copy what it is given before its loops start.
    inside = text[: text.index("ENTRY ")]
    assert not re.search(r"f64\[40,3\]\S* copy\(", inside)


# Errors


def fails(x: Tensor, y: Tensor, value: Any, kind: type[GradserveError], message: str) -> None:
    """Asserts that both engines raise, the xla engine out of a compiled program."""
    segment = segment_of(x, [y])
    assert kinds(segment, np.shape(value)) == [Kind.DEVICE]
    for compile in (reference.compile, xla.compile_program):
        with pytest.raises(kind, match=message):
            compile(segment)([value], State())


def test_reading_past_the_end_of_a_list_in_a_loop_raises() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3, 2))

        def body(i: Tensor, rows: Tensor, y: Tensor) -> list[Any]:
            return [i + 1, rows, y + raw.TensorListGetItem(rows, i, np.array([2], np.int32), **LIST)]

        rows = raw.TensorListFromTensor(x, ANY, **LIST)
        y = loop(lambda i, *_: raw.Less(i, 5), body, 0, rows, np.zeros(2))[2]
        fails(x, y, np.ones((3, 2)), InvalidArgument, "list of 3 tensors has no element")


@pytest.mark.parametrize("place", [1, 2])
def test_an_element_that_is_known_must_be_there(place: int) -> None:
    """All elements are 7, whichever is read."""
    element, kind = np.array([], np.int32), {"element_dtype": "int32"}
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=())
        held = raw.EmptyTensorList(element, ANY, **kind)
        for _ in range(2):
            held = raw.TensorListPushBack(held, np.int32(7), **kind)
        known_place = raw.TensorListGetItem(held, place, element, **kind)
        computed_place = raw.TensorListGetItem(held, raw.Cast(x, DstT="int32"), element, **kind)
        for y in (known_place, computed_place):
            segment = segment_of(x, [y])
            if place == 1:
                assert alike(segment, np.float64(place)) == [7]
                continue
            for compile in (reference.compile, xla.compile_program):
                with pytest.raises(InvalidArgument, match="list of 2 tensors has no element"):
                    compile(segment)([np.float64(place)], State())


def test_an_empty_list_has_no_element_to_set() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        place = raw.Cast(raw.Sum(x, [0]), DstT="int32")
        held = raw.TensorListSetItem(raw.TensorListReserve(np.array([3], np.int32), 0, **LIST), place, x, **LIST)
        segment = segment_of(x, [raw.TensorListLength(raw.ZerosLike(raw.AddN([held, held])))])
        for compile in (reference.compile, xla.compile_program):
            with pytest.raises(InvalidArgument, match="list of 0 tensors has no element 0"):
                compile(segment)([X], State())


def test_taking_from_an_empty_list_in_a_loop_raises() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3, 2))

        def body(i: Tensor, rows: Tensor, y: Tensor) -> list[Any]:
            rest, last = raw.TensorListPopBack.outputs(rows, np.array([2], np.int32), **LIST)
            return [i + 1, rest, y + last]

        rows = raw.TensorListFromTensor(x, ANY, **LIST)
        for rounds in (3, 4):
            y = loop(lambda i, *_, n=rounds: raw.Less(i, n), body, 0, rows, np.zeros(2))[2]
            if rounds == 3:
                agree(x, [y], np.ones((3, 2)))
            else:
                fails(x, y, np.ones((3, 2)), InvalidArgument, "empty list")


@pytest.mark.parametrize("counted", [True, False])
def test_an_index_outside_in_a_round_raises(counted: bool) -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))

        def body(i: Tensor, y: Tensor, x: Tensor) -> list[Any]:
            return [i + 1, y + raw.GatherV2(x, i, 0), x]

        asks = (lambda i, y, x: raw.Less(i, 4)) if counted else (lambda i, y, x: raw.Less(y, 2.0))
        y = loop(asks, body, 0, np.float64(0), x)[1]
        fails(x, y, X, InvalidArgument, r"not in \[0, 3\)")


def test_a_failed_assertion_in_a_body_raises() -> None:
    def body(arguments: Sequence[Tensor]) -> tuple[list[Any], list[Node]]:
        i, y = arguments
        held = raw.Less(raw.Sum(y, [0]), 5.0)
        return [i + 1, y * 2.0], [raw.Assert.run(held, [np.array(b"the sum is too large"), y], summarize=3)]

    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        agree(x, [effectful(body, 3, x)], X)
        fails(x, effectful(body, 4, x), X, InvalidArgument, "Assertion failed: .*the sum is too large")


@pytest.mark.parametrize("counted", [True, False])
def test_a_loop_that_does_not_end_is_stopped(counted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "MOST_ROUNDS", 100)
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        agree(x, [test_bodies.power(x * 0.1, 99)], X)
        endless = loop(lambda y: raw.Less(raw.Sum(y, [0]), 9.0), lambda y: [y * 1.0], x)[0]
        y = test_bodies.power(x * 0.1, 100) if counted else endless
        fails(x, y, X, LimitExceeded, "StatelessWhile.* has not ended after 100 rounds")


def test_a_body_that_can_only_fail_fails_when_it_is_run_and_not_before() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        wrong = lambda x: [raw.GatherV2(np.arange(3.0), np.array([0, 1, 7], np.int32), 0) * x]
        y = branch(raw.Greater(raw.Sum(x, [0]), 0.0), lambda x: [x * 2.0], wrong, x)[0]
        z = loop(lambda z: raw.Less(raw.Sum(z, [0]), 0.0), lambda z: wrong(z), x)[0]
        agree(x, [y, z], X)
        fails(x, y, -X, InvalidArgument, "not in")
        fails(x, z, -X, InvalidArgument, "not in")


def test_a_list_that_no_memory_holds_is_refused() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(1_000_000,))
        held = grown(x, 3_000_000)  # 24 TB
        y = raw.TensorListGetItem(held, 2, ANY, **LIST)
        with pytest.raises(LimitExceeded, match="TensorListGetItem:0 found no memory"):
            xla.compile_program(segment_of(x, [y]))([np.zeros(1_000_000)], State())


def test_shapes_that_contradict_each_other_fail_as_on_the_reference() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=None)
        y = loop(lambda y: raw.Less(raw.Sum(y, [0]), 3.0), lambda y: [y * 2.0], x)[0] + np.ones(3)
        segment = segment_of(x, [y])
        for compile in (reference.compile, xla.compile_program):
            with pytest.raises(ComputationFailed, match=r"AddV2 \(AddV2\) failed"):
                compile(segment)([np.ones(4)], State())


def test_what_fails_for_want_of_room_alone_does_not_fail() -> None:
    """Past the room for its rows the loop reads what was never written."""
    kind = {"element_dtype": "int32"}

    def body(y: Tensor, i: Tensor, held: Tensor, z: Tensor) -> list[Any]:
        held = raw.TensorListPushBack(held, i, **kind)
        before = raw.Maximum(i - 4, 0)
        wrong = raw.Sub(before, raw.TensorListGetItem(held, before, np.array([], np.int32), **kind))
        return [y + 1.0, i + 1, held, z + raw.GatherV2(np.ones(1), wrong, 0)]

    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=())
        start = raw.EmptyTensorList(np.array([], np.int32), ANY, **kind)
        z = loop(lambda y, *_: raw.Less(y, 60.5), body, x, 0, start, np.float64(0))[3]
        assert agree(x, [z], np.array(0.0)) == [61.0]


def test_the_first_error_is_raised_also_where_a_later_one_is_certain() -> None:
    with Graph().as_default() as graph:
        x = raw.Placeholder(dtype="float64", shape=(3,))
        (last,) = loop(lambda y: raw.Less(raw.Sum(y, [0]), 0.0), lambda y: [y + 1.0], x)
        first = raw.GatherV2(x, raw.Cast(raw.Sum(last, [0]), DstT="int32"), 0)
        with graph.control_dependencies([first]):
            later = read(variable())
        segment = segment_of(x, [first + later])
        for compile in (reference.compile, xla.compile_program):
            run = compile(segment)
            for _ in range(2):
                with pytest.raises(InvalidArgument, match=r"not in \[0, 3\)"):
                    run([X * 9], State())
                with pytest.raises(FailedPrecondition, match="w is read before"):
                    run([X], State())


def test_an_error_is_that_of_the_variables_there_are() -> None:
    """A program with a variable and one without have different checks."""
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        first = lambda x: raw.GatherV2(x, raw.Cast(raw.Sum(x, [0]), DstT="int32"), 0)
        asks = raw.Greater(raw.Sum(x, [0]), 0.0)
        y = branch(asks, lambda x, w: [x * read(w)], lambda x, w: [x + first(x)], x, variable())[0]
        run = xla.compile_program(segment_of(x, [y]))
        for _ in range(2):
            with pytest.raises(FailedPrecondition, match="w is read before"):
                run([X], State())
            with pytest.raises(InvalidArgument, match=r"not in \[0, 3\)"):
                run([-9 * X], State(values={"w": X}))


# State


def effectful(body: Callable[[Sequence[Tensor]], tuple[list[Any], list[Node]]], rounds: Any, *start: Tensor) -> Tensor:
    """The first variable but the counter, after so many rounds of a body that returns values and what else it runs."""
    graph = start[0].graph
    inputs = [graph.constant(np.int32(0)), *start]
    asks = function(graph, "asks", inputs, lambda i, *_: [raw.Less(i, rounds)])
    with new_body(graph).as_default():
        arguments = [argument(spec_of(x), f"argument_{k}") for k, x in enumerate(inputs)]
        results, effects = body(arguments)
        runs = add_function(graph, "runs", arguments, results, effects)
    return raw.While.outputs(inputs, cond=asks, body=runs)[1]


def with_state(x: Tensor, fetches: Sequence[Tensor], values: Mapping[str, Any], pieces: list[Kind]) -> None:
    """Asserts that both engines give the same values and leave the same variables behind."""
    segment = segment_of(x, fetches)
    assert kinds(segment, (3,), frozenset({"w"} - values.keys())) == pieces
    left: list[dict[str, Any]] = []
    given: list[list[Any]] = []
    for compile in (reference.compile, xla.compile_program):
        state = State(values=dict(values))
        given.append(compile(segment)([X], state))
        left.append(state.values | state.updates)
    for a, b in zip(*given, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-12)
    assert left[0].keys() == left[1].keys()
    for name, value in left[0].items():
        np.testing.assert_allclose(left[1][name], value, rtol=1e-12)


def variable() -> Tensor:
    return raw.VarHandleOp(dtype="float64", shape=(3,), shared_name="w")


def read(w: Tensor) -> Tensor:
    return raw.ReadVariableOp(w, dtype="float64")


@pytest.mark.parametrize("kind", ["StatelessWhile", "While"])
def test_a_variable_that_a_loop_reads_gets_its_gradient(kind: str) -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        w = variable()
        y = loop(lambda i, y, w: raw.Less(i, 3), lambda i, y, w: [i + 1, y * read(w), w], 0, x, w, kind=kind)[1]
        found = [dx for dx in gradients(y, [w, x]) if isinstance(dx, Tensor)]
        with_state(x, [y, *found], {"w": X + 2}, [Kind.DEVICE])


def descent(arguments: Sequence[Tensor]) -> tuple[list[Any], list[Node]]:
    """A step downhill on (w y)², within a round."""
    i, y, w = arguments
    step = raw.AssignSubVariableOp.run(w, read(w) * y * y * 0.1)
    with y.graph.control_dependencies([step]):
        after = read(w)
    return [i + 1, y + after * 0.1, w], [step]


@pytest.mark.parametrize("rounds", [0, 4])
def test_a_loop_carries_the_variable_that_it_assigns_to(rounds: int) -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        w = variable()
        y = effectful(descent, rounds, x, w)
        with x.graph.control_dependencies([y]):
            after = read(w)
        with_state(x, [y, after], {"w": X + 2}, [Kind.DEVICE])


def test_a_branch_hands_on_the_variable_that_it_assigns_to() -> None:
    def assigning(w: Tensor, x: Tensor) -> tuple[list[Any], list[Node]]:
        return [x * 2.0], [raw.AssignVariableOp.run(w, x)]

    for sign in (1.0, -1.0):
        with Graph().as_default() as graph:
            x = raw.Placeholder(dtype="float64", shape=(3,))
            w = variable()
            names = [function(graph, "other", [w, x], lambda w, x: [x * read(w)])]
            with new_body(graph).as_default():
                arguments = [argument(spec_of(t), f"argument_{k}") for k, t in enumerate((w, x))]
                names.append(add_function(graph, "then", arguments, *assigning(*arguments)))
            asks = raw.Greater(raw.Sum(x, [0]) * sign, 0.0)
            (y,) = raw.If.outputs(asks, [w, x], Tout=["float64"], then_branch=names[1], else_branch=names[0])
            with graph.control_dependencies([y]):
                after = read(w)
            with_state(x, [y, after], {"w": X + 2}, [Kind.DEVICE])


def test_a_variable_without_a_value_can_be_given_one_in_a_loop() -> None:
    def assigning(arguments: Sequence[Tensor]) -> tuple[list[Any], list[Node]]:
        i, y, w = arguments
        return [i + 1, y * 2.0, w], [raw.AssignVariableOp.run(w, y)]

    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        y = effectful(assigning, 3, x, variable())
        with_state(x, [y], {"w": X}, [Kind.DEVICE])
        with_state(x, [y], {}, [Kind.HOST])


def test_a_condition_that_is_false_at_once_has_its_effects() -> None:
    with Graph().as_default() as graph:
        x = raw.Placeholder(dtype="float64", shape=(3,))
        w = variable()
        inputs = [graph.constant(np.int32(0)), x, w]
        with new_body(graph).as_default():
            i, y, held = [argument(spec_of(t), f"argument_{k}") for k, t in enumerate(inputs)]
            asks = add_function(graph, "asks", [i, y, held], [raw.Less(i, 0)], [raw.AssignVariableOp.run(held, y)])
        runs = function(graph, "runs", inputs, lambda i, y, w: [i + 1, y * 2.0, w])
        y = raw.While.outputs(inputs, cond=asks, body=runs)[1]
        with graph.control_dependencies([y]):
            after = read(w)
        with_state(x, [y, after], {"w": X + 2}, [Kind.DEVICE])


@pytest.mark.parametrize("start", [(3,), (6,)])
@pytest.mark.parametrize("kind", ["a loop", "a branch"])
def test_a_variable_that_gets_another_shape_is_assigned_to_on_the_host(kind: str, start: tuple[int, ...]) -> None:
    double = lambda w, y: raw.AssignVariableOp.run(w, raw.ConcatV2([y, y], 0))
    with Graph().as_default() as graph:
        x = raw.Placeholder(dtype="float64", shape=(3,))
        w = variable()
        if kind == "a loop":
            body = lambda given: ([given[0] + 1, given[1] * 2.0, given[2]], [double(given[2], given[1])])
            y = effectful(body, 2, x, w)
        else:
            with new_body(graph).as_default():
                inner = [argument(spec_of(t), f"argument_{k}") for k, t in enumerate((w, x))]
                then = add_function(graph, "then", inner, [inner[1] * 2.0], [double(*inner)])
            other = function(graph, "other", [w, x], lambda w, x: [x])
            asks = raw.Greater(raw.Sum(x, [0]), 0.0)
            (y,) = raw.If.outputs(asks, [w, x], Tout=["float64"], then_branch=then, else_branch=other)
        with_state(x, [y], {"w": np.ones(start)}, [Kind.DEVICE])


def test_a_variable_can_be_destroyed() -> None:
    with Graph().as_default() as graph:
        x = raw.Placeholder(dtype="float64", shape=(3,))
        w = variable()
        body = lambda given: ([given[0] + 1, given[1] * 2.0, given[2]], [raw.DestroyResourceOp.run(given[2])])
        y = effectful(body, 1, x, w)
        with_state(x, [y], {"w": X}, [Kind.HOST])
        with graph.control_dependencies([raw.DestroyResourceOp.run(w)]):
            z = x * 2.0
        with_state(x, [z], {"w": X}, [Kind.DEVICE])


# What stays on the host


def test_random_numbers_of_a_stateful_op_are_the_reference_s() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        draw = lambda y: raw.RandomStandardNormal(np.array([3], np.int32), seed=3, seed2=4, dtype="float64") + y
        y = loop(lambda i, y: raw.Less(i, 3), lambda i, y: [i + 1, draw(y)], 0, x, kind="While")[1]
        agree(x, [y * 2.0], X, [Kind.HOST, Kind.DEVICE])


def test_a_variable_that_changes_its_shape_stays_on_the_host() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        y = loop(lambda i, y: raw.Less(i, 3), lambda i, y: [i + 1, raw.ConcatV2([y, y], 0)], 0, x)[1]
        (doubled,) = agree(x, [y * 2.0], X, [Kind.HOST, Kind.DEVICE])
        assert doubled.shape == (24,)


def test_lists_that_change_places_stay_on_the_host() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(4, 3))
        a, b = (raw.TensorListResize(raw.TensorListFromTensor(x, ANY, **LIST), size) for size in (4, 2))

        def body(i: Tensor, a: Tensor, b: Tensor) -> list[Any]:
            return [i + 1, raw.TensorListPushBack(b, raw.ZerosLike(x_of(b)), **LIST), a]

        def x_of(b: Tensor) -> Tensor:
            return raw.TensorListGetItem(b, 0, np.array([3], np.int32), **LIST)

        after = loop(lambda i, *_: raw.Less(i, 5), body, 0, a, b)[1:]
        value = np.arange(12.0).reshape(4, 3)
        agree(x, [raw.TensorListLength(held) for held in after], value, [Kind.DEVICE, Kind.HOST])


def test_branches_of_different_shapes_stay_on_the_host() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        asks = raw.Greater(raw.Sum(x, [0]), 0.0)
        y = branch(asks, lambda x: [raw.ConcatV2([x, x], 0)], lambda x: [x], x)[0]
        agree(x, [y * 2.0], X, [Kind.DEVICE, Kind.HOST, Kind.DEVICE])


def test_texts_in_a_loop_stay_on_the_host() -> None:
    with Graph().as_default():
        x = raw.Placeholder(dtype="float64", shape=(3,))
        join = lambda i, text, y: [i + 1, raw.StringJoin([text, np.array(b"a")]), y + 1.0]
        y = loop(lambda i, *_: raw.Less(i, 3), join, 0, np.array(b""), x)[2]
        agree(x, [y * 2.0], X, [Kind.HOST, Kind.DEVICE])


# The program


def lowered(segment: Segment, value: np.ndarray[Any, Any]) -> Any:
    """The program of a segment that has one piece."""
    (runner,) = xla._Pieces(known(segment, [value.shape], {}))._pieces
    program = xla._Program(runner, {})
    return program._compiled.lower([value], program._literals, {})


def test_nothing_is_unrolled() -> None:
    sizes: list[int] = []
    for rounds in (10, 1000):
        with Graph().as_default():
            x = raw.Placeholder(dtype="float64", shape=(3,))
            segment = segment_of(x, orders(test_bodies.power(x, rounds), x, 1))
            sizes.append(len(lowered(segment, X).as_text().splitlines()))
    assert sizes[0] == sizes[1]


def test_programs_of_loops_in_loops_grow_no_faster_than_the_loops_are_many() -> None:
    def nested(x: Tensor, depth: int) -> Tensor:
        if not depth:
            return raw.Sin(x) * x
        return loop(lambda i, y: raw.Less(i, 2), lambda i, y: [i + 1, nested(y, depth - 1)], 0, x)[1]

    sizes: list[int] = []
    for depth in (1, 2, 3, 4):
        with Graph().as_default():
            x = raw.Placeholder(dtype="float64", shape=(3,))
            sizes.append(len(lowered(segment_of(x, [nested(x, depth)]), X).as_text().splitlines()))
    steps = np.diff(sizes)
    assert steps.max() <= 2 * steps.min()
