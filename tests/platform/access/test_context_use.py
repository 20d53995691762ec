"""What policies can see of a composition."""

import json

import cedarpy
import pytest
from intarsia_platform.access.context_use import mixing_use


def use(condition: str):
    text = f"forbid(principal, action, resource) when {{ {condition} }};"
    return mixing_use(json.loads(cedarpy.policies_to_json_str(text)))


@pytest.mark.parametrize(
    "condition",
    [
        'context.purpose == "x"',
        "principal.clearance > 3",
        'context has labels && resource.name == "context"',
    ],
)
def test_most_policies_do_not_ask(condition):
    assert not use(condition).matters


@pytest.mark.parametrize(
    ("condition", "labels"),
    [
        ("context.mixing", set()),
        ('context.labels.contains("a")', {"a"}),
        ('context["labels"].containsAll(["a"]) || context.labels.containsAny(["c"])', {"a", "c"}),
        ('context.labels.contains("x\\"y;//")', {'x"y;//'}),
        ('if context.mixing then context.labels.contains("d") else false', {"d"}),
    ],
)
def test_labels_asked_for_by_name_are_found(condition, labels):
    found = use(condition)
    assert found.matters and found.labels == labels
    assert found.seen(["a", "other"]) == labels & {"a"}


@pytest.mark.parametrize(
    "condition",
    [
        'context.labels == ["a"]',
        "context.labels.isEmpty()",
        "context.labels.containsAll(resource.labels)",
        "context.labels.contains(resource.name)",
        'context.labels.containsAll(["a", resource.name])',
        '["a", "b"].containsAll(context.labels)',
        'context == {"purpose": "", "labels": ["a"], "mixing": true}',
        '[context].contains(context) && context.labels.contains("a")',
    ],
)
def test_what_is_used_in_another_way_is_seen_whole(condition):
    found = use(condition)
    assert found.matters and found.labels is None
    assert found.seen(["a", "other"]) == {"a", "other"}
