"""Partitions: deterministic, complete, no client empty, held-out parts that mirror the training."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client.errors import InputError
from intarsia_client.records import Record
from intarsia_platform.partition import parse_rule, partition_records, partition_test


def labelled(count: int, classes: int) -> list[Record]:
    return [Record(text=f"text {n}", label=f"class {n % classes}") for n in range(count)]


def owned(**sizes: int) -> list[Record]:
    return [
        Record(text=f"{client} {n}", client=client)
        for client, size in sizes.items()
        for n in range(size)
    ]


RULES = ["iid", "dirichlet:0.05", "dirichlet:1"]


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(RULES),
    clients=st.integers(1, 12),
    spare=st.integers(0, 60),
    classes=st.integers(1, 7),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_record_goes_to_one_client_and_none_is_empty(
    rule: str, clients: int, spare: int, classes: int, seed: int
) -> None:
    records = labelled(clients + spare, classes)
    parts = partition_records(records, rule=rule, clients=clients, seed=seed)
    assert len(parts) == clients
    assert all(parts.values())
    assert Counter(r.text for part in parts.values() for r in part) == Counter(
        r.text for r in records
    )
    order = {record.text: position for position, record in enumerate(records)}
    for part in parts.values():
        assert part == sorted(part, key=lambda record: order[record.text])


@pytest.mark.parametrize("rule", RULES)
def test_one_seed_gives_one_split_and_another_seed_another(rule: str) -> None:
    records = labelled(200, 5)
    first, again, other = (
        partition_records(records, rule=rule, clients=6, seed=seed) for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


def test_global_random_state_neither_matters_nor_changes() -> None:
    records = labelled(50, 5)
    np.random.seed(1)
    before = np.random.get_state()[1].tolist()  # type: ignore[index]
    first = partition_records(records, rule="dirichlet:0.5", clients=4, seed=0)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]
    np.random.seed(2)
    assert partition_records(records, rule="dirichlet:0.5", clients=4, seed=0) == first


def test_names_sort_in_the_clients_order() -> None:
    few = partition_records(labelled(20, 2), rule="iid", clients=12, seed=0)
    assert list(few)[:2] == ["client-000", "client-001"]
    many = partition_records(labelled(1001, 2), rule="iid", clients=1001, seed=0)
    assert list(many) == sorted(many)
    assert list(many)[-1] == "client-1000"


def test_iid_deals_equal_parts() -> None:
    parts = partition_records(labelled(103, 4), rule="iid", clients=10, seed=3)
    assert sorted(map(len, parts.values())) == [10] * 7 + [11] * 3


def entropy_of_classes(parts: dict[str, list[Record]]) -> float:
    """Mean entropy of the clients' class distributions, in nats."""
    entropies = []
    for part in parts.values():
        shares = np.array(list(Counter(r.label for r in part).values())) / len(part)
        entropies.append(float(-(shares * np.log(shares)).sum()))
    return float(np.mean(entropies))


def test_dirichlet_concentrates_classes_as_alpha_falls() -> None:
    records = labelled(4000, 10)
    entropies = [
        entropy_of_classes(partition_records(records, rule=f"dirichlet:{a}", clients=8, seed=0))
        for a in (0.02, 0.5, 1000)
    ]
    assert entropies[0] < 0.5 * entropies[2]
    assert entropies[0] < entropies[1] < entropies[2]
    assert entropies[2] == pytest.approx(np.log(10), rel=1e-2)


def test_dirichlet_shares_have_the_variance_of_the_distribution() -> None:
    """A share of Dir(alpha, ..., alpha) over K clients has variance (K-1) / (K^2 (K alpha + 1))."""
    alpha, clients, classes, each = 0.5, 5, 400, 200
    records = labelled(classes * each, classes)
    parts = partition_records(records, rule=f"dirichlet:{alpha}", clients=clients, seed=11)
    counts = [Counter(record.label for record in part) for part in parts.values()]
    shares = np.array([[count[f"class {c}"] / each for c in range(classes)] for count in counts])
    expected = (clients - 1) / (clients**2 * (clients * alpha + 1))
    assert shares.mean() == pytest.approx(1 / clients)
    assert shares.var() == pytest.approx(expected, rel=0.1)


def test_empty_clients_are_filled_from_the_largest_one_record_each() -> None:
    records = labelled(40, 1)
    parts = partition_records(records, rule="dirichlet:0.001", clients=8, seed=0)
    sizes = sorted(len(part) for part in parts.values())
    assert sizes == [1] * 7 + [33]


def test_natural_goes_by_the_client_field() -> None:
    records = owned(south=2, north=3)
    parts = partition_records(records, rule="natural", clients=2, seed=0)
    assert list(parts) == ["north", "south"]
    assert parts["south"] == records[:2]


def test_natural_keeps_the_largest_groups_and_settles_ties_by_name() -> None:
    records = owned(d=2, c=2, b=2, a=1, big=5)
    assert list(partition_records(records, rule="natural", clients=3, seed=0)) == ["b", "big", "c"]


def test_too_many_clients_are_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"federation\.clients: 3; the data has 2 clients"):
        partition_records(owned(a=4, b=4), rule="natural", clients=3, seed=0)
    for rule in RULES:
        with pytest.raises(InputError, match=r"federation\.clients: 3; the data has 2 records"):
            partition_records(labelled(2, 2), rule=rule, clients=3, seed=0)


def test_records_without_what_the_rule_goes_by_are_refused() -> None:
    with pytest.raises(InputError, match=r"data\.client: 1 of 3 records name no client; name"):
        partition_records([*owned(a=2), Record(text="x")], rule="natural", clients=1, seed=0)
    with pytest.raises(InputError, match=r"data\.train: record 3 has no label; name"):
        partition_records(
            [*labelled(2, 2), Record(text="x")], rule="dirichlet:1", clients=1, seed=0
        )


@pytest.mark.parametrize(
    "rule",
    ["", "Natural", "iid:3", "natural:1", "dirichlet", "dirichlet:", "dirichlet:x", "dirichlet:0",
     "dirichlet:-1", "dirichlet:nan", "dirichlet:inf", "dirichlet:1e300", "random"],
)  # fmt: skip
def test_other_rules_are_refused(rule: str) -> None:
    with pytest.raises(InputError, match=r'data\.partition: .*choose "natural", "iid" or'):
        parse_rule(rule)


def test_held_out_records_follow_the_client_field() -> None:
    train = partition_records(owned(a=3, b=3, c=1), rule="natural", clients=2, seed=0)
    held = [*owned(b=2, c=4), Record(text="nobody's")]
    assert partition_test(held, train=train, rule="natural", seed=0) == {"b": held[:2]}


def test_held_out_records_are_dealt_where_the_training_was() -> None:
    train = partition_records(labelled(40, 4), rule="iid", clients=4, seed=0)
    parts = partition_test(labelled(10, 4), train=train, rule="iid", seed=0)
    assert sorted(len(part) for part in parts.values()) == [2, 2, 3, 3]
    assert parts == partition_test(labelled(10, 4), train=train, rule="iid", seed=0)
    assert parts != partition_test(labelled(10, 4), train=train, rule="iid", seed=1)
    few = partition_test(labelled(2, 2), train=train, rule="iid", seed=0)
    assert len(few) == 2 and all(len(part) == 1 for part in few.values())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 200), st.sampled_from([0.05, 0.5, 5.0]))
def test_held_out_classes_mirror_the_training_classes(seed: int, each: int, alpha: float) -> None:
    rule, classes = f"dirichlet:{alpha}", 5
    train = partition_records(labelled(classes * 100, classes), rule=rule, clients=6, seed=seed)
    held = labelled(classes * each, classes)
    parts = partition_test(held, train=train, rule=rule, seed=seed)
    assert parts == partition_test(held, train=train, rule=rule, seed=seed)
    assert Counter(r.text for part in parts.values() for r in part) == Counter(r.text for r in held)
    for client, part in train.items():
        trained = Counter(record.label for record in part)
        tested = Counter(record.label for record in parts.get(client, []))
        for number in range(classes):
            label = f"class {number}"
            assert abs(tested[label] - trained[label] / 100 * each) < 1


def test_a_held_out_label_that_training_lacks_is_refused() -> None:
    train = partition_records(labelled(20, 2), rule="dirichlet:1", clients=2, seed=0)
    with pytest.raises(InputError, match=r"data\.test: label 'class 2'; leave it out"):
        partition_test(labelled(3, 3), train=train, rule="dirichlet:1", seed=0)
    with pytest.raises(InputError, match=r"data\.test: record 1 has no label"):
        partition_test([Record(text="x")], train=train, rule="dirichlet:1", seed=0)
