from __future__ import annotations

import json

import pytest
from intarsia_client.errors import InputError
from intarsia_client.records import Record, records_digest
from intarsia_client.shards import load_shard
from intarsia_platform.configuration import read_configuration
from intarsia_platform.groups.restricted import restrict


@pytest.fixture
def study(write_study, tmp_path):
    return write_study(tmp_path / "study")


def restricted(study, *overrides, clients=("south", "north"), grid="inprocess"):
    return restrict(read_configuration(study, overrides), clients, grid=grid)


def test_only_the_named_clients_take_part(study, site_texts, tmp_path):
    found = restricted(study)
    assert list(found.train) == ["north", "south"]
    assert [one.text for one in found.train["north"]] == site_texts()["north"]
    configuration, places = found.placed(tmp_path / "work")
    assert configuration.federation.clients == 2 and configuration.data.partition == "natural"
    assert (configuration.engine.grid, configuration.tracking.mlflow) == ("inprocess", False)
    assert list(load_shard("south", places["south"]).records) == found.train["south"]
    written = (tmp_path / "work" / "train.jsonl").read_text()
    assert "at south" in written and "at west" not in written and "at east" not in written


def test_the_configuration_is_the_same_wherever_it_is_placed(study, tmp_path):
    found = restricted(study)
    one, other = (found.placed(tmp_path / name)[0] for name in ("one", "other"))
    assert one.data.train != other.data.train and one.digest == other.digest
    assert one.digest == found.configuration.digest


def test_the_key_covers_all_that_decides_and_nothing_else(study, write_study, site_texts):
    key = restricted(study).key(labels=["a"])
    texts = site_texts()
    write_study(study.parent, {**texts, "west": ["another text of no named client"]})
    assert restricted(study).key(labels=["a"]) == key
    assert restricted(study).key(labels=["b"]) != key
    assert restricted(study, "train.epochs=3").key(labels=["a"]) != key
    assert restricted(study, clients=["north"]).key(labels=["a"]) != key
    write_study(study.parent, {**texts, "north": texts["north"][1:]})
    assert restricted(study).key(labels=["a"]) != key


def test_held_out_records_are_those_of_the_named_clients(study, tmp_path):
    rows = [{"note": f"held out at {site}", "site": site} for site in ("north", "west")]
    (study.parent / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = restricted(study, "data.test=test.jsonl")
    assert found.test == [Record(text="held out at north", client="north")]
    configuration, _ = found.placed(tmp_path / "work")
    assert configuration.data.test == str(tmp_path / "work" / "test.jsonl")
    found = restricted(study, "data.test=test.jsonl", clients=["south"])
    assert found.placed(tmp_path / "other")[0].data.test is None


def test_shards_are_named_by_their_records(study):
    found = restricted(study)
    assert found.shards == {name: records_digest(some) for name, some in found.train.items()}


@pytest.mark.parametrize(
    ("overrides", "clients", "part"),
    [
        ((), (), "--clients: none"),
        ((), ("north", "moon"), "--clients: moon; data.train has records of east, north"),
        (("data.partition=iid",), ("north",), "data.partition: iid"),
        (("privacy.unit=example",), ("north",), "intarsia groups admit"),
        (("federation.minimum_accepted=2",), ("north",), "the 1 clients named"),
        (("data.client=ward",), ("north",), "data.train"),
    ],
)
def test_what_does_not_go_with_a_group_is_refused(study, overrides, clients, part):
    with pytest.raises(InputError, match=part) as caught:
        restricted(study, *overrides, clients=clients)
    assert "\n" not in str(caught.value)
