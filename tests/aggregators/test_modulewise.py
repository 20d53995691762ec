"""What is the same for all methods, where one method is enough to see it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from intarsia_aggregators import catalog
from intarsia_aggregators.base import AggregationSettings, GlobalState
from intarsia_aggregators.catalog import CatalogEntry, find_method
from intarsia_client.errors import InputError
from intarsia_client.wire import LowRankFactors

PAGE = Path(__file__).parents[2] / "docs" / "add-a-method.md"


def test_the_page_s_example_is_a_method(federation, monkeypatch):
    """The page's two blocks, put where it says, make a method that does what it says."""
    method, line = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    names: dict[str, Any] = {"__name__": "half_step", "CatalogEntry": CatalogEntry}
    exec(compile(method, str(PAGE), "exec"), names)  # noqa: S102 - our own page
    entry = eval(line, names)  # noqa: S307 - our own page
    monkeypatch.setattr(catalog, "CATALOG", (*catalog.CATALOG, entry))
    generator = np.random.default_rng(2)
    first = federation.update(federation.empty(), "c", rank=4, generator=generator)
    state = federation.aggregate("ledger", federation.empty(), [first]).state
    updates = [
        federation.update(state.published, f"c{i}", rank=r, generator=generator)
        for i, r in enumerate((2, 4))
    ]
    found = federation.products(federation.aggregate("half-step", state, updates).state.whole)
    before = federation.products(state.whole)
    for name, dense in federation.dense_sum(state.whole, updates).items():
        assert found[name] == pytest.approx((before[name] + dense) / 2, abs=1e-6)


def test_heads_alone_need_a_head(federation):
    state = GlobalState(published=federation.empty(head=False))
    with pytest.raises(InputError, match="head: the adapter has none"):
        find_method("fedavg").method(state, AggregationSettings())


def test_heads_alone_read_no_factors_into_the_sum(federation):
    generator = np.random.default_rng(0)
    first = federation.update(federation.empty(), "c", rank=4, generator=generator)
    state = federation.aggregate("ledger", federation.empty(), [first]).state
    update = federation.update(state.published, "c", rank=2, trains="none", generator=generator)
    after = federation.aggregate("fedavg", state, [update]).state.whole
    for name, factors in after.modules.items():
        assert np.array_equal(factors.a, state.whole.modules[name].a)
        assert np.array_equal(factors.b, state.whole.modules[name].b)
    assert after.dense["classifier.weight"] == pytest.approx(
        update.trained.dense["classifier.weight"]
    )


def test_an_aggregate_beyond_float32_is_refused(federation):
    update = federation.update(federation.empty(), "c", rank=1)
    name = "layers.0.v"
    huge = LowRankFactors(
        a=np.full((1, 32), 3e38, np.float32), b=np.full((16, 1), 3e38, np.float32), scaling=1.0
    )
    trained = replace(update.trained, modules={**update.trained.modules, name: huge})
    with pytest.raises(InputError, match=r"aggregate of layers\.0\.v: not finite"):
        federation.aggregate("ledger", federation.empty(), [replace(update, trained=trained)])


def test_the_exact_adapter_stands_beside_the_published_one_only_where_they_differ(federation):
    generator = np.random.default_rng(1)
    update = federation.update(federation.empty(), "c", rank=4, generator=generator)
    for bound, differs in ((0, False), (4, False), (3, True)):
        state = federation.aggregate(
            "ledger", federation.empty(), [update], broadcast_rank=bound
        ).state
        assert (state.exact is not None) == differs
        assert state.whole.rank == 4
        assert state.published.rank == (bound or 4)
