"""Answers in the shapes of OpenAI's interface: whole, or as the chunks of a stream."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from intarsia_platform.answering.answers import ModelEntry, Started
from intarsia_platform.gateway.settings import Telling
from intarsia_platform.serving.streams import Finish

_PLACE = "\N{OBJECT REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class AnswerShape:
    """How one answer is written.

    Args:
        name: The answer's identifier without its kind.
        created: When, in seconds since 1970.
        model: What was asked for, as it came.
        chat: Whether it is a turn of a conversation.
        told: What it says of its adapters; None for nothing.
    """

    name: str
    created: int
    model: str
    chat: bool
    told: dict[str, Any] | None

    def whole(self, text: str, finish: Finish, usage: dict[str, int]) -> bytes:
        """A whole answer.

        Args:
            text: Its text.
            finish: Why it ended.
            usage: Its tokens.

        Returns:
            JSON.
        """
        content = {"message": {"role": "assistant", "content": text}} if self.chat else None
        choice = self._choice(content or {"text": text}, finish)
        return _json({**self._frame(whole=True), "choices": [choice], "usage": usage, **self._told})

    def beginning(self) -> bytes:
        """The first event of a stream: no text yet, but what the answer draws on."""
        content = {"delta": {"role": "assistant", "content": ""}} if self.chat else {"text": ""}
        return self._event({"choices": [self._choice(content)], **self._told})

    def piece(self, text: str) -> bytes:
        """An event with a piece of text; a few times for each of many streams in every step.

        Args:
            text: The piece.

        Returns:
            A server-sent event.
        """
        before, after = self._around_piece
        return b"".join((before, json.dumps(text).encode(), after))

    def ending(self, finish: Finish) -> bytes:
        """The event that says why the answer ended.

        Args:
            finish: Why.

        Returns:
            A server-sent event.
        """
        content: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
        return self._event({"choices": [self._choice(content, finish)]})

    def usage(self, usage: dict[str, int]) -> bytes:
        """The event with a stream's usage.

        Args:
            usage: Its tokens.

        Returns:
            A server-sent event.
        """
        return self._event({"choices": [], "usage": usage})

    @cached_property
    def _around_piece(self) -> tuple[bytes, bytes]:
        content = {"delta": {"content": _PLACE}} if self.chat else {"text": _PLACE}
        event = self._event({"choices": [self._choice(content)]})
        # The last one: a model's name may hold the same character.
        before, _, after = event.rpartition(json.dumps(_PLACE).encode())
        return before, after

    @property
    def _told(self) -> dict[str, Any]:
        return {} if self.told is None else {"intarsia": self.told}

    def _frame(self, *, whole: bool) -> dict[str, Any]:
        kind = "text_completion"
        if self.chat:
            kind = "chat.completion" if whole else "chat.completion.chunk"
        return {
            "id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.name}",
            "object": kind,
            "created": self.created,
            "model": self.model,
        }

    def _choice(self, content: dict[str, Any], finish: Finish | None = None) -> dict[str, Any]:
        reason = None if finish is None else str(finish)
        return {"index": 0, **content, "logprobs": None, "finish_reason": reason}

    def _event(self, values: dict[str, Any]) -> bytes:
        return event_of(_json({**self._frame(whole=False), **values}))


DONE = b"data: [DONE]\n\n"
"""What ends a stream."""

ALIVE = b": waiting\n\n"
"""A comment that keeps a quiet connection open."""


def event_of(data: bytes) -> bytes:
    """A server-sent event.

    Args:
        data: One line.

    Returns:
        The event.
    """
    return b"data: " + data + b"\n\n"


def told_of(started: Started, telling: Telling) -> dict[str, Any] | None:
    """What an answer says of the adapters that it draws on.

    Args:
        started: The answer.
        telling: How much it may say.

    Returns:
        The value of ``intarsia`` in the answer, None for nothing.
    """
    if telling is Telling.NOTHING:
        return None
    told: dict[str, Any] = {"labels": list(started.labels)}
    if telling is Telling.ALL:
        told["used"] = [{**one.as_mapping(), "labels": list(one.labels)} for one in started.used]
    return told


def usage_of(prompt: int, answer: int) -> dict[str, int]:
    """OpenAI's ``usage``.

    Args:
        prompt: Tokens of the prompt.
        answer: Tokens of the answer.

    Returns:
        The mapping.
    """
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
    }


def model_shape(entry: ModelEntry, telling: Telling) -> dict[str, Any]:
    """One entry of the list of models.

    Args:
        entry: The entry.
        telling: How much it may say.

    Returns:
        OpenAI's ``model`` object.
    """
    shape = {"id": entry.id, "object": "model", "created": 0, "owned_by": "intarsia"}
    if telling is Telling.NOTHING:
        return shape
    return {**shape, "intarsia": {"labels": list(entry.labels)}}


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode()
