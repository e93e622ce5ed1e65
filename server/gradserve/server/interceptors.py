"""What every call passes through: admission, repeated request ids, and errors turned into status codes.

One interceptor does all three, and wraps each method once, since a warm call may cost little more than an
empty one. Cancellation and deadlines need nothing here: gRPC cancels the call's task, and the task whatever it
awaits, down to the workers.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from gradserve.errors import GradserveError, InvalidArgument, LimitExceeded
from gradserve.server.limits import Limits
from gradserve.server.telemetry import Telemetry

DOMAIN = "gradserve"
DETAILS_KEY = "grpc-status-details-bin"
OURS = "/gradserve.v1."
ALWAYS_ADMITTED = frozenset({"/gradserve.v1.GradientService/GetCluster"})
LONGEST_TEXT = 2000  # trailing metadata has a limit of 8 KiB in most clients
LONGEST_VALUE = 400
MOST_VALUES = 8

log = logging.getLogger(__name__)


def status_of(error: GradserveError) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Code, message and trailing metadata of an error."""
    code = grpc.StatusCode[error.code]
    message = _printable(error.message)
    message = message if len(message) <= LONGEST_TEXT else message[: LONGEST_TEXT - 1] + "…"
    metadata = {key: _printable(value)[:LONGEST_VALUE] for key, value in list(error.metadata.items())[:MOST_VALUES]}
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata))
    status = status_pb2.Status(code=code.value[0], message=message, details=[detail])
    return code, message, ((DETAILS_KEY, status.SerializeToString()),)


def _printable(text: str) -> str:
    """The text where bytes of an attr that are no UTF-8 are written out."""
    return text.encode("utf-8", "backslashreplace").decode()


class Admission:
    """Counts the requests that run, and refuses those over the bound."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.running = 0

    def enter(self) -> None:
        """Raises LimitExceeded where too many requests run."""
        bound = self.limits.max_concurrent_requests
        if self.running >= bound:
            raise LimitExceeded(
                f"The server already runs {self.running} requests, as many as it may: try again a little later, or "
                "start it with a larger --max-concurrent-requests.",
                limit="max_concurrent_requests", bound=bound,
            )  # fmt: skip
        self.running += 1

    def leave(self) -> None:
        """Ends what enter began."""
        self.running -= 1


@dataclass(slots=True)
class _Answer:
    fingerprint: bytes
    future: asyncio.Future[Any]


class RepeatedRequests:
    """Answers of calls that carried a request id: a repeated call gets the first one's answer.

    Invariant: an id is remembered from the moment when its call begins; a call that fails is forgotten, so that
    it can be tried again.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._answers: OrderedDict[tuple[str, str], _Answer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    async def answer(self, method: str, request: Any, call: Callable[[], Awaitable[Any]]) -> Any:
        """The call's answer, or the one that was given before. Raises InvalidArgument for an id used otherwise."""
        key = (method, request.request_id)
        fingerprint = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        while (known := self._answers.get(key)) is not None:
            if known.fingerprint != fingerprint:
                raise InvalidArgument(
                    f"The request id {request.request_id!r} was used for a different request: take a new one.",
                    request_id=request.request_id,
                )
            await asyncio.wait([known.future])
            if not known.future.cancelled():
                return known.future.result()
        future = asyncio.get_running_loop().create_future()
        self._answers[key] = _Answer(fingerprint, future)
        try:
            response = await _finished(call())
        except BaseException:
            del self._answers[key]
            future.cancel()
            raise
        future.set_result(response)
        while len(self._answers) > self.limit:
            self._forget_one()
        return response

    def _forget_one(self) -> None:
        oldest = next((key for key, answer in self._answers.items() if answer.future.done()), None)
        if oldest is not None:
            del self._answers[oldest]


async def _finished(call: Awaitable[Any]) -> Any:
    """The answer of a call; one that is cancelled when all is done already answers nevertheless, to be remembered."""
    task = asyncio.ensure_future(call)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task])
        return task.result()  # or the cancellation


class Gate(grpc.aio.ServerInterceptor):
    """The interceptor."""

    def __init__(self, limits: Limits, admission: Admission, telemetry: Telemetry) -> None:
        self.admission = admission
        self.telemetry = telemetry
        self.repeated = RepeatedRequests(limits.max_request_ids)
        self._wrapped: dict[str, Any] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        method: str = handler_call_details.method  # pyright: ignore[reportAttributeAccessIssue]
        known = self._wrapped.get(method)
        if known is not None:
            return known
        handler = await continuation(handler_call_details)
        if handler is None or not method.startswith(OURS):
            return handler
        wrapped = self._wrap(method, handler)
        self._wrapped[method] = wrapped
        return wrapped

    def _wrap(self, method: str, handler: Any) -> Any:
        codec = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._single(method, handler.unary_unary), **codec)
        if handler.stream_unary:
            return grpc.stream_unary_rpc_method_handler(self._single(method, handler.stream_unary), **codec)
        return grpc.unary_stream_rpc_method_handler(self._stream(method, handler.unary_stream), **codec)

    def _single(self, method: str, behavior: Callable[[Any, Any], Awaitable[Any]]) -> Any:
        admitted = method in ALWAYS_ADMITTED

        async def call(request: Any, context: Any) -> Any:
            started = self.telemetry.started()
            failed: GradserveError | None = None
            try:
                if not admitted:
                    self.admission.enter()
                try:
                    if getattr(request, "request_id", ""):
                        return await self.repeated.answer(method, request, lambda: behavior(request, context))
                    return await behavior(request, context)
                finally:
                    if not admitted:
                        self.admission.leave()
            except GradserveError as error:
                failed = error
                return await _abort(context, error)
            finally:
                self.telemetry.finished(method, started, failed)

        return call

    def _stream(self, method: str, behavior: Callable[[Any, Any], AsyncIterator[Any]]) -> Any:
        async def call(request: Any, context: Any) -> AsyncIterator[Any]:
            started = self.telemetry.started()
            failed: GradserveError | None = None
            try:
                self.admission.enter()
                try:
                    async for response in behavior(request, context):
                        yield response
                finally:
                    self.admission.leave()
            except GradserveError as error:
                failed = error
                await _abort(context, error)
            finally:
                self.telemetry.finished(method, started, failed)

        return call


async def _abort(context: Any, error: GradserveError) -> None:
    code, message, trailing = status_of(error)
    await context.abort(code, message, trailing)
