"""Sessions: graphs whose variables have values, and the checkpoints that outlive them.

A checkpoint is one safetensors file beside the session's graph:

    sessions/{session}/graph.pb                       the GraphDef
    sessions/{session}/{checkpoint}.safetensors       values; what else is to know is JSON in its metadata
    sessions/{session}/_latest.safetensors            the same, written by the server itself for a durable session

A durable session comes back by itself when the server starts again. With its values it keeps the answers of its last
steps, by request id: a client that repeats a call over a restart gets the answer, and the step is not applied twice.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import shutil
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import Message
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from gradserve.errors import (
    AlreadyExists,
    FailedPrecondition,
    GradserveError,
    InvalidArgument,
    NotFound,
    Unsupported,
)  # fmt: skip
from gradserve.graph import dtypes
from gradserve.server.cancellation import carry_through
from gradserve.server.graphs import ID, GraphVersion, page_bounds, resource_name
from gradserve.server.limits import Limits
from gradserve.server.values import Array
from gradserve.server.variables import Variables
from gradserve.v1 import gradient_service_pb2 as wire

SUFFIX = ".safetensors"
_LATEST = f"_latest{SUFFIX}"  # no checkpoint that a user names begins like this
_MOST_ANSWERS = 64
_ANSWER_BYTES = 4 << 20

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Session:
    """An open session.

    Attributes:
        name: `sessions/{session}`.
        version: its graph; it stays the same when the stored graph changes.
        graph_name, graph_version: where the graph was taken from; "" and 0 for an inline one.
        variables: their values.
        steps: steps that it has run.
        order: held by the step that runs, so that steps take their turns.
        checkpoint_steps: the server saves it after so many steps that change variables, 0 for never: it is durable.
        unsaved: such steps since the last time.
        answers: what the last steps of a durable session answered, serialised, by request id.
    """

    name: str
    version: GraphVersion
    graph_name: str
    graph_version: int
    variables: Variables
    steps: int = 0
    created: float = field(default_factory=time.time)
    used: float = field(default_factory=time.time)
    order: asyncio.Lock = field(default_factory=asyncio.Lock)
    checkpoint_steps: int = 0
    unsaved: int = 0
    answers: OrderedDict[str, bytes] = field(default_factory=OrderedDict)

    def message(self) -> wire.Session:
        """The wire's form."""
        names = self.variables.names()
        message = wire.Session(
            name=self.name,
            graph=self.graph_name,
            graph_version=self.graph_version,
            steps=self.steps,
            variables=names,
            size_bytes=sum(self.variables.get(name).nbytes for name in names),
            checkpoint_steps=self.checkpoint_steps,
        )
        message.create_time.FromNanoseconds(int(self.created * 1e9))
        message.use_time.FromNanoseconds(int(self.used * 1e9))
        return message


class Turn:
    """One step of a session, or of none.

    Attributes:
        variables: the session's; None without one.
        known: the answer of a step that was done before a restart, serialised: it must not be done again.
    """

    def __init__(self, session: Session | None = None, request_id: str = "") -> None:
        self.variables = session.variables if session is not None else None
        self.known = session.answers.get(request_id) if session is not None else None
        self._session = session
        self._request_id = request_id

    def answered(self, response: Message) -> None:
        """Keeps what the step answers, in case that it is asked for again after a restart."""
        session = self._session
        if session is None or not session.checkpoint_steps or not self._request_id:
            return
        session.answers[self._request_id] = response.SerializeToString()
        while len(session.answers) > _MOST_ANSWERS or (
            len(session.answers) > 1 and sum(map(len, session.answers.values())) > _ANSWER_BYTES
        ):
            session.answers.popitem(last=False)


class Sessions:
    """The open sessions of one server, and the folder of their checkpoints."""

    def __init__(self, folder: Path, limits: Limits, new_variables: Callable[[], Variables]) -> None:
        self.folder = folder
        self.limits = limits
        self._new_variables = new_variables
        self._open: dict[str, Session] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self._open)

    def get(self, name: str) -> Session:
        """An open session. Raises NotFound."""
        try:
            return self._open[name]
        except KeyError:
            raise NotFound(
                f"There is no open session {name!r}: create it, or restore it from a checkpoint.", session=name
            ) from None

    def open(
        self, session_id: str, version: GraphVersion, graph_name: str, graph_version: int, checkpoint_steps: int = 0
    ) -> Session:
        """Opens a session without values. Raises AlreadyExists, LimitExceeded, InvalidArgument."""
        name = resource_name("sessions", session_id)
        if name in self._open:
            raise AlreadyExists(f"The session {name!r} is open already: use it or delete it.", session=name)
        if checkpoint_steps < 0:
            raise InvalidArgument(
                f"checkpoint_steps is {checkpoint_steps}: it is a number of steps, or 0 for no checkpoints.",
                checkpoint_steps=checkpoint_steps,
            )
        self.limits.check("max_sessions", len(self._open) + 1, "The number of open sessions", "delete one")
        session = Session(
            name, version, graph_name, graph_version, self._new_variables(), checkpoint_steps=checkpoint_steps
        )
        self._open[name] = session
        return session

    async def reopen(self) -> None:
        """Opens the durable sessions of a server that was here before; one that can't be read is passed over."""
        for path in sorted(self.folder.glob(f"*/{_LATEST}")):
            name = f"sessions/{path.parent.name}"
            try:
                session = await self.restore(name)
            except GradserveError as error:
                log.error("The session %s does not come back: %s", name, error.message)
            else:
                log.info("The session %s is back, after %d steps.", name, session.steps)

    @asynccontextmanager
    async def turn(self, session: Session, request_id: str = "") -> AsyncGenerator[Turn]:
        """One step of a session, once those before it are over; a step that ends well counts.

        A durable session that is due for it is saved before the step's answer goes out.

        Raises NotFound where the session was closed meanwhile.
        """
        async with session.order:
            self.get(session.name)
            turn = Turn(session, request_id)
            before = session.variables.changes
            yield turn
            if turn.known is None:
                session.steps += 1
                session.unsaved += session.variables.changes != before
            session.used = time.time()
            if session.checkpoint_steps and session.unsaved >= session.checkpoint_steps:
                await carry_through(self._keep(session))

    async def keep(self, session: Session) -> None:
        """Saves a durable session now."""
        async with session.order:
            await carry_through(self._keep(session))

    async def suspend(self) -> None:
        """Saves what durable sessions have not saved yet, before the server ends."""
        for session in list(self._open.values()):
            if session.checkpoint_steps and session.unsaved:
                try:
                    await self.keep(session)
                except GradserveError as error:  # its variables were lost with the fleet; the others may be here
                    log.error("%s goes back to its last checkpoint: %s", session.name, error.message)

    async def _keep(self, session: Session) -> None:
        """Must be carried through once begun: two of them at a time would race for the file."""
        values = {name: session.variables.get(name) for name in session.variables.names()}
        about = self._about(session) | {
            "checkpoint_steps": session.checkpoint_steps,
            "answers": {key: base64.b64encode(answer).decode() for key, answer in session.answers.items()},
        }
        path = self._folder_of(session.name) / _LATEST
        await asyncio.to_thread(_write, path, session.version.data, values, about)
        session.unsaved = 0

    def _about(self, session: Session) -> dict[str, Any]:
        return {
            "steps": session.steps,
            "draws": session.variables.draws,
            "graph": session.graph_name,
            "graph_version": session.graph_version,
            "saved": time.time(),
        }

    def page(self, page_size: int, page_token: str) -> tuple[list[Session], str]:
        """A page of sessions, the newest first, and the token of the next one."""
        size, offset = page_bounds(page_size, page_token)
        newest = sorted(self._open.values(), key=lambda session: (-session.created, session.name))
        more = offset + size < len(newest)
        return newest[offset : offset + size], str(offset + size) if more else ""

    async def delete(self, name: str, delete_checkpoints: bool) -> None:
        """Closes a session once its running step is over. Raises NotFound where there is nothing to delete."""
        folder = self._folder_of(name)
        if name not in self._open and not (delete_checkpoints and folder.exists()):
            self.get(name)
        session = self._open.get(name)
        if session is not None:
            async with session.order:
                if session.checkpoint_steps:  # closed on purpose: its values stay, but it does not come back by itself
                    if session.unsaved:
                        await carry_through(self._keep(session))
                    (folder / _LATEST).replace(folder / f"{session.steps}{SUFFIX}")
                self.close(session)
        if delete_checkpoints:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def close(self, session: Session) -> None:
        """Frees a session's variables."""
        if self._open.pop(session.name, None) is not None:
            session.variables.close()

    def close_all(self) -> None:
        """Frees everything."""
        for session in list(self._open.values()):
            self.close(session)

    async def save(self, name: str, checkpoint_id: str) -> wire.Checkpoint:
        """Writes a checkpoint of an open session. Raises NotFound, AlreadyExists, Unsupported."""
        session = self.get(name)
        async with session.order:
            identifier = checkpoint_id or str(session.steps)
            checkpoint = f"{name}/checkpoints/{identifier}"
            if ID.fullmatch(identifier) is None:
                raise InvalidArgument(f"{identifier!r} can't be the id of a checkpoint.", id=identifier)
            path = self._folder_of(name) / f"{identifier}{SUFFIX}"
            if checkpoint_id and path.exists():
                raise AlreadyExists(f"There is a checkpoint {checkpoint!r} already: take another id.", id=checkpoint)
            values = {name: session.variables.get(name) for name in session.variables.names()}
            about = self._about(session)
            await asyncio.to_thread(_write, path, session.version.data, values, about)
        message = wire.Checkpoint(
            name=checkpoint, variables=values, size_bytes=path.stat().st_size, steps=about["steps"]
        )
        message.create_time.FromNanoseconds(int(about["saved"] * 1e9))
        return message

    async def restore(self, name: str) -> Session:
        """Puts a session back to a checkpoint, opening it if need be. Raises NotFound."""
        session_name, path = self._checkpoint(name)
        values, about = await asyncio.to_thread(_read, path)
        session = self._open.get(session_name)
        if session is None:
            data = await asyncio.to_thread((path.parent / "graph.pb").read_bytes)
            version = await asyncio.to_thread(GraphVersion, data, self.limits)
            session = self.open(session_name.removeprefix("sessions/"), version, about["graph"], about["graph_version"])
        async with session.order:
            restored = self._new_variables()
            for variable, array in values.items():
                restored.set(variable, array)
            restored.draws.update(about["draws"])
            before, session.variables, session.steps = session.variables, restored, about["steps"]
            before.close()
            session.checkpoint_steps = about.get("checkpoint_steps", session.checkpoint_steps)
            for key, answer in about.get("answers", {}).items():
                session.answers[key] = base64.b64decode(answer)
            if session.checkpoint_steps and path.name != _LATEST:
                await carry_through(self._keep(session))
        return session

    def _folder_of(self, name: str) -> Path:
        identifier = name.removeprefix("sessions/")
        if not name.startswith("sessions/") or ID.fullmatch(identifier) is None:
            raise InvalidArgument(f"{name!r} is no session: its name is sessions/ and an id.", session=name)
        return self.folder / identifier

    def _checkpoint(self, name: str) -> tuple[str, Path]:
        """The session and the file of a checkpoint, or of a session's latest one. Raises NotFound."""
        session_name, separator, identifier = name.partition("/checkpoints/")
        folder = self._folder_of(session_name)
        if separator:
            path = folder / f"{identifier}{SUFFIX}"
            if ID.fullmatch(identifier) is not None and path.exists():
                return session_name, path
        else:
            found = sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime_ns)
            if found:
                return session_name, found[-1]
        raise NotFound(f"There is no checkpoint {name!r}: save the session first.", checkpoint=name)


def _write(path: Path, graph: bytes, values: dict[str, Array], about: dict[str, Any]) -> None:
    """Writes a checkpoint, whole or not at all. Dtypes that safetensors does not know are stored as bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    disguised: dict[str, Any] = {}
    stored: dict[str, Array] = {}
    for name, array in values.items():
        if array.dtype.kind == "O":
            raise Unsupported(f"The variable {name} holds strings, which a checkpoint can't keep.", variable=name)
        array = np.array(array, order="C")
        if array.dtype.kind in "fiub" and array.dtype.isbuiltin == 1:
            stored[name] = array
        else:
            disguised[name] = {"dtype": dtypes.as_dtype(array.dtype).name, "shape": array.shape}
            stored[name] = np.frombuffer(array.tobytes(), np.uint8)
    token = uuid.uuid4().hex
    graph_part, part = path.parent / f"{token}.graph", path.parent / f"{token}.part"
    graph_part.write_bytes(graph)
    os.replace(graph_part, path.parent / "graph.pb")
    save_file(stored, part, {"gradserve": json.dumps(about | {"disguised": disguised})})
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def _read(path: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads(file.metadata()["gradserve"])
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, KeyError, TypeError) as error:
        raise FailedPrecondition(
            f"The checkpoint {path.name} can't be read: {error}. Restore another one.", checkpoint=path.name
        ) from None
    for name, kind in about.pop("disguised").items():
        dtype = dtypes.as_dtype(kind["dtype"]).numpy
        values[name] = np.frombuffer(values[name].tobytes(), dtype).reshape(kind["shape"])
    return values, about
