"""The one error tree of gradserve, raised alike by the client, the server and the workers.

    GradserveError
    ├── InvalidArgument (ValueError)            INVALID_ARGUMENT
    │   ├── InvalidGraph                        a graph breaks a rule that every graph must keep
    │   ├── InvalidShape                        shapes do not fit together
    │   ├── InvalidSeed (TypeError)             a grad_ys entry does not match its y
    │   └── InvalidPlacement                    devices or colocation groups contradict each other
    ├── InvalidType (TypeError)                 INVALID_ARGUMENT
    ├── NoGradient (LookupError)                FAILED_PRECONDITION
    ├── Unsupported (NotImplementedError)       UNIMPLEMENTED
    │   └── UnsupportedOp                       an op has no kernel here
    ├── NotFound (LookupError)                  NOT_FOUND
    ├── AlreadyExists (ValueError)              ALREADY_EXISTS
    ├── FailedPrecondition                      FAILED_PRECONDITION
    ├── LimitExceeded                           RESOURCE_EXHAUSTED
    ├── DeadlineExceeded (TimeoutError)         DEADLINE_EXCEEDED
    ├── Cancelled                               CANCELLED
    ├── Unavailable (ConnectionError)           UNAVAILABLE
    └── ComputationFailed                       INVALID_ARGUMENT (a kernel found no result for its inputs)

The class decides the status code and the `google.rpc.ErrorInfo` reason; `metadata` repeats every value
that the message names (node, op, tensor, …), so that a machine need not read the sentence.
"""

from typing import ClassVar


class GradserveError(Exception):
    """Base of every error that gradserve raises on purpose; as it is (INTERNAL), a fault of gradserve's own."""

    code: ClassVar[str] = "INTERNAL"
    reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, **metadata: object) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = {key: str(value) for key, value in metadata.items()}

    def __str__(self) -> str:
        return self.message


class InvalidArgument(GradserveError, ValueError):
    """An argument of the request is wrong; the same request will fail again."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_ARGUMENT"


class InvalidGraph(InvalidArgument):
    """The graph itself is broken: duplicate name, dangling input, cycle, bad attr, wrong arity or dtype."""

    reason = "INVALID_GRAPH"


class InvalidShape(InvalidArgument):
    """Shapes do not fit together."""

    reason = "INVALID_SHAPE"


class InvalidSeed(InvalidArgument, TypeError):
    """An entry of grad_ys does not match its y in dtype or shape (SEMANTICS.md part 1, point 4)."""

    reason = "INVALID_SEED"


class InvalidPlacement(InvalidArgument):
    """Device strings and colocation groups ask for something that the fleet can't give."""

    reason = "INVALID_PLACEMENT"


class InvalidType(GradserveError, TypeError):
    """A value has a type or dtype that can't be used here."""

    code = "INVALID_ARGUMENT"
    reason = "INVALID_TYPE"


class NoGradient(GradserveError, LookupError):
    """An op between x and y has no gradient."""

    code = "FAILED_PRECONDITION"
    reason = "NO_GRADIENT"


class Unsupported(GradserveError, NotImplementedError):
    """The graph uses an op or a feature that this engine or this version does not run."""

    code = "UNIMPLEMENTED"
    reason = "UNSUPPORTED"


class UnsupportedOp(Unsupported):
    """An op has no kernel here: the message names the node, the op and, where it is left out on purpose, the reason."""

    reason = "UNSUPPORTED_OP"


class NotFound(GradserveError, LookupError):
    """A named graph, session, tensor or node does not exist."""

    code = "NOT_FOUND"
    reason = "NOT_FOUND"


class AlreadyExists(GradserveError, ValueError):
    """The name is taken by something else."""

    code = "ALREADY_EXISTS"
    reason = "ALREADY_EXISTS"


class FailedPrecondition(GradserveError):
    """The system is not in the state that the request needs, for example a variable read before its init."""

    code = "FAILED_PRECONDITION"
    reason = "FAILED_PRECONDITION"


class LimitExceeded(GradserveError):
    """A configured bound was hit: the message names it and its value."""

    code = "RESOURCE_EXHAUSTED"
    reason = "LIMIT_EXCEEDED"


class DeadlineExceeded(GradserveError, TimeoutError):
    """The caller's deadline passed."""

    code = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class Cancelled(GradserveError):
    """The caller went away."""

    code = "CANCELLED"
    reason = "CANCELLED"


class Unavailable(GradserveError, ConnectionError):
    """A worker or the server can't be reached after the retries; the same request may succeed later."""

    code = "UNAVAILABLE"
    reason = "UNAVAILABLE"


class ComputationFailed(GradserveError):
    """An op has no result for its inputs: the message names the node, the op and the kernel's own words."""

    code = "INVALID_ARGUMENT"
    reason = "COMPUTATION_FAILED"


def by_reason() -> dict[str, type[GradserveError]]:
    """Every error class by its ErrorInfo reason, for turning a status back into an exception."""
    found: dict[str, type[GradserveError]] = {}
    pending: list[type[GradserveError]] = [GradserveError]
    while pending:
        error = pending.pop()
        found[error.reason] = error
        pending.extend(error.__subclasses__())
    return found
