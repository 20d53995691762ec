"""Requests in OpenAI's words: what they mean here, and what is refused."""

from typing import Any

import pytest
from intarsia_client.errors import InputError
from intarsia_platform.answering.prompts import Message
from intarsia_platform.answering.use import UseKind
from intarsia_platform.gateway.asking import (
    ChatRequest,
    CompletionRequest,
    chat_asked,
    completion_asked,
)
from intarsia_platform.gateway.settings import GatewaySettings
from pydantic import ValidationError

LIMITS = GatewaySettings(max_tokens=50, default_tokens=20)


def completion(**fields: Any) -> Any:
    body = {"model": "auto", "prompt": "once", **fields}
    return completion_asked(CompletionRequest.model_validate(body), LIMITS)


def chat(*messages: dict[str, Any], **fields: Any) -> Any:
    body = {"model": "base", "messages": list(messages), **fields}
    return chat_asked(ChatRequest.model_validate(body), LIMITS)


def test_what_is_left_out_is_as_openai_has_it():
    asked = completion()
    assert asked.sampling.temperature == 1.0
    assert asked.sampling.top_p == 1.0
    assert asked.sampling.seed is None
    assert asked.sampling.max_tokens == 20
    assert (asked.stream, asked.usage, asked.chat) == (False, False, False)
    assert asked.use.kind is UseKind.AUTO


def test_every_supported_field_arrives():
    asked = completion(
        model="legal=3,medical",
        temperature=0,
        top_p=0.5,
        top_k=7,
        seed=11,
        max_tokens=50,
        stop=["a", "b"],
        stream=True,
        stream_options={"include_usage": True},
    )
    sampling = asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0, 0.5, 7)
    assert (sampling.seed, sampling.max_tokens, sampling.stop) == (11, 50, ("a", "b"))
    assert (asked.stream, asked.usage) == (True, True)
    assert [(part.name, part.share) for part in asked.use.parts] == [
        ("legal", 0.75),
        ("medical", 0.25),
    ]


def test_a_stop_text_may_stand_alone_and_one_prompt_in_a_list():
    asked = completion(prompt=["once"], stop="x")
    assert asked.prompt == "once"
    assert asked.sampling.stop == ("x",)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n": 2}, "n: 2"),
        ({"best_of": 3}, "field best_of"),
        ({"logprobs": 5}, "field logprobs"),
        ({"logprobs": True}, "field logprobs"),
        ({"echo": True}, "field echo"),
        ({"presence_penalty": 0.5}, "field presence_penalty"),
        ({"logit_bias": {"5": 1}}, "field logit_bias"),
        ({"tools": [{"type": "function"}]}, "field tools"),
        ({"response_format": {"type": "json_object"}}, "field response_format"),
        ({"unheard_of": 1}, "field unheard_of"),
        ({"prompt": []}, "prompt: 0 texts"),
        ({"prompt": ["a", "b"]}, "prompt: 2 texts"),
        ({"temperature": 2.5}, "temperature: 2.5"),
        ({"temperature": -1}, "temperature: -1"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"top_p": 0}, "top_p: 0"),
        ({"top_k": -1}, "top_k: -1"),
        ({"seed": -1}, "seed: -1"),
        ({"max_tokens": 0}, "max_tokens: 0"),
        ({"max_tokens": 51}, "max_tokens: 51"),
        ({"stop": ["x"] * 17}, "stop: 17 texts"),
        ({"stop": ""}, "stop: a text"),
        ({"model": "a=0"}, "weight of a: 0"),
        ({"model": "a,a"}, "use: a twice"),
        ({"model": ""}, "use: ''"),
    ],
)
def test_what_is_not_supported_is_refused_in_one_line(fields: dict[str, Any], words: str):
    with pytest.raises(InputError) as caught:
        completion(**fields)
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "best_of": 1, "echo": False, "logprobs": None, "suffix": None},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}},
        {"user": "somebody", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
    ],
)
def test_what_asks_for_nothing_special_passes(fields: dict[str, Any]):
    assert completion(**fields) == completion()


@pytest.mark.parametrize(
    "fields",
    [{"model": 5}, {"model": "x" * 5000}, {"prompt": 1}, {"stream": "yes"}, {"max_tokens": "5"},
     {"max_tokens": 1.5}, {"stop": [1]}, {"stream_options": {"odd": True}}],
)  # fmt: skip
def test_fields_of_another_type_are_not_read(fields: dict[str, Any]):
    with pytest.raises(ValidationError):
        completion(**fields)


def test_messages_become_turns():
    asked = chat(
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": None, "name": "x", "tool_calls": []},
        max_completion_tokens=7,
        max_tokens=3,
    )
    assert asked.prompt == (
        Message(role="system", text="be brief"),
        Message(role="user", text="ab"),
        Message(role="assistant", text=""),
    )
    assert asked.chat
    assert asked.sampling.max_tokens == 7


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "tool", "content": "x"}, "role: tool"),
        ({"role": "user", "content": [{"type": "image_url"}]}, "content: of type image_url"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "field tool_calls of a"),
    ],
)
def test_turns_of_another_kind_are_refused(message: dict[str, Any], words: str):
    with pytest.raises((InputError, ValidationError)) as caught:
        chat(message)
    assert words in str(caught.value) or isinstance(caught.value, ValidationError)
