"""A server of one's own: a child process that ends with the process that started it.

The client finds `start` through the entry-point group `gradserve.embedded`, so that it need not know the server.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Any

from gradserve.errors import InvalidArgument, Unavailable

START_TIMEOUT_SECONDS = 90.0
STOP_TIMEOUT_SECONDS = 40.0


class EmbeddedServer:
    """A running server.

    Attributes:
        address: host and port, for a gRPC channel.
        pid: its process.
    """

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self.address = address
        self.pid = process.pid
        self._process = process

    def stop(self) -> None:
        """Lets running requests finish and ends the server. Stopping twice does nothing."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()


def start(workers: int = 2, engine: str = "auto", **options: Any) -> EmbeddedServer:
    """Starts a server on a free port of this machine and returns once it answers.

    Args:
        workers, engine: as of `gradserve serve`.
        options: any other option of `gradserve serve`, with underscores: data_dir="…", max_sessions=4, threads=1.
            True is a flag; None is left out.

    Raises:
        InvalidArgument: an option that `gradserve serve` does not have.
        Unavailable: the server did not start; the message repeats its last words.
    """
    command = [sys.executable, "-m", "gradserve.server", "serve", "--follow-stdin", "--json", "--port", "0"]
    command += ["--workers", str(workers), "--engine", engine]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            command.append(option)
        elif value is not None and value is not False:
            command += [option, str(value)]
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=words)
        line = _first_line(process.stdout, START_TIMEOUT_SECONDS)
        if line:
            return EmbeddedServer(process, json.loads(line)["address"])
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        words.seek(0)
        said = words.read().decode(errors="replace").strip()[-2000:]
    if code == 2:
        raise InvalidArgument(f"The embedded server did not take its options: {said}")
    raise Unavailable(f"The embedded server did not start: {said or 'it said nothing'}", exit_code=code)


def _first_line(pipe: IO[bytes] | None, timeout_seconds: float) -> bytes:
    """The first line, or nothing where none comes in time."""
    lines: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=lambda: lines.put(pipe.readline() if pipe else b""), daemon=True).start()
    try:
        return lines.get(timeout=timeout_seconds)
    except Empty:
        return b""


def data_folder() -> Path:
    """Where `gradserve serve` keeps its data when it isn't told."""
    return Path.home() / ".local" / "share" / "gradserve"
