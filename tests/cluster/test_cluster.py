"""A cluster of containers is disturbed in the middle of a training, whose losses stay those of an undisturbed one.

There is one more worker container than workers: a lost worker has room to start again.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.compose import BUILD_SECONDS, ROOT, Cluster, compose_command, run

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STEPS = 30
MACHINES = 3
SETTINGS = {
    "GRADSERVE_IMAGE": "gradserve:test",
    "GRADSERVE_CLIENT_IMAGE": "gradserve-client:test",
    "GRADSERVE_LISTEN": "127.0.0.1:0",  # a free port: the clients of the test are containers
    "GRADSERVE_WORKERS": "2",
    "GRADSERVE_ENGINE": "numpy",  # the same bits on any machine and after any restart
    "GRADSERVE_STALL_SECONDS": "5",
    "GRADSERVE_NODE_MEMORY": "1500m",
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    compose = compose_command()
    if compose is None:
        pytest.skip("needs a Docker Engine and Compose: see docs/cluster.md")
    for target, tag in (("server", SETTINGS["GRADSERVE_IMAGE"]), ("client", SETTINGS["GRADSERVE_CLIENT_IMAGE"])):
        run(
            "docker", "build", "--network", os.environ.get("GRADSERVE_BUILD_NETWORK", "default"),
            "--file", str(ROOT / "deploy" / "Dockerfile"), "--target", target, "--tag", tag, str(ROOT),
            seconds=BUILD_SECONDS,
        )  # fmt: skip
    made = Cluster(compose, f"gradserve-test-{os.getpid()}", SETTINGS)
    try:
        made.up(workers=MACHINES)
        yield made
    finally:
        made.down()


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster) -> list[str]:
    lines = cluster.train(STEPS).finish()
    assert len(lines) == STEPS + 1
    return lines


@pytest.fixture
def settled(cluster: Cluster) -> Cluster:
    """All workers are there before the next disturbance, and room for one of them to start again."""
    cluster.wait_until(lambda: cluster.all_ready() and cluster.machines() == MACHINES, "workers and machines ready")
    return cluster


def trained_through(cluster: Cluster, disturb: Callable[[], object]) -> list[str]:
    """The lines of a training that something happens to after its fifth step."""
    training = cluster.train(STEPS)
    training.reach(5)
    disturb()
    return training.finish()


def test_the_demo_reaches_its_accuracy(settled: Cluster) -> None:
    assert "Accuracy on the digits held back" in settled.demo()


def test_workers_run_in_containers_of_their_own(settled: Cluster) -> None:
    assert settled.host_of(0) != settled.host_of(1)


def test_a_killed_worker_is_replaced(settled: Cluster, undisturbed: list[str]) -> None:
    victim = settled.host_of(1)
    lines = trained_through(settled, lambda: run("docker", "kill", "--signal", "KILL", victim))
    assert lines == undisturbed
    assert "was lost" in settled.logs()
    run("docker", "start", victim)
    settled.wait_until(lambda: settled.healthy(victim), "the killed container healthy again")


def test_a_paused_worker_is_replaced_and_its_late_answers_dropped(settled: Cluster, undisturbed: list[str]) -> None:
    victim = settled.host_of(1)
    try:
        lines = trained_through(settled, lambda: run("docker", "pause", victim))
    finally:
        run("docker", "unpause", victim)
    assert lines == undisturbed
    assert "silent" in settled.logs()
    assert settled.train(STEPS).finish() == undisturbed  # also after it has come back to life
    settled.wait_until(lambda: settled.healthy(victim), "the paused container healthy again")


def test_a_worker_cut_off_from_the_network_is_replaced_and_comes_back(settled: Cluster, undisturbed: list[str]) -> None:
    victim, network = settled.host_of(1), f"{settled.project}_default"
    lines = trained_through(settled, lambda: run("docker", "network", "disconnect", network, victim))
    assert lines == undisturbed
    run("docker", "network", "connect", network, victim)
    settled.wait_until(lambda: settled.healthy(victim), "the container healthy on its network again")
    assert settled.train(STEPS).finish() == undisturbed


def test_a_worker_whose_machine_runs_out_of_memory_is_replaced(settled: Cluster, undisturbed: list[str]) -> None:
    victim = settled.host_of(1)
    try:
        lines = trained_through(settled, lambda: exhaust(victim))
    finally:
        limit(victim, 1500)
    assert lines == undisturbed
    run("docker", "restart", "-t", "1", victim)
    settled.wait_until(lambda: settled.healthy(victim), "the starved container healthy again")


def limit(container: str, mebibytes: int) -> bool:
    """Sets a container's memory limit; False where the engine finds more in use."""
    memory = f"{mebibytes}m"
    command = ["docker", "update", "--memory", memory, "--memory-swap", memory, container]
    return subprocess.run(command, capture_output=True).returncode == 0


def exhaust(container: str) -> None:
    """Limits a container to what it uses, and uses more, until the kernel ends a process of it."""
    assert any(limit(container, mebibytes) for mebibytes in range(64, 1500, 32))
    hog = "held = []\nwhile True:\n    held.append(bytearray(b'1') * (32 << 20))"
    ended = subprocess.run(["docker", "exec", container, "python", "-c", hog], capture_output=True, timeout=120)
    assert ended.returncode != 0


def test_a_coordinator_that_is_stopped_and_started_goes_on(settled: Cluster, undisturbed: list[str]) -> None:
    def restart() -> None:
        settled.compose("stop", "coordinator")
        settled.compose("start", "coordinator")

    assert trained_through(settled, restart) == undisturbed


def test_a_lost_head_is_started_again_and_with_it_all_others(settled: Cluster, undisturbed: list[str]) -> None:
    """Ray's nodes end when they find that the head is another one, which takes them most of a minute."""
    head, coordinator = settled.container("head"), settled.container("coordinator")
    before = settled.starts(coordinator)

    def lose() -> None:
        run("docker", "kill", "--signal", "KILL", head)
        run("docker", "start", head)

    assert trained_through(settled, lose) == undisturbed
    settled.wait_until(lambda: settled.starts(coordinator) > before, "the coordinator started again")
    assert "Ray node has ended" in settled.logs()
    settled.wait_until(lambda: settled.healthy(coordinator), "the coordinator healthy again")


def test_after_all_this_the_cluster_is_whole(settled: Cluster, undisturbed: list[str]) -> None:
    assert settled.train(STEPS).finish() == undisturbed
    states = [worker["state"] for worker in settled.status()["workers"]]
    assert states == ["ready", "ready"]
