"""One message answered by one virtual client, in whatever process that happens.

Both grids answer through :func:`answer`: it gives the client its context, runs the ``ClientApp``,
and turns whatever goes wrong in there into an error reply, so that no client can end a round.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TypeAlias

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.message import make_message
from flwr.app.user_config import UserConfigValue
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from intarsia_client.errors import InputError, IntarsiaError

from intarsia_platform.federation.client_contexts import decode_state, encode_state, trains

ClientAppSource: TypeAlias = ClientApp | Callable[[], ClientApp] | str
"""A ``ClientApp``, a function without arguments that makes one, or ``"module:attribute"``."""

_logger = logging.getLogger(__name__)
_LONGEST_REASON = 1000


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A message and what its client knows when it answers.

    Attributes:
        message: What is to be answered; its content stays as it is.
        node_config: The client's settings.
        state: The client's state as :func:`encode_state` gave it, or None for none yet.
    """

    message: Message
    node_config: Mapping[str, UserConfigValue]
    state: bytes | None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of an assignment.

    Attributes:
        reply: The client's reply, or an error reply.
        state: The client's new state to be saved, or None where there is nothing to save: the
            message was no training, it failed, or the state is as it was.
    """

    reply: Message
    state: bytes | None


def load_client_app(source: ClientAppSource) -> ClientApp:
    """Get hold of a client app in this process.

    Args:
        source: See :data:`ClientAppSource`; the attribute that a string names may itself be a
            function that makes the app.

    Returns:
        The app.

    Raises:
        InputError: If it cannot be imported or made, or is no ``ClientApp``.
    """
    try:
        found = _attribute(source) if isinstance(source, str) else source
        app = found if isinstance(found, ClientApp) else found()
    except IntarsiaError:
        raise
    except Exception as error:
        raise InputError(
            "client app", _name(source), f"make it importable and callable ({one_line(error)})"
        ) from error
    if not isinstance(app, ClientApp):
        raise InputError(
            "client app", _name(source), f"name a flwr.clientapp.ClientApp, not {type(app)}"
        )
    return app


def _attribute(reference: str) -> ClientApp | Callable[[], ClientApp]:
    module, separator, attribute = reference.partition(":")
    if not (module and separator and attribute):
        raise InputError("client app", reference, "write it as module:attribute")
    found: ClientApp | Callable[[], ClientApp] = getattr(import_module(module), attribute)
    return found


def _name(source: ClientAppSource) -> str:
    return source if isinstance(source, str) else getattr(source, "__qualname__", repr(source))


def answer(
    client_app: ClientApp,
    assignment: Assignment,
    run_config: Mapping[str, UserConfigValue],
) -> Answer:
    """Let a client answer one message.

    The client works on records of its own, so what it changes in them reaches neither the sender
    nor another client. Arrays inside are shared, as Flower treats an ``Array`` as a value.

    Args:
        client_app: The app that every client runs.
        assignment: The message, and its client's settings and state.
        run_config: What ``Context.run_config`` holds.

    Returns:
        The reply and the state to be saved. An exception in the app becomes an error reply whose
        reason is the exception's line.

    Raises:
        KeyboardInterrupt: If the person at the keyboard stops the run meanwhile.
    """
    message = assignment.message
    metadata = message.metadata
    context = Context(
        run_id=metadata.run_id,
        node_id=metadata.dst_node_id,
        node_config=dict(assignment.node_config),
        state=decode_state(assignment.state),
        run_config=dict(run_config),
    )
    try:
        reply = client_app(make_message(metadata, _own_records(message.content)), context)
        _check_reply(reply, message)
        state = encode_state(context.state) if trains(metadata) else None
    except (Exception, SystemExit) as error:
        _logger.debug("client %d could not answer", metadata.dst_node_id, exc_info=True)
        return Answer(
            reply=error_reply(message, ErrorCode.CLIENT_APP_RAISED_EXCEPTION, one_line(error)),
            state=None,
        )
    return Answer(reply=reply, state=None if state == (assignment.state or b"") else state)


def _own_records(content: RecordDict) -> RecordDict:
    return RecordDict({name: record.copy() for name, record in content.items()})


def _check_reply(reply: object, message: Message) -> None:
    if not isinstance(reply, Message):
        raise TypeError(f"the client app returned {type(reply)}, not a flwr.app.Message")
    if reply.metadata.reply_to_message_id != message.metadata.message_id:
        raise ValueError("the client app's reply answers another message; use reply_to=message")


def error_reply(message: Message, code: int, reason: str) -> Message:
    """Answer a message with an error.

    Args:
        message: The message.
        code: One of Flower's ``ErrorCode`` numbers.
        reason: One line for a person.

    Returns:
        The reply.
    """
    return Message(Error(code=code, reason=reason), reply_to=message)


def one_line(error: BaseException) -> str:
    """Say what an exception says, on one line.

    Args:
        error: The exception.

    Returns:
        An :class:`IntarsiaError`'s own line, whole; of any other the type and the text, cut off
        where it gets long.
    """
    if isinstance(error, IntarsiaError):
        return " ".join(str(error).split())
    text = "".join(traceback.format_exception_only(error))
    return " ".join(text.split())[:_LONGEST_REASON]
