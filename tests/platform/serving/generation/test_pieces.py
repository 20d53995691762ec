from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from intarsia_platform.serving.pieces import StopTexts, TextPieces

_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


def _pieces(tokenizer: Any, prompt: list[int], tokens: list[int]) -> list[str]:
    pieces = TextPieces(tokenizer, prompt)
    return [*(pieces.add(token) for token in tokens), pieces.finish()]


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("kind", ["llama", "stories"])
@pytest.mark.parametrize(
    "text",
    [
        "plain words, then more",
        "café — naïve €5",
        "日本語のテキスト",
        "a 🙂🙃 b 👩‍👩‍👧 c",
        "   spaces  kept  ",
    ],
)
def test_pieces_are_the_text_and_never_half_a_character(
    load: Callable[[str], Any], kind: str, text: str
) -> None:
    tokenizer = load(kind).tokenizer
    prompt = _encode(tokenizer, "Once upon a time")
    whole = _encode(tokenizer, "Once upon a time" + text)
    assert whole[: len(prompt)] == prompt
    pieces = _pieces(tokenizer, prompt, whole[len(prompt) :])
    assert "".join(pieces) == text
    assert not any(_UNKNOWN in piece for piece in pieces)


@given(data=st.data())
def test_random_characters_come_whole_over_byte_tokens(
    load: Callable[[str], Any], data: st.DataObject
) -> None:
    tokenizer = load("llama").tokenizer
    text = data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
    tokens = _encode(tokenizer, text)
    pieces = _pieces(tokenizer, [2], tokens)
    assert "".join(pieces) == text.rstrip(_UNKNOWN) or _UNKNOWN in text
    assert _UNKNOWN in text or not any(_UNKNOWN in piece for piece in pieces)


def test_a_character_that_never_comes_whole_is_left_out(load: Callable[[str], Any]) -> None:
    tokenizer = load("llama").tokenizer
    tokens = _encode(tokenizer, "ab€")
    assert len(tokens) >= 4
    assert "".join(_pieces(tokenizer, [2], tokens[:-1])) == "ab"


@pytest.mark.parametrize("kind", ["llama", "stories"])
def test_bytes_that_are_no_text_do_not_hold_the_rest_back(
    load: Callable[[str], Any], kind: str
) -> None:
    tokenizer = load(kind).tokenizer
    part = _encode(tokenizer, "日")[-3:-2]
    pieces = TextPieces(tokenizer, [])
    shown = [pieces.add(token) for token in part * 40]
    assert sum(map(len, shown)) >= 30
    after = "".join(pieces.add(token) for token in _encode(tokenizer, " then words"))
    assert after.endswith("words")


def test_a_character_that_the_prompt_begins_is_the_answers(load: Callable[[str], Any]) -> None:
    tokenizer = load("llama").tokenizer
    tokens = _encode(tokenizer, "ab€c")
    assert "".join(_pieces(tokenizer, tokens[:-2], tokens[-2:])) == "€c"


def test_special_tokens_are_no_text(load: Callable[[str], Any]) -> None:
    tokenizer = load("stories").tokenizer
    assert _pieces(tokenizer, [1], [2, 2]) == ["", "", ""]


@given(
    text=st.text("ab", max_size=30),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
def test_text_ends_before_the_earliest_stop_however_it_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    ends = [at.start() for stop in stops if (at := re.search(re.escape(stop), text))]
    expected = text[: min(ends)] if ends else text
    borders = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    stopping = StopTexts(stops)
    shown = ""
    for begin, end in pairwise(borders):
        shown += stopping.add(text[begin:end])
        assert expected.startswith(shown)
    shown += stopping.finish()
    assert shown == expected
    assert stopping.ended == bool(ends)


def test_nothing_is_held_back_that_cannot_begin_a_stop() -> None:
    stopping = StopTexts(["END"])
    assert stopping.add("some E") == "some "
    assert stopping.add("x and EN") == "Ex and "
    assert stopping.add("D more") == ""
    assert stopping.ended
    assert stopping.add("ever after") == ""
