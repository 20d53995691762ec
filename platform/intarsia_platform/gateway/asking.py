"""What a request asks for, in the words of OpenAI's interface, checked field by field.

A field that would change an answer and is not supported is refused, not passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from intarsia_client.errors import InputError
from pydantic import BaseModel, ConfigDict, Field

from intarsia_platform.access.refusal import shown
from intarsia_platform.answering.prompts import Message, Prompt
from intarsia_platform.answering.use import Use, parse_use
from intarsia_platform.gateway.settings import GatewaySettings
from intarsia_platform.serving.sampling import Sampling

MAX_MODEL = 4096
MAX_TEMPERATURE = 2.0

_WITHOUT_EFFECT = frozenset([
    "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention",
    "safety_identifier", "service_tier", "store", "user",
])  # fmt: skip
# What asks for nothing beyond the ordinary.
_ORDINARY: Mapping[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "modalities": (["text"],),
    "n": (1,),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
}

_Optional = Annotated[int | None, Field(default=None)]


class StreamOptions(BaseModel):
    """OpenAI's ``stream_options``."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class AnswerRequest(BaseModel):
    """The fields that both kinds of answers share."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: Annotated[str, Field(max_length=MAX_MODEL)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: _Optional
    seed: _Optional
    max_tokens: _Optional
    stop: str | list[str] | None = None


class CompletionRequest(AnswerRequest):
    """The body of ``POST /v1/completions``."""

    prompt: str | list[str]


class TextPart(BaseModel):
    """One part of a message's content."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: str
    content: str | list[TextPart] | None = None


class ChatRequest(AnswerRequest):
    """The body of ``POST /v1/chat/completions``."""

    messages: list[ChatMessage]
    max_completion_tokens: _Optional


class EmbeddingRequest(BaseModel):
    """The body of ``POST /v1/embeddings``."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: Annotated[str, Field(max_length=MAX_MODEL)]
    input: str | list[str]
    encoding_format: str | None = None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One answer that is asked for.

    Args:
        prompt: A text, or a conversation.
        model: The words of ``model``, as they came.
        use: What they mean.
        sampling: How tokens are chosen.
        chat: Whether it is a conversation.
        stream: Whether the answer comes piece by piece.
        usage: Whether a stream ends with its usage.
    """

    prompt: Prompt
    model: str
    use: Use
    sampling: Sampling
    chat: bool
    stream: bool
    usage: bool


def completion_asked(body: CompletionRequest, settings: GatewaySettings) -> Asked:
    """Read a request for a completion.

    Args:
        body: The request.
        settings: The gateway's limits.

    Returns:
        What it asks for.

    Raises:
        InputError: If it asks for something that is not supported or makes no sense.
    """
    texts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    if len(texts) != 1:
        raise InputError("prompt", f"{len(texts)} texts", "send one; several need several requests")
    return _asked(body, texts[0], body.max_tokens, settings)


def chat_asked(body: ChatRequest, settings: GatewaySettings) -> Asked:
    """Read a request for the next turn of a conversation.

    Args:
        body: The request.
        settings: The gateway's limits.

    Returns:
        What it asks for.

    Raises:
        InputError: If it asks for something that is not supported or makes no sense.
    """
    most = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    return _asked(body, tuple(_message(one) for one in body.messages), most, settings)


def check_fields(body: BaseModel) -> None:
    """Refuse fields that would change an answer and that nothing here reads.

    Args:
        body: A request.

    Raises:
        InputError: If there is such a field.
    """
    for name, value in (body.model_extra or {}).items():
        if value is None or name in _WITHOUT_EFFECT or value in _ORDINARY.get(name, ()):
            continue
        if name == "n":
            raise InputError("n", shown(str(value)), "ask for 1 answer; send several requests")
        raise InputError(f"field {shown(name)}", "is not supported", "leave it out")


def _asked(
    body: AnswerRequest, prompt: Prompt, most: int | None, settings: GatewaySettings
) -> Asked:
    check_fields(body)
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    temperature = 1.0 if body.temperature is None else body.temperature
    if temperature > MAX_TEMPERATURE:
        raise InputError("temperature", temperature, f"use at most {MAX_TEMPERATURE:g}")
    if most is None:
        most = min(settings.default_tokens, settings.max_tokens)
    if most > settings.max_tokens:
        raise InputError("max_tokens", most, f"ask for at most {settings.max_tokens}")
    options = body.stream_options or StreamOptions()
    return Asked(
        prompt=prompt,
        model=body.model,
        use=parse_use(body.model),
        sampling=Sampling(
            temperature=temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            top_k=body.top_k or 0,
            seed=body.seed,
            max_tokens=most,
            stop=stop,
        ),
        chat=isinstance(body, ChatRequest),
        stream=bool(body.stream),
        usage=bool(options.include_usage),
    )


def _message(one: ChatMessage) -> Message:
    for name, value in (one.model_extra or {}).items():
        if name != "name" and value not in (None, []):
            raise InputError(
                f"field {shown(name)} of a message", "is not supported", "leave it out"
            )
    parts = [one.content or ""] if not isinstance(one.content, list) else _texts(one.content)
    # OpenAI's newer word for the same.
    role = "system" if one.role == "developer" else one.role
    return Message(role=role, text="".join(parts))


def _texts(parts: list[TextPart]) -> list[str]:
    for part in parts:
        if part.type != "text":
            raise InputError("content", f"of type {shown(part.type)}", "send text only")
    return [part.text or "" for part in parts]
