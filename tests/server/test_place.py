"""Which worker runs a node: device strings, then colocation, then cost."""

from __future__ import annotations

import numpy as np
import pytest

from gradserve.errors import InvalidPlacement, LimitExceeded
from gradserve.graph.graph import Graph
from gradserve.graph.op import raw
from gradserve.server.cost import Hardware, Link, Speed
from gradserve.server.draft import Draft, Feed, StepOptions, draft
from tests.server.build import FIRST, SECOND, explained, fleet, placeholder, plan

GPUS = Hardware.of([f"/job:worker/replica:0/task:{k // 2}/device:GPU:{k % 2}" for k in range(4)])


@pytest.mark.parametrize(
    "device",
    [
        SECOND,
        "/task:1",
        "/job:worker/replica:0/task:1/device:CPU:0",
        "/job:worker/task:1/cpu:0",
        "/job:worker/task:1/device:CPU:*",
    ],
)
def test_every_form_of_a_device_string_is_understood(device: str) -> None:
    graph = Graph()
    with graph.as_default(), graph.device(device):
        y = raw.Tanh(placeholder())
    assert [node.worker for node in explained(graph, [y]).nodes] == [1]


@pytest.mark.parametrize(
    ("device", "workers"),
    [
        ("/gpu:1", {1, 3}),
        ("/device:GPU:*", {0, 1, 2, 3}),
        ("/task:1/gpu:0", {2}),
        ("/job:worker/task:1", {2, 3}),
        ("/job:*/replica:0/task:0/device:GPU:1", {1}),
    ],
)
def test_a_partial_device_string_leaves_the_rest_open(device: str, workers: set[int]) -> None:
    graph = Graph()
    with graph.as_default(), graph.device(device):
        y = raw.Tanh(placeholder())
    assert {node.worker for node in explained(graph, [y], GPUS).nodes} <= workers


def test_open_parts_of_device_strings_are_filled_by_cost() -> None:
    graph = Graph()
    with graph.as_default(), graph.device("/gpu:1"):
        big = raw.Placeholder(dtype="float32", shape=(1 << 22,), name="big")
        left, right = big * 0.5, big * 2.0
        for _ in range(8):
            left, right = raw.Tanh(left), raw.Exp(right)
    feed = Feed("big:0", np.dtype(np.float32), (1 << 22,))
    made = draft(graph, [feed], [left.name, right.name], [], StepOptions(), GPUS)
    assert set(made.placement.workers.values()) == {1, 3}


@pytest.mark.parametrize(("device", "workers"), [("", {0, 1}), (SECOND, {1})])
def test_a_sum_of_gradients_stands_by_its_first_term_where_a_device_says_so(device: str, workers: set[int]) -> None:
    """Two branches of work, each with a sum that names a node which both branches read."""
    graph = Graph()
    feed = Feed("x:0", np.dtype(np.float32), (1 << 20,))
    with graph.as_default():
        x = raw.Placeholder(dtype="float32", shape=feed.shape, name="x")
        with graph.device(device):
            first = raw.Tanh(x, name="first")
        ends = [first * 0.5, first * 2.0]
        for _ in range(6):
            ends = [raw.Tanh(raw.AddN([first, raw.Exp(end)], _class=["loc:@first"])) for end in ends]
    made = draft(graph, [feed], [end.name for end in ends], [], StepOptions(), fleet(2))
    assert {made.placement.workers[node] for node in graph.nodes if node.type == "AddN"} == workers


def test_unknown_device_names_the_devices_there_are() -> None:
    graph = Graph()
    with graph.as_default(), graph.device("/device:GPU:0"):
        y = raw.Tanh(placeholder())
    with pytest.raises(InvalidPlacement, match="task:0/device:CPU:0") as raised:
        plan(graph, [y])
    assert raised.value.metadata["node"] == "Tanh"


def test_soft_placement_passes_over_an_unknown_device() -> None:
    graph = Graph()
    with graph.as_default(), graph.device("/device:GPU:7"):
        y = raw.Tanh(placeholder())
    assert len(plan(graph, [y], soft=True).segments) == 1


@pytest.mark.parametrize("device", ["/device:TPU:0", "/job:ps", "/task:9", "/replica:3", "/job:localhost/task:0/cpu:0"])
def test_each_part_that_is_not_there_is_an_error_and_soft_placement_mends_it(device: str) -> None:
    graph = Graph()
    with graph.as_default(), graph.device(device):
        y = raw.Tanh(placeholder())
    with pytest.raises(InvalidPlacement, match=r"Tanh asks for the device .* There are: /job:worker"):
        explained(graph, [y])
    assert explained(graph, [y], soft=True).nodes[0].why == f"soft: {y.node.device} is not there"


def test_soft_placement_lets_the_first_of_two_devices_in_a_group_win() -> None:
    graph = Graph()
    with graph.as_default():
        with graph.device(SECOND):
            a = raw.Exp(placeholder())
        with graph.device(FIRST):
            b = raw.Tanh(a)
    b.node.attrs = {**b.node.attrs, "_class": ["loc:@Exp"]}
    assert {node.worker for node in explained(graph, [b], soft=True).nodes} == {1}


def test_colocated_nodes_follow_the_device_of_one() -> None:
    graph = Graph()
    with graph.as_default():
        with graph.device(SECOND):
            a = raw.Exp(placeholder())
        b = raw.Tanh(a)
        with graph.colocate_with(b):
            c = raw.Neg(b)
    c.node.device = ""
    b.node.attrs = {**b.node.attrs, "_class": ["loc:@Exp"]}
    nodes = explained(graph, [c]).nodes
    assert {node.name: node.worker for node in nodes} == {"Exp": 1, "Tanh": 1, "Neg": 1}
    assert nodes[2].why.startswith("colocated: with Exp")


def test_two_devices_in_one_group_name_both_nodes() -> None:
    graph = Graph()
    with graph.as_default():
        with graph.device(FIRST):
            a = raw.Exp(placeholder())
        with graph.device(SECOND):
            b = raw.Tanh(a)
    b.node.attrs = {**b.node.attrs, "_class": ["loc:@Exp"]}
    with pytest.raises(InvalidPlacement, match=r"Exp on .*task:0 and Tanh on .*task:1"):
        plan(graph, [b])


def test_a_conflict_across_a_chain_of_groups_names_the_two_that_asked() -> None:
    graph = Graph()
    with graph.as_default():
        with graph.device(FIRST):
            a = raw.Exp(placeholder())
        b = raw.Tanh(a)
        with graph.device(SECOND):
            c = raw.Neg(b)
    b.node.attrs = {**b.node.attrs, "_class": ["loc:@Exp"]}
    c.node.attrs = {**c.node.attrs, "_class": ["loc:@Tanh"]}
    with pytest.raises(InvalidPlacement, match=r"Exp on .*task:0 and Neg on .*task:1") as raised:
        plan(graph, [c])
    assert (raised.value.metadata["node"], raised.value.metadata["other"]) == ("Neg", "Exp")


def test_a_conflict_over_a_variable_names_both_nodes() -> None:
    graph = Graph()
    with graph.as_default():
        with graph.device(FIRST):
            handle = raw.VarHandleOp(dtype="float32", shape=(4,), shared_name="w", name="w")
        with graph.device(SECOND):
            value = raw.ReadVariableOp(handle, dtype="float32", name="read")
    with pytest.raises(InvalidPlacement, match=r"w on .*task:0 and read on .*task:1"):
        plan(graph, [value], feeds=())


def test_groups_named_after_a_node_that_is_not_there_still_hold_together() -> None:
    graph = Graph()
    with graph.as_default():
        with graph.device(SECOND):
            a = raw.Exp(placeholder())
        b = raw.Tanh(a)
    for tensor in (a, b):
        tensor.node.attrs = {**tensor.node.attrs, "_class": ["loc:@gone"]}
    assert {node.worker for node in explained(graph, [b]).nodes} == {1}


def test_a_small_graph_stays_whole_and_floats() -> None:
    graph = Graph()
    with graph.as_default():
        x = placeholder()
        y = raw.Tanh(x) + raw.Exp(x)
    assert plan(graph, [y]).floating
    assert explained(graph, [y]).nodes[0].why.startswith("small")


def test_wide_heavy_work_is_spread() -> None:
    graph = Graph()
    with graph.as_default():
        y = placeholder("x", (4,))
        big = raw.Placeholder(dtype=y.dtype, shape=(1 << 22,), name="big")
        left, right = big * 0.5, big * 2.0
        for _ in range(8):
            left, right = raw.Tanh(left), raw.Exp(right)
    feed = Feed("big:0", np.dtype(np.float32), (1 << 22,))
    made = draft(graph, [feed], [left.name, right.name], [], StepOptions(), fleet(2))
    assert set(made.placement.workers.values()) == {0, 1}
    assert not made.placement.floating


def chain(hardware: Hardware, links: int = 8) -> Draft:
    """Results of 16 MiB each, all of them fetched."""
    graph = Graph()
    with graph.as_default():
        x = raw.Placeholder(dtype="float32", shape=(1 << 22,), name="x")
        made = [raw.Tanh(x)]
        for _ in range(links - 1):
            made.append(raw.Tanh(made[-1]))
    feed = Feed("x:0", np.dtype(np.float32), (1 << 22,))
    return draft(graph, [feed], [tensor.name for tensor in made], [], StepOptions(), hardware)


def test_a_chain_gains_nothing_and_stays_on_one_worker() -> None:
    assert chain(fleet(4)).placement.floating


def test_a_memory_limit_spreads_what_one_worker_can_not_hold() -> None:
    limited = Hardware.of(fleet(4).devices, memory_bytes=50 << 20)
    placed = chain(limited)
    held = [sum(worker == k for worker in placed.placement.workers.values()) for k in range(4)]
    assert sorted(held) == [0, 2, 3, 3]
    assert not placed.placement.floating


def test_a_memory_limit_that_no_worker_keeps_names_the_node() -> None:
    with pytest.raises(LimitExceeded, match=r"Tanh_\d makes 16777216 bytes.*raise the memory limit, or add workers"):
        chain(Hardware.of(fleet(2).devices, memory_bytes=50 << 20))


def test_a_memory_limit_holds_where_devices_are_named_too() -> None:
    graph = Graph()
    with graph.as_default(), graph.device(FIRST):
        x = raw.Placeholder(dtype="float32", shape=(1 << 22,), name="x")
        made = [raw.Exp(x), raw.Tanh(x), raw.Neg(x)]
    feed = Feed("x:0", np.dtype(np.float32), (1 << 22,))
    limited = Hardware.of(fleet(2).devices, memory_bytes=40 << 20)
    with pytest.raises(LimitExceeded, match="Neg makes 16777216 bytes, but worker 0 has 33554432 of its 41943040"):
        draft(graph, [feed], [tensor.name for tensor in made], [], StepOptions(), limited)


def two_towers(hardware: Hardware) -> Draft:
    graph = Graph()
    with graph.as_default():
        x = raw.Placeholder(dtype="float32", shape=(256, 256), name="x")
        left, right = x * 0.5, x * 2.0
        for _ in range(8):
            left, right = raw.MatMul(left, left), raw.MatMul(right, right)
        y = left + right
    feed = Feed("x:0", np.dtype(np.float32), (256, 256))
    return draft(graph, [feed], [y.name], [], StepOptions(), hardware)


def test_a_slow_link_keeps_a_graph_together_that_a_fast_one_parts() -> None:
    devices = fleet(2).devices
    assert not two_towers(Hardware.of(devices, link=Link(1e9, 1e-4))).placement.floating
    assert two_towers(Hardware.of(devices, link=Link(1e6, 1e-1))).placement.floating


def test_a_faster_worker_gets_more_of_the_work() -> None:
    devices = fleet(2).devices
    slow, fast = Speed(flops_per_second=1e10), Speed(flops_per_second=1e11)
    placed = two_towers(Hardware(devices, (slow, fast), Link(), (0, 0))).placement.workers
    products = [worker for node, worker in placed.items() if node.type == "MatMul"]
    assert products.count(1) > products.count(0)


def test_what_others_wait_for_is_a_segment_of_its_own() -> None:
    graph = Graph()
    with graph.as_default():
        x = raw.Placeholder(dtype="float32", shape=(1 << 20,), name="x")
        with graph.device(FIRST):
            shared = raw.Exp(x)
            here = raw.Tanh(shared)
        with graph.device(SECOND):
            there = raw.Neg(shared)
    feed = Feed("x:0", np.dtype(np.float32), (1 << 20,))
    made = draft(graph, [feed], [here.name, there.name], [], StepOptions(), fleet(2))
    pieces = [([node.name for node in piece.nodes], piece.worker, piece.after) for piece in made.pieces]
    assert pieces == [(["Exp"], 0, ()), (["Tanh"], 0, (0,)), (["Neg"], 1, (0,))]
