"""A site's records, read from the files that sites have: JSON lines, CSV, Parquet, saved datasets.

Lines are read one at a time and checked as they come, so that a malformed file is refused with the
line's number before the rest of it is in memory.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from intarsia_client.errors import InputError
from intarsia_client.files import bytes_digest, canonical_json

MAX_LINE_BYTES = 1 << 26
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")

_Rows = Iterator[tuple[int, Mapping[str, object]]]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One example of a site's data.

    Args:
        text: The text, neither empty nor only white space.
        label: The class, where the task has classes.
        client: Whose record it is, where one file holds several clients' records.
    """

    text: str
    label: str | None = None
    client: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Fields:
    """Which fields to read, and which of them every record must have."""

    text: str
    label: str | None
    client: str | None
    required: tuple[str, ...]

    @property
    def wanted(self) -> list[str]:
        """The names of the fields to read, each once."""
        names = (self.text, self.label, self.client)
        return list(dict.fromkeys(name for name in names if name is not None))


@dataclass(frozen=True, kw_only=True)
class _Source:
    """The file that is being read, as errors name it."""

    thing: str
    file: Path

    def error(self, number: int, problem: str, remedy: str) -> InputError:
        """An error of the given line, or row of a table."""
        return InputError(self.thing, f"{self.file}:{number}: {problem}", remedy)

    def unreadable(self, error: Exception) -> InputError:
        """An error of the whole file."""
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        return InputError(self.thing, f"{self.file} ({reason})", "name a file that can be read")


def read_records(
    path: Path,
    *,
    text: str = "text",
    label: str | None = "label",
    client: str | None = "client",
    require_label: bool = False,
    require_client: bool = False,
    thing: str = "data file",
) -> list[Record]:
    """Read all records of a file or a folder, in order.

    Read are JSON lines (``.jsonl``, ``.json``), ``.csv`` and ``.tsv`` with a header line,
    ``.parquet``, a folder that ``datasets.Dataset.save_to_disk`` wrote, and a folder of such files
    (in the order of their names). Labels and clients that are whole numbers become strings; an
    empty or absent one is None.

    Args:
        path: The file or folder.
        text: Name of the field with the text.
        label: Name of the field with the class, None to read no labels.
        client: Name of the field with the client, None to read none.
        require_label: Refuse a record without a label.
        require_client: Refuse a record without a client.
        thing: What to call the path in errors, such as ``"data.train"``.

    Returns:
        At least one record.

    Raises:
        InputError: If there is no such file, it holds no record, it is of another kind, a line is
            malformed, longer than :data:`MAX_LINE_BYTES` or not UTF-8, or a field is missing or of
            the wrong type; names the line.
    """
    required = [text]
    required += [label] if require_label and label is not None else []
    required += [client] if require_client and client is not None else []
    fields = _Fields(text=text, label=label, client=client, required=tuple(required))
    try:
        sources = _sources(path, thing)
    except OSError as error:
        raise _Source(thing=thing, file=path).unreadable(error) from None
    records = [
        _record(source, number, row, fields)
        for source in sources
        for number, row in _rows(source, fields)
    ]
    if not records:
        raise InputError(thing, f"{path} holds no records", "name a file with at least one")
    return records


def encode_record(record: Record) -> bytes:
    """One canonical JSON line of a record, with its line feed; equal records give equal bytes."""
    line = {"client": record.client, "label": record.label, "text": record.text}
    return canonical_json(line) + b"\n"


def records_digest(records: Sequence[Record]) -> str:
    """Digest of records in their order, whatever kind of file they came from.

    Args:
        records: The records.

    Returns:
        ``"sha256:"`` and 64 hexadecimal digits over the lines of :func:`encode_record`.
    """
    return bytes_digest(*map(encode_record, records))


def _sources(path: Path, thing: str) -> list[_Source]:
    """The files to read, in order."""
    if not path.exists():
        raise InputError(thing, f"{path} does not exist", "name a file or folder that is there")
    if not path.is_dir():
        return [_Source(thing=thing, file=path)]
    if (path / "state.json").is_file():
        return [_Source(thing=thing, file=file) for file in _saved_dataset_files(path, thing)]
    if (path / "dataset_dict.json").is_file():
        splits = sorted(child.name for child in path.iterdir() if child.is_dir())
        raise InputError(
            thing, f"{path} holds several splits", f"name one of its folders: {', '.join(splits)}"
        )
    files = sorted(child for child in path.iterdir() if child.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(thing, f"{path} has no data file", f"put {', '.join(SUFFIXES)} there")
    return [_Source(thing=thing, file=file) for file in files]


def _saved_dataset_files(directory: Path, thing: str) -> list[Path]:
    """The Arrow files of a folder that ``save_to_disk`` wrote, in the order of its state."""
    source = _Source(thing=thing, file=directory / "state.json")
    try:
        state = json.loads(source.file.read_bytes())
        names = [str(entry["filename"]) for entry in state["_data_files"]]
        reordered = state.get("_indices_data_files")
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError, OSError) as error:
        raise source.unreadable(error) from None
    if reordered:
        raise InputError(thing, f"{directory} is a view on other rows", "flatten_indices, save it")
    strange = [name for name in names if Path(name).name != name]
    if strange:
        raise InputError(thing, f"{source.file} names {strange[0]}", "keep the files beside it")
    return [directory / name for name in names]


def _rows(source: _Source, fields: _Fields) -> _Rows:
    """Rows of one file with their line or row numbers, from 1."""
    suffix = source.file.suffix.lower()
    if suffix in (".parquet", ".arrow"):
        yield from _arrow_rows(source, fields)
        return
    if suffix not in SUFFIXES:
        raise InputError(source.thing, source.file, f"use one of {', '.join(SUFFIXES)}")
    try:
        with source.file.open("rb") as stream:
            if suffix in (".csv", ".tsv"):
                yield from _table_rows(source, stream, "excel" if suffix == ".csv" else "excel-tab")
            else:
                yield from _json_rows(source, stream)
    except OSError as error:
        raise source.unreadable(error) from None


def _lines(source: _Source, stream: BinaryIO) -> Iterator[str]:
    for number in itertools.count(1):
        line = stream.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_LINE_BYTES:
            raise source.error(
                number, f"longer than {MAX_LINE_BYTES >> 20} MiB", "split it into several records"
            )
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise source.error(
                number, f"byte {error.start + 1} is not UTF-8", "save the file as UTF-8"
            ) from None


def _json_rows(source: _Source, stream: BinaryIO) -> _Rows:
    for number, line in enumerate(_lines(source, stream), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.rstrip("\r\n"))
        except json.JSONDecodeError as error:
            problem = f"{error.msg} at column {error.colno}"
            raise source.error(number, problem, "write one JSON object a line") from None
        except (ValueError, RecursionError) as error:
            raise source.error(number, str(error), "write one JSON object a line") from None
        if not isinstance(row, dict):
            raise source.error(
                number, f"a JSON {type(row).__name__}", "write one JSON object a line"
            )
        yield number, row


def _table_rows(source: _Source, stream: BinaryIO, dialect: str) -> _Rows:
    # The limit belongs to the process; it is only ever raised, to what a line may hold anyway.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    reader = csv.reader(_lines(source, stream), dialect, strict=True)
    header: list[str] = []
    number = 1
    try:
        for cells in reader:
            if not cells:
                pass
            elif not header:
                header = cells
                repeated = [name for name in header if header.count(name) > 1]
                if repeated:
                    raise source.error(number, f"two fields {repeated[0]!r}", "rename one of them")
            elif len(cells) != len(header):
                problem = f"{len(cells)} fields, the header has {len(header)}"
                raise source.error(number, problem, "quote texts that hold the separator")
            else:
                yield number, dict(zip(header, cells, strict=True))
            number = reader.line_num + 1
    except csv.Error as error:
        raise source.error(
            number, str(error), "quote texts that hold a quote or separator"
        ) from None


def _arrow_rows(source: _Source, fields: _Fields) -> _Rows:
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError:
        raise InputError(
            source.thing, source.file, "pip install 'intarsia-client[parquet]' to read this kind"
        ) from None
    try:
        if source.file.suffix.lower() == ".parquet":
            table = parquet.ParquetFile(source.file)
            present = table.schema_arrow.names
            columns = [name for name in fields.wanted if name in present]
            batches = table.iter_batches(batch_size=1024, columns=columns)
        else:
            batches = ipc.open_stream(pyarrow.memory_map(str(source.file)))
            present = batches.schema.names
            columns = [name for name in fields.wanted if name in present]
        _check_fields(source, 1, present, fields)
        yield from enumerate(_batch_rows(batches, columns), 1)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise source.unreadable(error) from None


def _batch_rows(batches: Iterable[Any], columns: list[str]) -> Iterator[Mapping[str, object]]:
    for batch in batches:
        values = (batch.column(name).to_pylist() for name in columns)
        for row in zip(*values, strict=True):
            yield dict(zip(columns, row, strict=True))


def _check_fields(source: _Source, number: int, present: Collection[str], fields: _Fields) -> None:
    for name in fields.required:
        if name not in present:
            there = ", ".join(map(str, itertools.islice(present, 20))) or "none"
            raise source.error(
                number, f"no field {name!r}", f"name it in the configuration; there are: {there}"
            )


def _record(source: _Source, number: int, row: Mapping[str, object], fields: _Fields) -> Record:
    _check_fields(source, number, row, fields)
    text = row[fields.text]
    if not isinstance(text, str):
        kind = type(text).__name__
        raise source.error(number, f"field {fields.text!r} is {kind}", "make it a string")
    if not text.strip():
        raise source.error(number, f"field {fields.text!r} is empty", "leave the record out")
    if len(text) > MAX_LINE_BYTES:
        raise source.error(number, f"field {fields.text!r} is too long", "split the record")
    return Record(
        text=_encodable(source, number, fields.text, text),
        label=_name(source, number, row, fields.label, fields.required),
        client=_name(source, number, row, fields.client, fields.required),
    )


def _name(
    source: _Source,
    number: int,
    row: Mapping[str, object],
    field: str | None,
    required: Collection[str],
) -> str | None:
    """A label's or a client's name, None where the record has none."""
    value = None if field is None else row.get(field)
    if field is None or value is None or value == "":
        if field in required:
            raise source.error(
                number, f"field {field!r} is empty", "fill it or leave the record out"
            )
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        problem = f"field {field!r} is {type(value).__name__}"
        raise source.error(number, problem, "make it a string or a whole number")
    return _encodable(source, number, field, str(value))


def _encodable(source: _Source, number: int, field: str, value: str) -> str:
    """Refuse halves of surrogate pairs, which JSON escapes can bring in and UTF-8 cannot write."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise source.error(
            number, f"field {field!r} holds half of a surrogate pair", "write whole characters"
        ) from None
    return value
