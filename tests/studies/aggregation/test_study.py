"""The study's bookkeeping: its cells, its learning rates, its verdicts. No model is trained."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from intarsia_aggregators.catalog import CATALOG

HERE = Path(__file__).resolve().parent
# The driver's files are a script's, not a package's.
sys.path += [str(HERE), str(HERE.parent / "shared")]

from kept_cells import read_results, take_results  # noqa: E402
from learning_rates import best_rates, nearby_cells, wide_rates  # noqa: E402
from study import (  # noqa: E402
    CENTRAL,
    LOCAL,
    Cell,
    Federation,
    Rates,
    Row,
    Study,
    evenly,
    read_study,
)
from summary import Entry, Setting, standard_error, summarise  # noqa: E402
from tables import as_csv, as_markdown  # noqa: E402

FULL = read_study(HERE / "study.toml", reduced=False)
REDUCED = read_study(HERE / "study.toml", reduced=True)


def wide(study: Study) -> dict[tuple[str, Row], float]:
    return {(cell.dataset.name, cell.row): cell.learning_rate for cell in study.tuning_cells()}


def some_rates(study: Study) -> Rates:
    return {
        (*place, federation, partition): rate
        for place, rate in wide(study).items()
        for federation in study.federations
        for partition in study.partitions
    }


def test_every_method_of_the_catalogue_is_in_every_setting() -> None:
    cells = FULL.cells(some_rates(FULL))
    for dataset in FULL.datasets:
        for entry in CATALOG:
            found = [
                (cell.federation.clients, cell.federation.fraction, cell.partition, cell.seed)
                for cell in cells
                if cell.dataset == dataset and cell.row.name == entry.name
            ]
            assert len(found) == len(set(found)) == 4 * 2 * 3


def test_cells_have_keys_of_their_own_and_come_back_from_json() -> None:
    cells = [*FULL.tuning_cells(), *FULL.cells(some_rates(FULL))]
    assert len({cell.key for cell in cells}) == len(cells)
    for cell in cells[:: len(cells) // 40]:
        assert Cell.from_mapping(json.loads(json.dumps(asdict(cell)))) == cell


def test_a_key_follows_from_what_decides_the_result() -> None:
    cell = FULL.tuning_cells()[0]
    assert replace(cell, learning_rate=0.5).key != cell.key
    assert replace(cell, dataset=replace(cell.dataset, train=3)).key != cell.key
    assert replace(cell, tuning=False).key != cell.key
    assert replace(cell, row=replace(cell.row, name="called otherwise")).key == cell.key


def test_the_reduced_study_is_a_part_of_the_full_one() -> None:
    full = {cell.key for cell in [*FULL.tuning_cells(), *FULL.cells(some_rates(FULL))]}
    reduced = {cell.key for cell in [*REDUCED.tuning_cells(), *REDUCED.cells(some_rates(REDUCED))]}
    assert reduced < full


def test_methods_of_one_rank_upload_as_much_as_the_others() -> None:
    for cell in FULL.cells(some_rates(FULL)):
        if cell.row in (CENTRAL, LOCAL):
            continue
        clients = cell.federation.clients
        ranks = [cell.ranks[turn % len(cell.ranks)] for turn in range(clients)]
        mixed = [
            cell.federation.ranks[turn % len(cell.federation.ranks)] for turn in range(clients)
        ]
        assert sum(ranks) == sum(mixed)
        assert (len(set(ranks)) == 1) == cell.row.one_rank


def test_a_mean_rank_that_is_not_whole_is_refused() -> None:
    odd = Federation(clients=3, fraction=1.0, rounds=1, ranks=(2, 2, 1))
    with pytest.raises(ValueError, match="no whole mean"):
        _ = odd.mean_rank


@pytest.mark.parametrize(("rounds", "count", "expected"), [(8, 4, [2, 4, 6, 8]), (3, 5, [1, 2, 3])])
def test_measurements_are_even_and_end_with_the_last_round(
    rounds: int, count: int, expected: list[int]
) -> None:
    assert evenly(rounds, count) == expected


def test_the_best_rate_is_the_measures_best_and_needs_all_of_them() -> None:
    cells = [cell for cell in FULL.tuning_cells() if cell.row.name in ("ledger", "flora")]
    # The largest rate is best on banking77, the smallest on Shakespeare.
    results = {cell.key: {cell.dataset.measure: cell.learning_rate} for cell in cells}
    del results[cells[-1].key]
    rates = wide_rates(FULL, results)
    row = {row.name: row for row in FULL.rows}
    assert rates["banking77", row["ledger"]] == max(FULL.datasets[0].learning_rates)
    assert rates["shakespeare", row["ledger"]] == min(FULL.datasets[1].learning_rates)
    assert ("shakespeare", cells[-1].row) not in rates
    assert CENTRAL not in {one for _, one in rates}


def test_elsewhere_rates_are_chosen_among_the_neighbours_of_the_best() -> None:
    ledger = next(row for row in FULL.rows if row.name == "ledger")
    name, tried = "banking77", FULL.datasets[0].learning_rates
    places = [(one, split) for one in FULL.federations for split in FULL.partitions]
    here = FULL.tuning_federation, FULL.tuning_partition
    results = {}
    for cell in FULL.tuning_cells():
        if (cell.dataset.name, cell.row) == (name, ledger):
            results[cell.key] = {"accuracy": 1.0 - abs(cell.learning_rate - tried[2])}
    assert best_rates(FULL, results) == {(name, ledger, *here): tried[2]}
    cells = nearby_cells(FULL, wide_rates(FULL, results))
    others = [one for one in places if one != here]
    assert [(cell.federation, cell.partition) for cell in cells[::3]] == others
    assert all(cell.tuning and cell.seed not in FULL.seeds for cell in cells)
    for cell in cells:
        assert cell.learning_rate in tried[1:4]
        results[cell.key] = {"accuracy": cell.learning_rate}
    rates = best_rates(FULL, results)
    assert rates == {(name, ledger, *one): tried[2 if one == here else 3] for one in places}
    del results[cells[0].key]
    assert set(rates) - set(best_rates(FULL, results)) == {(name, ledger, *others[0])}
    # A rate at the end of the scale has one neighbour.
    assert len(nearby_cells(FULL, {(name, ledger): tried[0]})) == 2 * len(others)


def test_who_meets_nobody_has_one_rate_however_many_take_part() -> None:
    results: dict[str, dict[str, float]] = {cell.key: {} for cell in FULL.tuning_cells()}
    local = {place: rate for place, rate in wide_rates(FULL, results).items() if place[1] == LOCAL}
    cells = nearby_cells(FULL, local)
    assert {cell.federation.fraction for cell in cells} == {1.0}
    assert len({cell.federation for cell in cells}) == len(FULL.federations) - 1
    rates = best_rates(FULL, results | {cell.key: {} for cell in cells})
    assert {row for _, row, _, _ in rates} > {CENTRAL, LOCAL}
    for row in (CENTRAL, LOCAL):
        found = [place[2:] for place in rates if place[1] == row and place[0] == "banking77"]
        assert len(found) == len(FULL.federations) * len(FULL.partitions)


def test_the_head_alone_has_no_rate_to_choose() -> None:
    (row,) = (one for one in FULL.rows if one.head_alone)
    assert row.name == "fedavg"
    assert len([cell for cell in FULL.tuning_cells() if cell.row == row]) == len(FULL.datasets)
    assert not [cell for cell in nearby_cells(FULL, wide(FULL)) if cell.row == row]


def test_a_heads_rate_is_part_of_the_key() -> None:
    banking, plays = FULL.datasets
    assert banking.head_learning_rate > 0.0 == plays.head_learning_rate
    for cell in FULL.tuning_cells()[::7]:
        other = replace(cell, dataset=replace(cell.dataset, head_learning_rate=0.5))
        assert other.key != cell.key


def setting(measure: str, **values: tuple[float, ...]) -> Setting:
    dataset = next(one for one in FULL.datasets if one.measure == measure)
    rows = {entry.name: Row(name=entry.name, method=entry.name) for entry in CATALOG}
    rows |= {"variant": Row(name="variant", method="ledger")}
    return Setting(
        dataset=dataset,
        federation=FULL.federations[1],
        partition="iid",
        entries=tuple(
            Entry(row=rows[name], rate=0.1, values=found, seeds=(0, 1, 2), expected=3)
            for name, found in values.items()
        ),
    )


def test_the_verdict_counts_in_standard_errors_of_the_best() -> None:
    verdict = setting(
        "accuracy", ledger=(0.5, 0.6, 0.7), flora=(0.6, 0.7, 0.8), fedit=(0.1, 0.1, 0.1)
    ).verdict
    assert verdict is not None
    assert verdict.best.row.name == "flora"
    assert verdict.gap == pytest.approx(0.1)
    assert verdict.in_errors == pytest.approx(0.1 / (0.1 / 3**0.5))
    assert verdict.within_one is False
    assert verdict.paired[1] == pytest.approx(0.0, abs=1e-12)


def test_less_perplexity_is_better_and_variants_do_not_compete() -> None:
    verdict = setting(
        "perplexity", ledger=(20.0, 21.0, 22.0), flora=(30.0, 31.0, 32.0), variant=(1.0, 1.0, 1.0)
    ).verdict
    assert verdict is not None
    assert (verdict.best.row.name, verdict.gap, verdict.within_one) == ("ledger", 0.0, True)


def test_an_unfinished_method_does_not_compete() -> None:
    verdict = setting(
        "accuracy", ledger=(0.5, 0.6, 0.7), fedit=(0.9,), flora=(0.1, 0.1, 0.1)
    ).verdict
    assert verdict is not None
    assert verdict.best.row.name == "ledger"
    assert setting("accuracy", ledger=(0.5, 0.6, 0.7), fedit=(0.9,)).verdict is None


def test_variants_are_run_where_the_configuration_says() -> None:
    variants = [cell for cell in FULL.cells(some_rates(FULL)) if cell.row.name != cell.row.method]
    names = {cell.row.name for cell in variants} - {LOCAL.name}
    assert len(names) == len(FULL.rows) - len(CATALOG)
    for cell in variants:
        within = cell.federation == FULL.federations[1]
        assert cell.row == LOCAL or cell.row.everywhere or within


def test_the_reduced_study_finds_all_its_learning_rates_among_the_finished_cells(
    tmp_path: Path,
) -> None:
    take_results(HERE / "finished.jsonl", tmp_path)
    rates = best_rates(REDUCED, read_results(tmp_path))
    assert set(rates) == set(some_rates(REDUCED))


def test_a_standard_error_needs_two_values() -> None:
    assert standard_error((1.0,)) is None
    assert standard_error((1.0, 3.0)) == pytest.approx(1.0)


def test_what_is_not_finished_is_visibly_missing() -> None:
    settings = summarise(FULL, {}, {})
    assert len(settings) == 2 * 4 * 2
    text = as_markdown(settings)
    for row in CATALOG:
        assert f"| {row.name} | missing | missing |" in text
    assert as_csv(settings).count("\n") == 1 + len(settings) * (len(FULL.rows) + 2)
