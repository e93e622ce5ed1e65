"""A failed RPC as an exception of gradserve.errors: the ErrorInfo's reason says which."""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from gradserve.errors import FailedPrecondition, GradserveError, InvalidArgument, Unavailable, by_reason

_DETAILS = "grpc-status-details-bin"
_BY_REASON = by_reason()
_BY_CODE = {error.code: error for error in reversed(list(_BY_REASON.values()))} | {
    "INVALID_ARGUMENT": InvalidArgument,
    "FAILED_PRECONDITION": FailedPrecondition,
    "INTERNAL": GradserveError,
}


def error_of(failure: Any, address: str) -> GradserveError:
    """The exception of a failed call, synchronous or not."""
    code: grpc.StatusCode = failure.code()
    details = failure.details() or code.name
    for key, value in failure.trailing_metadata() or ():
        if key == _DETAILS:
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info) and info.reason in _BY_REASON:
                    return _BY_REASON[info.reason](details, **dict(info.metadata))
    if code is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(f"No server answers at {address}: {details}.", address=address)
    return _BY_CODE.get(code.name, GradserveError)(details)
