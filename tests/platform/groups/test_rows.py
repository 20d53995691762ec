from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, strategies
from intarsia_client.errors import InputError, StorageError
from intarsia_platform.groups.rows import (
    GroupSettings,
    Rights,
    checked_labels,
    checked_name,
    checked_rights,
)

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("name", ["auto", "base", "", "a,b", "a=1", "sha256abc", "x" * 101, "-a"])
def test_words_that_mean_something_else_are_no_names(name):
    with pytest.raises(InputError, match="group name"):
        checked_name(name)


def test_a_name_may_have_a_path_in_it():
    assert checked_name("finance/eu-2030.v1") == "finance/eu-2030.v1"


def test_labels_come_sorted_and_once():
    assert checked_labels(["b", "a", "b"]) == ("a", "b")


@pytest.mark.parametrize("labels", [[], [""], [" a"], ["a\n"], ["x" * 101]])
def test_a_group_without_a_proper_label_is_refused(labels):
    with pytest.raises(InputError, match="label"):
        checked_labels(labels)


@pytest.mark.parametrize(
    "change",
    [
        {"level": -1},
        {"level": 1 << 63},
        {"owner": "a\nb"},
        {"tenant": "x" * 101},
        {"expires_at": NOW - timedelta(seconds=1)},
        {"expires_at": datetime(2031, 1, 1)},
    ],
)
def test_rights_that_can_be_none_are_refused(change):
    assert checked_rights(Rights(), NOW) == Rights()
    with pytest.raises(InputError):
        checked_rights(replace(Rights(), **change), NOW)


@given(
    rank=strategies.integers(1, 64),
    rate=strategies.floats(0, 1),
    names=strategies.lists(strategies.text(max_size=5), max_size=3),
)
def test_settings_survive_the_database(rank, rate, names):
    settings = GroupSettings(rank=rank, learning_rate=rate, target_modules=tuple(names))
    assert GroupSettings.from_mapping(settings.as_mapping()) == settings


def test_settings_of_a_newer_version_are_refused():
    with pytest.raises(StorageError, match="newest"):
        GroupSettings.from_mapping({"moon": 1})
