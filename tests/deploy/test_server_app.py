"""The Flower app's server side, without a network."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from intarsia_aggregators.robust.base import RobustSettings
from intarsia_client.errors import FederationError, InputError
from intarsia_platform.configuration_tables import FederationConfiguration
from intarsia_platform.demo.run import BASE
from intarsia_platform.federation.client_contexts import VirtualClient
from intarsia_platform.federation.in_process_grid import InProcessGrid

APP = Path(__file__).resolve().parents[2] / "deploy" / "flower_app"


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    """What the app's pyproject.toml gives, with what it leaves to the caller."""
    settings = tomllib.loads((APP / "pyproject.toml").read_text())
    return {
        **settings["tool"]["flwr"]["app"]["config"],
        "base": str(BASE),
        "output": str(tmp_path / "adapter"),
        "target-modules": "q_proj",
        "rounds": 1,
        "node-deadline-seconds": 5,
    }


def test_the_defaults_are_settings(server_app: ModuleType, config: dict[str, Any]) -> None:
    settings = server_app.read_settings({**config, "ranks": "4, 16", "labels": "yes,no"})
    assert settings.ranks == (4, 16) and settings.labels == ("yes", "no")
    assert settings.training.learning_rate == 1e-3 and settings.minimum_nodes == 2
    assert server_app.read_settings({**config, "ranks": 8}).ranks == (8,)
    defaults = FederationConfiguration()
    for name in ("start", "broadcast_rank", "residual_rank", "upload", "download", "max_examples"):
        assert getattr(settings, name) == getattr(defaults, name)
    assert settings.rule == "none" and settings.robust == RobustSettings()
    assert settings.training.keep_optimizer is False


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("base", "", "run-config base: ''; give a text"),
        ("output", "adapter", "run-config output: adapter; give an absolute path"),
        ("output", str(APP), "name a folder that is not there yet"),
        ("ranks", "", "run-config ranks: ; write them as in 4,16"),
        ("ranks", "4,0", "run-config ranks: 4,0; "),
        ("ranks", "4,-1", "run-config ranks: 4,-1; "),
        ("rounds", 0, "run-config rounds: 0; give a whole number from 1"),
        ("rounds", True, "run-config rounds: True; "),
        ("minimum-nodes", "2", "run-config minimum-nodes: 2; "),
        ("learning-rate", 0.0, "run-config learning-rate: 0.0; give a positive number"),
        ("deadline-seconds", float("nan"), "run-config deadline-seconds: nan; "),
        ("deadline-seconds", float("inf"), "run-config deadline-seconds: inf; "),
        ("learning-rate", "fast", "run-config learning-rate: 'fast'; give a number"),
        ("keep-optimizer", 1, "run-config keep-optimizer: 1; give true or false"),
        ("start", "warm", "run-config start: 'warm'; choose one of nothing, residual, prefix"),
        ("broadcast-rank", -1, "run-config broadcast-rank: -1; give a whole number from 0"),
        ("residual-rank", 1.5, "run-config residual-rank: 1.5; "),
        ("upload", "int4", "run-config upload: 'int4'; choose one of float32, bfloat16, int8"),
        ("download", "", "run-config download: ''; choose one of"),
        ("max-examples", True, "run-config max-examples: True; "),
        ("rule", "krum", "run-config rule: 'krum'; choose one of none, norm-bound"),
        ("max-norm", -1.0, "run-config max-norm: -1.0; give a number of at least 0"),
        ("byzantine", -1, "run-config byzantine: -1; "),
    ],
)
def test_a_wrong_setting_is_named(
    server_app: ModuleType, config: dict[str, Any], key: str, value: object, line: str
) -> None:
    with pytest.raises(InputError) as raised:
        server_app.read_settings({**config, key: value})
    assert line in str(raised.value)


@pytest.mark.parametrize(
    ("second", "line"),
    [
        ({}, "nodes that said their names: 1; have 2 answer"),
        ({"client": "south"}, "rounds with an accepted update: 0; "),
    ],
)
def test_a_federation_without_an_adapter_fails_and_writes_none(
    server_app: ModuleType, config: dict[str, Any], second: dict[str, str], line: str
) -> None:
    clients = [
        VirtualClient(node_id=1, node_config={"client": "north"}),
        VirtualClient(node_id=2, node_config=second),
    ]
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config)
    with (
        InProcessGrid("intarsia_client.app:app", clients) as grid,
        pytest.raises(FederationError, match=line),
    ):
        server_app.app(grid, context)
    assert not Path(config["output"]).exists()


def test_the_manifest_says_who_took_part(
    server_app: ModuleType, config: dict[str, Any], tmp_path: Path
) -> None:
    data = tmp_path / "notes.jsonl"
    data.write_text(json.dumps({"text": "Return a copy of the sequence."}) + "\n")
    clients = [
        VirtualClient(node_id=1, node_config={"client": "north", "data": str(data)}),
        VirtualClient(node_id=2, node_config={"client": "south"}),
    ]
    context = Context(run_id=9, node_id=0, node_config={}, state=RecordDict(), run_config=config)
    with InProcessGrid("intarsia_client.app:app", clients) as grid:
        server_app.app(grid, context)
    manifest = json.loads((tmp_path / "adapter" / "intarsia.json").read_text())
    assert manifest["run"] == "flower-9"
    assert manifest["nodes"] == {"1": "north", "2": "south"}
    assert manifest["rounds"] == {"1": {"accepted": 1, "refused": 1}}


def test_fltrust_uses_the_coordinators_records(
    server_app: ModuleType, config: dict[str, Any], tmp_path: Path
) -> None:
    data = tmp_path / "notes.jsonl"
    data.write_text(json.dumps({"text": "Return a copy of the sequence."}) + "\n")
    clients = [
        VirtualClient(node_id=1, node_config={"client": "north", "data": str(data)}),
        VirtualClient(node_id=2, node_config={"client": "south", "data": str(data)}),
    ]
    run = {**config, "rule": "fltrust"}
    context = Context(run_id=9, node_id=0, node_config={}, state=RecordDict(), run_config=run)
    with InProcessGrid("intarsia_client.app:app", clients) as grid:
        with pytest.raises(InputError, match=r"robust\.root"):
            server_app.app(grid, context)
        context.run_config["root"] = str(data)
        server_app.app(grid, context)
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()
