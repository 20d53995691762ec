"""The study's texts, its pictures, and the whole of it on very little."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
# The driver's files are a script's, not a package's.
sys.path.append(str(HERE))

from leakage_groups import BASE, FULL, REDUCED, Size, passages, prompts_of, read_exams  # noqa: E402
from leakage_homes import EVERYBODY, NOBODY, intended_rights  # noqa: E402
from leakage_mutants import wrong_rights  # noqa: E402
from leakage_study import Study, main, run  # noqa: E402

SHARED = HERE.parents[3] / "shared" / "data"


@pytest.fixture
def shared() -> Path:
    for name in ("genesis", "tinyshakespeare", BASE):
        if not (SHARED / name).is_dir():
            pytest.skip(f"{name} is not in the shared data")
    return SHARED


@pytest.mark.parametrize("size", [FULL, REDUCED], ids=["full", "reduced"])
def test_no_left_out_text_is_among_those_trained_on(shared, size) -> None:
    exams = read_exams(shared, size)
    assert len(exams) == size.languages + size.speakers
    everything = [record.text for exam in exams for record in exam.records]
    assert len(everything) == len(set(everything)) == 2 * size.texts * len(exams)
    assert all(len(exam.members) == len(exam.others) == size.texts for exam in exams)
    assert read_exams(shared, size) == exams != read_exams(shared, size, seed=1)


def test_texts_are_drawn_for_each_group_by_itself(shared) -> None:
    """Or a verse that is trained on in one language would give away the same one in another."""
    exams = read_exams(shared, FULL)
    again = read_exams(shared, Size(**{**vars(FULL), "languages": 1, "speakers": 0}))
    assert again == exams[:1]


def test_passages_are_whole_and_come_once() -> None:
    assert passages("a b a b c", words=2) == ["a b"]
    assert passages("a b c d e", words=2) == ["a b", "c d"]


def test_readers_may_use_their_own_group_alone() -> None:
    rights = intended_rights(["one", "two", "three"])
    assert rights["two-reader"] == ("two",) and rights["last-two"] == ("two", "three")
    assert rights[EVERYBODY] == ("one", "two", "three") and rights[NOBODY] == ()
    wrong = wrong_rights(rights, "one-reader", "three")
    assert wrong["one-reader"] == ("one", "three") and rights["one-reader"] == ("one",)


def test_without_the_data_it_is_skipped_and_says_so(tmp_path, capsys) -> None:
    assert main(["--shared", str(tmp_path), "--reduced", "--out", str(tmp_path / "out")]) == 1
    assert "skipped: base: " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_study_on_very_little(shared, tmp_path, capsys) -> None:
    size = Size(languages=1, speakers=1, texts=8, words=12, rank=4, epochs=10, prompts=1)
    exams = read_exams(shared, size)
    assert len(prompts_of(exams, 1)) == 1
    study = Study(exams=exams, size=size, base=(shared / BASE).resolve(), folder=tmp_path)
    found = run(study)
    assert found["as it must be"] and found["sound"]["clean"]
    assert len(found["sound"]["cells"]) == 2 * len(intended_rights(study.groups))
    assert not any(mutant["clean"] for mutant in found["mutants"].values())
    assert json.loads((tmp_path / "leakage.json").read_text()) == found
    assert len(list(tmp_path.glob("*.png"))) == 3
    told = capsys.readouterr().out
    assert "sound: clean; 0 of 3 views differ" in told
    assert told.count("| refused |") == 4
