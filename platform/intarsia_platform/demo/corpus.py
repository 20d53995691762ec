"""Documentation text that is already on the machine, cut into records for the demonstration.

A demonstration of federated learning needs text that differs from site to site, that may be
shown to anybody, and that needs no download. Every installation of Intarsia carries such text:
the docstrings of the libraries it depends on. Each library plays one *department*; what its
files say is that department's private data. The base model is trained on the standard library
alone (``train_base``), so that what a department teaches is new to it.

Nothing here imports the code it reads: files are found through ``importlib.util.find_spec`` and
read through ``ast`` (see ``extraction``). Everything is a function of the seed and of the files'
contents and relative paths; clocks, absolute paths and global random state play no part.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from intarsia_client.files import write_bytes

from intarsia_platform.demo.extraction import (
    clean_text,
    cut_passages,
    extract_comments,
    extract_docstrings,
    literal_strings,
)

DEPARTMENTS: tuple[str, ...] = (
    "torch",
    "transformers",
    "ray",
    "mlflow",
    "sqlalchemy",
    "matplotlib",
    "networkx",
    "scipy",
)
"""The eight libraries that play departments, by import name.

All are pinned by this project's installation, directly or through one dependency, and among the
candidates their vocabularies overlap least.
"""

STANDARD_LIBRARY = "stdlib"
"""The ``client`` of records that come from the standard library."""

LARGEST_FILE = 200_000
"""Characters above which a library's file is skipped: parsing it would cost more than it brings."""

_SKIPPED_FOLDERS = frozenset(
    {
        "__pycache__",
        "_testing",
        "_vendor",
        "_vendored",
        "dist-packages",
        "ensurepip",
        "externals",
        "idle_test",
        "idlelib",
        "lib2to3",
        "node_modules",
        "site-packages",
        "test",
        "testing",
        "tests",
        "third_party",
        "thirdparty",
        "thirdparty_files",
        "turtledemo",
        "vendor",
        "vendored",
    }
)
_TOPICS = "pydoc_data/topics.py"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One passage of text and where it came from.

    Attributes:
        text: The passage, in the layout of the documentation it was cut from.
        client: The department whose text it is, or ``"stdlib"``.
        source: The file, relative to the library's root, with forward slashes.
    """

    text: str
    client: str
    source: str


def package_root(name: str) -> Path:
    """Finds the folder of an installed top-level package without importing it.

    Args:
        name: The import name, without dots.

    Returns:
        The folder that holds the package's ``__init__.py``.

    Raises:
        ValueError: If the name has a dot: finding a submodule would import its parents.
        FileNotFoundError: If no such package is installed.
    """
    if not name.isidentifier():
        raise ValueError(f"package {name!r} is not a top-level import name; use one without dots.")
    specification = importlib.util.find_spec(name)
    if specification is None or not specification.submodule_search_locations:
        raise FileNotFoundError(
            f"package {name!r} is not installed; install it, or choose another department."
        )
    return Path(next(iter(specification.submodule_search_locations)))


def department_records(
    name: str,
    *,
    seed: int,
    train_characters: int = 60_000,
    test_characters: int = 12_000,
    test_share: float = 0.2,
    passages_per_file: int = 6,
) -> tuple[list[Record], list[Record]]:
    """Takes a random sample of a library's documentation, split by file.

    A file's place in the sample and its side of the split follow from a hash of the seed and of
    its relative path. Files are read in that order until the budget is met, so the sample does
    not depend on how the library arranges its folders, and large libraries cost no more than
    small ones. What occurs twice in a department is kept once.

    Args:
        name: Import name of the library, usually one of ``DEPARTMENTS``.
        seed: Chooses the sample and the split.
        train_characters: Upper bound on the total length of the training records.
        test_characters: Upper bound on the total length of the held-out records.
        test_share: Share of the files, between 0 and 1, that is held out.
        passages_per_file: Most records that one file may give.

    Returns:
        The training records and the held-out records; no file gives both.

    Raises:
        ValueError: If a bound is negative or the share is not between 0 and 1.
        FileNotFoundError: If the library is not installed.
    """
    _require_bounds(train_characters, test_characters, passages_per_file, test_share)
    root = package_root(name)
    train_files: list[str] = []
    test_files: list[str] = []
    for source in sorted(_python_files(root), key=lambda path: _fraction(seed, "order", path)):
        held_out = _fraction(seed, "split", source) < test_share
        (test_files if held_out else train_files).append(source)
    # Different docstrings can share a long paragraph, so passages are compared as well.
    seen_docstrings: set[str] = set()
    seen_passages: set[str] = set()

    def sample(files: Sequence[str], budget: int) -> list[Record]:
        records: list[Record] = []
        for source in files:
            docstrings = _unseen(_documentation(root / source), seen_docstrings)
            passages = _unseen(cut_passages(docstrings), seen_passages)
            for text in _choose(passages, passages_per_file, seed, source):
                if len(text) > budget:
                    return records
                budget -= len(text)
                records.append(Record(text=text, client=name, source=source))
        return records

    return sample(train_files, train_characters), sample(test_files, test_characters)


def standard_library_records() -> list[Record]:
    """Reads the standard library's documentation: docstrings, comment blocks and help topics.

    Returns:
        Passages of all its files, in the order of their paths. A help topic of ``pydoc`` counts
        as a file of its own.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    seen: set[str] = set()
    records: list[Record] = []
    for source in _python_files(root):
        if source == _TOPICS:
            continue
        text = _read(root / source)
        documents = _unseen(extract_docstrings(text) + extract_comments(text), seen)
        records.extend(
            Record(text=passage, client=STANDARD_LIBRARY, source=source)
            for passage in cut_passages(documents)
        )
    for topic, text in sorted(literal_strings(_read(root / _TOPICS)).items()):
        records.extend(
            Record(text=passage, client=STANDARD_LIBRARY, source=f"{_TOPICS}#{topic}")
            for passage in cut_passages(_unseen([clean_text(text)], seen))
        )
    return records


def split_by_source(
    records: Iterable[Record], *, seed: int, test_share: float
) -> tuple[list[Record], list[Record]]:
    """Splits records into two parts so that no file stands on both sides.

    Args:
        records: Any records.
        seed: Chooses the split.
        test_share: Share of the files, between 0 and 1, that goes to the second part.

    Returns:
        The two parts, each in the order of the input.
    """
    parts: tuple[list[Record], list[Record]] = ([], [])
    for record in records:
        held_out = _fraction(seed, "split", record.source) < test_share
        parts[int(held_out)].append(record)
    return parts


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Writes records as JSON lines; the file appears complete or not at all.

    Args:
        path: The file to write. Its folder must exist.
        records: Each becomes one line with the keys ``text``, ``client`` and ``source``.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"folder {str(path.parent)!r} does not exist; create it first.")
    lines = (json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)
    write_bytes(path, "".join(lines).encode())


def _require_bounds(
    train_characters: int, test_characters: int, passages_per_file: int, test_share: float
) -> None:
    for key, value in (
        ("train_characters", train_characters),
        ("test_characters", test_characters),
        ("passages_per_file", passages_per_file),
    ):
        if value < 0:
            raise ValueError(f"{key}={value} must not be negative; give 0 or more.")
    if not 0.0 <= test_share <= 1.0:
        raise ValueError(f"test_share={test_share} is not a share; give a number from 0 to 1.")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _documentation(path: Path) -> list[str]:
    source = _read(path)
    return extract_docstrings(source) if len(source) <= LARGEST_FILE else []


def _python_files(root: Path) -> list[str]:
    """Lists a library's own Python files as sorted relative paths with forward slashes."""
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [
            name
            for name in folders
            if name not in _SKIPPED_FOLDERS and not name.startswith("config-")
        ]
        relative = Path(folder).relative_to(root)
        found.extend(
            (relative / name).as_posix()
            for name in files
            if name.endswith(".py")
            and not name.startswith(("test_", "conftest", "_sysconfigdata"))
            and not name.endswith(("_test.py", "_pb2.py", "_pb2_grpc.py"))
        )
    return sorted(found)


def _unseen(texts: Iterable[str], seen: set[str]) -> list[str]:
    fresh = []
    for text in texts:
        if text not in seen:
            seen.add(text)
            fresh.append(text)
    return fresh


def _choose(passages: Sequence[str], count: int, seed: int, source: str) -> list[str]:
    """Chooses passages at random by hash, and keeps them in reading order."""
    ranked = sorted(
        range(len(passages)), key=lambda index: _fraction(seed, "passage", f"{source}#{index}")
    )
    return [passages[index] for index in sorted(ranked[:count])]


def _fraction(seed: int, purpose: str, name: str) -> float:
    """Maps a name to a number in [0, 1) that is uniform over names and fixed for a seed."""
    digest = hashlib.sha256(f"{seed}\n{purpose}\n{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48
