"""A robust rule in a whole federation: one site lies, the round goes on, and the result says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from intarsia_client.errors import InputError
from intarsia_platform.home import Home
from intarsia_platform.simulation import run
from intarsia_platform.simulation.run import simulate


@pytest.fixture
def lying(monkeypatch):
    """Has site-1 attack in the given way."""

    def begin(attack: str) -> None:
        monkeypatch.setenv("HOSTILE", attack)
        monkeypatch.syspath_prepend(Path(__file__).parent)
        monkeypatch.setattr(run, "CLIENT_APP", "hostile_app:app")

    return begin


@pytest.fixture
def root(configuration_file: Path) -> Path:
    """A few records of the server's own."""
    path = configuration_file.parent / "root.jsonl"
    texts = [
        "Return the value of the key, or raise an error if it is missing.",
        "Write the text to the file and wait until it is closed.",
        "The elements of the sequence are sorted before they are returned.",
        "Copy the tensor to another device, with the same shape.",
    ]
    path.write_text("".join(json.dumps({"text": text, "label": "odd"}) + "\n" for text in texts))
    return path


@pytest.mark.parametrize("rule", ["norm-bound", "multi-krum", "geometric-median", "fltrust"])
def test_one_site_that_lies_does_not_spoil_the_sum(
    rule, lying, root, write_records, configure, tmp_path, observer
):
    lying("huge")
    write_records({f"site-{place}": 4 for place in range(5)})
    settings = [
        "federation.rounds=2", "federation.clients=5", f"robust.rule={rule}", "robust.byzantine=1",
        f"robust.root={root}",
    ]  # fmt: skip
    guarded = simulate(configure(*settings), home=Home.open(tmp_path / "home"), observer=observer)
    assert [one.accepted for one in guarded.rounds] == [5, 5]
    assert guarded.final.loss < guarded.base.loss
    for one in guarded.rounds:
        decided = {decision.client: decision for decision in one.decisions}
        assert decided["site-1"].influence < 0.1
        assert decided["site-1"].outcome in ("left-out", "bounded", "reweighed")
    assert "What the robust rule did" in Path(guarded.report).read_text()


def test_without_a_rule_the_same_lie_spoils_it(lying, configure, tmp_path, observer):
    lying("huge")
    free = simulate(
        configure("federation.rounds=1"), home=Home.open(tmp_path / "home"), observer=observer
    )
    assert free.final.loss > free.base.loss
    assert free.rounds[0].decisions == ()


def test_the_servers_own_update_is_the_same_after_a_kill(root, configure, tmp_path, observer):
    settings = ["federation.rounds=2", "robust.rule=fltrust", f"robust.root={root}"]
    one, two = (
        simulate(configure(*settings), home=Home.open(tmp_path / name), observer=observer)
        for name in ("one", "two")
    )
    assert one.adapter.digest == two.adapter.digest
    assert one.rounds[0].decisions == two.rounds[0].decisions


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["robust.rule=multi-krum", "robust.byzantine=1"],
            r"robust\.byzantine: 1; a round asks 4 clients, and multi-krum needs at least 5",
        ),
        (
            ["robust.rule=norm-bound", "federation.method=flexlora"],
            r"robust\.rule: norm-bound; flexlora does not add up",
        ),
        (
            ["robust.rule=multi-krum", "privacy.unit=example"],
            r"robust\.rule: multi-krum; it compares updates",
        ),
        (
            ["robust.rule=fltrust", "robust.root=nowhere.jsonl"],
            r"robust\.root: nowhere\.jsonl",
        ),
    ],
)
def test_a_rule_that_cannot_work_is_refused_before_the_run(
    overrides, words, configure, tmp_path, observer
):
    with pytest.raises(InputError, match=words):
        simulate(configure(*overrides), home=Home.open(tmp_path / "home"), observer=observer)
    assert observer.replies == []


def test_root_records_have_the_clients_labels(root, configure, tmp_path, observer):
    root.write_text(root.read_text() + '{"text": "What is it?", "label": "prime"}\n')
    settings = (
        "model.task=sequence-classification", "data.partition=dirichlet:0.5",
        "robust.rule=fltrust", f"robust.root={root}",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"label in robust\.root, record 5: prime"):
        simulate(configure(*settings), home=Home.open(tmp_path / "home"), observer=observer)
