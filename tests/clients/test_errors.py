"""Errors are one line, keep their parts and codes, and survive the way between processes."""

import pickle

import pytest
from intarsia_client import errors
from intarsia_client.errors import (
    AccessError,
    FederationError,
    InputError,
    IntarsiaError,
    IntegrityError,
    RefusedUpdate,
    StorageError,
)

KINDS = [IntarsiaError, InputError, AccessError, StorageError, FederationError, IntegrityError]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_is_a_line_of_its_parts(kind: type[IntarsiaError]) -> None:
    error = kind("train.epochs", 0, "set it to 1 or more")
    assert str(error) == "train.epochs: 0; set it to 1 or more"
    assert (error.thing, error.value, error.remedy) == ("train.epochs", 0, "set it to 1 or more")


def test_exit_codes_are_the_documented_ones() -> None:
    assert {kind.__name__: kind.exit_code for kind in KINDS} == {
        "IntarsiaError": 1,
        "InputError": 2,
        "AccessError": 3,
        "StorageError": 4,
        "FederationError": 5,
        "IntegrityError": 6,
    }
    assert RefusedUpdate.exit_code == 2


def test_no_kind_of_error_is_missing_here() -> None:
    defined = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, IntarsiaError)
    }
    assert defined == {*KINDS, RefusedUpdate}


@pytest.mark.parametrize("kind", KINDS)
def test_errors_survive_pickling(kind: type[IntarsiaError]) -> None:
    again = pickle.loads(pickle.dumps(kind("rank", 99, "choose less")))  # noqa: S301 - our own
    assert type(again) is kind
    assert (again.thing, again.value, again.remedy) == ("rank", 99, "choose less")


def test_a_refusal_keeps_its_reason_over_pickling() -> None:
    error = RefusedUpdate("not-finite", "factor of x", "nan", "train again")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (again.reason, str(again)) == ("not-finite", "factor of x: nan; train again")


def test_a_value_with_line_feeds_stays_on_one_line() -> None:
    """Such a value may come from a stranger, who could forge lines of a log with it."""
    line = str(InputError("peft_type", "LORA\n2026-01-01 INFO all is well", "send another"))
    assert len(line.splitlines()) == 1
