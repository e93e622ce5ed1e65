"""A cluster of containers, made from deploy/docker-compose.yml as it stands, and what can be done to it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "deploy" / "docker-compose.yml"
TRAINING = Path(__file__).with_name("training.py")
BUILD_SECONDS = 900
WAIT_SECONDS = 240
# Run beside Ray's head: how many machines it counts as alive that have room for workers.
MACHINES = """
import ray
ray.init("auto", log_to_driver=False, logging_level="ERROR")
print("machines:", sum(node["Alive"] and "CPU" in node["Resources"] for node in ray.nodes()))
"""


def compose_command() -> list[str] | None:
    """`docker compose` as it is called here; None where there is none, or no engine behind it."""
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        return None
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True)
    return ["docker", "compose"] if plugin.returncode == 0 else None


def run(*command: str, seconds: float = WAIT_SECONDS) -> str:
    """The standard output of a command. Raises AssertionError with all that it wrote where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout


class Training:
    """A training under way in a client container, to be disturbed."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        with TRAINING.open() as script:
            self._process = subprocess.Popen(
                command, stdin=script, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
            )
        self.lines: list[str] = []

    def reach(self, step: int) -> None:
        """Returns once a step is done. Raises AssertionError where the training ends before."""
        assert self._process.stdout is not None
        while not any(line.startswith(f"step {step} ") for line in self.lines):
            line = self._process.stdout.readline()
            assert line, self._end()
            self.lines.append(line.rstrip())

    def finish(self, seconds: float = WAIT_SECONDS) -> list[str]:
        """All lines. Raises AssertionError where the training fails, TimeoutExpired where it hangs."""
        try:
            rest, errors = self._process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise
        assert self._process.returncode == 0, errors
        return self.lines + rest.split("\n")[:-1]

    def _end(self) -> str:
        return "the training ended: " + self._process.communicate(timeout=WAIT_SECONDS)[1]


class Cluster:
    """The compose project. `up()` first, `down()` last."""

    def __init__(self, compose: list[str], project: str, settings: dict[str, str]) -> None:
        self._compose = [*compose, "--file", str(FILE), "--project-name", project]
        self._environment = {**os.environ, **settings}
        self.project = project

    def compose(self, *arguments: str) -> str:
        """Runs `docker compose ARGUMENTS`. Raises AssertionError with all that it wrote where it fails."""
        done = subprocess.run(
            [*self._compose, *arguments], capture_output=True, text=True, env=self._environment, timeout=WAIT_SECONDS
        )
        assert done.returncode == 0, (
            f"docker compose {' '.join(arguments)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}\n{self.logs()[-8000:]}"
        )
        return done.stdout

    def up(self, workers: int) -> None:
        """Starts everything and waits until all is healthy."""
        self.compose("up", "--no-build", "--wait", "--wait-timeout", "200", "--scale", f"worker={workers}")

    def down(self) -> None:
        """Removes containers, networks and volumes."""
        subprocess.run(
            [*self._compose, "--profile", "*", "down", "--volumes", "--timeout", "5"],
            capture_output=True, env=self._environment, timeout=WAIT_SECONDS,
        )  # fmt: skip

    def client(self, *arguments: str, entrypoint: str | None = None) -> list[str]:
        """A command line that runs a client container."""
        entry = ["--entrypoint", entrypoint] if entrypoint else []
        return [*self._compose, "run", "--rm", "-T", "--no-deps", *entry, "client", *arguments]

    def train(self, steps: int) -> Training:
        """Begins a training."""
        command = self.client("-", "coordinator:7433", str(steps), entrypoint="python")
        return Training(command, self._environment)

    def demo(self) -> str:
        """What the demo writes. Raises AssertionError where it misses its accuracy."""
        done = subprocess.run(
            self.client("--server", "coordinator:7433"),
            capture_output=True, text=True, env=self._environment, timeout=WAIT_SECONDS,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def container(self, service: str) -> str:
        """The name of a service's only container."""
        return f"{self.project}-{service}-1"

    def status(self) -> dict[str, Any]:
        """`gradserve status --json`, asked in the coordinator's container."""
        asked = ["gradserve", "status", "--server", "localhost:7433", "--json"]
        return json.loads(run("docker", "exec", self.container("coordinator"), *asked))

    def host_of(self, task: int) -> str:
        """The container that a worker runs in."""
        return self.status()["workers"][task]["node"].split()[0]

    def logs(self, service: str = "coordinator") -> str:
        """What a service has logged."""
        return subprocess.run(
            [*self._compose, "logs", "--no-color", service], capture_output=True, text=True, env=self._environment
        ).stdout

    def story(self) -> str:
        """How all containers are, and the end of what each service has logged."""
        logs = "\n".join(self.logs(service)[-8000:] for service in ("head", "worker", "coordinator"))
        return f"{self.compose('ps', '--all')}\n{logs}"

    def wait_until(self, holds: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
        """Returns when something holds. Raises AssertionError after so many seconds."""
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, f"{what}: not within {seconds} s\n{self.story()}"
            time.sleep(1)

    def healthy(self, container: str) -> bool:
        """Whether a container's health check passes."""
        return run("docker", "inspect", "--format", "{{.State.Health.Status}}", container).strip() == "healthy"

    def starts(self, container: str) -> int:
        """How often a container was started again by itself."""
        return int(run("docker", "inspect", "--format", "{{.RestartCount}}", container))

    def machines(self) -> int:
        """How many machines for workers Ray's head counts as alive: a container's own health says nothing of that."""
        written = run("docker", "exec", self.container("head"), "python", "-c", MACHINES)
        counted = re.search(r"^machines: (\d+)$", written, re.MULTILINE)  # Ray may write before it and after it
        assert counted is not None, written
        return int(counted[1])

    def all_ready(self) -> bool:
        """Whether every worker of the fleet is ready."""
        return all(worker["state"] == "ready" for worker in self.status()["workers"])
