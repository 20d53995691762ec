"""Policies found in their text, and those that would end the process refused before it is read."""

import cedarpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.errors import InputError
from intarsia_platform.access.statements import MAX_NESTING, split_statements

PIECES = st.sampled_from(
    [
        "permit(principal, action, resource);",
        '@id("a;b // c")\nforbid(principal, action, resource)\nwhen { resource.name == "x;\\"y" };',
        "// a comment; with a sign\npermit(principal, action, resource)\n  unless { true };",
        "permit(principal, action, resource) when { if context.mixing then true else false };",
    ]
)


def test_lines_are_those_of_the_first_words():
    text = '\n// first\n\npermit(principal,\n  action, resource);\n@id(";")\nforbid(a);;'
    found = split_statements(text)
    assert [one.line for one in found] == [4, 6, 7]
    assert found[0].text == "permit(principal,\n  action, resource);"
    assert found[1].text == '@id(";")\nforbid(a);'


def test_nothing_is_no_policy():
    assert split_statements("") == split_statements(" \n// permit(principal);\n") == ()


@given(st.lists(PIECES, max_size=6), st.sampled_from([" ", "\n", "\n\n// between ;\n"]))
@settings(deadline=None)
def test_cedar_counts_as_many(pieces, between):
    text = between.join(pieces)
    found = split_statements(text)
    assert len(found) == len(cedarpy.PolicySet.from_str(text)) == len(pieces)
    for one in found:
        assert len(cedarpy.PolicySet.from_str(one.text)) == 1
        line = text.splitlines()[one.line - 1]
        assert one.text.splitlines()[0] in line


@pytest.mark.parametrize(
    "condition",
    [
        "(" * 5000 + "true" + ")" * 5000,
        "[" * 5000,
        "if true then " * 5000,
        " || ".join(["true"] * 5000),
        "context" + ".a" * 5000,
        "principal" + " has a" * 5000,
    ],
    ids=["brackets", "sets", "branches", "alternatives", "attributes", "words"],
)
def test_what_overflows_the_parsers_stack_is_refused(condition):
    with pytest.raises(InputError, match="line 2: nests more than"):
        split_statements(f"\npermit(principal, action, resource) when {{ {condition} }};")


def test_what_is_just_allowed_is_parsed():
    inner = MAX_NESTING - 1
    text = f"permit(principal, action, resource) when {{{'(' * inner}true{')' * inner}}};"
    assert len(split_statements(text)) == len(cedarpy.PolicySet.from_str(text)) == 1
