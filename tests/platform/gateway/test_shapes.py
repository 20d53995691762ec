"""The JSON of answers, whole and in pieces."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_platform.answering.answers import Started, Used
from intarsia_platform.gateway.settings import Telling
from intarsia_platform.gateway.shapes import AnswerShape, told_of, usage_of
from intarsia_platform.serving.streams import Finish, Stream
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk


def shape(*, chat: bool, model: str = "auto", told: Any = None) -> AnswerShape:
    return AnswerShape(name="abc", created=7, model=model, chat=chat, told=told)


def data(event: bytes) -> dict[str, Any]:
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert event.count(b"\n") == 2
    decoded: dict[str, Any] = json.loads(event[6:])
    return decoded


@settings(deadline=None)
@given(text=st.text(), model=st.text(), chat=st.booleans())
def test_a_piece_holds_its_text_whatever_it_and_the_model_are(text: str, model: str, chat: bool):
    event = data(shape(chat=chat, model=model).piece(text))
    choice = event["choices"][0]
    assert (choice["delta"]["content"] if chat else choice["text"]) == text
    assert event["model"] == model


def test_whole_answers_are_openais_objects():
    told = {"labels": ["legal"]}
    text = shape(chat=False, told=told).whole("so", Finish.STOP, usage_of(3, 2))
    completion = Completion.model_validate_json(text, strict=True)
    assert completion.choices[0].text == "so"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 5
    assert completion.model_extra == {"intarsia": told}
    turn = ChatCompletion.model_validate_json(
        shape(chat=True).whole("so", Finish.LENGTH, usage_of(3, 2)), strict=True
    )
    assert turn.choices[0].message.content == "so"
    assert turn.choices[0].finish_reason == "length"
    assert turn.model_extra == {}


def test_chunks_are_openais_objects():
    one = shape(chat=True, told={"labels": []})
    events = [
        one.beginning(),
        one.piece("so"),
        one.ending(Finish.STOP),
        one.usage(usage_of(1, 1)),
    ]
    chunks = [ChatCompletionChunk.model_validate(data(event), strict=True) for event in events]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].model_extra == {"intarsia": {"labels": []}}
    assert chunks[1].choices[0].delta.content == "so"
    assert chunks[2].choices[0].finish_reason == "stop"
    assert chunks[3].choices == []
    assert chunks[3].usage is not None
    assert {chunk.id for chunk in chunks} == {"chatcmpl-abc"}


@pytest.mark.parametrize(
    ("telling", "expected"),
    [
        (Telling.NOTHING, None),
        (Telling.LABELS, {"labels": ["a", "b"]}),
        (
            Telling.ALL,
            {
                "labels": ["a", "b"],
                "used": [
                    {"adapter": "sha256:1", "name": "x", "weight": 0.25, "labels": ["b"]},
                    {"adapter": "sha256:2", "name": "y", "weight": 0.75, "labels": ["a", "b"]},
                ],
            },
        ),
    ],
)
def test_an_answer_tells_as_much_as_it_may(telling: Telling, expected: Any):
    used = (
        Used(digest="sha256:1", name="x", weight=0.25, labels=("b",)),
        Used(digest="sha256:2", name="y", weight=0.75, labels=("a", "b")),
    )
    started = Started(stream=Stream(lambda: None), used=used, labels=("a", "b"), prompt_tokens=1)
    assert told_of(started, telling) == expected
