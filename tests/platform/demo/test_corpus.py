import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from intarsia_platform.demo import corpus, extraction
from intarsia_platform.demo.corpus import (
    DEPARTMENTS,
    Record,
    department_records,
    package_root,
    split_by_source,
    write_jsonl,
)
from intarsia_platform.demo.extraction import (
    clean_text,
    cut_passages,
    extract_comments,
    extract_docstrings,
    literal_strings,
)

LONG = "This sentence says something about nothing in particular, at a certain length. " * 2


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes an importable library whose import would raise, and which has many odd files."""
    root = tmp_path / "intarsia_probe_library"
    (root / "tests").mkdir(parents=True)
    (root / "inner").mkdir()
    (root / "__init__.py").write_text('raise RuntimeError("imported")\n', encoding="utf-8")
    (root / "broken.py").write_text("def broken(:\n", encoding="utf-8")
    (root / "latin.py").write_bytes(f'"""caf\xe9 {LONG}"""'.encode("latin-1"))
    (root / "tests" / "test_it.py").write_text(f'"""Hidden {LONG}"""', encoding="utf-8")
    for number in range(40):
        functions = "".join(
            f'def f{index}():\n    """Number {number}.{index}. {LONG}\n\n    {LONG}"""\n'
            for index in range(30)
        )
        source = f'"""The same everywhere. {LONG}"""\n{functions}'
        (root / "inner" / f"part_{number}.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    return root


def test_clean_text_normalises_white_space_and_keeps_indentation():
    assert clean_text("  a  b\t c \n\n\n\n    d\n") == "  a b c\n\n    d"
    assert clean_text("\n" + " " * 30 + "deep") == " " * 8 + "deep"


def test_extract_docstrings_reads_every_kind_in_order_and_skips_short_ones():
    source = (
        f'"""Module. {LONG}"""\n'
        f'class A:\n    """Class. {LONG}"""\n'
        f'    async def b(self):\n        """Method. {LONG}"""\n'
        f'def c():\n    """Short."""\n'
        f'def d():\n    """Bad escape \\d. {LONG}"""\n'
    )
    found = extract_docstrings(source)
    assert [text.split(".")[0] for text in found] == ["Module", "Class", "Method", "Bad escape \\d"]
    assert extract_docstrings("def broken(:") == []


def test_extract_comments_reads_blocks_without_marks_and_without_notices():
    block = "\n".join(f"    # line {index} of a comment that explains" for index in range(4))
    notice = block.replace("explains", "is a Copyright notice")
    comments = extract_comments(f"a = 1\n{block}\nb = 2  # no\n{notice}\nc = 3\n# short\n")
    assert comments == ["\n".join(f"line {index} of a comment that explains" for index in range(4))]


def test_literal_strings_reads_the_dictionary_only():
    assert literal_strings("topics = {'a': 'one ' 'two', b: 'x'}\nother = f()") == {"a": "one two"}
    assert literal_strings("topics = {") == {}


@pytest.mark.parametrize(
    "texts",
    [
        [LONG] * 20,
        ["word " * 2000],
        ["x" * 5000],
        ["\n".join([LONG.strip()] * 50), LONG],
        ["\n\n".join([LONG * 4] * 10)],
        ["a\n\nb", "c"] * 300,
    ],
)
def test_cut_passages_respects_both_bounds_and_loses_no_word(texts):
    passages = cut_passages(texts)
    assert passages
    assert all(len(passage) <= extraction.LONGEST_PASSAGE for passage in passages)
    assert all(len(passage) >= extraction.SHORTEST_PASSAGE - 2 for passage in passages[:-1])
    kept = "".join("".join(passage.split()) for passage in passages)
    everything = "".join("".join(text.split()) for text in texts)
    assert everything.startswith(kept)
    assert len(everything) - len(kept) < extraction.SHORTEST_PASSAGE // 2


def test_cut_passages_cuts_between_paragraphs():
    paragraphs = [f"{name} {LONG * 2}".strip() for name in "abcdef"]
    for passage in cut_passages(["\n\n".join(paragraphs)]):
        assert all(part in paragraphs for part in passage.split("\n\n"))


def test_cut_passages_refuses_bounds_without_room():
    with pytest.raises(ValueError, match="shortest=500"):
        cut_passages([LONG], shortest=500, longest=900)


def test_department_is_split_by_file_within_bounds_and_never_imported(library):
    train, test = department_records(
        library.name, seed=3, train_characters=9_000, test_characters=3_000, passages_per_file=4
    )
    assert train
    assert test
    assert not {record.source for record in train} & {record.source for record in test}
    for records, bound in ((train, 9_000), (test, 3_000)):
        total = sum(len(record.text) for record in records)
        assert bound - extraction.LONGEST_PASSAGE < total <= bound
        sources = [record.source for record in records]
        assert max(sources.count(source) for source in sources) <= 4
        assert all(record.client == library.name for record in records)
        assert all(record.source.startswith("inner/part_") for record in records)
    texts = [record.text for record in train + test]
    assert len(texts) == len(set(texts))
    assert sum("The same everywhere" in text for text in texts) <= 1
    assert library.name not in sys.modules


def test_department_depends_on_seed_and_contents_alone(library):
    first = department_records(library.name, seed=0)
    for file in library.rglob("*.py"):
        os.utime(file, (0, 0))
    assert department_records(library.name, seed=0) == first
    assert department_records(library.name, seed=1) != first


def test_the_real_departments_fill_their_budgets_without_being_imported():
    program = (
        "import sys\n"
        "from intarsia_platform.demo import corpus\n"
        "for name in corpus.DEPARTMENTS:\n"
        "    train, test = corpus.department_records(name, seed=0)\n"
        "    print(name, sum(len(r.text) for r in train), sum(len(r.text) for r in test),\n"
        "          name in sys.modules)\n"
    )
    project = Path(corpus.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == list(DEPARTMENTS)
    assert all(55_000 < int(row[1]) <= 60_000 for row in rows)
    assert all(9_000 < int(row[2]) <= 12_000 for row in rows)
    assert {row[3] for row in rows} == {"False"}


def test_records_name_no_place_on_this_machine():
    train, test = department_records("networkx", seed=0)
    for record in train + test:
        assert not Path(record.source).is_absolute()
        assert str(package_root("networkx")) not in record.text


@pytest.mark.parametrize(
    "arguments", [{"test_share": 1.5}, {"train_characters": -1}, {"passages_per_file": -2}]
)
def test_department_refuses_bounds_out_of_range(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        department_records("networkx", seed=0, **arguments)


def test_package_root_refuses_what_it_cannot_find_without_importing():
    with pytest.raises(FileNotFoundError, match="intarsia_no_such_library"):
        package_root("intarsia_no_such_library")
    with pytest.raises(ValueError, match="without dots"):
        package_root("networkx.algorithms")


def test_split_by_source_keeps_files_whole():
    records = [
        Record(text=str(index), client="x", source=f"{index % 50}.py") for index in range(500)
    ]
    train, test = split_by_source(records, seed=0, test_share=0.3)
    assert len(train) + len(test) == 500
    assert 50 < len(test) < 250
    assert not {record.source for record in train} & {record.source for record in test}
    assert split_by_source(records, seed=1, test_share=0.3)[1] != test


def test_write_jsonl_writes_complete_files_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "records.jsonl"
    records = [Record(text="über\n\u2028zwei", client="a", source="b.py")]
    write_jsonl(path, records)
    # Split by the line feed alone: the text may hold other characters that end lines.
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines if line] == [
        {"text": "über\n\u2028zwei", "client": "a", "source": "b.py"}
    ]

    def failing():
        yield records[0]
        raise RuntimeError("stop")

    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="stop"):
        write_jsonl(path, failing())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["records.jsonl"]
    with pytest.raises(FileNotFoundError, match="missing"):
        write_jsonl(tmp_path / "missing" / "records.jsonl", records)
