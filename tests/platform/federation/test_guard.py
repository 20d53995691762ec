"""The robust rules' place in a federation: what goes together, and the server's own update."""

from __future__ import annotations

from dataclasses import replace

import pytest
from intarsia_aggregators.catalog import CATALOG, find_method
from intarsia_aggregators.robust.base import RobustSettings
from intarsia_client.assignment import PrivacyParameters
from intarsia_client.errors import InputError
from intarsia_platform.federation.guard import RobustGuard
from intarsia_platform.federation.plan import FederationPlan
from intarsia_platform.federation.strategy import LoraStrategy

PLAN = FederationPlan(
    run="run-1",
    rounds=2,
    seed=0,
    base="base",
    base_digest="sha256:base",
    task="causal-lm",
    target_modules={"q": (16, 16)},
    ranks=(4,),
)


class Root:
    """Stands for the server's records where nothing is trained."""


def guard(rule: str, **settings: object) -> RobustGuard:
    root = Root() if rule == "fltrust" else None
    return RobustGuard(rule, RobustSettings(**settings), root=root)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", CATALOG, ids=lambda entry: entry.name)
@pytest.mark.parametrize("rule", ["norm-bound", "fltrust", "multi-krum", "geometric-median"])
def test_rules_that_scale_what_was_added_want_methods_that_add_it(method, rule):
    if method.adds_deltas or rule in ("multi-krum", "geometric-median"):
        guard(rule).check(method, PLAN)
        return
    with pytest.raises(InputError, match=rf"robust\.rule: {rule}; {method.name} does not add up"):
        guard(rule).check(method, PLAN)


@pytest.mark.parametrize("rule", ["fltrust", "multi-krum", "geometric-median"])
def test_rules_that_compare_want_updates_without_noise(rule):
    private = replace(PLAN, privacy=PrivacyParameters(unit="example"))
    with pytest.raises(InputError, match=rf"robust\.rule: {rule}; it compares updates"):
        LoraStrategy(private, guard=guard(rule))
    assert LoraStrategy(private, guard=guard("norm-bound")).guard is not None


def test_fltrust_wants_records_and_names_that_are_known():
    with pytest.raises(InputError, match=r"robust\.root: ''; name records"):
        RobustGuard("fltrust", RobustSettings())
    with pytest.raises(InputError, match="robust rule: krum; choose one of"):
        RobustGuard("krum", RobustSettings())


def test_a_rule_says_how_many_updates_it_needs():
    assert LoraStrategy(PLAN).fewest_updates == 1
    assert LoraStrategy(PLAN, guard=guard("norm-bound")).fewest_updates == 1
    krum = guard("multi-krum", byzantine=2)
    assert LoraStrategy(PLAN, guard=krum).fewest_updates == 7
    krum.check(find_method("ledger"), PLAN)
