from dataclasses import replace
from datetime import UTC, datetime

import pytest
from intarsia_client.base_model import base_digest
from intarsia_client.errors import InputError
from intarsia_platform.answering.bases import choose_base
from intarsia_platform.groups.rows import Group, GroupSettings

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def group(stories):
    return Group(
        name="sea", base=stories, base_digest=base_digest(stories), task="causal-lm",
        settings=GroupSettings(), labels=("sea",), version=1, records=1, records_digest="r",
        adapter_digest="sea", descriptor_digest="d", created_at=NOW, updated_at=NOW,
    )  # fmt: skip


def other(group, **changes):
    given = {"name": "far", "base": "far/away", "base_digest": "x", "adapter_digest": "far"}
    return replace(group, **given, **changes)


def test_the_one_base_of_the_groups_is_taken(group, stories):
    found = choose_base([group, replace(group, name="farm")])
    assert (found.place, found.digest, found.task) == (stories, group.base_digest, "causal-lm")
    assert found.fits(group) and not found.fits(other(group))


def test_several_bases_are_listed_and_none_is_said(group, stories):
    with pytest.raises(InputError, match=f"{stories}, far/away"):
        choose_base([group, other(group)])
    with pytest.raises(InputError, match="no groups"):
        choose_base([])
    assert choose_base([group, other(group)], base=stories).digest == group.base_digest
    assert choose_base([], base=stories).task == "causal-lm"


def test_what_the_caller_may_use_decides_alone(group):
    expected = choose_base([group])
    assert choose_base([group, other(group)], granted={"sea"}) == expected
    hidden = replace(other(group), task="sequence-classification", base_digest=group.base_digest)
    assert choose_base([group, hidden], granted={"sea"}) == expected


def test_a_base_that_is_another_now_is_refused(group):
    with pytest.raises(InputError, match="another model now"):
        choose_base([replace(group, base_digest="sha256:" + "0" * 64)])


def test_classifiers_must_tell_the_same_classes_apart(group, stories):
    task = "sequence-classification"
    one = replace(group, task=task, settings=GroupSettings(classes=("a", "b")))
    two = replace(one, name="two", settings=GroupSettings(classes=("a", "c")))
    assert choose_base([one]).classes == ("a", "b")
    with pytest.raises(InputError, match="a, b or a, c"):
        choose_base([one, two])
    assert choose_base([one, two], classes=("a", "c")).fits(two)
