"""Records are read alike from every kind of file; bad ones are refused with the line's number."""

import hashlib
import json
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from intarsia_client import records as records_module
from intarsia_client.errors import InputError
from intarsia_client.records import (
    Record,
    encode_record,
    read_records,
    records_digest,
)
from pyarrow import csv as arrow_csv
from pyarrow import ipc, parquet

ROWS = [
    {"text": "first, with a comma", "label": "one", "client": "north"},
    {"text": 'second "quoted"\nover two lines', "label": "two", "client": "south"},
    {"text": "drittes \u00e4\u00f6\u00fc \U0001f9e9", "label": "one", "client": "north"},
]
RECORDS = [Record(**row) for row in ROWS]


def write_json_lines(folder: Path) -> Path:
    path = folder / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n", encoding="utf-8")
    return path


def write_csv(folder: Path) -> Path:
    path = folder / "data.csv"
    arrow_csv.write_csv(pyarrow.Table.from_pylist(ROWS), path)
    return path


def write_tsv(folder: Path) -> Path:
    path = folder / "data.tsv"
    options = arrow_csv.WriteOptions(delimiter="\t")
    arrow_csv.write_csv(pyarrow.Table.from_pylist(ROWS), path, options)
    return path


def write_parquet(folder: Path) -> Path:
    path = folder / "data.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"extra": 1.5, **row} for row in ROWS]), path)
    return path


def write_saved_dataset(folder: Path) -> Path:
    """The layout of ``datasets.Dataset.save_to_disk``, two files, not in the order of names."""
    path = folder / "saved"
    path.mkdir()
    for name, rows in (("z.arrow", ROWS[:2]), ("a.arrow", ROWS[2:])):
        table = pyarrow.Table.from_pylist(rows)
        with ipc.new_stream(path / name, table.schema) as writer:
            writer.write_table(table)
    state = {
        "_data_files": [{"filename": "z.arrow"}, {"filename": "a.arrow"}],
        "_fingerprint": "0",
        "_format_columns": None,
        "_split": "train",
    }
    (path / "state.json").write_text(json.dumps(state))
    (path / "dataset_info.json").write_text("{}")
    return path


def write_folder(folder: Path) -> Path:
    path = folder / "many"
    path.mkdir()
    (path / "README.md").write_text("not data")
    (path / "1.jsonl").write_text(json.dumps(ROWS[0]))
    parquet.write_table(pyarrow.Table.from_pylist(ROWS[1:]), path / "2.parquet")
    return path


WRITERS: list[Callable[[Path], Path]] = [
    write_json_lines,
    write_csv,
    write_tsv,
    write_parquet,
    write_saved_dataset,
    write_folder,
]


@pytest.mark.parametrize("write", WRITERS)
def test_every_kind_of_file_gives_the_same_records(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    read = read_records(write(tmp_path))
    assert read == RECORDS
    assert records_digest(read) == records_digest(RECORDS)


def test_fields_can_be_renamed_or_left_unread(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("sentence,category\nhello,greeting\n")
    assert read_records(path, text="sentence", label="category") == [
        Record(text="hello", label="greeting")
    ]
    assert read_records(path, text="sentence", label=None) == [Record(text="hello")]


def test_whole_numbers_become_strings_and_empty_names_are_none(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(
        '{"text": "a", "label": 3, "client": 17}\n{"text": "b", "label": "", "client": null}\n'
    )
    table = pyarrow.table({"text": ["a", "b"], "label": [3, None], "client": [17, None]})
    parquet.write_table(table, tmp_path / "data.parquet")
    (tmp_path / "data.csv").write_text("text,label,client\na,3,17\nb,,\n")
    for name in ("data.jsonl", "data.parquet", "data.csv"):
        assert read_records(tmp_path / name) == [
            Record(text="a", label="3", client="17"),
            Record(text="b"),
        ]


def test_dictionary_encoded_and_large_strings_are_read(tmp_path: Path) -> None:
    table = pyarrow.table(
        {
            "text": pyarrow.array(["a", "b"], pyarrow.large_string()),
            "label": pyarrow.array(["x", "y"]).dictionary_encode(),
        }
    )
    parquet.write_table(table, tmp_path / "data.parquet")
    assert read_records(tmp_path / "data.parquet") == [
        Record(text="a", label="x"),
        Record(text="b", label="y"),
    ]


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(b"\xef\xbb\xbftext,label\r\nhello,x\r\n")
    (tmp_path / "data.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "hello", "label": "x"}\r\n')
    for name in ("data.csv", "data.jsonl"):
        assert read_records(tmp_path / name) == [Record(text="hello", label="x")]


def test_a_field_longer_than_the_csv_modules_own_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text\n" + "a" * 200_000 + "\n")
    assert len(read_records(tmp_path / "data.csv")[0].text) == 200_000


def test_a_folders_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in "dbhafcge":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}))
    assert [record.text for record in read_records(tmp_path)] == list("abcdefgh")


MALFORMED = [
    ("data.jsonl", b'{"text": "a"}\n{"text": \n', ":2: Expecting value at column 10"),
    ("data.jsonl", b'{"text": "a"}\n\n["a"]\n', ":3: a JSON list"),
    ("data.json", b'[\n {"text": "a"}\n]\n', ":1: Expecting value"),
    ("data.jsonl", b'{"text": "a"}\n{"txt": "b", "id": 1}\n', ":2: no field 'text'"),
    ("data.jsonl", b'{"txt": "b", "id": 1}\n', "there are: txt, id"),
    ("data.jsonl", b'{"text": 5}\n', ":1: field 'text' is int"),
    ("data.jsonl", b'{"text": null}\n', ":1: field 'text' is NoneType"),
    ("data.jsonl", b'{"text": "  "}\n', ":1: field 'text' is empty"),
    ("data.jsonl", b'{"text": "a", "label": true}\n', ":1: field 'label' is bool"),
    ("data.jsonl", b'{"text": "a", "label": 1.5}\n', ":1: field 'label' is float"),
    ("data.jsonl", b'{"text": "a", "client": ["b"]}\n', ":1: field 'client' is list"),
    ("data.jsonl", b'{"text": "\\ud83e"}\n', ":1: field 'text' holds half of a surrogate pair"),
    ("data.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', ":2: byte 11 is not UTF-8"),
    ("data.jsonl", b"[" * 200_000, ":1: "),
    ("data.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"}", ":1: "),
    ("data.jsonl", b"", "holds no records"),
    ("data.csv", b"text,label\n", "holds no records"),
    ("data.csv", b"text,label\na,b\nc\n", ":3: 1 fields, the header has 2"),
    ("data.csv", b'text,label\n"a\nb",x\nc,d,e\n', ":4: 3 fields, the header has 2"),
    ("data.csv", b'text,label\n"a"b,x\n', ":2: "),
    ("data.csv", b'text,label\na,b\n"never closed,x\n', ":3: unexpected end of data"),
    ("data.csv", b"text,text\na,b\n", ":1: two fields 'text'"),
    ("data.csv", b"name,label\na,b\n", ":2: no field 'text'"),
    ("data.parquet", b"PAR1 but not really", "data.parquet ("),
    ("data.txt", b"hello\n", "use one of .jsonl, .json, .csv, .tsv, .parquet"),
]


@pytest.mark.parametrize(("name", "content", "expected"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_files_are_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_records(path, thing="data.train")
    line = str(caught.value)
    assert line.startswith(f"data.train: {path}")
    assert expected in line
    assert "\n" not in line


def test_a_parquet_file_without_the_field_names_those_there_are(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"sentence": ["a"], "id": [1]}), tmp_path / "data.parquet")
    with pytest.raises(InputError, match=r"no field 'text'.*there are: sentence, id"):
        read_records(tmp_path / "data.parquet")


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"data\.parquet \("):
        read_records(path)


def test_a_truncated_saved_dataset_is_refused(tmp_path: Path) -> None:
    path = write_saved_dataset(tmp_path)
    (path / "a.arrow").write_bytes((path / "a.arrow").read_bytes()[:100])
    with pytest.raises(InputError, match=r"a\.arrow \("):
        read_records(path)


def test_required_names_are_required_of_every_record(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n{"text": "b"}\n')
    with pytest.raises(InputError, match=":2: no field 'label'"):
        read_records(path, require_label=True)
    path.write_text('{"text": "a", "client": ""}\n')
    with pytest.raises(InputError, match=":1: field 'client' is empty"):
        read_records(path, require_client=True)


def test_what_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.test: .*absent\.jsonl does not exist"):
        read_records(tmp_path / "absent.jsonl", thing="data.test")
    with pytest.raises(InputError, match="has no data file"):
        read_records(tmp_path)


def test_a_saved_dataset_of_several_splits_names_them(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    with pytest.raises(InputError, match="several splits; name one of its folders: test, train"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("[]", "state.json"),
        ("{", "state.json"),
        ('{"_data_files": [{"filename": "../secret.arrow"}]}', "names ../secret.arrow"),
        ('{"_data_files": [], "_indices_data_files": [{"filename": "i"}]}', "a view on other rows"),
        ('{"_data_files": [{"filename": "absent.arrow"}]}', "absent.arrow"),
    ],
)
def test_a_strange_saved_dataset_is_refused(tmp_path: Path, state: str, expected: str) -> None:
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(InputError) as caught:
        read_records(tmp_path)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_overlong_line_is_refused_before_it_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records_module, "MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "a"}\n' + b"x" * (1 << 25))
    tracemalloc.start()
    with pytest.raises(InputError, match=":2: longer than 1 MiB"):
        read_records(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 23


def test_without_pyarrow_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'intarsia-client\[parquet\]'"):
        read_records(path)


names = st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
any_record = st.builds(
    Record,
    text=st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip),
    label=names,
    client=names,
)


@settings(deadline=None)
@given(st.lists(any_record, min_size=1, max_size=5))
def test_encoded_records_are_json_lines_that_read_back(
    tmp_path_factory: pytest.TempPathFactory, written: list[Record]
) -> None:
    path = tmp_path_factory.mktemp("records") / "data.jsonl"
    path.write_bytes(b"".join(map(encode_record, written)))
    assert read_records(path) == written


@settings(deadline=None)
@given(st.lists(any_record, max_size=5), st.lists(any_record, max_size=5))
def test_digests_are_equal_exactly_for_equal_records(
    some: list[Record], others: list[Record]
) -> None:
    assert (records_digest(some) == records_digest(others)) == (some == others)


def test_the_digest_depends_on_order() -> None:
    assert records_digest(RECORDS) != records_digest(RECORDS[::-1])


def test_the_digest_is_that_of_the_canonical_lines() -> None:
    line = b'{"client":null,"label":"b","text":"\xc3\xa4"}\n'
    expected = f"sha256:{hashlib.sha256(line + line).hexdigest()}"
    assert records_digest([Record(text="\u00e4", label="b")] * 2) == expected
