"""The study's records, read from the shared data."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType

from intarsia_client.errors import InputError
from intarsia_client.records import Record, read_records
from study import Dataset

SPINE = Path(__file__).resolve().parent.parent / "spine"


@dataclass(frozen=True, kw_only=True)
class Texts:
    """One data set's records.

    Args:
        train: To train on.
        test: The global test set.
        validation: What learning rates are chosen by.
        labels: Class names in order; empty for language modelling.
    """

    train: tuple[Record, ...]
    test: tuple[Record, ...]
    validation: tuple[Record, ...]
    labels: tuple[str, ...]


@lru_cache(maxsize=4)
def read_texts(dataset: Dataset, shared: Path) -> Texts:
    """Read a data set's records.

    Args:
        dataset: Which, and how much of it.
        shared: The folder of shared data.

    Returns:
        The records; every class has as many as any other.

    Raises:
        InputError: If the data is not there or has too few records.
    """
    chosen = _banking77 if dataset.name == "banking77" else _shakespeare
    return chosen(dataset, shared)


def base_path(dataset: Dataset, shared: Path) -> str:
    """Where a data set's base model lies.

    Args:
        dataset: The data set.
        shared: The folder of shared data.

    Returns:
        MiniLM's package for banking77, checked by hash; stories260k for Shakespeare.

    Raises:
        InputError: If stories260k is not there.
        SystemExit: If MiniLM's weights are others than the ones the figures were made with.
    """
    if dataset.name == "banking77":
        return str(_spine("run").minilm())
    folder = shared / "stories260k" / "hf"
    if not folder.is_dir():
        raise InputError("stories260k", folder, "name the data's folder with --shared")
    return str(folder)


@lru_cache
def _spine(name: str) -> ModuleType:
    """A script of the neighbouring study, which knows how to find and to cut the same data."""
    spec = importlib.util.spec_from_file_location(f"spine_{name}", SPINE / f"{name}.py")
    if spec is None or spec.loader is None:
        raise InputError("study", SPINE / f"{name}.py", "check the repository out whole")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _banking77(dataset: Dataset, shared: Path) -> Texts:
    folder = shared / "banking77"
    if not folder.is_dir():
        raise InputError("banking77", folder, "name the data's folder with --shared")
    train = _by_class(dataset, folder / "train.csv")
    test = _by_class(dataset, folder / "test.csv")
    labels = tuple(sorted(train))[: dataset.classes]
    here = dataset.train + dataset.validation
    return Texts(
        train=_first(dataset, train, labels, 0, dataset.train),
        validation=_first(dataset, train, labels, dataset.train, here),
        test=_first(dataset, test, labels, 0, dataset.test),
        labels=labels,
    )


def _shakespeare(dataset: Dataset, shared: Path) -> Texts:
    path = shared / "tinyshakespeare" / "input.txt"
    if not path.is_file():
        raise InputError("tinyshakespeare", path, "name the data's folder with --shared")
    found = {
        speaker: sorted({turn for turn in turns if len(turn) <= dataset.longest_text}, key=_hash)
        for speaker, turns in _spine("prepare").turns(path.read_text()).items()
    }
    largest = sorted(found, key=lambda speaker: (-len(found[speaker]), speaker))
    speakers = sorted(largest[: dataset.classes])
    records = {
        speaker: [Record(text=turn, label=speaker) for turn in found[speaker]]
        for speaker in speakers
    }
    held_out = dataset.train + dataset.test
    here = held_out + dataset.validation
    return Texts(
        train=_first(dataset, records, speakers, 0, dataset.train),
        test=_first(dataset, records, speakers, dataset.train, held_out),
        validation=_first(dataset, records, speakers, held_out, here),
        labels=(),
    )


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def _by_class(dataset: Dataset, path: Path) -> dict[str, list[Record]]:
    classes: defaultdict[str, list[Record]] = defaultdict(list)
    for record in read_records(path, label="category", client=None):
        if len(record.text) <= dataset.longest_text:
            classes[record.label or ""].append(record)
    return dict(classes)


def _first(
    dataset: Dataset,
    classes: dict[str, list[Record]],
    chosen: Sequence[str],
    begin: int,
    end: int,
) -> tuple[Record, ...]:
    few = [name for name in chosen if len(classes[name]) < end]
    if few or len(chosen) < dataset.classes:
        raise InputError(
            f"records of {dataset.name}",
            f"{few[0] if few else 'classes'} has too few",
            "lower train, test, validation or classes in the study's configuration",
        )
    return tuple(record for name in chosen for record in classes[name][begin:end])
