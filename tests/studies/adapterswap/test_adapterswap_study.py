"""The study's records, its parts on a tiny random base, its bookkeeping and its tables."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from intarsia_client.base_model import BaseModel, load_base
from intarsia_client.errors import InputError
from intarsia_client.evaluation import evaluate
from intarsia_client.records import Record
from intarsia_continual.encoders import BaseModelEncoder
from intarsia_platform.groups.rows import GroupSettings

HERE = Path(__file__).resolve().parent
# The driver's files are a script's, not a package's.
sys.path += [str(HERE), str(HERE.parent / "shared")]

from adapterswap_data import RecordGroups, draw_groups  # noqa: E402
from adapterswap_parts import (  # noqa: E402
    BASE,
    CHOSEN,
    CHRONOLOGICAL,
    LEARNERS,
    ONE_FOR_ALL,
    OWN,
    RETRIEVERS,
    ROUTED,
    TOLD,
    UNIFORM,
    WAYS,
    WITHOUT,
    Workplace,
    run_part,
)
from adapterswap_report import write_report  # noqa: E402
from adapterswap_scoring import own_adapters, same_for_all, scorer  # noqa: E402
from adapterswap_study import PARTS, Cell, Study, read_study  # noqa: E402
from adapterswap_summary import Figure, figures, shown  # noqa: E402
from adapterswap_tables import MISSING, as_csv, as_markdown, value_text  # noqa: E402
from adapterswap_training import Workshop  # noqa: E402
from kept_cells import keep_results, read_results, take_results, write_result  # noqa: E402

FULL = read_study(HERE / "study.toml", reduced=False)
REDUCED = read_study(HERE / "study.toml", reduced=True)
SHARED = HERE.parents[3] / "shared" / "data"

SPEECH = {
    "colours": "the red and blue door of a green house with yellow walls and grey stones",
    "numbers": "one two three four five six seven eight nine ten eleven twelve times",
    "sounds": "ring bang whisper murmur loud quiet drum bell song echo voice hum",
}


def made_up(labelled: bool) -> RecordGroups:
    """Groups of random texts, each of its own words."""
    generator = np.random.default_rng(0)

    def records(name: str, words: str, count: int) -> tuple[Record, ...]:
        return tuple(
            Record(
                text=" ".join(generator.choice(words.split(), size=8)),
                label=f"{name}-{turn % 2}" if labelled else None,
            )
            for turn in range(count)
        )

    train = {name: records(name, words, 10) for name, words in SPEECH.items()}
    held_out = {name: records(name, words, 4) for name, words in SPEECH.items()}
    labels = sorted({one.label for found in train.values() for one in found if one.label})
    return RecordGroups(train=train, held_out=held_out, labels=tuple(labels))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random Llama and a tiny random BERT, with the embedded base's tokenizer."""
    from intarsia_platform.demo.run import BASE as EMBEDDED
    from transformers import (
        AutoTokenizer,
        BertConfig,
        BertForSequenceClassification,
        LlamaConfig,
        LlamaForCausalLM,
    )

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED, local_files_only=True)
    torch.manual_seed(0)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
    }
    found = {}
    for task, model in {
        "causal-lm": LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2)),
        "sequence-classification": BertForSequenceClassification(BertConfig(**sizes)),
    }.items():
        found[task] = tmp_path_factory.mktemp(task)
        model.save_pretrained(found[task])
        tokenizer.save_pretrained(found[task])
    return found


@pytest.fixture(params=["causal-lm", "sequence-classification"])
def place(request: pytest.FixtureRequest, folders: dict[str, Path], tmp_path: Path) -> Workplace:
    """A workplace on the tiny base of each task."""
    torch.set_num_threads(1)
    task = request.param
    groups = made_up(labelled=task != "causal-lm")
    base = load_base(str(folders[task]), task=task, labels=groups.labels, seed=0)
    settings = GroupSettings(rank=2, epochs=6, batch_size=4, learning_rate=0.02, max_length=48)
    encoder = BaseModelEncoder(base, max_tokens=32) if task == "causal-lm" else _Words()
    return Workplace(
        groups=groups,
        workshop=Workshop(base, settings, tmp_path / "adapters"),
        encoder=encoder,
        plain_encoder=encoder,
        seed=0,
        removed=0.2,
    )


class _Words:
    """Counts the made-up words; what a sentence encoder would be here."""

    name, digest, width = "words", "sha256:" + "0" * 64, 64

    def encode(self, texts: list[str]) -> np.ndarray:
        rows = np.zeros((len(texts), self.width), dtype=np.float32)
        known = sorted({word for words in SPEECH.values() for word in words.split()})
        for row, text in zip(rows, texts, strict=True):
            for word in text.split():
                row[known.index(word)] += 1
            row /= np.linalg.norm(row)
        return rows


def base_of(place: Workplace) -> BaseModel:
    return place.workshop.base


def test_the_engine_scores_each_group_as_an_evaluation_would(place: Workplace) -> None:
    groups, base = place.groups, base_of(place)
    adapters = place.own_adapters()
    with scorer(base, adapters, max_length=48) as find:
        own = find(groups.held_out, own_adapters(groups))
        alone = find(groups.held_out, same_for_all(groups, ()))
    for name, records in groups.held_out.items():
        for value, adapter in ((own[name], adapters[name].adapter), (alone[name], None)):
            found = evaluate(base, records, adapter=adapter, max_length=48)
            expected = -found.loss if found.accuracy is None else found.accuracy
            assert math.isclose(value, expected, rel_tol=1e-4)


def test_training_on_begins_with_the_adapter_so_far(place: Workplace) -> None:
    """A stage with a learning rate of next to nothing leaves the adapter where it was."""
    shop = place.workshop
    first, second = (place.groups.train[name] for name in place.groups.names[:2])
    before = shop.kept(first)
    still = Workshop(shop.base, replace(shop.settings, learning_rate=1e-12), shop.folder).continued(
        before.adapter, second
    )
    moved = shop.continued(before.adapter, second)
    assert still.steps == moved.steps == before.steps == 6 * 3
    for name, factors in before.adapter.modules.items():
        np.testing.assert_allclose(
            still.adapter.modules[name].product(), factors.product(), atol=1e-6
        )
    assert any(
        np.abs(moved.adapter.modules[name].product() - factors.product()).max() > 1e-3
        for name, factors in before.adapter.modules.items()
    )


def test_a_kept_adapter_is_the_one_that_training_gives_and_is_not_trained_again(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = place.groups.train["colours"]
    kept = place.workshop.kept(records)
    assert kept.digest == place.workshop.trained(records).digest
    assert kept.steps == 6 * 3 and kept.seconds > 0
    monkeypatch.setattr(Workshop, "trained", lambda *_: pytest.fail("trained again"))
    again = Workshop(base_of(place), place.workshop.settings, place.workshop.folder)
    assert again.kept(records).digest == kept.digest


def test_access_measures_every_way_and_nothing_of_a_hidden_group(place: Workplace) -> None:
    told = run_part("access", place)
    own_ways = set(WAYS) - set(ROUTED.values()) if place.groups.labels else set(WAYS)
    assert set(told["values"]) == own_ways
    for values in told["values"].values():
        assert set(values) == set(SPEECH)
    assert told["cost"][OWN]["steps"] == 3 * 6 * 3
    assert told["cost"][ONE_FOR_ALL]["steps"] == 6 * math.ceil(30 / 4)
    if place.groups.labels:
        # No adapter but the own one was shown these classes, and the retriever tells words apart.
        assert shown_mean(told, WITHOUT) <= 1 / 2
        assert shown_mean(told, "retrieved 1") >= shown_mean(told, BASE)
        return
    for way in (OWN, UNIFORM, ONE_FOR_ALL, *ROUTED.values()):
        assert shown_mean(told, way) > shown_mean(told, BASE)
    assert len({shown_mean(told, way) for way in (UNIFORM, *ROUTED.values())}) == 3
    assert shown_mean(told, OWN) > shown_mean(told, WITHOUT)


def shown_mean(told: dict, way: str) -> float:
    return float(np.mean(list(told["values"][way].values())))


def test_without_access_the_own_groups_adapter_is_never_in_a_mixture(place: Workplace) -> None:
    chooser, names = place.chooser(), place.groups.names
    mixtures = chooser.choose(lambda own: [name for name in names if name != own])
    owners = [name for name, found in place.groups.held_out.items() for _ in found]
    for own, mixture in zip(owners, mixtures, strict=True):
        assert own not in dict(mixture)
        assert not mixture or sum(dict(mixture).values()) == 1.0
    assert all(len(one) <= 1 for one in chooser.choose(lambda _: names, 1))


def test_retrieval_has_every_retriever_and_only_the_joint_one_may_interfere(
    place: Workplace,
) -> None:
    told = run_part("retrieval", place)
    assert told["groups"] == 3
    assert tuple(told["retrievers"]) == RETRIEVERS
    for name, found in told["retrievers"].items():
        assert found["top-1"] <= found["top-2"] <= found["top-3"] == 1.0
        assert found["changed"] == 0.0 or name.startswith("LDA")


def test_a_told_group_is_never_forgotten_and_the_first_arrival_is_the_same_adapter(
    place: Workplace,
) -> None:
    told = run_part("continual", place)
    assert sorted(told["order"]) == sorted(SPEECH)
    assert told["steps"][OWN] == told["steps"][CHRONOLOGICAL] == 3 * 6 * 3
    for learner in LEARNERS:
        assert np.shape(told[learner]) == (3, 3)
    matrix = np.array(told[TOLD])
    for arrived in range(3):
        assert matrix[arrived, arrived + 1 :].tolist() == told[BASE][arrived + 1 :]
        assert (matrix[arrived:, arrived] == matrix[arrived, arrived]).all()
    assert told[CHRONOLOGICAL][0][0] == pytest.approx(told[TOLD][0][0], rel=1e-6)
    assert np.isfinite(told[CHOSEN]).all()


def test_a_deletion_trains_on_the_rest_alone(place: Workplace) -> None:
    told = run_part("deletion", place)
    assert told["removed"] == 2
    assert told["cost"][OWN]["steps"] == 6 * 2
    assert told["cost"][ONE_FOR_ALL]["steps"] == 6 * 7
    assert set(told["values"]) == {
        BASE,
        *(f"{which}, {when}" for which in (OWN, ONE_FOR_ALL) for when in ("before", "after")),
    }
    for values in told["values"].values():
        assert set(values) == {"held out", "removed"}
    assert told["describing"] >= 0


@pytest.mark.parametrize("dataset", REDUCED.datasets, ids=lambda one: one.name)
def test_records_are_drawn_by_the_seed_and_nothing_held_out_is_trained_on(dataset) -> None:
    try:
        groups = draw_groups(dataset, SHARED, 0)
    except InputError as error:
        pytest.skip(str(error))
    assert len(groups.names) == dataset.groups
    texts = {one.text for one in groups.everything}
    for name in groups.names:
        assert len(groups.train[name]) == dataset.documents
        assert len(groups.held_out[name]) == dataset.queries
        assert texts.isdisjoint(one.text for one in groups.held_out[name])
        labels = {one.label for one in groups.train[name]}
        assert len(labels) == max(1, dataset.intents)
        assert labels == {one.label for one in groups.held_out[name]}
    assert len(groups.labels) == dataset.intents * dataset.groups
    assert draw_groups(dataset, SHARED, 0) == groups
    assert draw_groups(dataset, SHARED, 1) != groups


def test_cells_have_keys_of_their_own_and_come_back_from_json() -> None:
    cells = [*FULL.cells(), *REDUCED.cells()]
    assert len({cell.key for cell in cells}) == len(cells)
    assert len(FULL.cells()) == len(FULL.datasets) * len(PARTS) * 3
    for cell in cells:
        assert Cell.from_mapping(json.loads(json.dumps(asdict(cell)))) == cell
    one = FULL.cells()[0]
    assert replace(one, encoder="another").key != one.key
    assert replace(one, dataset=replace(one.dataset, epochs=9)).key != one.key


def finished_study(home: Path) -> Study:
    """A study of one language data set with one seed less than it should have."""
    study = replace(REDUCED, datasets=REDUCED.datasets[:1])
    ways = {way: {"a": -2.0, "b": -4.0} for way in WAYS} | {OWN: {"a": -1.0, "b": -2.0}}
    learned = [[-1.0, -4.0], [-3.0, -1.0]]
    values = {"held out": -2.0, "removed": -1.0}
    shares = {"top-1": 0.5, "top-2": 0.75, "top-3": 1.0, "changed": 0.0}
    results = {
        "access": {"values": ways, "alone": dict.fromkeys(["retrieved 3", WITHOUT], 0.25)},
        "retrieval": {
            "retrievers": dict.fromkeys(RETRIEVERS, shares),
            "groups": 4,
        },
        "continual": {"base": [-5.0, -5.0], **dict.fromkeys(LEARNERS, learned)},
        "deletion": {
            "removed": 4,
            "describing": 1.5,
            "cost": {OWN: {"seconds": 2.0, "steps": 10}, ONE_FOR_ALL: {"seconds": 9, "steps": 50}},
            "values": {
                BASE: values,
                **{
                    f"{which}, {when}": values
                    for which in (OWN, ONE_FOR_ALL)
                    for when in ("before", "after")
                },
            },
        },
    }
    for part in PARTS:
        for seed in study.seeds[: 1 if part == "access" else None]:
            write_result(home, study.cell(study.datasets[0], part, seed), results[part])
    return study


def test_tables_show_means_errors_and_what_lacks_seeds(tmp_path: Path) -> None:
    study = finished_study(tmp_path)
    found = figures(study, read_results(tmp_path))
    by_name = {(one.part, one.row, one.name): one for one in found}
    assert by_name["access", OWN, "perplexity"].values == (math.exp(1.5),)
    assert by_name["continual", CHOSEN, "backward transfer"].mean == -2.0
    assert by_name["continual", CHRONOLOGICAL, "forward transfer"].mean == 1.0
    assert by_name["deletion", "ratio", "steps"].mean == 5.0
    text = as_markdown(study, found)
    assert "| full access, told the group: its own adapter | 4.48* |" in text
    assert "| genesis | centroid | 50.0 ± 0.0 | 75.0 ± 0.0 | 100.0 ± 0.0 | 0.0 ± 0.0 |" in text
    assert "-2.000 ± 0.000" in text
    assert as_csv(found).count("\n") == 1 + len(found)


def test_what_is_not_finished_is_visibly_missing(tmp_path: Path) -> None:
    text = as_markdown(FULL, figures(FULL, read_results(tmp_path)), ["x is left out: absent"])
    assert "x is left out" in text
    assert text.count(MISSING) > 50


def test_the_report_is_written_whole(tmp_path: Path) -> None:
    study = finished_study(tmp_path)
    files = write_report(study, read_results(tmp_path), tmp_path)
    assert len(files) == 3 + len(PARTS)
    assert all(path.stat().st_size > 0 for path in files)
    assert json.loads((tmp_path / "table.json").read_text())["seeds"] == list(study.seeds)


def test_cells_that_travelled_give_the_same_tables(tmp_path: Path) -> None:
    here, there, archive = tmp_path / "here", tmp_path / "there", tmp_path / "cells.jsonl"
    study = finished_study(here)
    assert keep_results(here, archive) == take_results(archive, there)
    for home in (here, there):
        write_report(study, read_results(home), home)
    for name in ("table.md", "table.csv", "table.json"):
        assert (here / name).read_bytes() == (there / name).read_bytes()


def test_values_are_written_with_their_errors() -> None:
    one = Figure(
        part="access", data="", row="", name="", unit="accuracy", values=(0.5, 0.7), expected=2
    )
    assert value_text(one) == "60.0 ± 10.0"
    assert value_text(replace(one, unit="perplexity", values=(20.0,))) == "20.0*"
    assert value_text(None) == MISSING
    assert shown(FULL.datasets[0], [-1.0, -3.0]) == pytest.approx(math.exp(2.0))


def test_the_driver_says_what_is_absent_and_reports_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    specification = importlib.util.spec_from_file_location("adapterswap_run", HERE / "run.py")
    assert specification is not None and specification.loader is not None
    driver = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(driver)
    words = ["run.py", "--home", tmp_path / "home", "--shared", tmp_path, "--reduced"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    assert driver.main() == 1
    told = capsys.readouterr().err
    for dataset in REDUCED.datasets:
        assert f"FAILED {dataset.name} is left out" in told
    assert "genesis is left out" in (tmp_path / "home" / "table.md").read_text()
    assert driver.unfinished(FULL, {FULL.cells()[0].key: {}}, ["access", "seed 0"]) == [
        cell for cell in FULL.cells()[1:] if cell.part == "access" and cell.seed == 0
    ]
