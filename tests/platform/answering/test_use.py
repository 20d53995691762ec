import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from intarsia_client.errors import InputError
from intarsia_platform.answering.use import AUTO, BASE, MAX_PARTS, UseKind, parse_use


def test_the_words_for_whoever_chooses():
    assert (parse_use("auto"), parse_use(" base ")) == (AUTO, BASE)
    assert (AUTO.words, BASE.words, parse_use("a=2, b/c.d").words) == ("auto", "base", "a,b/c.d")


def test_shares_are_equal_unless_weights_are_given():
    found = parse_use("b,a")
    assert found.kind is UseKind.NAMED
    assert [(part.name, part.share) for part in found.parts] == [("b", 0.5), ("a", 0.5)]
    weighted = parse_use("sea=3,farm")
    assert [(part.name, part.share) for part in weighted.parts] == [("sea", 0.75), ("farm", 0.25)]
    assert parse_use("sea=0.2").parts[0].share == 1.0


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=MAX_PARTS))
def test_shares_sum_to_one_and_the_order_changes_no_bit(weights):
    words = [f"n{at}={weight!r}" for at, weight in enumerate(weights)]
    one = {part.name: part.share for part in parse_use(",".join(words)).parts}
    other = {part.name: part.share for part in parse_use(",".join(reversed(words))).parts}
    assert one == other
    assert math.isclose(sum(one.values()), 1.0)
    for at, weight in enumerate(weights):
        assert math.isclose(one[f"n{at}"], weight / sum(weights))


@pytest.mark.parametrize(
    "words",
    ["", "a,", "a,,b", "=1", "a=", "a=x", "a=0", "a=-1", "a=nan", "a=inf", "a=1e9", "a=1_0",
     "a=1=2", "a,a=2", "auto,a", "a,base", "base=1", "a=٣", ",".join(f"n{n}" for n in range(17))],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_in_one_line(words):
    with pytest.raises(InputError) as caught:
        parse_use(words)
    assert len(str(caught.value).splitlines()) == 1


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    try:
        assert parse_use(text).words
    except InputError as error:
        assert str(error).isprintable()
