"""The official client, unchanged, against a server on a socket."""

import base64
import math
from typing import Any

import numpy as np
import openai
import pytest

LEGAL = "the contract binds both parties until either gives notice"


@pytest.fixture(scope="module")
def client(served: Any) -> Any:
    return served.openai("dora")


def test_a_completion_whole_and_streamed_is_the_same(client: Any):
    fields = {"model": "legal", "prompt": LEGAL, "max_tokens": 12, "temperature": 0}
    whole = client.completions.create(**fields)
    assert whole.object == "text_completion"
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage.completion_tokens == 12
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 12
    chunks = list(
        client.completions.create(**fields, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(c.choices[0].text for c in chunks if c.choices) == whole.choices[0].text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage.completion_tokens == 12
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_conversation_whole_and_streamed_is_the_same(client: Any):
    fields = {
        "model": "legal=1,medical=3",
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": LEGAL},
        ],
        "max_completion_tokens": 10,
        "temperature": 0.8,
        "seed": 5,
    }
    whole = client.chat.completions.create(**fields)
    assert whole.choices[0].message.role == "assistant"
    chunks = list(client.chat.completions.create(**fields, stream=True))
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "length"


def test_a_seed_decides(client: Any):
    def text(seed: int) -> str:
        answer = client.completions.create(
            model="base", prompt=LEGAL, max_tokens=12, temperature=1.5, seed=seed
        )
        found: str = answer.choices[0].text
        return found

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_a_stop_text_ends_the_answer_before_it(client: Any):
    fields = {"model": "legal", "prompt": LEGAL, "max_tokens": 24, "temperature": 0}
    text = client.completions.create(**fields).choices[0].text
    stop = text[len(text) // 2 :][:3]
    answer = client.completions.create(**fields, stop=stop).choices[0]
    assert answer.finish_reason == "stop"
    assert answer.text == text[: text.index(stop)]


def test_an_answer_tells_what_it_drew_on(client: Any):
    def told(model: str) -> Any:
        answer = client.completions.create(model=model, prompt=LEGAL, max_tokens=2, temperature=0)
        return answer.model_extra["intarsia"]

    assert told("base") == {"labels": [], "used": []}
    mixed = told("medical=3,legal=1")
    assert mixed["labels"] == ["legal", "medical"]
    assert {one["name"]: one["weight"] for one in mixed["used"]} == {"legal": 0.25, "medical": 0.75}
    chosen = told("auto")
    assert set(chosen["labels"]) <= {"legal", "medical"}
    assert math.isclose(sum(one["weight"] for one in chosen["used"]), 1) or not chosen["used"]
    stream = client.completions.create(model="legal", prompt=LEGAL, max_tokens=1, stream=True)
    assert next(iter(stream)).model_extra["intarsia"]["labels"] == ["legal"]


def test_retrieval_finds_a_groups_own_text(client: Any):
    text = f"{LEGAL} in writing 1"
    answer = client.completions.create(model="auto", prompt=text, max_tokens=1)
    names = [one["name"] for one in answer.model_extra["intarsia"]["used"]]
    assert "legal" in names


def test_models_are_those_that_may_be_used(client: Any):
    listed = client.models.list()
    assert [model.id for model in listed] == ["auto", "base", "legal", "medical"]
    assert listed.data[2].model_extra["intarsia"]["labels"] == ["legal"]
    assert client.models.retrieve("legal").id == "legal"
    mixture = client.models.retrieve("legal=1,medical=2")
    assert mixture.model_extra["intarsia"]["labels"] == ["legal", "medical"]


def test_embeddings_are_the_bases_own(client: Any, served: Any):
    found = client.embeddings.create(model="base", input=["one text", "another"])
    vectors = np.array([one.embedding for one in found.data])
    # The client asked for base64 by itself; numbers say the same.
    plain = client.embeddings.create(model="base", input="one text", encoding_format="float")
    np.testing.assert_array_equal(np.float32(plain.data[0].embedding), np.float32(vectors[0]))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(vectors, served.service.embed(["one text", "another"]), atol=1e-6)
    assert found.usage.prompt_tokens == found.usage.total_tokens > 0


def test_embeddings_as_they_travel(served: Any):
    with served.http("eve") as http:
        body = {"model": "base", "input": "one text", "encoding_format": "base64"}
        found = http.post("/v1/embeddings", json=body).json()
    vector = np.frombuffer(base64.b64decode(found["data"][0]["embedding"]), dtype="<f4")
    assert vector.shape == (served.service.base.model.config.hidden_size,)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "legal"}, "model legal: gives no embeddings"),
        ({"model": "nothing"}, "model nothing: gives no embeddings"),
        ({"input": []}, "input: 0 texts"),
        ({"input": ["x"] * 65}, "input: 65 texts"),
        ({"input": "word " * 2000}, "use at most 256"),
        ({"dimensions": 3}, "field dimensions"),
        ({"encoding_format": "hex"}, "encoding_format: hex"),
    ],
)
def test_other_embeddings_are_refused(client: Any, fields: dict[str, Any], words: str):
    body = {"model": "base", "input": "x", "encoding_format": "float", **fields}
    with pytest.raises(openai.BadRequestError, match=words):
        client.embeddings.create(**body)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n": 2}, "n: 2; ask for 1 answer"),
        ({"prompt": ["a", "b"]}, "prompt: 2 texts"),
        ({"max_tokens": 2001}, "max_tokens: 2001"),
        ({"prompt": "word " * 3000}, "prompt: "),
        ({"logprobs": 3}, "field logprobs"),
        ({"model": "legal,legal"}, "use: legal twice"),
    ],
)
def test_what_is_not_supported_is_one_line(client: Any, fields: dict[str, Any], words: str):
    body = {"model": "base", "prompt": LEGAL, "max_tokens": 2, **fields}
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**body)
    assert words in caught.value.body["message"]
    assert "\n" not in caught.value.body["message"]
    assert caught.value.body["type"] == "invalid_request_error"


def test_a_wrong_key_is_told_apart_by_nothing(served: Any):
    right = served.departments.keys["ana"]
    wrong = [right[:-1] + ("0" if right[-1] != "0" else "1"), "ik-0-0", "sk-else"]
    bodies = set()
    for key in wrong:
        client = openai.OpenAI(base_url=f"{served.url}/v1", api_key=key, max_retries=0)
        with pytest.raises(openai.AuthenticationError) as caught:
            client.models.list()
        bodies.add(caught.value.response.text)
    assert len(bodies) == 1
