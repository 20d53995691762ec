"""Refused and unknown have the same words."""

import pytest
from intarsia_client.errors import AccessError
from intarsia_platform.access.refusal import bad_ticket, not_authenticated, refused


def test_the_words_are_those_of_what_was_asked_for():
    error = refused("adapter", "payroll")
    assert isinstance(error, AccessError) and error.exit_code == 3
    assert str(error) == (
        "adapter payroll: is not one that you may use; ask its steward for access"
    )
    assert str(refused("principal", "zoe")).startswith("principal zoe: is not one that you may use")


@pytest.mark.parametrize("name", ["x" * 5000, "a\x1b[2J\nb", "\ud800", ""])
def test_a_strangers_name_stays_one_short_line(name):
    line = str(refused("adapter", name))
    assert len(line) < 400 and line.isprintable()


def test_what_is_wrong_with_a_credential_is_not_told():
    assert str(not_authenticated()) == str(not_authenticated())
    assert {not_authenticated().exit_code, bad_ticket().exit_code} == {3}
