"""Failures in the shape of OpenAI's interface, each one line.

What a caller may be told is decided here. Words about access, input and limits go out as they are.
What is wrong with the machine (a path, a database, a damaged file) stays in the log.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from intarsia_client.errors import AccessError, InputError, IntarsiaError, StorageError
from starlette.responses import Response

from intarsia_platform.access.refusal import bad_ticket
from intarsia_platform.answering.answers import failure_of
from intarsia_platform.serving.engine import EngineBusy
from intarsia_platform.serving.streams import Finish, Stream

_LOGGER = logging.getLogger(__name__)
_RETRY = {"retry-after": "1"}


class TooManyRequests(IntarsiaError):  # noqa: N818 - a limit, not a fault
    """One principal has too many requests at once."""


class ServerBusy(IntarsiaError):  # noqa: N818 - a state, not a fault
    """Everybody together has too many requests at once."""


class NotReady(IntarsiaError):  # noqa: N818 - a state
    """The server cannot answer; its words are for the log."""


class TooLarge(IntarsiaError):  # noqa: N818 - a limit, not a fault
    """A body is longer than the gateway takes."""


class TooSlow(IntarsiaError):  # noqa: N818 - a limit, not a fault
    """A body or an answer took longer than the gateway waits."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What a caller is told.

    Args:
        status: HTTP status.
        kind: OpenAI's ``type``.
        code: OpenAI's ``code``.
        message: The line.
        headers: Further headers.
    """

    status: int
    kind: str
    message: str
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """OpenAI's error object."""
        error = {"message": self.message, "type": self.kind, "param": None, "code": self.code}
        return json.dumps({"error": error}, separators=(",", ":")).encode()

    def response(self) -> Response:
        """The whole answer."""
        return Response(
            self.body,
            status_code=self.status,
            headers=dict(self.headers),
            media_type="application/json",
        )


NOT_AUTHENTICATED = 401

_OURS = Failure(
    status=500,
    kind="server_error",
    message="server: cannot answer this; try again, or tell its steward",
)


def failure_from(error: Exception) -> Failure:
    """What a caller is told of an error.

    Args:
        error: The error.

    Returns:
        The failure. That an adapter is unknown and that it is forbidden give the same one, but
        for the name that was asked for.
    """
    if isinstance(error, AccessError):
        return _access(error)
    if isinstance(error, InputError):
        return Failure(status=400, kind="invalid_request_error", message=str(error))
    if isinstance(error, TooLarge):
        return Failure(status=413, kind="invalid_request_error", message=str(error))
    if isinstance(error, TooSlow):
        return Failure(status=408, kind="timeout_error", code="timeout", message=str(error))
    if isinstance(error, TooManyRequests):
        return Failure(
            status=429,
            kind="rate_limit_error",
            code="rate_limit_exceeded",
            message=str(error),
            headers=_RETRY,
        )
    if isinstance(error, EngineBusy | ServerBusy):
        message = "server: has no room now; try again in a moment"
        return Failure(status=503, kind="server_error", message=message, headers=_RETRY)
    note(error)
    if isinstance(error, StorageError | NotReady):
        return Failure(status=503, kind="server_error", message=_OURS.message, headers=_RETRY)
    return _OURS


def note(error: Exception) -> None:
    """Log an error whose words are not for callers.

    Args:
        error: The error.
    """
    line = str(error) if isinstance(error, IntarsiaError) else type(error).__name__
    _LOGGER.error("a request failed: %s", line)
    _LOGGER.debug("its traceback", exc_info=error)


def failure_of_end(finish: Finish, stream: Stream) -> Failure | None:
    """What a caller is told of an answer that did not come to its end.

    Args:
        finish: Why it ended.
        stream: The answer.

    Returns:
        The failure, None where the answer is whole.
    """
    if finish is Finish.REVOKED:
        return Failure(
            status=403, kind="permission_error", code="revoked", message=str(bad_ticket())
        )
    if finish is Finish.CANCELLED:
        message = "server: is closing; try again in a moment"
        return Failure(status=503, kind="server_error", message=message, headers=_RETRY)
    if finish is Finish.FAILED:
        error = failure_of(stream)
        return failure_from(error)
    return None


def _access(error: AccessError) -> Failure:
    if error.thing == "credential":
        return Failure(
            status=NOT_AUTHENTICATED,
            kind="authentication_error",
            code="invalid_api_key",
            message=str(error),
            headers={"www-authenticate": "Bearer"},
        )
    if error.thing.startswith("adapter "):
        return Failure(
            status=404, kind="invalid_request_error", code="model_not_found", message=str(error)
        )
    return Failure(status=403, kind="permission_error", message=str(error))
