"""Prompts: texts and conversations, as tokens for the model and as a text for retrieval."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from intarsia_client.base_model import BaseModel
from intarsia_client.errors import InputError

from intarsia_platform.access.refusal import shown
from intarsia_platform.serving.rows import first_tokens

ROLES = ("system", "user", "assistant")

_THING = "prompt"
_MOST_MESSAGES = 1024
# Longer ones are refused before they are tokenised: a token stands for fewer characters.
_CHARACTERS_A_TOKEN = 256


@dataclass(frozen=True, kw_only=True)
class Message:
    """One turn of a conversation.

    Args:
        role: One of :data:`ROLES`.
        text: What was said.

    Raises:
        InputError: If the role is another.
    """

    role: str
    text: str

    def __post_init__(self) -> None:
        """Check the role."""
        if self.role not in ROLES:
            raise InputError("role", shown(self.role), f"use one of {', '.join(ROLES)}")


Prompt = str | Sequence[Message]
"""A text to go on from, or a conversation to answer."""


class Prompts:
    """Reads prompts for one base. Safe for several threads.

    Args:
        base: The base model.
        row_tokens: Tokens that a row has room for.
    """

    def __init__(self, base: BaseModel, row_tokens: int) -> None:
        """Copy the tokenizer, since others set how theirs truncates while this one encodes."""
        self._tokenizer: Any = copy.deepcopy(base.tokenizer)
        self._first = first_tokens(base)
        self._longest = row_tokens * _CHARACTERS_A_TOKEN
        self._lock = threading.Lock()

    def tokens(self, prompt: Prompt) -> tuple[int, ...]:
        """A prompt as the model reads it.

        A text stands behind the token that begins one, as in training. A conversation is put into
        the tokenizer's chat template where it has one; else each message becomes ``role: text``,
        a blank line between two, and ``assistant:`` ends it.

        Args:
            prompt: The prompt.

        Returns:
            Its tokens.

        Raises:
            InputError: If it is far too long, holds half of a surrogate pair, or is a conversation
                without a message or one that the template does not take.
        """
        with self._lock:
            if isinstance(prompt, str):
                return (*self._first, *self._encoded(prompt))
            messages = _checked(prompt)
            if getattr(self._tokenizer, "chat_template", None):
                return self._encoded(self._templated(messages))
            turns = [f"{message.role}: {message.text}" for message in messages]
            return (*self._first, *self._encoded("\n\n".join([*turns, "assistant:"])))

    def _encoded(self, text: str) -> tuple[int, ...]:
        if len(text) > self._longest:
            raise InputError(
                _THING, f"{len(text)} characters", f"use at most {self._longest} characters"
            )
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InputError(
                _THING, "holds half of a surrogate pair", "write whole characters"
            ) from None
        found = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return tuple(found)

    def _templated(self, messages: Sequence[Message]) -> str:
        turns = [{"role": message.role, "content": message.text} for message in messages]
        try:
            text: str = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        except Exception as error:
            # A template refuses what it does not know, such as a system message, by an error.
            raise InputError(
                _THING, shown(f"refused by the chat template ({error})"), "change its messages"
            ) from None
        return text


def retrieval_text(prompt: Prompt) -> str:
    """The text that adapters are chosen by.

    Args:
        prompt: The prompt.

    Returns:
        A text as it is. Of a conversation what the user said, the newest first, since an encoder
        reads a text's beginning.

    Raises:
        InputError: If it is a conversation without a message.
    """
    if isinstance(prompt, str):
        return prompt
    said = [message.text for message in _checked(prompt) if message.role == "user"]
    return "\n".join(reversed(said))


def _checked(messages: Sequence[Message]) -> Sequence[Message]:
    if not 0 < len(messages) <= _MOST_MESSAGES:
        raise InputError(
            _THING, f"{len(messages)} messages", f"send 1 to {_MOST_MESSAGES} messages"
        )
    return messages
